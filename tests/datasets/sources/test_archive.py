"""Files are extracted from archives by their exact names."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.datasets.sources.archive import extract, extract_zipped
from tests.fixtures.archives import tar_bytes, zip_bytes

RANDOM_BYTES = np.random.default_rng(0).bytes(300_000)


def test_members_are_extracted_by_name(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_bytes({"./data/a/data.npy": b"first", "data/b/x.csv": b"second", "data/c": RANDOM_BYTES}))
    found = extract(archive, ("data/b/x.csv", "data/a/data.npy"), tmp_path)
    assert [path.read_bytes() for path in found] == [b"second", b"first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "data.npy", "x.csv"]
    with pytest.raises(DataError, match="lacks data/d"):
        extract(archive, ("data/a/data.npy", "data/d"), tmp_path)
    archive.write_bytes(archive.read_bytes()[:-100_000])
    with pytest.raises(DataError, match=r"not a complete \.tar\.gz archive"):
        extract(archive, ("data/c",), tmp_path)


def test_links_and_paths_outside_are_not_extracted(tmp_path: Path) -> None:
    """A link with the name of a member, or a path that leads out of the folder, is not extracted."""
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


def test_zipped_files_are_found_in_nested_archives(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_bytes({"readme": b"", "inner.zip": zip_bytes({"folder/x.csv": b"inside"})}))
    extract_zipped(archive, "x.csv", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == b"inside"
    with pytest.raises(DataError, match=r"holds no y\.csv"):
        extract_zipped(archive, "y.csv", tmp_path / "y.csv")
    archive.write_bytes(b"PK not at all")
    with pytest.raises(DataError, match="not a complete zip archive"):
        extract_zipped(archive, "x.csv", tmp_path / "x.csv")
