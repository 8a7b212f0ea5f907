"""Show how many rows of a long table have been processed: a bar on a terminal, a few plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import IO, Any

from pushforward.common.numbers import short_duration
from pushforward.tracking.terminal_bar import is_terminal, open_bar

_BAR_SECONDS = 0.1

# Seconds until the first plain line. Each further line comes after this time and a tenth of the time so far, so that
# days of work fill no log.
_LINE_SECONDS = 10.0
_LINE_SHARE = 0.1


class RowProgress:
    """Shows the number of processed rows, rows per second and, if the total is known, the fraction and the time left.

    Args:
        stream: Where to show it; stderr by default.
        clock: A monotonic clock in seconds.
        shown: Whether to show anything; False if the output goes to the same terminal.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        shown: bool = True,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began = clock()
        self._shown_at = self._began
        self._rows = 0
        self._bar: Any = None
        self._task: Any = None
        self._shown = shown
        self._is_terminal = is_terminal(self._stream)

    def add(self, rows: int, total: int | None = None) -> None:
        """Count processed rows.

        Args:
            rows: Rows processed since the last call.
            total: Total number of rows, possibly an estimate; None if unknown.
        """
        self._rows += rows
        now = self._clock()
        elapsed = now - self._began
        interval = _BAR_SECONDS if self._is_terminal else max(_LINE_SECONDS, _LINE_SHARE * elapsed)
        if not self._shown or now - self._shown_at < interval:
            return
        self._shown_at = now
        # An estimate may be too low; the bar is then full.
        at_least = None if not total else max(total, self._rows)
        rate = self._rows / elapsed
        text = f"{self._rows:,} rows  {rate:,.0f} rows/s  {short_duration(elapsed)}"
        if at_least is not None and at_least > self._rows:
            text += f"  {short_duration((at_least - self._rows) / rate)} left"
        if not self._is_terminal:
            share = "" if at_least is None else f"{self._rows / at_least:4.0%}  "
            with contextlib.suppress(OSError, ValueError):  # a closed stream
                self._stream.write(f"{share}{text}\n")
                self._stream.flush()
            return
        if self._bar is None:
            self._bar, self._task = open_bar(self._stream, total=None)
        self._bar.update(self._task, completed=self._rows, total=at_least, description=text)

    def __enter__(self) -> "RowProgress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
