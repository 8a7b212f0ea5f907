"""Decompress files by their content, whatever their names say: gzip, bzip2, xz, Zstandard, and zip archives."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pushforward.common.errors import DataError
from pushforward.common.text import one_line, shorten

COMPRESSION_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
"""Endings of compressed files, and the names of their formats."""

# The first bytes of each format; of bzip2 the fourth is the size of a block.
_BZIP2_BLOCK = b"1AY&SY"
_MAGIC = {"gzip": b"\x1f\x8b", "xz": b"\xfd7zXZ\x00", "zstd": b"\x28\xb5\x2f\xfd", "zip": b"PK\x03\x04"}


def compression_of(path: Path) -> str | None:
    """Return the format in which a file is compressed, None if it is not; a workbook, though a zip archive, is not.

    Raises:
        DataError: If it is a damaged zip archive.
    """
    with path.open("rb") as file:
        found = compression_at(file.read(10))
    return None if found == "zip" and is_workbook(path) else found


def compression_at(head: bytes) -> str | None:
    """Return the format of compressed content by its first bytes; a workbook is in the format ``zip`` here."""
    if head.startswith(b"BZh") and head[4:10] == _BZIP2_BLOCK:
        return "bzip2"
    return next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)


def is_workbook(path: Path) -> bool:
    """Whether a zip archive is a workbook of Excel or LibreOffice.

    Raises:
        DataError: If the archive is damaged.
    """
    with _open_zip(path) as archive:
        names = archive.namelist()
        if "mimetype" in names:
            return b"opendocument.spreadsheet" in archive.read("mimetype")
        return "[Content_Types].xml" in names and any(name.startswith("xl/workbook.") for name in names)


def open_decompressed(path: Path) -> io.RawIOBase:
    """Open a file for reading its decompressed content once, in constant memory.

    Raises:
        DataError: If it is damaged, here or while reading; or if it is a zip archive with more than one file.
    """
    compression = compression_of(path)
    if compression is None:
        return io.FileIO(path)
    try:
        return _Decompressed(path, compression, _OPENERS[compression](path))
    except _DAMAGE as error:
        raise _damaged(path, compression, error) from error


class _Decompressed(io.RawIOBase):
    """The decompressed content of a file; damage raises a ``DataError``."""

    def __init__(self, path: Path, compression: str, file: Any) -> None:
        self._path, self._compression, self._file = path, compression, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._file.read(len(buffer))
        except _DAMAGE as error:
            raise _damaged(self._path, self._compression, error) from error
        except OSError as error:
            if error.errno is not None:  # the disk, not the content
                raise
            raise _damaged(self._path, self._compression, error) from error
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


# What the libraries raise for damaged content, beside OSError; of zip also for a password or an unknown method.
_DAMAGE = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    NotImplementedError,
    RuntimeError,
)


def _damaged(path: Path, compression: str, error: BaseException) -> DataError:
    return DataError(
        f"{path.name}: not a complete {compression} file ({shorten(one_line(error), 200)}); fetch it again"
    )


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _damaged(path, "zip", error) from error


def _open_member(path: Path) -> Any:
    """Open the one file of a zip archive; folders, and what macOS adds, do not count."""
    archive = _open_zip(path)
    members = [
        entry
        for entry in archive.infolist()
        if not entry.is_dir()
        and not entry.filename.startswith("__MACOSX/")
        and not entry.filename.endswith(".DS_Store")
    ]
    if len(members) != 1:
        archive.close()
        names = shorten(", ".join(entry.filename for entry in members), 200)
        what = f"{len(members)} files: {names}" if members else "no file"
        raise DataError(f"{path.name}: holds {what}; unpack it and give one file")
    if members[0].flag_bits & 1:
        archive.close()
        raise DataError(f"{path.name}: is protected by a password; unpack it and give the file in it")
    return archive.open(members[0])


def _open_zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    "gzip": gzip.GzipFile,
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _open_zstd,
    "zip": _open_member,
}
