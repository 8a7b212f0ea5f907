"""Files are written whole or not at all, new folders disappear on errors, and JSON is strict."""

import json
import os
import stat
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pushforward.common.files import atomic_write, json_safe, new_folder, remove_partial_files


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_an_error_leaves_the_file_as_it_was(existing: bool, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    if existing:
        path.write_text("old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert sorted(tmp_path.iterdir()) == before
    assert not existing or path.read_text() == "old"


def test_a_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_write(link) as temporary:
        # In the folder of the target, which may be on another file system than the link.
        assert temporary.parent == target.parent
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    for failed in (OSError(28, "No space left on device"), OSError(5, "Input/output error", "partial")):
        with pytest.raises(OSError) as error, atomic_write(path) as temporary:  # noqa: PT011, PT012
            if failed.filename:
                failed.filename = str(temporary)
            raise failed
        assert (error.value.errno, error.value.filename) == (failed.errno, str(path))
    with pytest.raises(OSError, match="elsewhere"), atomic_write(path):
        raise OSError(5, "Input/output error", "elsewhere")  # of another file, which is read in the block
    assert not list(tmp_path.iterdir())


def test_an_error_of_fsync_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems (NFS, quotas) say only then that the disk is full."""
    path = tmp_path / "out.txt"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*out\.txt"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_and_its_name_are_on_the_disk_before_the_block_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a file that was renamed but not synchronised is empty."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synchronised(descriptor: int) -> None:
        fsync(descriptor)
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replaced(source: Path, target: Path) -> None:
        replace(source, target)
        events.append("replaced")

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(os, "replace", replaced)
    with atomic_write(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
    assert events == ["file", "replaced", "folder"]


@pytest.mark.skipif(os.name != "posix", reason="there are no locks")
def test_the_temporary_file_of_a_killed_process_is_removed_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    path, below = tmp_path / "last.pt", tmp_path / "below"
    below.mkdir()
    program = (
        "import sys\nfrom pushforward.common.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    print(temporary, flush=True)\n"
        "    sys.stdin.read()\n"
    )

    def writer(target: Path) -> tuple["subprocess.Popen[str]", Path]:
        command = [sys.executable, "-c", program, str(target)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    running, kept = writer(path)
    killed, left = writer(path)
    also_killed, left_below = writer(below / "config.json")
    for process in (killed, also_killed):
        process.kill()
        process.communicate()
    try:
        assert left.read_text() == left_below.read_text() == "half"
        with atomic_write(path) as temporary:
            temporary.write_text("new")
        assert not left.exists()  # with the next write of the same file
        assert left_below.exists()
        remove_partial_files(tmp_path)
        assert not left_below.exists()  # with all in the folder and below
        assert kept.read_text() == "half"
    finally:
        running.communicate("")
    assert running.returncode == 0
    assert path.read_text() == "half"
    assert sorted(tmp_path.rglob("*")) == [below, path]


def test_a_new_file_has_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with atomic_write(tmp_path / "out.txt") as temporary:
            temporary.write_text("shared with a group")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o664


def test_a_device_is_written_to_directly() -> None:
    with atomic_write(os.devnull) as temporary:
        assert temporary == Path(os.devnull)
        temporary.write_text("nothing")
    assert not Path(os.devnull).is_file()


def test_a_pipe_is_written_to_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    with atomic_write(pipe) as temporary:
        temporary.write_text("through")
    reader.join(timeout=10)
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "out.txt") as temporary:
        temporary.write_text("new")
    assert not list(tmp_path.iterdir())


def test_a_new_folder_stays_after_its_block(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "a" / "b").is_dir()


def test_new_folders_disappear_on_errors_if_they_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]  # it was there before
    with pytest.raises(ValueError, match="late"), new_folder(tmp_path / "a" / "b" / "c"):  # noqa: PT012
        (tmp_path / "a" / "b" / "file").write_text("kept")
        raise ValueError("late")
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == ["b", "file"]


@dataclass(frozen=True)
class Point:
    x: float
    where: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(float("nan"), Path("a/b")), {"x": None, "where": "a/b"}),
        ({1: float("inf"), "b": (-float("inf"), 0.5)}, {"1": None, "b": [None, 0.5]}),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (np.float32(np.inf), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor([1, 2]), [1, 2]),
        ({"only"}, ["only"]),
        ([None, True, "nan"], [None, True, "nan"]),
    ],
)
def test_values_for_strict_json(value: Any, expected: Any) -> None:
    found = json_safe(value)
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_values_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(TypeError, match="expected numbers, text and containers of them; got object"):
        json_safe({"a": [object()]})
    with pytest.raises(TypeError, match="got type"):
        json_safe(Point)
