"""Putting a data set into the data folder: from what is there, else from where it is published."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pushforward.common.errors import DataError
from pushforward.common.files import atomic_write, new_folder
from pushforward.common.lock import file_lock
from pushforward.common.text import did_you_mean
from pushforward.datasets.sources import literature_sets
from pushforward.datasets.sources.archive import Report, extract_zipped
from pushforward.datasets.sources.checksums import remember
from pushforward.datasets.sources.download import DownloadError, download
from pushforward.datasets.sources.literature import is_there, keep
from pushforward.datasets.sources.literature_sets import ARCHIVE, LITERATURE
from pushforward.datasets.sources.scikit_learn import EMBEDDED
from pushforward.datasets.sources.uci import UCI, UciFile, UciSet
from pushforward.datasets.sources.uci_files import checked_rows, find_uci, read_uci
from pushforward.datasets.toys.toy import TOYS

RECORD = "checksums.json"
"""Checksums of files for which none is published: those of the first download."""

GROUPS = ("all", "literature", "uci")


@dataclass(frozen=True)
class Fetched:
    """A data set that is ready.

    Args:
        name: Its name.
        path: The file, or the folder, that holds it.
        rows: Number of rows.
        columns: Number of columns.
        downloaded: Whether anything was downloaded.
        notes: What the user should know.
    """

    name: str
    path: Path
    rows: int
    columns: int
    downloaded: bool
    notes: tuple[str, ...] = ()


def wanted(names: list[str]) -> list[str]:
    """Return the names of data sets, groups resolved, each once.

    Raises:
        DataError: There is no such data set, or nothing to download of it.
    """
    out: list[str] = []
    for name in names:
        canonical = name.strip().lower().replace("_", "-")
        groups = {"all": [*UCI, *LITERATURE], "literature": list(LITERATURE), "uci": list(UCI)}
        if canonical in TOYS or canonical in EMBEDDED:
            raise DataError(f"{name}: comes with the package, there is nothing to download; fit it by its name")
        if canonical not in groups and canonical not in UCI and canonical not in LITERATURE:
            known = (*UCI, *LITERATURE, *groups)
            raise DataError(f"unknown dataset {name!r}; {did_you_mean(name, known)}known: {', '.join(known)}")
        out += groups.get(canonical, [canonical])
    return list(dict.fromkeys(out))


def fetch(
    name: str,
    folder: Path,
    *,
    force: bool = False,
    archive_is_new: bool = False,
    report: Callable[[str], Report] | None = None,
    tell: Callable[[str], object] | None = None,
) -> Fetched:
    """Make a data set ready to load, without a network if what is in the data folder will do.

    Args:
        name: One of the UCI repository's sets or of the literature's.
        folder: The data folder.
        force: Download even if it is there, and make it anew.
        archive_is_new: The archive of the literature's sets has just been downloaded, which will do for ``force``.
        report: Called with the name of a file that is downloaded or unpacked, returns what is told of the progress.
        tell: Called with a line that is for now: that another process downloads the same.

    Raises:
        DownloadError: It could not be downloaded.
        DataError: What was found or downloaded is not what it should be.
    """
    if name in UCI:
        return _fetch_uci(UCI[name], folder, force, report)
    archive = folder / ARCHIVE
    literature = LITERATURE[name]
    downloaded = False
    if (force and not archive_is_new) or not is_there(literature, folder):
        source = literature_sets.PUBLISHED
        checksum = download(
            source.urls,
            archive,
            checksum=source.checksum,
            expected_bytes=source.expected_bytes,
            needed_bytes=literature.unpacked_bytes,
            report=None if report is None else report(ARCHIVE),
            tell=tell,
        )
        remember(archive, checksum)
        downloaded = True
    told = None if report is None else report(f"unpacking {name}")
    kept = keep(literature, folder, from_archive=downloaded or force, report=told)
    rows = sum(len(part) for part in kept.parts)
    notes = tuple(f"{name}: {note}" for note in kept.about["notes"])
    return Fetched(name, folder / name, rows, len(kept.about["columns"]), downloaded, notes)


def _fetch_uci(uci: UciSet, folder: Path, force: bool, report: Callable[[str], Report] | None) -> Fetched:
    downloaded, notes = False, []
    if force or find_uci(uci, folder) is None:
        file = next(file for file in uci.files if file.urls)
        note = _download_file(uci, file, folder, folder / uci.name / file.file, report)
        downloaded = True
        if note:
            notes.append(f"{uci.name}: {note}")
    read = read_uci(uci, folder)
    rows, columns = read.numbers.matrix.shape
    return Fetched(uci.name, read.path, rows, columns, downloaded, (*notes, *read.notes))


def _download_file(
    uci: UciSet,
    file: UciFile,
    folder: Path,
    target: Path,
    report: Callable[[str], Report] | None,
) -> str | None:
    """Download a file of the UCI repository, by itself or in a zip archive; says if nothing vouches for it."""
    expected = file.sha256 or _recorded(folder).get(file.file)
    told = None if report is None else report(file.file)
    failures: list[str] = []
    changed = False
    with (
        new_folder(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as workshop,
    ):
        for url in file.urls:
            fresh = Path(workshop) / file.file
            try:
                _get(url, file, fresh, told)
                found = hashlib.sha256(fresh.read_bytes()).hexdigest()
                if expected is None:
                    # Nobody vouches for it but its contents, and what is kept now is required of all later ones.
                    checked_rows(uci, file, fresh)
            except DownloadError as error:
                failures += error.failures or [str(error)]
                continue
            except DataError as error:
                failures.append(f"{url}: {str(error).replace(f'{fresh}: ', '')}")
                continue
            if expected is not None and found != expected:
                changed = changed or file.sha256 is None
                failures.append(f"{url}: gave a file with another checksum (sha256:{found}, not sha256:{expected})")
                continue
            fresh.replace(target)
            if file.sha256 is not None:
                return None
            _record(folder, file.file, found)
            return f"no checksum is published for {file.file}; that of this download is kept in {RECORD}"
        again = f"; if the change is meant, take {file.file} out of {folder / RECORD}" if changed else ""
        raise DownloadError(f"{file.file}: could not be downloaded{again} ({'; '.join(failures)})")


def _get(url: str, file: UciFile, fresh: Path, report: Report | None) -> None:
    """Download from one address, and take the file out of an archive if it is in one."""
    zipped = url.endswith(".zip") and not file.file.endswith(".zip")
    got = fresh.with_name("archive.zip") if zipped else fresh
    download([url], got, checksum=None, report=report)
    if zipped:
        extract_zipped(got, file.file, fresh)


def _recorded(folder: Path) -> dict[str, str]:
    try:
        recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _record(folder: Path, file: str, sha256: str) -> None:
    with file_lock(folder / RECORD), contextlib.suppress(OSError), atomic_write(folder / RECORD) as temporary:
        content = {**_recorded(folder), file: sha256}
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
