"""Find the bytes of a table: a file as it is; stdin or a pipe through a copy; unpacked where its reader needs that."""

import contextlib
import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pushforward.common.errors import ConfigError, DataError, TableError, reason
from pushforward.common.files import atomic_write
from pushforward.datasets.tables.files.compression import compression_at, compression_of, open_decompressed
from pushforward.datasets.tables.files.json_lines import lines_of_array
from pushforward.datasets.tables.files.kind import kind_of, table_stem, understood
from pushforward.datasets.tables.files.workbook import sheet_as_text

STDIN = "-"
"""Stands for standard input; as the source of a run, for any stream: its rows came once and were not kept."""

_STDIN_NAMES = (STDIN, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_HEAD_BYTES = 4096


class LocalFile:
    """A table as a regular file that can be read any number of times.

    Copies, of streams and of unpacked content, are removed when this object is collected or the process ends.

    Args:
        source: The path of a file or a pipe, with ``#SHEET`` after it for a sheet of a workbook; or ``-`` for stdin.

    Attributes:
        source: What to record: the path, with the sheet if one was given, or ``-`` for a stream.
        name: What to call it in messages.
        path: The file to read, which is called ``name`` too. Text and JSON lines in it may be compressed.
        kind: What ``path`` holds: ``text``, ``json``, ``parquet``, ``feather`` or ``npy``.
        notes: Notes for the user: what it holds, if its name says otherwise.

    Raises:
        DataError: If there is no such file, or it is empty or damaged.
        ConfigError: If standard input is a terminal.
    """

    def __init__(self, source: str | Path) -> None:
        self.source, sheet = _split_sheet(str(source))
        self._original = self.path = self._find()
        self._sheet = sheet
        self.source += "" if sheet is None else f"#{sheet}"
        self.name = self.path.name
        compression = compression_of(self.path)
        while True:
            with open_decompressed(self.path) as file:
                head = file.read(_HEAD_BYTES)
            if not head.strip() and len(head) < _HEAD_BYTES:
                raise DataError(f"{self.name}: the file is empty")
            if head[257:262] == b"ustar":
                raise DataError(f"{self.name}: is a tar archive; unpack it and give one file")
            self.kind = kind_of(self.name, head)
            is_read_compressed = self.kind in ("text", "json") and compression_at(head) is None
            if is_read_compressed or compression_of(self.path) is None:
                break
            packed, self.path = self.path, self._copy_path()  # its reader cannot read it compressed
            with open_decompressed(packed) as content:
                self._copy(content)
        note = understood(self.name, self.kind, compression)
        self.notes = (note,) if note and self.source != STDIN else ()
        found = self.path
        if self.kind == "workbook":
            self.path, self.kind = self._copy_path(), "text"
            sheet_as_text(found, sheet, self.path)
        elif self.kind == "json array":
            self.path, self.kind = self._copy_path(), "json"
            lines_of_array(found, self.path)
        if sheet is not None and self.path is found:
            raise DataError(f"{self.name}: is not a workbook and has no sheet {sheet!r}; leave out what follows '#'")

    def checksum(self) -> str:
        """Return the SHA-256 of the content as it came; the name of a sheet, if one was given, is part of it."""
        with self._original.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(b"" if self._sheet is None else f"#{self._sheet}".encode())
        return digest.hexdigest()

    def keep(self, folder: Path) -> Path:
        """Save the content as it came in a folder, under a name that depends on it; return the path."""
        path = folder / f"{table_stem(self.name)}-{self.checksum()[:12]}"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                shutil.copyfile(self._original, temporary)
        return path

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Add to an error of the block what the file was taken for, if its name says otherwise."""
        try:
            yield
        except TableError:
            raise
        except DataError as error:
            if not self.notes:
                raise
            raise DataError(f"{error} ({self.notes[0].removeprefix(f'{self.name}: ')})") from error

    def _find(self) -> Path:
        """Return a regular file with the content of the source, which is not empty."""
        if self.source in _STDIN_NAMES:
            return self._find_stdin()
        path = Path(self.source)
        if path.parent in (Path("/dev/fd"), Path("/proc/self/fd")) and path.is_file():
            path = Path(os.path.realpath(path))
        if path.is_dir():
            raise DataError(f"{path}: is a folder; give one file")
        if not path.exists():
            raise DataError(f"{path}: no such file")
        if path.is_file():
            self.source = str(path)
            if not path.stat().st_size:
                raise DataError(f"{path.name}: the file is empty")
            return path
        mode = path.stat().st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise DataError(f"{path}: is a device; give a file")
        name = "pipe" if path.parent.name == "fd" else path.name
        with path.open("rb") as stream:
            return self._received(stream, name, f"{path}: no data came through the pipe")

    def _find_stdin(self) -> Path:
        if sys.stdin is None or sys.stdin.closed:
            raise DataError("-: no data on stdin, which is closed")
        if sys.stdin.isatty():
            raise ConfigError("-: expected rows on stdin, which is a terminal; pipe them in, or give a file")
        redirected = _redirected()
        if redirected is not None:
            self.source = str(redirected)
            if redirected.stat().st_size:
                return redirected
        return self._received(sys.stdin.buffer, "stdin", "-: no data on stdin")

    def _received(self, stream: IO[bytes], name: str, if_empty: str) -> Path:
        """Copy a stream, which is recorded as ``-``."""
        self.source = STDIN
        self.name = name
        self.path = self._copy_path()
        self._copy(stream)
        if not self.path.stat().st_size:
            raise DataError(if_empty)
        return self.path

    def _copy_path(self) -> Path:
        """Return the path of a new temporary file with the name of this one."""
        folder = tempfile.mkdtemp(prefix="pushforward-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder) / self.name

    def _copy(self, stream: Any) -> None:
        try:
            with self.path.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        except OSError as error:
            raise DataError(
                f"{self.name}: cannot be copied to {self.path.parent}: {reason(error)}; "
                f"set TMPDIR to a folder with more room"
            ) from error


def is_stream(source: str | Path) -> bool:
    """Whether a source is standard input or a pipe, whose content may come only once."""
    path = Path(source)
    return str(source) in _STDIN_NAMES or (path.exists() and not path.is_file() and not path.is_dir())


def file_status(source: str) -> os.stat_result | None:
    """Return the status of the regular file that a source reads, also one that stdin is redirected from; else None."""
    try:
        status = os.fstat(sys.stdin.fileno()) if source in _STDIN_NAMES else os.stat(_split_sheet(source)[0])
    except (AttributeError, OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _split_sheet(source: str) -> tuple[str, str | None]:
    """Separate ``book.xlsx#Sheet``; a file whose name has a ``#`` is taken as it is."""
    path, mark, sheet = source.rpartition("#")
    return (path, sheet) if mark and not Path(source).exists() and Path(path).is_file() else (source, None)


def _redirected() -> Path | None:
    """Return the file that stdin is redirected from, as in ``< table.csv``, if nothing of it has been read."""
    try:
        number = sys.stdin.fileno()
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode) or os.lseek(number, 0, os.SEEK_CUR):
            return None
        path = Path(os.path.realpath(f"/dev/fd/{number}"))
        return path if os.path.samestat(found, path.stat()) else None
    except (AttributeError, OSError, io.UnsupportedOperation, ValueError):  # a stream without a file, or a removed one
        return None
