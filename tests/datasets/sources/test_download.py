"""Downloads from a real server: resumed, verified, refused; archives; and the command over all of it."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.common.errors import DataError
from pushforward.common.lock import file_lock
from pushforward.datasets import load
from pushforward.datasets.sources import download as download_module
from pushforward.datasets.sources.archive import extract, extract_zipped
from pushforward.datasets.sources.data_folder import data_folder
from pushforward.datasets.sources.download import DownloadError, download
from pushforward.datasets.sources.fetch import RECORD
from pushforward.datasets.sources.literature_sets import LITERATURE, Mirrors
from pushforward.datasets.sources.uci import UCI
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


def test_a_file(server: RangeServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "file"
    assert get(server, target, report=lambda done, total: told.append((done, total))) == MD5
    assert target.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert list(target.parent.iterdir()) == [target]
    # Without a checksum, the one found is returned.
    assert get(server, target, checksum=None) == "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def test_a_break_is_resumed(server: RangeServer, tmp_path: Path) -> None:
    server.breaks = [500_000, 700_000]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=500000-", "bytes=1200000-"]


def test_the_next_call_goes_on(server: RangeServer, tmp_path: Path) -> None:
    # The connection breaks once and then brings nothing more until the server is given up.
    server.breaks = [800_000, *[0] * download_module._MOST_BREAKS]
    with pytest.raises(DownloadError, match="what has arrived is kept, the same command goes on from there"):
        get(server, tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size == 800_000
    assert not (tmp_path / "file").exists()
    server.asked.clear()
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=800000-"]


def test_a_server_without_ranges(server: RangeServer, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [500_000]
    told: list[tuple[int, int | None]] = []
    get(server, tmp_path / "file", report=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_tells_no_length(server: RangeServer, tmp_path: Path) -> None:
    server.lengths = False
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_whole(server: RangeServer, tmp_path: Path) -> None:
    """Stopped between the last byte and the checksum: the server has nothing left to send."""
    (tmp_path / "file.part").write_bytes(CONTENT)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT[::-1][:1000], CONTENT[::-1], CONTENT + b"x"], ids=["short", "long", "longer"])
def test_a_part_of_another_file(server: RangeServer, tmp_path: Path, part: bytes) -> None:
    """The checksum finds out; the part goes, and the next address starts anew."""
    (tmp_path / "file.part").write_bytes(part)
    with pytest.raises(DownloadError, match="another checksum"):
        get(server, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file.part").write_bytes(part)
    get(server, tmp_path / "file", "/file", "/file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_without_a_checksum_nothing_is_resumed(server: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"of another time")
    get(server, tmp_path / "file", checksum=None)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [("/file", None)]


def test_the_second_address(server: RangeServer, tmp_path: Path) -> None:
    get(server, tmp_path / "file", "/missing", "/other", "/file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path / "none", "/missing", "/other")
    assert "the server answers 404" in str(caught.value)
    assert "another checksum" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_a_busy_server_is_asked_again(server: RangeServer, tmp_path: Path) -> None:
    server.status = 503
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            server.status = None

    download([server.url("/file")], tmp_path / "file", checksum=MD5, wait=wait)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert waited == [2.0, 4.0, 8.0]


def test_of_two_one_downloads(server: RangeServer, tmp_path: Path) -> None:
    """The other says that it waits, and takes what the first one got."""
    target, told, waits = tmp_path / "file", [], threading.Event()

    def slow(done: int, total: int | None) -> None:
        assert waits.wait(30)

    def tell(line: str) -> None:
        told.append(line)
        waits.set()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, server, target, report=slow)
        while not (tmp_path / "file.part").exists():
            time.sleep(0.001)
        assert get(server, target, tell=tell) == MD5
        assert first.result() == MD5
    assert told == ["file: another process is downloading it; waiting for it to end"]
    assert len(server.asked) == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [CONTENT]


def test_who_waited_downloads_if_the_other_failed(server: RangeServer, tmp_path: Path) -> None:
    waits = threading.Event()
    server.breaks = [800_000, *[0] * download_module._MOST_BREAKS]

    def slow(done: int, total: int | None) -> None:
        assert waits.wait(30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, server, tmp_path / "file", report=slow)
        while not (tmp_path / "file.part").exists():
            time.sleep(0.001)
        assert get(server, tmp_path / "file", tell=lambda line: waits.set()) == MD5
        with pytest.raises(DownloadError, match="the same command goes on from there"):
            first.result()
    assert server.asked[-1] == ("/file", "bytes=800000-")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    """Killed while it held the lock, it holds nobody up."""
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


def test_a_lock_of_old_is_no_lock(tmp_path: Path) -> None:
    """Between its release and the next one's turn a third took a new lock file: the next one waits for that."""
    first, third = (file_lock(tmp_path / "file") for _ in range(2))
    turns: list[str] = []
    handed_over = threading.Event()

    def waiting() -> None:
        first.__exit__(None, None, None)
        third.__enter__()
        handed_over.set()

    def second() -> None:
        with file_lock(tmp_path / "file", waiting):
            turns.append("second")

    first.__enter__()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(second)
        assert handed_over.wait(30)
        with pytest.raises(TimeoutError):
            done.result(0.1)
        turns.append("third")
        third.__exit__(None, None, None)
    assert turns == ["third", "second"]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_failure(server: RangeServer, tmp_path: Path) -> None:
    """Folders that it made go again, but for one that holds what has arrived."""
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "a" / "b" / "file", "/missing")
    assert list(tmp_path.iterdir()) == []
    server.breaks = [800_000, *[0] * download_module._MOST_BREAKS]
    with pytest.raises(DownloadError, match="is kept"):
        get(server, tmp_path / "a" / "b" / "file")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file.part"]


def test_nobody_answers(tmp_path: Path) -> None:
    with RangeServer({}) as gone:
        url = gone.url("/file")
    with pytest.raises(DownloadError, match=r"could not be downloaded .*refused"):
        download([url], tmp_path / "file", checksum=MD5, wait=lambda seconds: None)


def test_no_network(tmp_path: Path) -> None:
    """A server whose name nobody knows is not asked again and again."""
    waited: list[float] = []
    with pytest.raises(DownloadError, match=r"could not be downloaded .*nowhere\.invalid") as caught:
        download(["http://nowhere.invalid/file"], tmp_path / "file", checksum=MD5, wait=waited.append)
    assert waited == []
    assert len(caught.value.failures) == 1


def test_a_full_disk(server: RangeServer, tmp_path: Path) -> None:
    """Found out before the server is asked if the size is known, else when it tells it."""
    for needed in ("expected_bytes", "needed_bytes"):
        options: dict[str, Any] = {needed: 10**18}
        server.asked.clear()
        with pytest.raises(DownloadError, match=r"GB are needed and .* GB are free; make room, or name another folder"):
            get(server, tmp_path / "file", **options)
        assert server.asked == []
    assert list(tmp_path.iterdir()) == []


def tar(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def test_members(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar({"./data/a/data.npy": b"first", "data/b/x.csv": b"second", "data/c": CONTENT}))
    found = extract(archive, ("data/b/x.csv", "data/a/data.npy"), tmp_path)
    assert [path.read_bytes() for path in found] == [b"second", b"first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "data.npy", "x.csv"]
    with pytest.raises(DataError, match="lacks data/d"):
        extract(archive, ("data/a/data.npy", "data/d"), tmp_path)
    archive.write_bytes(archive.read_bytes()[:-100_000])
    with pytest.raises(DataError, match=r"not a whole \.tar\.gz archive"):
        extract(archive, ("data/c",), tmp_path)


def test_members_that_are_no_files(tmp_path: Path) -> None:
    """A link under a wanted name, or a name that leads out of the folder, is not followed."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        link = tarfile.TarInfo("data/a/data.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        out = tarfile.TarInfo("../data/a/data.npy")
        out.size = 3
        archive.addfile(out, io.BytesIO(b"out"))
    path = tmp_path / "a.tar.gz"
    path.write_bytes(sink.getvalue())
    with pytest.raises(DataError, match=r"lacks data/a/data\.npy"):
        extract(path, ("data/a/data.npy",), tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def test_zipped_files(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"readme": b"", "inner.zip": zipped({"folder/x.csv": b"inside"})}))
    extract_zipped(archive, "x.csv", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == b"inside"
    with pytest.raises(DataError, match=r"holds no y\.csv"):
        extract_zipped(archive, "y.csv", tmp_path / "y.csv")
    archive.write_bytes(b"PK not at all")
    with pytest.raises(DataError, match="not a whole zip archive"):
        extract_zipped(archive, "x.csv", tmp_path / "x.csv")


# The command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUSHFORWARD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def invoke(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


def wine(rows: int, seed: int = 0) -> bytes:
    """A file as UCI writes the wines."""
    file = UCI["red-wine"].files[0]
    numbers = np.random.default_rng(seed).normal(size=(rows, len(file.columns))).round(3)
    lines = [";".join(f'"{column}"' for column in file.columns)]
    lines += [";".join(str(value) for value in row) for row in numbers]
    return ("\n".join(lines) + "\n").encode()


def serve_wine(monkeypatch: pytest.MonkeyPatch, urls: tuple[str, ...], sha256: str | None, rows: int = 50) -> None:
    file = dataclasses.replace(UCI["red-wine"].files[0], urls=urls, sha256=sha256)
    monkeypatch.setitem(UCI, "red-wine", dataclasses.replace(UCI["red-wine"], rows=rows, files=(file,)))


def where(name: str) -> str:
    entries = json.loads(invoke("datasets", "--json").stdout)["datasets"]
    return str(next(entry["where"] for entry in entries if entry["name"] == name))


def test_a_small_set(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = wine(50)
    server.files["/wine.csv"] = content
    serve_wine(monkeypatch, (server.url("/wine.csv"),), hashlib.sha256(content).hexdigest())
    message = "red-wine: winequality-red.csv is not in the data folder .*; fetch it with: pushforward datasets download"
    with pytest.raises(DataError, match=message):
        load("red-wine")
    assert where("red-wine") == "not downloaded"
    done = invoke("datasets", "download", "red_wine", "--json")
    answer = json.loads(done.stdout)
    assert answer["failed"] == {}
    assert answer["ready"][0] | {"path": ""} == {
        "name": "red-wine",
        "path": "",
        "rows": 50,
        "columns": 12,
        "downloaded": True,
        "notes": [],
    }
    assert where("red-wine") == "downloaded"
    assert load("red-wine").rows.shape == (50, 12)
    # What is there is not downloaded again.
    server.asked.clear()
    assert "50 rows, 12 columns" in invoke("datasets", "download", "red-wine").stdout
    assert server.asked == []
    invoke("datasets", "download", "red-wine", "--force")
    assert len(server.asked) == 1
    assert not (folder / RECORD).exists()


def test_a_set_in_a_zip_archive(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = wine(50)
    server.files["/wine+quality.zip"] = zipped({"winequality-red.csv": content})
    server.files["/changed.csv"] = wine(50, seed=1)
    serve_wine(
        monkeypatch,
        (server.url("/gone"), server.url("/changed.csv"), server.url("/wine+quality.zip")),
        hashlib.sha256(content).hexdigest(),
    )
    invoke("datasets", "download", "red-wine")
    assert (folder / "red-wine" / "winequality-red.csv").read_bytes() == content
    assert [path.name for path in (folder / "red-wine").iterdir()] == ["winequality-red.csv"]


def test_the_first_download_is_trusted_and_remembered(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/wine.csv"] = wine(50)
    serve_wine(monkeypatch, (server.url("/wine.csv"),), None)
    done = invoke("datasets", "download", "red-wine")
    assert f"no checksum is published for winequality-red.csv; that of this download is kept in {RECORD}" in done.stderr
    recorded = json.loads((folder / RECORD).read_text())
    assert recorded == {"winequality-red.csv": hashlib.sha256(wine(50)).hexdigest()}
    server.files["/wine.csv"] = wine(50, seed=1)
    done = invoke("datasets", "download", "red-wine", "--force", code=1)
    assert "another checksum" in done.stderr
    assert f"if the change is meant, take winequality-red.csv out of {folder / RECORD}" in done.stderr
    assert (folder / "red-wine" / "winequality-red.csv").read_bytes() == wine(50)


def test_a_file_that_is_not_the_set(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/wine.csv"] = wine(49)
    serve_wine(monkeypatch, (server.url("/wine.csv"),), None)
    done = invoke("datasets", "download", "red-wine", "yacht-", code=3)
    assert "unknown dataset 'yacht-'; did you mean 'yacht'? known: red-wine, " in done.stderr
    done = invoke("datasets", "download", "red-wine", code=1)
    assert "winequality-red.csv: could not be downloaded (" in done.stderr
    assert "/wine.csv: expected 50 rows for red-wine; got 49)" in done.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        (["moons"], 3, "moons: comes with the package, there is nothing to download; fit it by its name"),
        (["wine"], 3, "wine: comes with the package"),
        ([], 2, "Missing argument"),
    ],
)
def test_nothing_to_download(names: list[str], code: int, message: str, folder: Path) -> None:
    assert message in invoke("datasets", "download", *names, code=code).stderr


def miniboone_archive(rows: int) -> tuple[bytes, np.ndarray[Any, np.dtype[np.float64]]]:
    matrix = np.random.default_rng(0).normal(size=(rows, 43))
    sink = io.BytesIO()
    np.save(sink, matrix)
    power = io.BytesIO()
    np.save(power, np.random.default_rng(1).normal(size=(rows, 8)))
    members = {
        "data/mnist/mnist.pkl.gz": b"something else",
        "data/power/data.npy": power.getvalue(),
        "data/miniboone/data.npy": sink.getvalue(),
    }
    return tar(members), matrix


def serve_archive(monkeypatch: pytest.MonkeyPatch, server: RangeServer, rows: int) -> bytes:
    archive, _ = miniboone_archive(rows)
    server.files["/archive"] = archive
    test = rows // 10
    validation = (rows - test) // 10
    for name in ("miniboone", "power"):
        small = dataclasses.replace(LITERATURE[name], counts=(rows - test - validation, validation, test))
        monkeypatch.setitem(LITERATURE, name, small)
    mirrors = Mirrors((server.url("/archive"),), "md5:" + hashlib.md5(archive).hexdigest(), len(archive))
    monkeypatch.setattr("pushforward.datasets.sources.literature_sets.PUBLISHED", mirrors)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return archive


def test_a_set_of_the_literature(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive breaks off half way, goes on, and gives two sets in one download."""
    archive = serve_archive(monkeypatch, server, 2000)
    with pytest.raises(DataError, match=r"power: is not in the data folder .* datasets download power \(an archive of"):
        load("power")
    server.breaks = [len(archive) // 2]
    done = invoke("datasets", "download", "miniboone", "power", "--json")
    answer = json.loads(done.stdout)
    assert [(it["name"], it["rows"], it["columns"], it["downloaded"]) for it in answer["ready"]] == [
        ("miniboone", 2000, 43, True),
        ("power", 2000, 6, False),
    ]
    assert [path for path, _ in server.asked] == ["/archive", "/archive"]
    assert server.asked[1][1] == f"bytes={len(archive) // 2}-"
    assert "kept " in done.stderr
    assert (folder / "data.tar.gz").read_bytes() == archive
    assert load("miniboone").rows.shape == (2000, 43)
    assert load("power").rows.shape == (2000, 6)
    # Made once: neither the archive nor the network is needed again.
    invoke("datasets", "download", "miniboone", "--remove-archive")
    assert sorted(path.name for path in folder.iterdir()) == ["miniboone", "power"]
    assert len(server.asked) == 2
    assert load("miniboone").rows.shape == (2000, 43)
    # By force it comes anew, once for both.
    server.asked.clear()
    invoke("datasets", "download", "miniboone", "power", "--force")
    assert len(server.asked) == 1


def test_a_local_archive_needs_no_network(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = serve_archive(monkeypatch, server, 2000)
    folder.mkdir()
    (folder / "data.tar.gz").write_bytes(archive)
    assert where("power") == "downloaded"
    assert load("power").rows.shape == (2000, 6)
    assert server.asked == []


def test_the_archive_is_checked_once(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that is in the folder already must be the published one; its checksum is remembered."""
    archive = serve_archive(monkeypatch, server, 2000)
    path = folder / "data.tar.gz"
    folder.mkdir()
    path.write_bytes(archive[:-1] + bytes([archive[-1] ^ 1]))  # after the last member, which is never read
    message = r"data\.tar\.gz: is not the published archive \(md5:.*, not md5:.*\); fetch it again with: (.*)$"
    with pytest.raises(DataError, match=message) as caught:
        load("power")
    assert "pushforward datasets download power --force" in str(caught.value)
    assert "is not the published archive" in invoke("datasets", "download", "power", code=1).stderr
    assert server.asked == []
    computed: list[str] = []
    real = pooch.file_hash

    def file_hash(name: str, alg: str) -> str:
        computed.append(name)
        return str(real(name, alg=alg))

    monkeypatch.setattr("pooch.file_hash", file_hash)
    # What the message says helps.
    invoke("datasets", "download", "power", "--force")
    assert computed == [str(path) + ".part"]
    computed.clear()
    assert load("power").rows.shape == (2000, 6)
    assert load("miniboone").rows.shape == (2000, 43)
    assert computed == []
    # Changed since: looked at again.
    os.utime(path, ns=(0, 0))
    (folder / "miniboone" / "about.json").unlink()
    load("miniboone")
    assert computed == [str(path)]
    invoke("datasets", "download", "power", "--remove-archive")
    assert sorted(it.name for it in folder.iterdir()) == ["miniboone", "power"]


def test_a_bad_file_beside_a_good_archive(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that the message names does help, the one without --force does not."""
    serve_archive(monkeypatch, server, 2000)
    (folder / "miniboone").mkdir(parents=True)
    np.save(folder / "miniboone" / "data.npy", np.random.default_rng(0).normal(size=(50, 43)))
    command = "datasets download miniboone --force"
    with pytest.raises(
        DataError, match=f"is not the published miniboone: .*; fetch it again with: pushforward {command}$"
    ):
        load("miniboone")
    assert f"pushforward {command}" in invoke("datasets", "download", "miniboone", code=1).stderr
    invoke(*command.split())
    assert load("miniboone").rows.shape == (2000, 43)


@pytest.mark.parametrize("sent", [b"<html>log in first</html>", wine(49)], ids=["page", "rows"])
def test_what_is_no_set_is_not_trusted(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Neither kept nor remembered, so that the file itself is not refused later."""
    serve_wine(monkeypatch, (server.url("/wine.csv"),), None)
    server.files["/wine.csv"] = sent
    done = invoke("datasets", "download", "red-wine", code=1)
    assert "winequality-red.csv: could not be downloaded (http" in done.stderr
    assert "take winequality-red.csv out of" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not folder.exists()
    server.files["/wine.csv"] = wine(50)
    invoke("datasets", "download", "red-wine")
    # The checksum is not to blame where nothing came.
    del server.files["/wine.csv"]
    done = invoke("datasets", "download", "red-wine", "--force", code=1)
    assert "404" in done.stderr
    assert "take winequality-red.csv out of" not in done.stderr
    assert load("red-wine").rows.shape == (50, 12)


def test_another_folder(server: RangeServer, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/wine.csv"] = wine(50)
    serve_wine(monkeypatch, (server.url("/wine.csv"),), None)
    elsewhere = tmp_path / "elsewhere"
    done = invoke("datasets", "download", "red-wine", "--data-folder", str(elsewhere))
    assert f"PUSHFORWARD_DATA={elsewhere}" in done.stderr
    assert not folder.exists()
    assert load("red-wine", folder=elsewhere).rows.shape == (50, 12)
    listed = json.loads(invoke("datasets", "--data-folder", str(elsewhere), "--json").stdout)
    assert listed["data_folder"] == str(elsewhere)
    assert next(e for e in listed["datasets"] if e["name"] == "red-wine")["where"] == "downloaded"


def test_where_the_data_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUSHFORWARD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "pushforward" / "data"
    monkeypatch.setenv("PUSHFORWARD_CACHE", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "data"
    monkeypatch.setenv("PUSHFORWARD_DATA", str(tmp_path / "mine"))
    assert data_folder() == tmp_path / "mine"
    assert data_folder(tmp_path / "chosen") == tmp_path / "chosen"
