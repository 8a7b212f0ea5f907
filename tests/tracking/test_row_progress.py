"""Progress over rows is shown in terminals only."""

from typing import Any

import pytest

from pushforward.tracking.row_progress import RowProgress


class _Terminal:
    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal
        self.written = ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_only_shown_in_terminals(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out: Any = _Terminal(terminal)
    seconds = iter(range(100))
    with RowProgress(out, clock=lambda: float(next(seconds))) as progress:
        progress.add(1_000, 4_000)
        progress.add(1_000, 4_000)
    assert ("2,000 rows  1,000 rows/s  2s" in out.written) == terminal
    assert bool(out.written) == terminal
