"""Loading the five sets of the literature: found in the data folder, made once, and kept there as three matrices.

A set is kept as ``train.npy``, ``validation.npy`` and ``test.npy`` in float32 beside ``about.json``: NumPy's own
format, since it is read without a parser, from the disk as far as one looks at it, and by everything; compressed
columns would save little on numbers that are noise in their last digits. float32 is what the published models were
trained and scored on.
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
from pushforward.datasets.sources.archive import Report, extract
from pushforward.datasets.sources.checksums import found_checksum
from pushforward.datasets.sources.data_folder import find_copy
from pushforward.datasets.sources.literature_sets import ARCHIVE, LITERATURE, LiteratureSet, check_counts, finite
from pushforward.datasets.sources.uci_files import checksum
from pushforward.datasets.tables.read import select
from pushforward.datasets.tables.schema import Column, Schema
from pushforward.datasets.tables.splits import Splits

Parts = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

_PARTS = ("train", "validation", "test")
# Repeats of a value that float32 brings about by itself, even among millions.
_CHANCE = 8
# Another number wherever something about the preparation changes: what was kept is then made anew.
_RECIPE = 2
# What about.json tells of a set and loading needs.
_KEYS = {"source", "columns", "statistics", "notes", "sha256"}


class Kept(NamedTuple):
    """A set as it is kept.

    Attributes:
        parts: Training, validation and test rows ``(n, D)``, float32.
        about: Columns and their statistics, where the rows came from, checksums, notes.
    """

    parts: Parts
    about: dict[str, Any]


def is_there(literature: LiteratureSet, folder: Path) -> bool:
    """Whether a set can be loaded without a network."""
    return _about(literature, folder) is not None or _files(literature, folder) is not None


def load_literature(
    name: str,
    folder: Path,
    *,
    rows: int | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    context: Sequence[str] = (),
) -> Dataset:
    """Load one of the five with its published parts.

    Columns are described without a grid: values are taken as the published models took them, however often they
    repeat. With ``rows``, so many are drawn at random, and keep their parts.

    Memory: the matrix in float64.

    Raises:
        DataError: The set is not there, or cannot be made of what is.
    """
    kept = keep(LITERATURE[name], folder)
    names = tuple(kept.about["columns"])
    wanted = None if columns is None else [*columns, *(column for column in context if column not in columns)]
    chosen = select(name, names, wanted, drop)
    features = [column for column in chosen if column not in context]
    given = [column for column in chosen if column in context]
    if missing := [column for column in context if column not in names]:
        select(name, names, missing, ())
    if not features:
        raise DataError(f"{name}: every column is context; leave at least one to model")
    counts = [len(part) for part in kept.parts]
    ends = np.cumsum([0, *counts])
    n = int(ends[-1])
    picked = _picked(n, rows, seed)
    notes = [f"{name}: {note}" for note in kept.about["notes"]]
    if picked is not None:
        notes.append(f"{name}: a random part, {len(picked)} of {n:,} rows")
    elif rows is not None and rows > n:
        notes.append(f"{name}: has {n:,} rows, fewer than the {rows:,} asked for")
    splits = Splits(*(np.arange(ends[k], ends[k + 1], dtype=np.intp) for k in range(3)))
    if picked is not None:
        cuts = np.searchsorted(picked, ends)
        splits = Splits(*(np.arange(cuts[k], cuts[k + 1], dtype=np.intp) for k in range(3)))
        if not all(len(part) for part in splits):
            raise DataError(f"data.rows: {rows} rows of {name} leave a part without any; ask for more")
    described = {column["name"]: Column(**column) for column in kept.about["statistics"]}
    schema = Schema(tuple(described[c] for c in features), tuple(described[c] for c in given), tuple(chosen))
    digest = hashlib.sha256(json.dumps(kept.about["sha256"], sort_keys=True).encode()).hexdigest()
    matrices = [gathered(kept.parts, [names.index(column) for column in some], picked) for some in (features, given)]
    return Dataset(name, kept.about["source"], matrices[0], schema, tuple(notes), None, digest, matrices[1], splits)


def keep(literature: LiteratureSet, folder: Path, *, from_archive: bool = False, report: Report | None = None) -> Kept:
    """Return a set, made of what there is in the data folder if it has not been before, and kept there if possible.

    Args:
        literature: The set.
        folder: The data folder.
        from_archive: Make it anew, of the archive, whatever else there is.
        report: Told of progress while the archive is unpacked.

    Raises:
        DataError: It is not there, or cannot be made of what is.
    """
    about = None if from_archive else _about(literature, folder)
    if about is not None:
        parts = tuple(_mapped(folder / literature.name / f"{part}.npy") for part in _PARTS)
        return Kept((parts[0], parts[1], parts[2]), about)
    archive = folder / ARCHIVE
    found = ("archive", (archive,)) if from_archive else _files(literature, folder)
    if found is None:
        raise DataError(
            f"{literature.name}: is not in the data folder {folder}; fetch it with: "
            f"{_command(literature)} (an archive of 857 MB)"
        )
    kind, files = found
    if kind == "archive":
        _check(literature, archive)
        place = folder if _writable(folder) else None
        with tempfile.TemporaryDirectory(dir=place, prefix=f".{literature.name}-") as workshop:
            try:
                files = extract(archive, literature.members, Path(workshop), report)
            except DamagedError as error:
                raise DataError(f"{error}; fetch it again with: {_command(literature)} --force") from error
            return _made(literature, folder, kind, files, str(archive))
    return _made(literature, folder, kind, files, str(files[0]))


def _command(literature: LiteratureSet) -> str:
    return f"pushforward datasets download {literature.name}"


def _check(literature: LiteratureSet, archive: Path) -> None:
    """Refuse an archive that is not the published one; its checksum is computed once."""
    expected = literature_sets.PUBLISHED.checksum
    found = found_checksum(archive, expected.split(":")[0])
    if found != expected:
        raise DataError(
            f"{archive}: is not the published archive ({found}, not {expected}); "
            f"fetch it again with: {_command(literature)} --force"
        )


def _made(literature: LiteratureSet, folder: Path, kind: str, files: tuple[Path, ...], source: str) -> Kept:
    substitute = literature.substitute if kind == "substitute" else None
    advice = f"fetch it again with: {_command(literature)} --force"
    if substitute is not None:
        advice = f"put the whole file there, or fetch the published archive with: {_command(literature)} --force"
    try:
        found = (literature if substitute is None else substitute).prepare(files)
        different = check_counts(literature, found)
        if different and substitute is None:
            raise DamagedError(f"{source}: is not the published {literature.name}: {different}")
        if not finite(found):
            raise DamagedError(f"{source}: has cells that are no numbers")
    except DamagedError as error:
        text = str(error)
        for file in files:  # those of the archive are gone by the time one reads this
            text = text.replace(f"{file}:", f"{file.name}:") if str(file) != source else text
        where = "" if text.startswith(source) else f"{source}: "
        raise DataError(f"{where}{text}; {advice}") from error
    notes = ["published preprocessing and split; values as they were published, no noise added here"]
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
    _write(folder / literature.name, parts, about)
    return Kept(parts, about)


def _write(place: Path, parts: Parts, about: dict[str, Any]) -> None:
    """Keep a set; where that cannot be, it is made anew when it is next asked for."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, part in zip(_PARTS, parts, strict=True):
            with atomic_write(place / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, part)
        # Last, so that what it tells of is there.
        with atomic_write(place / "about.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            (place / "about.json").unlink()


def _about(literature: LiteratureSet, folder: Path) -> dict[str, Any] | None:
    """What is kept of a set, None if it is not whole, made by another recipe, or what is published has come since."""
    place = folder / literature.name
    try:
        about = json.loads((place / "about.json").read_text(encoding="utf-8"))
        whole = about["recipe"] == _RECIPE and all((place / f"{part}.npy").is_file() for part in _PARTS)
        is_substitute = about["kind"] == "substitute"
        described = [Column(**column).name for column in about["statistics"]]
        whole = whole and described == about["columns"] and set(about) >= _KEYS
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if is_substitute:
        found = _files(literature, folder)
        whole = whole and (found is None or found[0] == "substitute")
    return dict(about) if whole else None


def _files(literature: LiteratureSet, folder: Path) -> tuple[str, tuple[Path, ...]] | None:
    """Find files to make a set of: members of the archive, else the archive, else those of the UCI repository."""
    members = [_member(folder, literature.name, member) for member in literature.members]
    if all(members):
        return "members", tuple(path for path in members if path)
    if (folder / ARCHIVE).is_file():
        return "archive", (folder / ARCHIVE,)
    if literature.substitute is not None:
        found = [find_copy(folder, literature.name, file) for file in literature.substitute.files]
        if all(found):
            return "substitute", tuple(path for path in found if path)
    return None


def _member(folder: Path, name: str, member: str) -> Path | None:
    """Find a member of the archive where it was unpacked: with its folders, without the first, or by its set."""
    inside = Path(*Path(member).parts[1:])
    for path in (folder / member, folder / inside, folder / "raw" / inside):
        if path.is_file():
            return path
    # Two of them are called data.npy, which only a folder of the set's name tells apart.
    found = find_copy(folder, name, inside.name)
    return found if found is not None and (found.parent.name == name or inside.name != "data.npy") else None


def _mapped(path: Path) -> NDArray[np.float32]:
    try:
        part: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: is damaged; remove about.json beside it, and it is made anew") from error
    return part


def gathered(parts: Parts, columns: Sequence[int], picked: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
    """Put columns of all parts below each other ``(n, D)``, float64; only the picked rows if any are."""
    n = sum(len(part) for part in parts) if picked is None else len(picked)
    out = np.empty((n, len(columns)))
    start = before = 0
    for part in parts:
        rows: Any = slice(None)
        if picked is not None:
            rows = picked[(picked >= before) & (picked < before + len(part))] - before
        chosen = part[rows]
        out[start : start + len(chosen)] = chosen if list(columns) == list(range(part.shape[1])) else chosen[:, columns]
        start, before = start + len(chosen), before + len(part)
    return out


def _picked(n: int, rows: int | None, seed: int) -> NDArray[np.intp] | None:
    if rows is None or rows >= n:
        return None
    return np.sort(np.random.default_rng(seed).choice(n, size=rows, replace=False)).astype(np.intp)


def _statistics(columns: Sequence[str], parts: Parts) -> list[dict[str, Any]]:
    """What the schema tells of each column; there is no grid to find in standardised values.

    Ties are the rows whose value more than eight hold: two of a million values in float32 are often equal by chance.
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
                "ties": float(counts[counts > _CHANCE].sum() / len(values)),
            }
        )
    return out


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
