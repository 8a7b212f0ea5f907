"""Load the five data sets of the literature: prepared once, then stored in the data folder as three matrices.

A set is stored as ``train.npy``, ``validation.npy`` and ``test.npy`` in float32 beside ``about.json``. The .npy format
needs no parser, can be memory-mapped, and is widely supported; compression would save little, since the last digits are
noise. float32 is the precision in which the published models were trained and scored.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DamagedError, DataError
from pushforward.common.files import atomic_write
from pushforward.datasets.dataset import Dataset
from pushforward.datasets.sources import literature_sets
from pushforward.datasets.sources.archive import ProgressCallback, extract
from pushforward.datasets.sources.checksums import cached_checksum
from pushforward.datasets.sources.data_folder import find_copy
from pushforward.datasets.sources.literature_sets import ARCHIVE, LITERATURE, LiteratureSet, check_counts, finite
from pushforward.datasets.sources.uci_files import checksum
from pushforward.datasets.tables.read import select_columns
from pushforward.datasets.tables.request import Request
from pushforward.datasets.tables.schema import Column, Schema
from pushforward.datasets.tables.splits import Splits

Parts = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

_PARTS = ("train", "validation", "test")
# Repeats of a value that occur by chance in float32, even among millions of rows.
_CHANCE_REPEATS = 8
# Version of the preparation: stored sets of another version are prepared again.
_RECIPE = 2
# The keys of about.json that loading needs.
_KEYS = {"source", "columns", "statistics", "notes", "sha256"}


class StoredSet(NamedTuple):
    """A prepared data set.

    Attributes:
        parts: Training, validation and test rows ``(n, D)``, float32.
        about: Content of ``about.json``: columns and their statistics, source, checksums, notes.
    """

    parts: Parts
    about: dict[str, Any]


def is_available(literature: LiteratureSet, folder: Path) -> bool:
    """Whether a set can be loaded without a download."""
    return _read_about(literature, folder) is not None or _find_files(literature, folder) is not None


def load_literature(name: str, folder: Path, asked: Request) -> Dataset:
    """Load one of the five sets with its published split.

    Columns have no grid: values are used as in the published models, however often they repeat. With ``rows``, a random
    subset is drawn, and its rows keep their part of the split.

    Memory: the matrix in float64.

    Raises:
        DataError: If the set is not available, or cannot be prepared from the files found.
    """
    stored = open_literature(LITERATURE[name], folder)
    names, rows = tuple(stored.about["columns"]), asked.rows
    chosen = select_columns(name, names, asked)
    asked.check_sides(name, chosen)
    context = asked.context_of(chosen)
    features = [column for column in chosen if column not in context]
    given = [column for column in chosen if column in context]
    counts = [len(part) for part in stored.parts]
    ends = np.cumsum([0, *counts])
    n = int(ends[-1])
    sampled = _sample_rows(n, rows, asked.seed)
    notes = [f"{name}: {note}" for note in stored.about["notes"]]
    if sampled is not None:
        notes.append(f"{name}: a random subset, {len(sampled)} of {n:,} rows")
    elif rows is not None and rows > n:
        notes.append(f"{name}: has {n:,} rows, fewer than the {rows:,} asked for")
    splits = Splits(*(np.arange(ends[k], ends[k + 1], dtype=np.intp) for k in range(3)))
    if sampled is not None:
        cuts = np.searchsorted(sampled, ends)
        splits = Splits(*(np.arange(cuts[k], cuts[k + 1], dtype=np.intp) for k in range(3)))
        if not all(len(part) for part in splits):
            raise DataError(f"data.rows: {rows} rows of {name} leave a part of the split empty; ask for more")
    described = {column["name"]: Column(**column) for column in stored.about["statistics"]}
    schema = Schema(tuple(described[c] for c in features), tuple(described[c] for c in given), tuple(chosen))
    digest = hashlib.sha256(json.dumps(stored.about["sha256"], sort_keys=True).encode()).hexdigest()
    matrices = [
        gather_columns(stored.parts, [names.index(column) for column in some], sampled) for some in (features, given)
    ]
    return Dataset(name, stored.about["source"], matrices[0], schema, tuple(notes), None, digest, matrices[1], splits)


def open_literature(
    literature: LiteratureSet, folder: Path, *, from_archive: bool = False, report: ProgressCallback | None = None
) -> StoredSet:
    """Open a prepared set; if there is none, prepare it from files in the data folder and store it if possible.

    Args:
        literature: The set.
        folder: The data folder.
        from_archive: Prepare it again from the archive, whatever else there is.
        report: Called with the progress of unpacking the archive.

    Raises:
        DataError: If the set is not available, or cannot be prepared from the files found.
    """
    about = None if from_archive else _read_about(literature, folder)
    if about is not None:
        parts = tuple(_memory_map(folder / literature.name / f"{part}.npy") for part in _PARTS)
        return StoredSet((parts[0], parts[1], parts[2]), about)
    archive = folder / ARCHIVE
    found = ("archive", (archive,)) if from_archive else _find_files(literature, folder)
    if found is None:
        raise DataError(
            f"{literature.name}: is not in the data folder {folder}; fetch it with: "
            f"{_download_command(literature)} (an archive of 857 MB)"
        )
    kind, files = found
    if kind == "archive":
        _check_archive(literature, archive)
        parent = folder if _is_writable(folder) else None
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{literature.name}-") as temporary:
            try:
                files = extract(archive, literature.members, Path(temporary), report)
            except DamagedError as error:
                raise DataError(f"{error}; fetch it again with: {_download_command(literature)} --force") from error
            return _prepare(literature, folder, kind, files, str(archive))
    return _prepare(literature, folder, kind, files, str(files[0]))


def _download_command(literature: LiteratureSet) -> str:
    return f"pushforward datasets download {literature.name}"


def _check_archive(literature: LiteratureSet, archive: Path) -> None:
    """Raise if the archive is not the published one; its checksum is cached."""
    expected = literature_sets.MIRRORS.checksum
    found = cached_checksum(archive, expected.split(":")[0])
    if found != expected:
        raise DataError(
            f"{archive}: is not the published archive ({found}, not {expected}); "
            f"fetch it again with: {_download_command(literature)} --force"
        )


def _prepare(literature: LiteratureSet, folder: Path, kind: str, files: tuple[Path, ...], source: str) -> StoredSet:
    substitute = literature.substitute if kind == "substitute" else None
    advice = f"fetch it again with: {_download_command(literature)} --force"
    if substitute is not None:
        advice = (
            f"put the complete file there, or fetch the published archive with: {_download_command(literature)} --force"
        )
    try:
        found = (literature if substitute is None else substitute).prepare(files)
        different = check_counts(literature, found)
        if different and substitute is None:
            raise DamagedError(f"{source}: is not the published {literature.name}: {different}")
        if not finite(found):
            raise DamagedError(f"{source}: has cells that are not numbers")
    except DamagedError as error:
        text = str(error)
        for file in files:  # extracted files no longer exist when the message is read
            text = text.replace(f"{file}:", f"{file.name}:") if str(file) != source else text
        where = "" if text.startswith(source) else f"{source}: "
        raise DataError(f"{where}{text}; {advice}") from error
    notes = ["published preprocessing and split; values as published, without additional noise"]
    if substitute is not None:
        notes = [f"published preprocessing and split, but {substitute.note}"]
    published = sum(literature.counts)
    if different:
        notes.append(f"{sum(found.counts):,} rows of {published:,}: not the published set")
    parts: Parts = tuple(np.ascontiguousarray(part, dtype=np.float32) for part in found[1:])  # type: ignore[assignment]
    about = {
        "recipe": _RECIPE,
        "name": literature.name,
        "kind": kind,
        "source": source,
        "source_sha256": {file.name: checksum(file) for file in files},
        "columns": list(found.columns),
        "rows": dict(zip(_PARTS, found.counts, strict=True)),
        "published_rows": dict(zip(_PARTS, literature.counts, strict=True)),
        "notes": notes,
        "sha256": {name: hashlib.sha256(part.data).hexdigest() for name, part in zip(_PARTS, parts, strict=True)},
        "statistics": _statistics(found.columns, parts),
    }
    _store(folder / literature.name, parts, about)
    return StoredSet(parts, about)


def _store(target: Path, parts: Parts, about: dict[str, Any]) -> None:
    """Store a prepared set; if that fails, it is prepared again when it is loaded next."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Removed first and written last, so that it exists only beside the parts that it describes.
        (target / "about.json").unlink(missing_ok=True)
        for name, part in zip(_PARTS, parts, strict=True):
            with atomic_write(target / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, part)
        with atomic_write(target / "about.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            (target / "about.json").unlink()


def _read_about(literature: LiteratureSet, folder: Path) -> dict[str, Any] | None:
    """Return the content of about.json; None if the stored set is incomplete, outdated, or can be replaced.

    A set made from substitute files is replaced once the published files are there.
    """
    stored = folder / literature.name
    try:
        about = json.loads((stored / "about.json").read_text(encoding="utf-8"))
        complete = about["recipe"] == _RECIPE and all((stored / f"{part}.npy").is_file() for part in _PARTS)
        is_substitute = about["kind"] == "substitute"
        described = [Column(**column).name for column in about["statistics"]]
        complete = complete and described == about["columns"] and set(about) >= _KEYS
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if is_substitute:
        found = _find_files(literature, folder)
        complete = complete and (found is None or found[0] == "substitute")
    return dict(about) if complete else None


def _find_files(literature: LiteratureSet, folder: Path) -> tuple[str, tuple[Path, ...]] | None:
    """Find files to prepare a set from: members of the archive, else the archive, else those of UCI.

    Returns:
        ``members``, ``archive`` or ``substitute``, and the paths; None if there are none.
    """
    members = [_find_member(folder, literature.name, member) for member in literature.members]
    if all(members):
        return "members", tuple(path for path in members if path)
    if (folder / ARCHIVE).is_file():
        return "archive", (folder / ARCHIVE,)
    if literature.substitute is not None:
        found = [find_copy(folder, literature.name, file) for file in literature.substitute.files]
        if all(found):
            return "substitute", tuple(path for path in found if path)
    return None


def _find_member(folder: Path, name: str, member: str) -> Path | None:
    """Find an unpacked member: under its path in the archive, without its first folder, or in the set's folder."""
    inside = Path(*Path(member).parts[1:])
    for path in (folder / member, folder / inside, folder / "raw" / inside):
        if path.is_file():
            return path
    # Two members are called data.npy; only a folder with the name of the set distinguishes them.
    found = find_copy(folder, name, inside.name)
    return found if found is not None and (found.parent.name == name or inside.name != "data.npy") else None


def _memory_map(path: Path) -> NDArray[np.float32]:
    try:
        part: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: is damaged; remove about.json beside it to prepare the set again") from error
    return part


def gather_columns(
    parts: Parts, columns: Sequence[int], sampled: NDArray[np.intp] | None = None
) -> NDArray[np.float64]:
    """Return columns of all parts, concatenated ``(n, D)`` in float64; with ``sampled``, only these rows."""
    n = sum(len(part) for part in parts) if sampled is None else len(sampled)
    out = np.empty((n, len(columns)))
    start = before = 0
    for part in parts:
        rows: Any = slice(None)
        if sampled is not None:
            rows = sampled[(sampled >= before) & (sampled < before + len(part))] - before
        chosen = part[rows]
        out[start : start + len(chosen)] = chosen if list(columns) == list(range(part.shape[1])) else chosen[:, columns]
        start, before = start + len(chosen), before + len(part)
    return out


def _sample_rows(n: int, rows: int | None, seed: int) -> NDArray[np.intp] | None:
    if rows is None or rows >= n:
        return None
    return np.sort(np.random.default_rng(seed).choice(n, size=rows, replace=False)).astype(np.intp)


def _statistics(columns: Sequence[str], parts: Parts) -> list[dict[str, Any]]:
    """Return the schema entry of each column; standardised values have no grid.

    Ties are rows whose value occurs more than eight times: a few equal values among millions in float32 are chance.
    """
    out = []
    for k, name in enumerate(columns):
        values = np.concatenate([part[:, k] for part in parts])
        levels, counts = np.unique(values, return_counts=True)
        out.append(
            {
                "name": name,
                "type": "float",
                "minimum": float(levels[0]),
                "maximum": float(levels[-1]),
                "step": None,
                "offset": None,
                "distinct": len(levels),
                "ties": float(counts[counts > _CHANCE_REPEATS].sum() / len(values)),
            }
        )
    return out


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
