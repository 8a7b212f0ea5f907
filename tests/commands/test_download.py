"""The command ``pushforward datasets download`` fetches, verifies and prepares data sets."""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.common.errors import DataError
from pushforward.datasets import load
from pushforward.datasets.sources.fetch import RECORD
from pushforward.datasets.sources.literature_sets import LITERATURE, Mirrors
from pushforward.datasets.sources.uci import UCI
from tests.fixtures.archives import tar_bytes, zip_bytes
from tests.fixtures.range_server import RangeServer


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer({}) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUSHFORWARD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def invoke(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


def wine(rows: int, seed: int = 0) -> bytes:
    """Return a file in the format of UCI's wine data."""
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


def test_download_of_a_uci_set(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # An available file is not downloaded again.
    server.requests.clear()
    assert "50 rows, 12 columns" in invoke("datasets", "download", "red-wine").stdout
    assert server.requests == []
    invoke("datasets", "download", "red-wine", "--force")
    assert len(server.requests) == 1
    assert not (folder / RECORD).exists()


def test_a_file_in_a_zip_archive_at_the_last_url(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wine(50)
    server.files["/wine+quality.zip"] = zip_bytes({"winequality-red.csv": content})
    server.files["/changed.csv"] = wine(50, seed=1)
    serve_wine(
        monkeypatch,
        (server.url("/gone"), server.url("/changed.csv"), server.url("/wine+quality.zip")),
        hashlib.sha256(content).hexdigest(),
    )
    invoke("datasets", "download", "red-wine")
    assert (folder / "red-wine" / "winequality-red.csv").read_bytes() == content
    assert [path.name for path in (folder / "red-wine").iterdir()] == ["winequality-red.csv"]


def test_the_checksum_of_the_first_download_is_stored_and_required(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/wine.csv"] = wine(50)
    serve_wine(monkeypatch, (server.url("/wine.csv"),), None)
    done = invoke("datasets", "download", "red-wine")
    assert (
        f"no checksum is published for winequality-red.csv; that of this download is stored in {RECORD}" in done.stderr
    )
    recorded = json.loads((folder / RECORD).read_text())
    assert recorded == {"winequality-red.csv": hashlib.sha256(wine(50)).hexdigest()}
    server.files["/wine.csv"] = wine(50, seed=1)
    done = invoke("datasets", "download", "red-wine", "--force", code=1)
    assert "another checksum" in done.stderr
    assert f"if the change is intended, remove winequality-red.csv from {folder / RECORD}" in done.stderr
    assert (folder / "red-wine" / "winequality-red.csv").read_bytes() == wine(50)


def test_unknown_names_and_files_with_too_few_rows(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_data_sets_without_a_download(names: list[str], code: int, message: str, folder: Path) -> None:
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
    return tar_bytes(members), matrix


def serve_archive(monkeypatch: pytest.MonkeyPatch, server: RangeServer, rows: int) -> bytes:
    archive, _ = miniboone_archive(rows)
    server.files["/archive"] = archive
    test = rows // 10
    validation = (rows - test) // 10
    for name in ("miniboone", "power"):
        small = dataclasses.replace(LITERATURE[name], counts=(rows - test - validation, validation, test))
        monkeypatch.setitem(LITERATURE, name, small)
    mirrors = Mirrors((server.url("/archive"),), "md5:" + hashlib.md5(archive).hexdigest(), len(archive))
    monkeypatch.setattr("pushforward.datasets.sources.literature_sets.MIRRORS", mirrors)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return archive


def test_download_of_two_sets_in_one_archive(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download of the archive is interrupted, resumed, and gives two sets."""
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
    assert [path for path, _ in server.requests] == ["/archive", "/archive"]
    assert server.requests[1][1] == f"bytes={len(archive) // 2}-"
    assert "kept " in done.stderr
    assert (folder / "data.tar.gz").read_bytes() == archive
    assert load("miniboone").rows.shape == (2000, 43)
    assert load("power").rows.shape == (2000, 6)
    # Once prepared, neither the archive nor the network is needed.
    invoke("datasets", "download", "miniboone", "--remove-archive")
    assert sorted(path.name for path in folder.iterdir()) == ["miniboone", "power"]
    assert len(server.requests) == 2
    assert load("miniboone").rows.shape == (2000, 43)
    # With --force it is downloaded again, once for both.
    server.requests.clear()
    invoke("datasets", "download", "miniboone", "power", "--force")
    assert len(server.requests) == 1


def test_a_local_archive_needs_no_network(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = serve_archive(monkeypatch, server, 2000)
    folder.mkdir()
    (folder / "data.tar.gz").write_bytes(archive)
    assert where("power") == "downloaded"
    assert load("power").rows.shape == (2000, 6)
    assert server.requests == []


def test_the_checksum_of_the_archive_is_verified_and_cached(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive in the folder must be the published one; its checksum is computed once."""
    archive = serve_archive(monkeypatch, server, 2000)
    path = folder / "data.tar.gz"
    folder.mkdir()
    path.write_bytes(archive[:-1] + bytes([archive[-1] ^ 1]))  # after the last member, where nothing is read
    message = r"data\.tar\.gz: is not the published archive \(md5:.*, not md5:.*\); fetch it again with: (.*)$"
    with pytest.raises(DataError, match=message) as caught:
        load("power")
    assert "pushforward datasets download power --force" in str(caught.value)
    assert "is not the published archive" in invoke("datasets", "download", "power", code=1).stderr
    assert server.requests == []
    computed: list[str] = []
    real = pooch.file_hash

    def file_hash(name: str, alg: str) -> str:
        computed.append(name)
        return str(real(name, alg=alg))

    monkeypatch.setattr("pooch.file_hash", file_hash)
    # The command of the message helps.
    invoke("datasets", "download", "power", "--force")
    assert computed == [str(path) + ".part"]
    computed.clear()
    assert load("power").rows.shape == (2000, 6)
    assert load("miniboone").rows.shape == (2000, 43)
    assert computed == []
    # Computed again after a change.
    os.utime(path, ns=(0, 0))
    (folder / "miniboone" / "about.json").unlink()
    load("miniboone")
    assert computed == [str(path)]
    invoke("datasets", "download", "power", "--remove-archive")
    assert sorted(it.name for it in folder.iterdir()) == ["miniboone", "power"]


def test_a_bad_file_beside_a_good_archive(server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the message helps; without --force it does not."""
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
def test_a_download_that_is_not_the_set_is_discarded(
    server: RangeServer, folder: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Neither the file nor its checksum is stored, so that the right file is accepted later."""
    serve_wine(monkeypatch, (server.url("/wine.csv"),), None)
    server.files["/wine.csv"] = sent
    done = invoke("datasets", "download", "red-wine", code=1)
    assert "winequality-red.csv: could not be downloaded (http" in done.stderr
    assert "remove winequality-red.csv from" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not folder.exists()
    server.files["/wine.csv"] = wine(50)
    invoke("datasets", "download", "red-wine")
    # The message about the checksum appears only if a file was downloaded.
    del server.files["/wine.csv"]
    done = invoke("datasets", "download", "red-wine", "--force", code=1)
    assert "404" in done.stderr
    assert "remove winequality-red.csv from" not in done.stderr
    assert load("red-wine").rows.shape == (50, 12)


def test_option_data_folder(server: RangeServer, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
