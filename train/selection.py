"""Model selection within the time of a fit: the number of flows in a mixture, and the best kind of flow."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from pushforward.config.schema import Config
from pushforward.train.architecture import build_model, describe, describe_in_words, initialize, sizes_of
from pushforward.train.data import Prepared
from pushforward.train.defaults import candidates, members_for, train_options
from pushforward.train.device import StepExecutor, threads_for
from pushforward.train.objectives.likelihood import Likelihood, RowTensors
from pushforward.train.trainer import DivergedError, State, differentiate, minimize, start

COMPARISON_SHARE = 0.08
"""Share of the budget in which all candidates together are compared; training continues from the selected one.

With 0.2, two minutes on protein ended 0.3 nats worse than the selected candidate alone in the same time."""

LEAST_STEPS = 400
"""Fewest steps of each candidate for a meaningful comparison: flows learn at different speeds at first.

With 150 steps, a spline flow was better than three mixtures on the power plant data, but ended 0.4 nats worse."""

_TIMED_STEPS, _TIMED_SECONDS, _TIMED_SHARE = 20, 0.6, 0.03


@dataclass(frozen=True)
class CandidateResult:
    """The result of a candidate: its validation NLL in standardised units, and the steps it took."""

    flow: str
    val_nll: float
    steps: int


@dataclass(frozen=True)
class Selection:
    """The result of model selection.

    Attributes:
        config: The selected configuration.
        state: Its state to continue training from; its clock has the time that the selection took.
        step_seconds: Time of a step of a single flow.
        results: The results of the candidates, the best first; empty if none were compared.
    """

    config: Config
    state: State
    step_seconds: float
    results: tuple[CandidateResult, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
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
    notify: Callable[[str], object],
) -> Selection:
    """Select how many flows to average by the time of a step, and the kind of flow if there is time to compare.

    Args:
        prepared: The data.
        config: A configuration that leaves both open.
        device: The device to train on.
        stop: Returns a reason to stop, or an empty string; if it stops, the results so far decide.
        notify: Called with one line about the selection, and about a candidate that diverged.

    Raises:
        DivergedError: If all candidates diverged.
    """
    rows, features = prepared.recorded.shape
    single = _with_one_member(candidates(config, 1, rows=rows, features=features)[0])  # also if more are configured
    budget = single.train.seconds
    assert budget != "auto"  # resolve has decided it
    data = prepared.training_rows(device), prepared.validation_rows(device)
    # Before the clock starts: the first optimizer of a process imports for a second.
    state = _start(prepared, single, device)
    began = time.perf_counter()
    longest = min(_TIMED_SECONDS, _TIMED_SHARE * budget)
    step_seconds = _measure_step_seconds(state, data, single, longest)
    first, *others = candidates(config, members_for(rows, step_seconds, budget), rows=rows, features=features)

    def has_time(candidate: Config) -> bool:
        members = candidate.flow.members
        assert members != "auto"  # resolve has decided it
        most = COMPARISON_SHARE * budget / (1 + len(others)) / LEAST_STEPS / members
        one = _with_one_member(candidate)
        if one == single:
            return step_seconds <= most
        return _measure_step_seconds(_start(prepared, one, device), data, one, longest, most) <= most

    # If there is no time for the first candidate nothing is compared, and the others need not be timed.
    compared = [first] if others and has_time(first) else []
    compared += [candidate for candidate in others if compared and not stop() and has_time(candidate)]
    if len(compared) < 2:
        why = f"; no time to compare it with others ({1e3 * step_seconds:.1f} ms a step of one flow)" if others else ""
        notify(f"model: {describe_in_words(first.flow)}{why}")
        selection = Selection(first, _start(prepared, first, device), step_seconds)
    else:
        kinds = " with ".join(describe_in_words(candidate.flow) for candidate in compared)
        notify(f"model: comparing {kinds}, for {COMPARISON_SHARE * budget:.0f} of {budget:g} s")
        results, best, state = _compare(prepared, data, compared, device, stop, notify)
        selection = Selection(best, state, step_seconds, results)
        scores = ", ".join(f"{result.flow} {result.val_nll:.3f}" for result in results)
        notify(f"model: {describe_in_words(best.flow)}; validation NLL so far, in standardised units: {scores}")
    progress = selection.state.progress
    progress.seconds, progress.stop_reason = time.perf_counter() - began, ""
    progress.best_seconds = progress.seconds
    selection.state.flow.train()
    return selection


def _with_one_member(config: Config) -> Config:
    return config.model_copy(update={"flow": config.flow.model_copy(update={"members": 1})})


def _start(prepared: Prepared, config: Config, device: torch.device) -> State:
    """Build and initialise a candidate."""
    model = build_model(config.flow, *sizes_of(prepared), seed=config.seed)
    return start(initialize(model, prepared, device, seed=config.seed), train_options(config.train))


def _uncompiled(config: Config) -> Literal["auto", "off"]:
    """How layers are computed while steps are timed: a few steps do not gain from compilation."""
    return "off" if config.train.compile == "off" else "auto"


def _measure_step_seconds(
    state: State, data: tuple[RowTensors, RowTensors], config: Config, seconds: float, most: float = math.inf
) -> float:
    """Median time of a few steps, without the first ones, which may compile something.

    Args:
        state: A new state, which takes the steps.
        data: Training and validation rows.
        config: Its configuration.
        seconds: No further step begins after this time.
        most: Measuring ends early once all steps took longer than this.
    """
    objective = Likelihood(*data, train_options(config.train).batch_size)
    parameters = list(state.flow.parameters())
    options = replace(train_options(config.train), compile=_uncompiled(config))
    executor = StepExecutor(state.flow, options, lambda text: None)
    times: list[float] = []
    with threads_for(config, state.flow.features):
        while len(times) < 2 or (len(times) < _TIMED_STEPS and sum(times) < seconds and min(times) <= most):
            began = time.perf_counter()
            executor.run(differentiate, objective, state.flow, state.optimizer, objective.draw(0.0))
            with executor.exact():
                norm = state.optimizer.clipped_step(parameters, options.gradient_clip, state.average, options.ema_decay)
            float(norm)  # waits for the device
            times.append(time.perf_counter() - began)
    return statistics.median(times[(len(times) + 1) // 3 :])


def _compare(
    prepared: Prepared,
    data: tuple[RowTensors, RowTensors],
    candidates: list[Config],
    device: torch.device,
    stop: Callable[[], str],
    notify: Callable[[str], object],
) -> tuple[tuple[CandidateResult, ...], Config, State]:
    """Train each candidate for its share of the time, on a schedule of that length; the best result comes first."""
    trained: list[tuple[Config, State]] = []
    for config in candidates:
        if stop() and trained:
            break
        options = train_options(config.train)
        assert options.seconds is not None  # candidates are compared only for budgets in seconds
        share = options.seconds * COMPARISON_SHARE / len(candidates)
        options = replace(options, seconds=share, warmup=min(options.warmup, 20), patience=1.0)
        state = _start(prepared, config, device)
        try:
            with threads_for(config, state.flow.features):
                state = minimize(state, Likelihood(*data, options.batch_size), options, stop=stop)
        except DivergedError as error:
            notify(f"{describe(config.flow)} diverged: {error}")
            if config is candidates[-1] and not trained:
                raise
            continue
        trained.append((config, state))
    trained.sort(key=lambda candidate: candidate[1].progress.best_loss)
    results = (CandidateResult(describe(c.flow), state.progress.best_loss, state.progress.step) for c, state in trained)
    return tuple(results), *trained[0]
