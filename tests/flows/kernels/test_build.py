"""The cache of compiled kernels: used again, repaired, or replaced by a temporary folder."""

import ctypes
import os
from pathlib import Path

import pytest

from pushforward.flows.kernels import native
from pushforward.flows.kernels.build import build, cache_folder, file_name


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The only file of a cache: a copy of this process's kernels."""
    loaded = native.library()
    assert loaded is not None
    source = Path(loaded._name)
    copied = tmp_path / source.name
    copied.write_bytes(source.read_bytes())
    return copied


def works(library: ctypes.CDLL) -> bool:
    return int(library.points_of_tile(1)) > 0


def test_a_built_file_is_used_again(built: Path) -> None:
    before = built.stat()
    assert works(build(built.parent))
    assert list(built.parent.iterdir()) == [built]
    assert (built.stat().st_mtime_ns, built.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_broken_file_is_built_again(built: Path) -> None:
    whole = built.read_bytes()
    half = len(whole) // 2
    built.write_bytes(whole[:half])  # loading a file shorter than its header says would crash the process
    assert works(build(built.parent))
    assert list(built.parent.iterdir()) == [built]
    assert built.read_bytes() == whole


@pytest.mark.slow
def test_a_file_that_cannot_be_loaded_is_built_again(built: Path) -> None:
    """A complete file with the right hash in its name, such as one of another system."""
    name = built.name.rsplit("-", 1)[0]
    built.write_bytes(b"not a library")
    unusable = built.rename(built.with_name(file_name(name, built)))
    assert works(build(built.parent))
    assert built.exists()
    assert unusable.exists()


@pytest.mark.slow
@pytest.mark.parametrize("home", ["a file", "none", "read-only"])
def test_a_cache_that_cannot_be_written(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder: Path | None = None
    if home == "a file":
        folder = tmp_path / "file" / "kernels"
        folder.parent.write_text("")
    if home == "read-only":
        folder = Path("/proc/self/task")  # exists, and not even root can write to it
        if not folder.is_dir():
            pytest.skip("no /proc")
    assert works(build(folder))
    assert list(temporary.iterdir()) == []  # nothing is left behind


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PUSHFORWARD_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # not in the list of users
    assert cache_folder() is None
