"""Taking files out of archives: by their exact names, nothing else, to where the caller says."""

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

Report = Callable[[int, int | None], None]
"""Told how many bytes are done and how many there are, None if that is not known."""


def extract(archive: Path, members: Sequence[str], target: Path, report: Report | None = None) -> tuple[Path, ...]:
    """Take members out of a gzipped tar archive, in one pass that ends at the last of them.

    A member lands in ``target`` under the last part of its name, wherever the archive would have it. What follows the
    last of them is not read, and so neither is the checksum at the archive's end: see ``checked``.

    Raises:
        DamagedError: The archive is damaged, or lacks one of them.
    """
    total = archive.stat().st_size
    missing = dict.fromkeys(members)
    paths = {member: target / Path(member).name for member in members}
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_Reported(file, total, report), mode="r|gz") as tar:
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
        raise DamagedError(f"{archive}: not a whole .tar.gz archive ({error})") from error
    if missing:
        raise DamagedError(f"{archive}: lacks {', '.join(missing)}")
    return tuple(paths[member] for member in members)


def extract_zipped(archive: Path, name: str, target: Path) -> None:
    """Take the file of a name out of a zip archive, from any folder in it, or from a zip archive in it.

    Raises:
        DataError: The archive is damaged, or holds no such file.
    """
    try:
        with zipfile.ZipFile(archive) as outer:
            content = _zipped(outer, name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive.name}: not a whole zip archive ({error})") from error
    if content is None:
        raise DataError(f"{archive.name}: holds no {name}")
    target.write_bytes(content)


def _zipped(archive: zipfile.ZipFile, name: str) -> bytes | None:
    names = archive.namelist()
    for entry in names:
        if entry.rsplit("/", 1)[-1] == name:
            return archive.read(entry)
    for entry in names:
        if entry.lower().endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(archive.read(entry))) as inner:
                found = _zipped(inner, name)
            if found is not None:
                return found
    return None


class _Reported(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], total: int, report: Report | None) -> None:
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
