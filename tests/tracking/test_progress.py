"""The progress of a fit on terminals and in files."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pushforward.tracking.progress import Progress


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_ten_seconds(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    log = tmp_path / "log.txt"
    with Progress(steps=1000, title="moons, maf", log=log, stream=stream, clock=clock) as progress:
        for step in range(0, 301, 10):
            clock.now = step * 0.1
            progress.update(step, clock.now, {"train/nll": 2.0})
            if step % 50 == 0:
                progress.update(step, clock.now, {"val/nll": 1.5, "perf/rows_per_s": 12345.0})
        progress.message("checkpoint written")
        progress.update(310, 31.0, {"train/nll": 1.75})
    progress.close()
    progress.update(320, 32.0, {"val/nll": 1.0})
    lines = stream.getvalue().splitlines()
    assert lines == [
        "moons, maf",
        "  0%  step 0/1000  train 2.0000  val 1.5000  12.3k rows/s  0s",
        " 10%  step 100/1000  train 2.0000  val 1.5000  12.3k rows/s  10s  1m30s left",
        " 20%  step 200/1000  train 2.0000  val 1.5000  12.3k rows/s  20s  1m20s left",
        " 30%  step 300/1000  train 2.0000  val 1.5000  12.3k rows/s  30s  1m10s left",
        "checkpoint written",
        " 31%  step 310/1000  train 1.7500  val 1.5000  12.3k rows/s  31s",
    ]
    logged = log.read_text().splitlines()
    assert [re.sub(r"^\S+ \S+ ", "", line) for line in logged] == lines


def test_quiet_shows_messages_only() -> None:
    stream = io.StringIO()
    with Progress(steps=10, stream=stream, quiet=True) as progress:
        progress.update(5, 1.0, {"val/nll": 1.0})
        progress.message("warning")
    assert stream.getvalue() == "warning\n"


def test_the_first_limit_counts_and_resumed_steps_are_not_timed() -> None:
    progress = Progress(steps=1000, seconds=100.0, stream=io.StringIO())
    assert progress.fraction == 0.0
    progress.update(500, 10.0)
    assert progress.fraction == 0.5
    assert progress.seconds_left == 90.0
    progress.update(600, 20.0)  # 0.1 s per step in this process: 40 s for the remaining 400
    assert progress.seconds_left == pytest.approx(40.0)
    progress.update(600, 99.0)
    assert progress.fraction == 0.99
    assert Progress(stream=io.StringIO()).fraction is None


def test_a_closed_stream_does_not_end_the_fit() -> None:
    stream = io.StringIO()
    progress = Progress(steps=10, stream=stream)
    stream.close()
    progress.update(1, 1.0, {"val/nll": 1.0})
    progress.message("still here")
    progress.close()


SCRIPT = """
import sys, time
from pushforward.tracking.progress import Progress
with Progress(steps=100, title="fit [bold]moons[/bold]") as progress:
    for step in range(0, 101, 20):
        progress.update(step, step / 10, {"train/nll": 1.5, "val/nll": 1.25, "perf/rows_per_s": 2e6})
        time.sleep(0.1)
    progress.message("note")
print("stdout is the caller's")
"""


def in_terminal(**environment: str) -> tuple[str, str]:
    """Run the script with stderr on a pseudo-terminal; return stdout and the output on the terminal."""
    leader, follower = pty.openpty()
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    clean |= {"TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=follower, env=clean, text=True
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    out, _ = process.communicate(timeout=30)
    os.close(leader)
    assert process.returncode == 0
    return out, shown.decode()


def test_bar_on_a_terminal() -> None:
    out, shown = in_terminal()
    assert out == "stdout is the caller's\n"
    assert "━" in shown
    assert "\x1b[?25h" in shown, "the cursor is shown again"
    assert "\x1b[3" in shown or "\x1b[38" in shown, "colours"
    assert re.search(r"step [2468]0/100  train 1\.5000  val 1\.2500  2\.0M rows/s  \ds  \ds left", shown)
    assert "fit [bold]moons[/bold]" in shown
    assert "note" in shown
    assert "100%  step 100/100" in shown.splitlines()[-1]


def test_no_color_removes_colours() -> None:
    _, shown = in_terminal(NO_COLOR="1")
    assert "━" in shown
    assert not re.search(r"\x1b\[(3[0-9]|9[0-7]|38;|4[0-8])", shown)


def test_dumb_terminal_gets_plain_lines() -> None:
    _, shown = in_terminal(TERM="dumb")
    assert "\x1b" not in shown
    assert shown.splitlines()[:2] == [
        "fit [bold]moons[/bold]",
        "  0%  step 0/100  train 1.5000  val 1.2500  2.0M rows/s  0s",
    ]
