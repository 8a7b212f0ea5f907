"""Put data sets into the data folder: from local copies, else by download."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pushforward.common.errors import DataError
from pushforward.common.files import atomic_write, new_folder, replace_file
from pushforward.common.lock import file_lock
from pushforward.common.text import unknown_name
from pushforward.datasets.sources import literature_sets
from pushforward.datasets.sources.archive import ProgressCallback, extract_zipped
from pushforward.datasets.sources.checksums import remember_checksum
from pushforward.datasets.sources.download import DownloadError, download
from pushforward.datasets.sources.literature import is_available, open_literature
from pushforward.datasets.sources.literature_sets import ARCHIVE, LITERATURE
from pushforward.datasets.sources.scikit_learn import BUNDLED
from pushforward.datasets.sources.uci import UCI, UciFile, UciSet
from pushforward.datasets.sources.uci_files import checked_rows, find_uci, read_uci
from pushforward.datasets.toys.toy import TOYS

RECORD = "checksums.json"
"""File of the checksums of first downloads, for files without a published checksum."""


@dataclass(frozen=True)
class Fetched:
    """A data set that is ready to load.

    Args:
        name: Its name.
        path: Its file or folder.
        rows: Number of rows.
        columns: Number of columns.
        downloaded: Whether anything was downloaded.
        notes: Notes for the user.
    """

    name: str
    path: Path
    rows: int
    columns: int
    downloaded: bool
    notes: tuple[str, ...] = ()


def resolve_names(names: list[str]) -> list[str]:
    """Return the names of data sets to download, each once; groups are replaced by their members.

    Raises:
        DataError: If there is no such data set, or it comes with the package.
    """
    out: list[str] = []
    for name in names:
        canonical = name.strip().lower().replace("_", "-")
        groups = {"all": [*UCI, *LITERATURE], "literature": list(LITERATURE), "uci": list(UCI)}
        if canonical in TOYS or canonical in BUNDLED:
            raise DataError(f"{name}: comes with the package, there is nothing to download; fit it by its name")
        if canonical not in groups and canonical not in UCI and canonical not in LITERATURE:
            known = (*UCI, *LITERATURE, *groups)
            raise DataError(unknown_name("dataset", name, known))
        out += groups.get(canonical, [canonical])
    return list(dict.fromkeys(out))


def fetch(
    name: str,
    folder: Path,
    *,
    force: bool = False,
    archive_is_new: bool = False,
    report: Callable[[str], ProgressCallback] | None = None,
    notify: Callable[[str], object] | None = None,
) -> Fetched:
    """Make a data set ready to load; it is downloaded only if the data folder lacks it.

    Args:
        name: Name of a data set of UCI or of the literature.
        folder: The data folder.
        force: Download and prepare it even if it is available.
        archive_is_new: Whether the archive of the literature's sets has just been downloaded; ``force`` then does not
            download it again.
        report: Called with the name of each file that is downloaded or unpacked; returns the callback for its progress.
        notify: Called with one line for the user if another process downloads the same file.

    Raises:
        DownloadError: If it could not be downloaded.
        DataError: If the files found or downloaded are not the data set.
    """
    if name in UCI:
        return _fetch_uci(UCI[name], folder, force, report)
    archive = folder / ARCHIVE
    literature = LITERATURE[name]
    downloaded = False
    if (force and not archive_is_new) or not is_available(literature, folder):
        source = literature_sets.MIRRORS
        checksum = download(
            source.urls,
            archive,
            checksum=source.checksum,
            expected_bytes=source.expected_bytes,
            needed_bytes=literature.unpacked_bytes,
            report=None if report is None else report(ARCHIVE),
            notify=notify,
        )
        remember_checksum(archive, checksum)
        downloaded = True
    progress = None if report is None else report(f"unpacking {name}")
    stored = open_literature(literature, folder, from_archive=downloaded or force, report=progress)
    rows = sum(len(part) for part in stored.parts)
    notes = tuple(f"{name}: {note}" for note in stored.about["notes"])
    return Fetched(name, folder / name, rows, len(stored.about["columns"]), downloaded, notes)


def _fetch_uci(uci: UciSet, folder: Path, force: bool, report: Callable[[str], ProgressCallback] | None) -> Fetched:
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
    report: Callable[[str], ProgressCallback] | None,
) -> str | None:
    """Download a file of UCI, possibly inside a zip archive; return a note if it has no published checksum."""
    expected = file.sha256 or _known_checksums(folder).get(file.file)
    progress = None if report is None else report(file.file)
    failures: list[str] = []
    changed = False
    with (
        new_folder(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as temporary,
    ):
        for url in file.urls:
            fresh = Path(temporary) / file.file
            try:
                _get(url, file, fresh, progress)
                found = hashlib.sha256(fresh.read_bytes()).hexdigest()
                if expected is None:
                    # Without a checksum check the content; later downloads must have this file's checksum.
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
            replace_file(fresh, target)
            if file.sha256 is not None:
                return None
            _record_checksum(folder, file.file, found)
            return f"no checksum is published for {file.file}; that of this download is stored in {RECORD}"
        again = f"; if the change is intended, remove {file.file} from {folder / RECORD}" if changed else ""
        raise DownloadError(f"{file.file}: could not be downloaded{again} ({'; '.join(failures)})")


def _get(url: str, file: UciFile, fresh: Path, report: ProgressCallback | None) -> None:
    """Download from one URL, and extract the file if the URL is that of a zip archive."""
    zipped = url.endswith(".zip") and not file.file.endswith(".zip")
    got = fresh.with_name("archive.zip") if zipped else fresh
    download([url], got, checksum=None, report=report)
    if zipped:
        extract_zipped(got, file.file, fresh)


def _known_checksums(folder: Path) -> dict[str, str]:
    try:
        checksums = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return checksums if isinstance(checksums, dict) else {}


def _record_checksum(folder: Path, file: str, sha256: str) -> None:
    with file_lock(folder / RECORD), contextlib.suppress(OSError), atomic_write(folder / RECORD) as temporary:
        content = {**_known_checksums(folder), file: sha256}
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
