"""Record a fit during training: progress bar, rows of metrics, checkpoints, pictures, each warning once."""

import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from pushforward.common.errors import RunError, is_disk_full, reason
from pushforward.flows import Model, load
from pushforward.runs.folder import RunFolder
from pushforward.tracking.base import Tracking
from pushforward.tracking.progress import Progress
from pushforward.train.checkpoint import save_checkpoint
from pushforward.train.objectives.base import Metrics
from pushforward.train.trainer import State

Watch = Callable[[float, float], str]
"""Called after every validation with the share of the budget spent and the validation NLL, in nats and data units;
returns a reason to stop, or an empty string to continue."""

Draw = Callable[[Model, Path], object]
"""Draws a flow in standardised units into a file."""

# Metrics that the loop computes in standardised units and that are recorded in data units.
_SHIFTED = ("train/nll", "train/log_det", "val/nll", "best/val_nll")

# Pictures of a fit in progress take at most a fiftieth of its time, and are at most eight, evenly over the budget.
_PICTURE_PACE = 50.0
_PICTURES = 8
_FIRST_PICTURE_SECONDS = 0.7


class Recorder:
    """The callbacks of the training loop; no error in them ends the fit.

    Args:
        run: The run folder.
        tracking: The trackers, which receive metrics and pictures.
        progress: The progress bar and messages.
        state: The state that is trained, in place.
        watch: Called after every validation.
        offset: Added to an NLL in standardised units to get data units, in nats.
        draw: Draws a flow of the training loop into a file; None for no pictures.

    Attributes:
        stop_reason: The last answer of ``watch``.
    """

    def __init__(
        self,
        run: RunFolder,
        tracking: Tracking,
        progress: Progress,
        state: State,
        watch: Watch,
        *,
        offset: float = 0.0,
        draw: Draw | None = None,
    ) -> None:
        self.run = run
        self.tracking = tracking
        self.progress = progress
        self.stop_reason = ""
        self._watch = watch
        self._state = state
        self._warned: set[str] = set()
        self._offset, self._draw = offset, draw
        self._picture_at = state.progress.seconds
        self._picture_fraction = 0.0
        self._picture_seconds = _FIRST_PICTURE_SECONDS

    def log(self, kind: str, step: int, seconds: float, metrics: Metrics) -> None:
        """Record a row of metrics in data units."""
        shifted = {key: value + self._offset if key in _SHIFTED else value for key, value in metrics.items()}
        if kind == "validation" and self._offset:
            shifted["log_det/standardize"] = self._offset
        self.progress.update(step, seconds, shifted)
        self.write_safely(lambda: self.tracking.log(shifted, step, seconds=seconds, kind=kind))
        if kind == "validation":
            self.write_safely(lambda: self.tracking.flush(sync=True))
            self.stop_reason = self._watch(
                self.progress.fraction or 0.0, shifted.get("val/nll", shifted.get("val/loss", math.nan))
            )
            self._picture(step, seconds)

    def _picture(self, step: int, seconds: float) -> None:
        """Draw the best flow so far if there is a tracker to show it, at most every so often."""
        draw = self._draw
        if draw is None or not self.tracking.others or self._state.progress.stop_reason:
            return  # the final pictures follow
        fraction, folder = self.progress.fraction or 0.0, self.run.pictures / "progress"
        too_soon = seconds - self._picture_at < _PICTURE_PACE * self._picture_seconds
        if too_soon or fraction - self._picture_fraction < 1 / _PICTURES or len(list(folder.glob("*"))) >= _PICTURES:
            return
        began = time.perf_counter()
        self._picture_at, self._picture_fraction = seconds, fraction
        path = folder / f"step-{step:07d}.png"

        def make() -> None:
            # A new flow: the one in training may be compiled, and has other weights.
            flow = load(self.run.checkpoints / "start")
            flow.load_state_dict(self._state.best)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw(flow, path)
            self.tracking.image("progress/samples", path, f"best weights at step {step:,}", step)

        self.run_safely("no progress picture", make)
        self._picture_seconds = time.perf_counter() - began

    def checkpoint(self, state: State) -> None:
        """Write a checkpoint."""

        def save() -> None:
            path = self.run.checkpoints / "last.pt"
            try:
                save_checkpoint(state, path)
            except OSError as error:
                raise RunError(f"{path}: cannot write: {reason(error)}") from error

        self.write_safely(save)

    def write_safely(self, write: Callable[[], object]) -> None:
        """Write something; if that fails, warn and let the fit continue."""
        try:
            write()
        except (RunError, OSError) as error:
            # A full disk causes many errors and one warning.
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and is_disk_full(cause):
                full = os.strerror(cause.errno or 0).lower()
                later = "make room: the fit goes on, and writes what is missing at its end"
                self.warn(f"{self.run.path}: {full}; {later}", once_for="full")
            else:
                self.warn(f"{error}; the fit goes on")

    def run_safely(self, what: str, call: Callable[[], object]) -> None:
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

        self.write_safely(guarded)

    def warn(self, text: str, once_for: str = "") -> None:
        """Show a warning the first time it occurs.

        Args:
            text: The warning.
            once_for: Warnings with the same key are shown once; the text by default.
        """
        if (once_for or text) not in self._warned:
            self._warned.add(once_for or text)
            self.progress.message(f"warning: {text}")
