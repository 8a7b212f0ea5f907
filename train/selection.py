"""Model selection within the budget of a fit: the number of flows in a mixture, and the best kind of flow."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pushforward.flows.random_state import RandomState
from pushforward.train.architecture import build_model, describe, describe_in_words, initialize, sizes_of
from pushforward.train.callbacks import Callback, Callbacks
from pushforward.train.data import Prepared
from pushforward.train.defaults import Asked, candidates, members_for, resolve
from pushforward.train.device import StepExecutor, threads_for
from pushforward.train.divergence import DivergedError
from pushforward.train.objectives.likelihood import Likelihood
from pushforward.train.options import Options, TrainOptions
from pushforward.train.selection_folder import KeepCandidate, SelectionFolder
from pushforward.train.state import State, start
from pushforward.train.trainer import Trainer

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
        options: The selected options.
        state: Its state to continue training from; its clock has the time that the selection took, or its counter the
            steps of all candidates if the budget is in steps.
        step_seconds: Time of a step of a single flow; None if the budget is in steps.
        results: The results of the candidates, the best first; empty if none were compared.
        is_complete: False if a callback ended it before all candidates had their share of the budget.
    """

    options: Options
    state: State
    step_seconds: float | None
    results: tuple[CandidateResult, ...] = ()
    is_complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "flow": describe(self.options.flow),
            "step_seconds": self.step_seconds,
            "seconds": self.state.progress.seconds,
            "candidates": [asdict(result) for result in self.results],
        }


def select_model(
    prepared: Prepared,
    asked: Asked,
    device: torch.device,
    *,
    callbacks: Sequence[Callback] = (),
    embedding: nn.Module | None = None,
    folder: Path | None = None,
) -> Selection:
    """Select how many flows to average by the time of a step, and the kind of flow if there is time to compare.

    A budget in steps fixes the number of flows; everything then depends on the seed alone.

    Args:
        prepared: The data.
        asked: Keys that leave both open.
        device: The device to train on.
        callbacks: Their ``should_stop`` ends the selection, so that the results so far decide; ``on_message`` is called
            with one line about the selection, and about a candidate that diverged.
        embedding: As for ``build_model``.
        folder: Where the candidates are kept, so that an interrupted selection goes on; None for nowhere.

    Raises:
        DivergedError: If all candidates diverged.
    """
    choice = _Choice(prepared, asked, device, callbacks, embedding, folder)
    first = resolve(asked, rows=choice.rows, features=choice.features, is_toy=False)
    return choice.by_steps(first) if first.train.seconds is None else choice.by_time(first.train.seconds)


class _Choice:
    """One call of :func:`select_model`."""

    def __init__(
        self,
        prepared: Prepared,
        asked: Asked,
        device: torch.device,
        callbacks: Sequence[Callback],
        embedding: nn.Module | None,
        folder: Path | None,
    ) -> None:
        self.prepared, self.asked, self.device, self.callbacks = prepared, asked, device, Callbacks(callbacks)
        self.embedding, self.folder = embedding, SelectionFolder(folder, self.callbacks.on_warning)
        self.rows, self.features = prepared.recorded.shape
        self.data = prepared.training_rows(device), prepared.validation_rows(device)

    def by_steps(self, first: Options) -> Selection:
        """Select within a budget in steps."""
        found = self.candidates(first.flow.members)
        share = COMPARISON_SHARE * (first.train.steps or 0) / len(found)
        if len(found) == 1 or share < LEAST_STEPS:
            self.notify(f"model: {describe_in_words(found[0].flow)}")
            return Selection(found[0], self.start(found[0]), None)
        selection = self.compare(found, {"steps": int(share)}, f"{int(share):,} of {first.train.steps:,} steps each")
        progress = selection.state.progress
        # Steps of all candidates count, as their time does where the budget is in seconds.
        others = sum(result.steps for result in selection.results) - progress.step
        progress.step, progress.best_step = progress.step + others, progress.step + others
        progress.validated_step = progress.step
        progress.stop_reason = ""
        return selection

    def by_time(self, budget: float) -> Selection:
        """Select within a budget in seconds."""
        single = _with_one_member(self.candidates(1)[0])  # also if more are configured
        # Before the clock starts: the first optimizer of a process imports for a second.
        state = self.start(single)
        began = time.perf_counter()
        decided = self.folder.decided()
        if not decided:
            step_seconds = self.measure(state, single, min(_TIMED_SECONDS, _TIMED_SHARE * budget))
            members = members_for(self.rows, step_seconds, budget)
            compared = self.affordable(self.candidates(members), state, single, step_seconds, budget)
            names = [describe(candidate.flow) for candidate in compared]
            decided = {"step_seconds": step_seconds, "members": members, "compared": names, "seconds": 0.0}
        began -= decided["seconds"]
        step_seconds = decided["step_seconds"]
        first, *others = found = self.candidates(decided["members"])
        compared = [candidate for candidate in found if describe(candidate.flow) in decided["compared"]]
        if len(compared) < 2:
            cost = f"{1e3 * step_seconds:.1f} ms a step of one flow"
            words = describe_in_words(first.flow)
            self.notify(f"model: {words}" + (f"; no time to compare it with others ({cost})" if others else ""))
            selection = Selection(first, self.start(first), step_seconds, is_complete=not self.stops(state))
        else:
            share = COMPARISON_SHARE * budget
            each, words = {"seconds": share / len(compared)}, f"{share:.0f} of {budget:g} s"

            def keep_clock() -> None:
                self.folder.decide(**decided | {"seconds": time.perf_counter() - began})

            selection = self.compare(compared, each, words, step_seconds, keep_clock)
        progress = selection.state.progress
        progress.seconds, progress.stop_reason = time.perf_counter() - began, ""
        progress.best_seconds = progress.seconds
        return selection

    def affordable(
        self, found: list[Options], state: State, single: Options, step_seconds: float, budget: float
    ) -> list[Options]:
        """The candidates that there is time to compare.

        Args:
            found: The candidates.
            state: A state, with which callbacks are asked whether to stop.
            single: The first candidate with one member.
            step_seconds: Its time of a step.
            budget: The budget of the fit in seconds.
        """
        first, *others = found

        def has_time(candidate: Options) -> bool:
            most = COMPARISON_SHARE * budget / len(found) / LEAST_STEPS / candidate.flow.members
            one = _with_one_member(candidate)
            if one == single:
                return step_seconds <= most
            longest = min(_TIMED_SECONDS, _TIMED_SHARE * budget)
            return self.measure(self.start(one), one, longest, most) <= most

        # If there is no time for the first candidate nothing is compared, and the others need not be timed.
        compared = [first] if others and has_time(first) else []
        return compared + [one for one in others if compared and not self.stops(state) and has_time(one)]

    def candidates(self, members: int) -> list[Options]:
        """The candidates, the first with so many members."""
        return candidates(self.asked, members, rows=self.rows, features=self.features)

    def start(self, options: Options) -> State:
        """Build and initialise a candidate."""
        return start_rows(self.prepared, options, self.device, self.embedding)

    def measure(self, state: State, options: Options, seconds: float, most: float = math.inf) -> float:
        """Median time of a few steps, without the first ones, which may compile something.

        Args:
            state: A new state, which takes the steps.
            options: Its options.
            seconds: No further step begins after this time.
            most: Measuring ends early once all steps took longer than this.
        """
        train = options.train
        objective = Likelihood(*self.data, train.batch_size, seed=options.seed)
        parameters = list(state.flow.parameters())
        # A few steps do not gain from compilation.
        executor = StepExecutor(state.flow, _uncompiled(train), lambda text: None)
        times: list[float] = []
        with threads_of(options, self.features):
            while len(times) < 2 or (len(times) < _TIMED_STEPS and sum(times) < seconds and min(times) <= most):
                began = time.perf_counter()
                with state.random.active():
                    executor.run(objective.differentiate, state.flow, state.optimizer, objective.draw(0.0))
                with executor.exact():
                    norm = state.optimizer.clipped_step(parameters, train.gradient_clip, state.average, train.ema_decay)
                float(norm)  # waits for the device
                times.append(time.perf_counter() - began)
        return statistics.median(times[(len(times) + 1) // 3 :])

    def compare(
        self,
        found: list[Options],
        budget: dict[str, Any],
        in_words: str,
        step_seconds: float | None = None,
        keep_clock: Callable[[], object] = lambda: None,
    ) -> Selection:
        """Train each candidate for its share of the budget, on a schedule of that length; continue with the best."""
        kinds = " with ".join(describe_in_words(candidate.flow) for candidate in found)
        self.notify(f"model: comparing {kinds}, for {in_words}")
        trained: list[tuple[Options, State]] = []
        is_complete = True
        for index, options in enumerate(found):
            train = replace(options.train, **budget, warmup=min(options.train.warmup, 20), patience=1.0)
            state = self.folder.restored(index, partial(self.start, options))

            def keep(state: State, index: int = index) -> None:
                self.folder.keep(index, state)
                keep_clock()

            objective = Likelihood(*self.data, train.batch_size, state.progress.step, seed=options.seed)
            try:
                with threads_of(options, self.features):
                    Trainer(train, callbacks=[KeepCandidate(self.callbacks, keep)]).run(state, objective)
            except DivergedError as error:
                self.notify(f"{describe(options.flow)} diverged: {error}")
                if options is found[-1] and not trained:
                    raise
                continue
            trained.append((options, state))
            is_complete = state.progress.stop_reason == "budget"
            if not is_complete:
                break
        trained.sort(key=lambda candidate: candidate[1].progress.best_loss)
        results = [
            CandidateResult(describe(c.flow), state.progress.best_loss, state.progress.step) for c, state in trained
        ]
        best, state = trained[0]
        scores = ", ".join(f"{result.flow} {result.val_nll:.3f}" for result in results)
        self.notify(f"model: {describe_in_words(best.flow)}; validation NLL so far, in standardised units: {scores}")
        state.flow.train()
        return Selection(best, state, step_seconds, tuple(results), is_complete)

    def stops(self, state: State) -> bool:
        """Whether a callback asks to stop."""
        return bool(self.callbacks.should_stop(state))

    def notify(self, text: str) -> None:
        """Pass a line to the callbacks."""
        self.callbacks.on_message(text)


def start_rows(prepared: Prepared, options: Options, device: torch.device, embedding: nn.Module | None = None) -> State:
    """Build the flow of options, and start it as the Gaussian that fits the training rows."""
    random = RandomState(options.seed, device)
    model = build_model(options.flow, *sizes_of(prepared), seed=options.seed, embedding=embedding)
    with random.active():
        initialize(model, prepared, device)
    return start(model, options.train, random=random)


def threads_of(options: Options, features: int) -> Any:
    """Context with the number of threads for the steps of a fit."""
    return threads_for(options.flow, options.train.batch_size, features)


def _with_one_member(options: Options) -> Options:
    return options.replace(flow={"members": 1})


def _uncompiled(train: TrainOptions) -> TrainOptions:
    return replace(train, compile="off" if train.compile == "off" else None)
