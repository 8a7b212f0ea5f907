"""Choosing among flows within the time of a fit: how many there is time for, and which kind does best at first."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from pushforward.config.schema import Config
from pushforward.train.architecture import build_model, describe, initialize, sizes_of
from pushforward.train.data import Prepared
from pushforward.train.defaults import candidates, members_for, settings
from pushforward.train.device import Steps, threads_for
from pushforward.train.objectives.likelihood import Likelihood, Rows
from pushforward.train.trainer import DivergedError, State, differentiate, minimize, start

COMPARISON_SHARE = 0.08
"""Share of the budget in which candidates are compared, all of them together. The winner goes on from where it stands.

With 0.2, two minutes on protein ended 0.3 nats below what the winner alone reaches in them."""

LEAST_STEPS = 400
"""Steps of each candidate below which a comparison says nothing: flows learn at different speeds at first.

With 150 of them a spline flow was ahead of three mixtures on the power plant, which end 0.4 nats above it."""

_TIMED_STEPS, _TIMED_SECONDS, _TIMED_SHARE = 20, 0.6, 0.03


@dataclass(frozen=True)
class CandidateResult:
    """What a candidate reached: its validation NLL in standardised units, and the steps it took."""

    flow: str
    val_nll: float
    steps: int


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        config: The configuration.
        state: Where it stands, its clock at the time the whole choice took.
        step_seconds: Time of a step of one flow.
        results: What each candidate reached, the best first; empty where none were compared.
    """

    config: Config
    state: State
    step_seconds: float
    results: tuple[CandidateResult, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Content of ``selection.json``."""
        return {
            "flow": describe(self.config.flow),
            "step_seconds": self.step_seconds,
            "seconds": self.state.progress.seconds,
            "candidates": [asdict(result) for result in self.results],
        }


def select_model(
    prepared: Prepared,
    config: Config,
    device: torch.device,
    *,
    stop: Callable[[], str],
    tell: Callable[[str], object],
) -> Selection:
    """Decide how many flows to average, by the time of a step; and of which kind, where there is time to compare.

    Args:
        prepared: The data.
        config: A configuration that leaves both open.
        device: Where to train.
        stop: Asked for a reason to end; what there is then decides.
        tell: Told in a line what was chosen, and of a candidate that did not stay finite.

    Raises:
        DivergedError: If no candidate stayed finite.
    """
    rows, features = prepared.recorded.shape
    single = _of_one(candidates(config, 1, rows=rows, features=features)[0])  # also where more were asked for
    budget = single.train.seconds
    assert budget != "auto"  # resolve has decided it
    points = prepared.training_points(device), prepared.validation_points(device)
    state = _begin(prepared, single, device)  # the first optimizer of a process imports for a second: not in a budget
    began = time.perf_counter()
    longest = min(_TIMED_SECONDS, _TIMED_SHARE * budget)
    step_seconds = _time_of_a_step(state, points, single, longest)
    first, *others = candidates(config, members_for(rows, step_seconds, budget), rows=rows, features=features)

    def has_time(candidate: Config) -> bool:
        members = candidate.flow.members
        assert members != "auto"  # resolve has decided it
        most = COMPARISON_SHARE * budget / (1 + len(others)) / LEAST_STEPS / members
        one = _of_one(candidate)
        if one == single:
            return step_seconds <= most
        return _time_of_a_step(_begin(prepared, one, device), points, one, longest, most) <= most

    # Where the first has no time nothing is compared, and the steps of the others need no timing.
    compared = [first] if others and has_time(first) else []
    compared += [candidate for candidate in others if compared and not stop() and has_time(candidate)]
    if len(compared) < 2:
        why = f": no time to compare kinds ({1e3 * step_seconds:.1f} ms a step and flow)" if others else ""
        tell(f"flow      {describe(first.flow)}{why}")
        outcome = Selection(first, _begin(prepared, first, device), step_seconds)
    else:
        kinds = " against ".join(describe(candidate.flow) for candidate in compared)
        tell(f"selection {kinds}, {COMPARISON_SHARE * budget:.0f} of {budget:g} s")
        results, winner, state = _compare(prepared, points, compared, device, stop, tell)
        outcome = Selection(winner, state, step_seconds, results)
        said = ", ".join(f"{result.flow} {result.val_nll:.3f}" for result in results)
        tell(f"selection won by {results[0].flow}; validation NLL in standardised units: {said}")
    progress = outcome.state.progress
    progress.seconds, progress.stop_reason = time.perf_counter() - began, ""
    progress.best_fraction = min(1.0, progress.seconds / budget)
    outcome.state.flow.train()
    return outcome


def _of_one(config: Config) -> Config:
    """The same with a single flow."""
    return config.model_copy(update={"flow": config.flow.model_copy(update={"members": 1})})


def _begin(prepared: Prepared, config: Config, device: torch.device) -> State:
    core = build_model(config.flow, *sizes_of(prepared), seed=config.seed)
    return start(initialize(core, prepared, device, seed=config.seed), settings(config.train))


def _uncompiled(config: Config) -> Literal["auto", "off"]:
    """How layers are computed while steps are timed: nobody compiles for a few of them."""
    return "off" if config.train.compile == "off" else "auto"


def _time_of_a_step(
    state: State, points: tuple[Rows, Rows], config: Config, seconds: float, most: float = math.inf
) -> float:
    """Seconds, the median of a few steps after the first ones, which may compile something.

    Args:
        state: What takes the steps, from its beginning.
        points: Training and validation points.
        config: Its configuration.
        seconds: Time after which no further step begins.
        most: Seconds of a step beyond which it does not matter how many more they are.
    """
    objective = Likelihood(*points, settings(config.train).batch_size)
    parameters, told = list(state.flow.parameters()), replace(settings(config.train), compile=_uncompiled(config))
    steps = Steps(state.flow, told, lambda text: None)
    times: list[float] = []
    with threads_for(config, state.flow.features):
        while len(times) < 2 or (len(times) < _TIMED_STEPS and sum(times) < seconds and min(times) <= most):
            began = time.perf_counter()
            steps.run(differentiate, objective, state.flow, state.optimizer, objective.draw(0.0))
            with steps.exact():
                norm = state.optimizer.clipped_step(parameters, told.gradient_clip, state.average, told.ema_decay)
            float(norm)  # waits for a device that works on its own
            times.append(time.perf_counter() - began)
    return statistics.median(times[(len(times) + 1) // 3 :])


def _compare(
    prepared: Prepared,
    points: tuple[Rows, Rows],
    candidates: list[Config],
    device: torch.device,
    stop: Callable[[], str],
    tell: Callable[[str], object],
) -> tuple[tuple[CandidateResult, ...], Config, State]:
    """Train each candidate for its share of the time, on a schedule that ends there; the best comes first."""
    found: list[tuple[Config, State]] = []
    for config in candidates:
        if stop() and found:
            break
        told = settings(config.train)
        assert told.seconds is not None  # candidates are compared only for budgets in seconds
        told = replace(
            told, seconds=told.seconds * COMPARISON_SHARE / len(candidates), warmup=min(told.warmup, 20), patience=1.0
        )
        state = _begin(prepared, config, device)
        try:
            with threads_for(config, state.flow.features):
                state = minimize(state, Likelihood(*points, told.batch_size), told, stop=stop)
        except DivergedError as error:
            tell(f"{describe(config.flow)} is out: {error}")
            if config is candidates[-1] and not found:
                raise
            continue
        found.append((config, state))
    found.sort(key=lambda candidate: candidate[1].progress.best_loss)
    results = (CandidateResult(describe(c.flow), state.progress.best_loss, state.progress.step) for c, state in found)
    return tuple(results), *found[0]
