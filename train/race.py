"""Choosing among flows by a short race on validation likelihood."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pushforward.train.architecture import build_model, describe, initialize, sizes_of
from pushforward.train.config import Config
from pushforward.train.likelihood import Likelihood
from pushforward.train.loop import DivergedError, State, minimize, start
from pushforward.train.prepare import Prepared
from pushforward.train.session import threads_for
from pushforward.train.settings import settings

SHARE = 0.2
"""Share of the budget that a race takes, all runners together. The winner goes on from where it stands."""


@dataclass(frozen=True)
class Result:
    """What a runner reached: its validation NLL in standardised units, and the steps it took."""

    flow: str
    val_nll: float
    steps: int


@dataclass(frozen=True)
class Outcome:
    """What a race found.

    Attributes:
        config: The winner's configuration.
        state: Where the winner stands, its clock at the time the whole race took.
        results: What each runner reached, the best first.
    """

    config: Config
    state: State
    results: tuple[Result, ...]

    def line(self) -> str:
        """One line on who won, and by how much."""
        first, *others = self.results
        behind = ", ".join(f"{other.flow} {other.val_nll - first.val_nll:+.3f}" for other in others)
        return f"race      {first.flow} is ahead: validation NLL {first.val_nll:.3f} (standardised); {behind}"


def race(
    prepared: Prepared,
    runners: list[Config],
    device: torch.device,
    *,
    stop: Callable[[], str],
    tell: Callable[[str], object],
) -> Outcome:
    """Train each runner for its share of the time, on a schedule of its own that ends there, and take the best.

    Args:
        prepared: The data.
        runners: Resolved configurations with one budget in seconds.
        device: Where to train.
        stop: Asked for a reason to end; what there is then decides.
        tell: Told of a runner that did not stay finite.

    Raises:
        DivergedError: If none did.
    """
    began = time.perf_counter()
    budget = runners[0].train.seconds
    assert budget != "auto"  # resolve has decided it
    found: list[tuple[Config, State]] = []
    for config in runners:
        if stop() and found:
            break
        told = replace(settings(config.train), seconds=budget * SHARE / len(runners), patience=1.0)
        core = build_model(config.flow, *sizes_of(prepared), seed=config.seed)
        state = start(initialize(core, prepared, device, seed=config.seed), told)
        likelihood = Likelihood(prepared.training_points(device), prepared.validation_points(device), told.batch_size)
        try:
            with threads_for(config, state.flow.features):
                state = minimize(state, likelihood, told, stop=stop)
        except DivergedError as error:
            tell(f"{describe(config.flow)} is out of the race: {error}")
            if config is runners[-1] and not found:
                raise
            continue
        found.append((config, state))
    found.sort(key=lambda runner: runner[1].progress.best_loss)
    results = tuple(
        Result(describe(config.flow), state.progress.best_loss, state.progress.step) for config, state in found
    )
    config, state = found[0]
    progress = state.progress
    progress.seconds, progress.stop_reason = time.perf_counter() - began, ""
    progress.best_fraction = min(1.0, progress.seconds / budget)
    state.flow.train()
    return Outcome(config, state, results)
