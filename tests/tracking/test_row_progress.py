"""Progress over rows: a bar in a terminal, few lines elsewhere."""

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


def _shown(terminal: bool, seconds: list[float], rows: int = 1_000, total: int | None = 4_000) -> str:
    out: Any = _Terminal(terminal)
    times = iter([0.0, *seconds])
    with RowProgress(out, clock=lambda: next(times)) as progress:
        for _ in seconds:
            progress.add(rows, total)
    return str(out.written)


def test_a_terminal_shows_rows_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "2,000 rows  1,000 rows/s  2s  2s left" in _shown(True, [1.0, 2.0])
    assert "left" not in _shown(True, [1.0, 2.0], total=None)
    assert "left" not in _shown(True, [1.0, 2.0], total=1_500)  # an estimate that was too low


def test_other_streams_get_a_line_after_ten_seconds_and_then_fewer_and_fewer() -> None:
    assert _shown(False, [1.0, 9.9]) == ""
    assert _shown(False, [5.0, 20.0, 25.0, 30.0]) == (
        " 50%  2,000 rows  100 rows/s  20s  20s left\n100%  4,000 rows  133 rows/s  30s\n"
    )
    assert _shown(False, [20.0], total=None) == "1,000 rows  50 rows/s  20s\n"
    day = [float(second) for second in range(10, 86_400, 10)]
    assert 50 < _shown(False, day, total=None).count("\n") < 100
