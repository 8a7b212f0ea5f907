"""Show how many rows of a long file have been processed: a bar on a terminal, nothing elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import IO, Any

from pushforward.tracking.terminal_bar import is_terminal, open_bar

_INTERVAL_SECONDS = 0.1


class RowProgress:
    """Shows the number of processed rows, rows per second and, if the total is known, the fraction.

    Args:
        stream: Where to show it; stderr by default.
        clock: A monotonic clock in seconds.
        shown: Whether to show a bar; False if the output goes to the same terminal.
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
        self._shown = shown and is_terminal(self._stream)

    def add(self, rows: int, total: int | None = None) -> None:
        """Count processed rows.

        Args:
            rows: Rows processed since the last call.
            total: Total number of rows, possibly an estimate; None if unknown.
        """
        self._rows += rows
        now = self._clock()
        if not self._shown or now - self._shown_at < _INTERVAL_SECONDS:
            return
        self._shown_at = now
        if self._bar is None:
            self._bar, self._task = open_bar(self._stream, total=None)
        rate = self._rows / (now - self._began)
        text = f"{self._rows:,} rows  {rate:,.0f} rows/s  {now - self._began:.0f}s"
        # An estimate may be too low; the bar is then full.
        at_least = None if not total else max(total, self._rows)
        self._bar.update(self._task, completed=self._rows, total=at_least, description=text)

    def __enter__(self) -> "RowProgress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
