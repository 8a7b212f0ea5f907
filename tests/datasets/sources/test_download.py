"""Downloads from a local server: resumed after breaks, verified, refused."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pushforward.datasets.sources.data_folder import data_folder
from pushforward.datasets.sources.download import MAX_BREAKS, DownloadError, download
from tests.fixtures.range_server import RangeServer

CONTENT = np.random.default_rng(0).bytes(2_000_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer({"/file": CONTENT, "/other": CONTENT[::-1]}) as running:
        yield running


def get(server: RangeServer, target: Path, *paths: str, checksum: str | None = MD5, **options: Any) -> str:
    urls = [server.url(path) for path in paths or ("/file",)]
    return download(urls, target, checksum=checksum, wait=lambda seconds: None, **options)


def test_download_verifies_reports_progress_and_returns_the_checksum(server: RangeServer, tmp_path: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "file"
    assert get(server, target, report=lambda done, total: progress.append((done, total))) == MD5
    assert target.read_bytes() == CONTENT
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert list(target.parent.iterdir()) == [target]
    # Without a checksum, the one found is returned.
    assert get(server, target, checksum=None) == "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def test_interrupted_download_is_resumed(server: RangeServer, tmp_path: Path) -> None:
    server.breaks = [500_000, 700_000]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=500000-", "bytes=1200000-"]


def test_next_call_resumes_a_failed_download(server: RangeServer, tmp_path: Path) -> None:
    # The connection breaks once, and then all attempts fail until the server is given up.
    server.breaks = [800_000, *[0] * MAX_BREAKS]
    with pytest.raises(DownloadError, match="the partial download is kept, the same command resumes it"):
        get(server, tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size == 800_000
    assert not (tmp_path / "file").exists()
    server.requests.clear()
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == ["bytes=800000-"]


def test_a_download_is_on_the_disk_before_it_has_its_name(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut would leave an empty file under the name of one whose checksum was right."""

    def full(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="Input/output error"):
            get(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges(server: RangeServer, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [500_000]
    progress: list[tuple[int, int | None]] = []
    get(server, tmp_path / "file", report=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_content_length(server: RangeServer, tmp_path: Path) -> None:
    server.lengths = False
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_partial_file(server: RangeServer, tmp_path: Path) -> None:
    """If stopped between the last byte and the checksum, the server has nothing left to send."""
    (tmp_path / "file.part").write_bytes(CONTENT)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT[::-1][:1000], CONTENT[::-1], CONTENT + b"x"], ids=["short", "long", "longer"])
def test_a_partial_file_of_another_download(server: RangeServer, tmp_path: Path, part: bytes) -> None:
    """The checksum detects it; the partial file is removed, and the next URL starts anew."""
    (tmp_path / "file.part").write_bytes(part)
    with pytest.raises(DownloadError, match="another checksum"):
        get(server, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file.part").write_bytes(part)
    get(server, tmp_path / "file", "/file", "/file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_without_a_checksum_nothing_is_resumed(server: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"of an earlier call")
    get(server, tmp_path / "file", checksum=None)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [("/file", None)]


def test_other_urls_are_tried_after_a_failure(server: RangeServer, tmp_path: Path) -> None:
    get(server, tmp_path / "file", "/missing", "/other", "/file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path / "none", "/missing", "/other")
    assert "the server answers 404" in str(caught.value)
    assert "another checksum" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_a_busy_server_is_retried(server: RangeServer, tmp_path: Path) -> None:
    server.status = 503
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            server.status = None

    download([server.url("/file")], tmp_path / "file", checksum=MD5, wait=wait)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert waited == [2.0, 4.0, 8.0]


def test_one_of_two_processes_downloads(server: RangeServer, tmp_path: Path) -> None:
    """The other notifies the user, waits, and uses the file of the first."""
    target, messages, waits = tmp_path / "file", [], threading.Event()

    def slow(done: int, total: int | None) -> None:
        assert waits.wait(30)

    def notify(line: str) -> None:
        messages.append(line)
        waits.set()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, server, target, report=slow)
        while not (tmp_path / "file.part").exists():
            time.sleep(0.001)
        assert get(server, target, notify=notify) == MD5
        assert first.result() == MD5
    assert messages == ["file: another process is downloading it; waiting for it to end"]
    assert len(server.requests) == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [CONTENT]


def test_the_waiting_process_downloads_if_the_other_failed(server: RangeServer, tmp_path: Path) -> None:
    waits = threading.Event()
    server.breaks = [800_000, *[0] * MAX_BREAKS]

    def slow(done: int, total: int | None) -> None:
        assert waits.wait(30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, server, tmp_path / "file", report=slow)
        while not (tmp_path / "file.part").exists():
            time.sleep(0.001)
        assert get(server, tmp_path / "file", notify=lambda line: waits.set()) == MD5
        with pytest.raises(DownloadError, match="the same command resumes it"):
            first.result()
    assert server.requests[-1] == ("/file", "bytes=800000-")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_download_leaves_no_folders(server: RangeServer, tmp_path: Path) -> None:
    """Folders it created are removed, except for one with a partial download."""
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "a" / "b" / "file", "/missing")
    assert list(tmp_path.iterdir()) == []
    server.breaks = [800_000, *[0] * MAX_BREAKS]
    with pytest.raises(DownloadError, match="is kept"):
        get(server, tmp_path / "a" / "b" / "file")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file.part"]


def test_connection_refused(tmp_path: Path) -> None:
    with RangeServer({}) as gone:
        url = gone.url("/file")
    with pytest.raises(DownloadError, match=r"could not be downloaded .*refused"):
        download([url], tmp_path / "file", checksum=MD5, wait=lambda seconds: None)


def test_no_network(tmp_path: Path) -> None:
    """An unknown host is not retried."""
    waited: list[float] = []
    with pytest.raises(DownloadError, match=r"could not be downloaded .*nowhere\.invalid") as caught:
        download(["http://nowhere.invalid/file"], tmp_path / "file", checksum=MD5, wait=waited.append)
    assert waited == []
    assert len(caught.value.failures) == 1


def test_a_full_disk(server: RangeServer, tmp_path: Path) -> None:
    """Checked before connecting if the size is known."""
    for needed in ("expected_bytes", "needed_bytes"):
        options: dict[str, Any] = {needed: 10**18}
        server.requests.clear()
        with pytest.raises(
            DownloadError, match=r"GB are needed and .* GB are free; make room, or set PUSHFORWARD_DATA"
        ):
            get(server, tmp_path / "file", **options)
        assert server.requests == []
    assert list(tmp_path.iterdir()) == []


def test_environment_variables_of_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUSHFORWARD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "pushforward" / "data"
    monkeypatch.setenv("PUSHFORWARD_CACHE", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "data"
    monkeypatch.setenv("PUSHFORWARD_DATA", str(tmp_path / "mine"))
    assert data_folder() == tmp_path / "mine"
    assert data_folder(tmp_path / "chosen") == tmp_path / "chosen"
