"""Show the progress of a fit on stderr: a bar on a terminal, a few plain lines elsewhere."""

import contextlib
import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pushforward.common.numbers import short_count, short_duration
from pushforward.tracking.terminal_bar import can_show_bar, is_notebook, open_bar

# Minimum seconds between plain lines, and between updates of the bar.
_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.1

_VALIDATION_KEYS = {"val/nll", "val/loss"}

WARNING = "warning: "
"""How a message that is a warning begins."""


class Progress:
    """Shows the progress of a fit, and its messages.

    On a terminal this is a bar on the last line. Elsewhere (a pipe, a batch system, ``TERM=dumb``) it is a line for the
    first validation, then at most one every ten seconds, and one at the end. ``NO_COLOR`` removes the colours.

    Args:
        steps: Budget in steps, if there is one.
        seconds: Budget in seconds, if there is one.
        title: What is fitted, shown at the start.
        log: File to which messages and plain lines are appended.
        stream: Where to show it; by default stderr, and in a notebook stdout, which is not shown as an error there.
        clock: A monotonic clock in seconds.
        quiet: Show only messages; the log is written as usual.
        hidden: Show nothing; warnings are Python's.
    """

    def __init__(
        self,
        *,
        steps: int | None = None,
        seconds: float | None = None,
        title: str = "",
        log: Path | None = None,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool = False,
        hidden: bool = False,
    ) -> None:
        self.steps = steps
        self.seconds = seconds
        self._stream = stream or (sys.stdout if is_notebook() else sys.stderr)
        self._clock = clock
        self._quiet, self._hidden = quiet or hidden, hidden
        self._lock = threading.RLock()
        self._first: tuple[int, float] | None = None
        self._step = 0
        self._elapsed = 0.0
        self._metrics: dict[str, float] = {}
        self._shown_at: float | None = None
        self._shown_step: int | None = None
        self._closed = False
        self._log = log
        self._bar: Any = None
        self._task: Any = None
        if not self._quiet and can_show_bar(self._stream):
            self._bar, self._task = open_bar(self._stream, total=1.0 if self.steps or self.seconds else None)
        if title:
            self.message(title)

    def update(self, step: int, seconds: float, metrics: Mapping[str, float] | None = None) -> None:
        """Show the state of the fit.

        Args:
            step: Steps done.
            seconds: Time spent fitting, by the clock of the budget.
            metrics: Numbers to show until replaced: ``train/nll`` and ``val/nll`` (or ``train/loss`` and ``val/loss``
                of objectives without an NLL), and ``perf/rows_per_s``. A plain line needs a validation number.
        """
        with self._lock:
            if self._closed:
                return
            self._step, self._elapsed = step, seconds
            self._first = self._first or (step, seconds)
            self._metrics.update(metrics or {})
            now = self._clock()
            interval = _LINE_SECONDS if self._bar is None else _BAR_SECONDS
            due = self._shown_at is None or now - self._shown_at >= interval
            if self._bar is not None and (due or metrics):
                self._shown_at = now
                self._update_bar()
            elif self._bar is None and due and not _VALIDATION_KEYS.isdisjoint(metrics or {}):
                self._shown_at = now
                self._write_state()

    def message(self, text: str) -> None:
        """Show a message above the bar and append it to the log."""
        with self._lock:
            self._append_to_log(text)
            if self._bar is not None:
                with contextlib.suppress(OSError, ValueError):
                    console = self._bar.console  # notebooks do not wrap long lines
                    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_jupyter)
            elif self._hidden and text.startswith(WARNING):
                warnings.warn(text.removeprefix(WARNING), stacklevel=2)
            else:
                self._write(text)

    def record(self, text: str) -> None:
        """Append a message to the log without showing it."""
        self._append_to_log(text)

    def close(self) -> None:
        """Remove the bar and write a last line; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            if self._step != self._shown_step and self._metrics:
                self._write_state()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def fraction(self) -> float | None:
        """Used fraction of the budget, of steps or of time, whichever is larger; ``None`` without a budget."""
        shares = []
        if self.steps:
            shares.append(self._step / self.steps)
        if self.seconds:
            shares.append(self._elapsed / self.seconds)
        return min(1.0, max(shares)) if shares else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time until the first limit is reached; ``None`` while unknown."""
        left = []
        if self.seconds:
            left.append(self.seconds - self._elapsed)
        if self.steps and self._first and self._step > self._first[0]:
            # Since the first update: this process did not time the earlier steps of a resumed fit.
            seconds_per_step = (self._elapsed - self._first[1]) / (self._step - self._first[0])
            left.append((self.steps - self._step) * seconds_per_step)
        return max(0.0, min(left)) if left else None

    def _update_bar(self) -> None:
        fraction = self.fraction
        self._bar.update(self._task, completed=fraction or 0.0, description=self._state(short=True))

    def _state(self, *, short: bool = False) -> str:
        """Return the state of the fit as text; ``short`` omits the fraction, which a bar shows."""
        parts = []
        if not short and self.fraction is not None:
            parts.append(f"{self.fraction:4.0%}")
        parts.append(f"step {self._step}" + (f"/{self.steps}" if self.steps else ""))
        loss = "loss" if "val/loss" in self._metrics else "nll"
        for key, name in ((f"train/{loss}", "train"), (f"val/{loss}", "val")):
            if key in self._metrics:
                parts.append(f"{name} {self._metrics[key]:.4f}")
        best = self._metrics.get(f"best/val_{loss}", math.inf)
        if math.isfinite(best) and best < self._metrics.get(f"val/{loss}", best):
            parts.append(f"best {best:.4f}")
        if "perf/rows_per_s" in self._metrics:
            parts.append(f"{short_count(self._metrics['perf/rows_per_s'])} rows/s")
        parts.append(short_duration(self._elapsed))
        if self.seconds_left is not None and not self._closed:
            parts.append(f"{short_duration(self.seconds_left)} left")
        return "  ".join(parts)

    def _write_state(self) -> None:
        self._shown_step = self._step
        line = self._state()
        self._append_to_log(line)
        if not self._quiet:
            self._write(line)

    def _write(self, text: str) -> None:
        if self._hidden:
            return
        # A closed terminal or pipe must not end the fit.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _append_to_log(self, text: str) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError), open(self._log, "a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
