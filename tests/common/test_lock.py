"""File locks: one process at a time, released when the process ends."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pushforward.common.lock import file_lock


def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from pushforward.common.lock import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-P", "-c", program, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waited: list[int] = []

        def kill() -> None:
            waited.append(1)
            holder.kill()

        with file_lock(tmp_path / "file", kill) as second:
            assert second
        assert waited == [1]
    assert list(tmp_path.iterdir()) == []
    with file_lock(tmp_path / "file") as third:
        assert not third


def test_a_removed_lock_file_is_not_a_lock(tmp_path: Path) -> None:
    """If a third process makes a new lock file while the second waits for the first, the second waits for it too."""
    first, third = (file_lock(tmp_path / "file") for _ in range(2))
    order: list[str] = []
    handed_over = threading.Event()

    def waiting() -> None:
        first.__exit__(None, None, None)
        third.__enter__()
        handed_over.set()

    def second() -> None:
        with file_lock(tmp_path / "file", waiting):
            order.append("second")

    first.__enter__()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(second)
        assert handed_over.wait(30)
        with pytest.raises(TimeoutError):
            done.result(0.1)
        order.append("third")
        third.__exit__(None, None, None)
    assert order == ["third", "second"]
    assert list(tmp_path.iterdir()) == []
