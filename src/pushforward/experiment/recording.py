"""What a fit tells while it trains: a bar, rows of metrics, checkpoints, pictures, each trouble once."""

import errno
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from pushforward.common.errors import RunError, reason
from pushforward.flows import Model, load
from pushforward.runs.folder import RunFolder
from pushforward.tracking.base import Tracking
from pushforward.tracking.progress import Progress
from pushforward.train.checkpoint import save_checkpoint
from pushforward.train.objectives.base import Metrics
from pushforward.train.trainer import State

Watch = Callable[[float, float], str]
"""Told after every validation the share of the budget spent and the validation NLL, in nats and in data units; answers
with a reason to stop, or an empty string to go on."""

Draw = Callable[[Model, Path], object]
"""Draws a flow as the loop trains it, with its best weights, into a file."""

# What the loop gives in standardised units and a reader wants in those of the data.
_SHIFTED = ("train/nll", "train/log_det", "val/nll", "best/val_nll")

# Pictures of a fit in progress may take a fiftieth of its time, and are at most eight, evenly over the budget.
_PICTURE_PACE = 50.0
_PICTURES = 8
_FIRST_PICTURE_SECONDS = 0.7


class Recording:
    """The loop's listener; nothing that goes wrong here ends the fit.

    Args:
        run: Where everything is written.
        tracking: Where numbers and pictures go.
        progress: What the user sees.
        state: What is trained, in place.
        watch: Told of every validation.
        offset: What turns the loss of the objective into one in data units, in nats.
        draw: Draws a flow, as the loop trains it, into a file; None where there is nothing to see.
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
        self.unwanted = ""
        """Why the watcher wants no more of this fit."""
        self._watch = watch
        self._state = state
        self._told: set[str] = set()
        self._offset, self._draw = offset, draw
        self._picture_at = state.progress.seconds
        self._picture_fraction = 0.0
        self._picture_seconds = _FIRST_PICTURE_SECONDS

    def log(self, kind: str, step: int, seconds: float, metrics: Metrics) -> None:
        """Pass on a row of numbers, in data units."""
        shifted = {key: value + self._offset if key in _SHIFTED else value for key, value in metrics.items()}
        if kind == "validation" and self._offset:
            shifted["log_det/standardize"] = self._offset
        self.progress.update(step, seconds, shifted)
        self.keep(lambda: self.tracking.log(shifted, step, seconds=seconds, kind=kind))
        if kind == "validation":
            self.keep(lambda: self.tracking.flush(sync=True))
            self.unwanted = self._watch(
                self.progress.fraction or 0.0, shifted.get("val/nll", shifted.get("val/loss", math.nan))
            )
            self._picture(step, seconds)

    def _picture(self, step: int, seconds: float) -> None:
        """Draw the best flow so far where somebody may be watching, seldom enough not to be missed in the budget."""
        draw = self._draw
        if draw is None or not self.tracking.others or self._state.progress.stop_reason:
            return  # at the end there are better ones
        fraction, folder = self.progress.fraction or 0.0, self.run.pictures / "progress"
        too_soon = seconds - self._picture_at < _PICTURE_PACE * self._picture_seconds
        if too_soon or fraction - self._picture_fraction < 1 / _PICTURES or len(list(folder.glob("*"))) >= _PICTURES:
            return
        began = time.perf_counter()
        self._picture_at, self._picture_fraction = seconds, fraction
        path = folder / f"step-{step:07d}.png"

        def make() -> None:
            # Built anew: the flow in training may be compiled, and holds weights that are not the best.
            flow = load(self.run.checkpoints / "start")
            flow.load_state_dict(self._state.best)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw(flow, path)
            self.tracking.image("progress/samples", path, f"best weights at step {step:,}", step)

        self.attempt("no picture of the progress", make)
        self._picture_seconds = time.perf_counter() - began

    def checkpoint(self, state: State) -> None:
        """Write a checkpoint."""

        def save() -> None:
            path = self.run.checkpoints / "last.pt"
            try:
                save_checkpoint(state, path)
            except OSError as error:
                raise RunError(f"{path}: cannot write: {reason(error)}") from error

        self.keep(save)

    def keep(self, write: Callable[[], object]) -> None:
        """Write something; a full disk must not end a fit that may still be saved."""
        try:
            write()
        except (RunError, OSError) as error:
            # All that a full disk brings about is one trouble, told once.
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                later = "the fit goes on, and writes what is missing at its end"
                self.warn(f"{self.run.path}: {reason(cause)}; {later}", once_for="full")
            else:
                self.warn(f"{error}; the fit goes on")

    def attempt(self, what: str, call: Callable[[], object]) -> None:
        """Do what the fit can do without, such as its evaluation: no error of it ends the fit, all are told."""

        def guarded() -> None:
            try:
                call()
            except (RunError, OSError):
                raise
            except Exception as error:
                text = " ".join(str(error).split()) or "no more is known"
                self.warn(f"{what}: {type(error).__name__}: {text}")

        self.keep(guarded)

    def warn(self, text: str, once_for: str = "") -> None:
        """Tell a trouble, the first time it comes."""
        if (once_for or text) not in self._told:
            self._told.add(once_for or text)
            self.progress.message(f"warning: {text}")
