"""What a run adds to a fit: progress, metrics, checkpoints, pictures, signals; no error in them ends the fit."""

import copy
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from pushforward.common.errors import RunError, is_disk_full, reason
from pushforward.common.signals import StopOnSignal
from pushforward.runs.folder import RunFolder
from pushforward.tracking.progress import WARNING, Progress
from pushforward.tracking.trackers import Tracking
from pushforward.train.callbacks import Callback
from pushforward.train.checkpoint import save_checkpoint
from pushforward.train.objectives.base import Metrics
from pushforward.train.options import TrainOptions
from pushforward.train.problems.base import Problem
from pushforward.train.state import State

# Pictures of a fit in progress take at most a fiftieth of its time, and are at most eight, evenly over the budget.
PICTURE_PACE = 50.0
_PICTURES = 8
_FIRST_PICTURE_SECONDS = 0.7


class Guard:
    """Turns errors of what is written beside a fit into warnings, each shown once.

    Args:
        place: The run folder, for messages.
        notify: Called with each warning.
    """

    def __init__(self, place: Path, notify: Callable[[str], object]) -> None:
        self.place, self.notify = place, notify
        self._warned: set[str] = set()

    def write(self, write: Callable[[], object]) -> None:
        """Write something; if that fails, warn and let the fit continue."""
        try:
            write()
        except (RunError, OSError) as error:
            # A full disk causes many errors and one warning.
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and is_disk_full(cause):
                full = os.strerror(cause.errno or 0).lower()
                later = "make room: the fit goes on, and writes what is missing at its end"
                self.warn(f"{self.place}: {full}; {later}", once_for="full")
            else:
                self.warn(f"{error}; the fit goes on")

    def run(self, what: str, call: Callable[[], object]) -> None:
        """Do something optional, such as the evaluation; an error of any kind becomes a warning.

        Args:
            what: What is missing if it fails, for the warning.
            call: Does it.
        """

        def guarded() -> None:
            try:
                call()
            except (RunError, OSError):
                raise
            except Exception as error:
                text = " ".join(str(error).split()) or "no message"
                self.warn(f"{what}: {type(error).__name__}: {text}")

        self.write(guarded)

    def warn(self, text: str, once_for: str = "") -> None:
        """Show a warning the first time it occurs.

        Args:
            text: The warning.
            once_for: Warnings with the same key are shown once; the text by default.
        """
        if (once_for or text) not in self._warned:
            self._warned.add(once_for or text)
            self.notify(f"{WARNING}{text}")


class Signals(Callback):
    """Ends a fit after SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, signals: StopOnSignal) -> None:
        self.signals = signals

    def should_stop(self, state: State) -> str:
        return self.signals.reason


class ShowProgress(Callback):
    """Shows metrics and messages of a fit."""

    def __init__(self, progress: Progress, guard: Guard) -> None:
        self.progress, self.guard = progress, guard

    def on_start(self, state: State, options: TrainOptions) -> None:
        progress = state.progress
        if not progress.step:
            return
        self.progress.update(progress.step, progress.seconds)
        if self.progress.fraction == 1.0:
            spent = f"the budget is already spent ({options.budget()})"
            self.progress.message(f"{spent}; give a larger one to continue training")

    def on_log(self, state: State, metrics: Metrics) -> None:
        self.progress.update(state.progress.step, state.progress.seconds, metrics)

    def on_validation(self, state: State, metrics: Metrics) -> None:
        self.on_log(state, metrics)

    def on_message(self, text: str) -> None:
        self.progress.message(text)

    def on_warning(self, text: str) -> None:
        self.guard.warn(text)

    def on_end(self, state: State) -> None:
        self.progress.close()


class RecordMetrics(Callback):
    """Passes metrics to the trackers; after every validation they are on the disk."""

    def __init__(self, tracking: Tracking, guard: Guard) -> None:
        self.tracking, self.guard = tracking, guard

    def on_log(self, state: State, metrics: Metrics) -> None:
        self._record(state, metrics, "train")

    def on_validation(self, state: State, metrics: Metrics) -> None:
        self._record(state, metrics, "validation")
        self.guard.write(lambda: self.tracking.flush(sync=True))

    def _record(self, state: State, metrics: Metrics, kind: str) -> None:
        step, seconds = state.progress.step, state.progress.seconds
        self.guard.write(lambda: self.tracking.log(metrics, step, seconds=seconds, kind=kind))


class SaveCheckpoints(Callback):
    """Writes the last checkpoint of a run."""

    def __init__(self, path: Path, guard: Guard) -> None:
        self.path, self.guard = path, guard

    def on_checkpoint(self, state: State) -> None:
        def save() -> None:
            try:
                save_checkpoint(state, self.path)
            except OSError as error:
                raise RunError(f"{self.path}: cannot write: {reason(error)}") from error

        self.guard.write(save)


class DrawPictures(Callback):
    """Draws the best model so far after some validations, for trackers that show pictures.

    Args:
        run: The run folder, which keeps the pictures.
        problem: Draws them.
        tracking: The trackers.
        guard: Turns errors into warnings.
    """

    def __init__(self, run: RunFolder, problem: Problem, tracking: Tracking, guard: Guard) -> None:
        self.problem, self.tracking, self.guard = problem, tracking, guard
        self.folder = run.pictures / "progress"
        self.at, self.share, self.seconds = 0.0, 0.0, _FIRST_PICTURE_SECONDS

    def on_start(self, state: State, options: TrainOptions) -> None:
        self.options, self.at = options, state.progress.seconds

    def on_validation(self, state: State, metrics: Metrics) -> None:
        progress = state.progress
        if not self.tracking.others or progress.stop_reason:
            return  # the final pictures follow
        share = self.options.share(progress.step, progress.seconds)
        is_soon = progress.seconds - self.at < PICTURE_PACE * self.seconds or share - self.share < 1 / _PICTURES
        if is_soon or len(list(self.folder.glob("*"))) >= _PICTURES:
            return
        began = time.perf_counter()
        self.at, self.share = progress.seconds, share
        self.guard.run("no progress picture", lambda: self._draw(state))
        self.seconds = time.perf_counter() - began

    def _draw(self, state: State) -> None:
        step, path = state.progress.step, self.folder / f"step-{state.progress.step:07d}.png"
        model = copy.deepcopy(state.flow).cpu()
        model.load_state_dict(state.best)
        figure = self.problem.progress_figure(model.eval())
        if figure is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.draw(path)
        self.tracking.image("progress/samples", path, f"best weights at step {step:,}", step)
