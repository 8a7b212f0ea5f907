"""Extract single files, by their exact names, from tar and zip archives."""

import io
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from pushforward.common.errors import DamagedError, DataError
from pushforward.common.files import atomic_write

ProgressCallback = Callable[[int, int | None], None]
"""Called with the number of bytes done and in total (None if unknown)."""


def extract(
    archive: Path, members: Sequence[str], target: Path, report: ProgressCallback | None = None
) -> tuple[Path, ...]:
    """Extract members of a gzipped tar archive in one pass.

    A member is written to ``target`` under the last part of its name, whatever its path in the archive. Reading stops
    after the last member asked for, so the checksum at the end of the archive is not verified.

    Raises:
        DamagedError: If the archive is damaged, or lacks a member.
    """
    total = archive.stat().st_size
    missing = dict.fromkeys(members)
    paths = {member: target / Path(member).name for member in members}
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_ReportingFile(file, total, report), mode="r|gz") as tar:
            for entry in tar:
                name = entry.name.removeprefix("./")
                if name in missing and entry.isfile():
                    content = tar.extractfile(entry)
                    assert content is not None  # it is a file
                    with atomic_write(paths[name]) as temporary, temporary.open("wb") as out:
                        shutil.copyfileobj(content, out, 1 << 20)
                    del missing[name]
                    if not missing:
                        break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DamagedError(f"{archive}: not a complete .tar.gz archive ({error})") from error
    if missing:
        raise DamagedError(f"{archive}: lacks {', '.join(missing)}")
    return tuple(paths[member] for member in members)


def extract_zipped(archive: Path, name: str, target: Path) -> None:
    """Extract a file by name from any folder of a zip archive, or from a zip archive inside it.

    Raises:
        DataError: If the archive is damaged, or holds no such file.
    """
    try:
        with zipfile.ZipFile(archive) as outer:
            content = _read_member(outer, name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive.name}: not a complete zip archive ({error})") from error
    if content is None:
        raise DataError(f"{archive.name}: holds no {name}")
    target.write_bytes(content)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes | None:
    names = archive.namelist()
    for entry in names:
        if entry.rsplit("/", 1)[-1] == name:
            return archive.read(entry)
    for entry in names:
        if entry.lower().endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(archive.read(entry))) as inner:
                found = _read_member(inner, name)
            if found is not None:
                return found
    return None


class _ReportingFile(io.RawIOBase):
    """A file that reports how much of it has been read."""

    def __init__(self, file: IO[bytes], total: int, report: ProgressCallback | None) -> None:
        self._file, self._total, self._report = file, total, report
        self._done = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._done += len(content)
        if self._report is not None:
            self._report(self._done, self._total)
        return content
