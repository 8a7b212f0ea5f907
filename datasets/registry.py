"""Load data sets by name or by path, and list those known by name."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean
from pushforward.datasets.dataset import Dataset, features_and_context
from pushforward.datasets.sources.data_folder import data_folder
from pushforward.datasets.sources.literature import gather_columns, is_available, load_literature, open_literature
from pushforward.datasets.sources.literature_sets import LITERATURE
from pushforward.datasets.sources.scikit_learn import BUNDLED, read_bundled
from pushforward.datasets.sources.uci import UCI
from pushforward.datasets.sources.uci_files import find_uci, read_uci
from pushforward.datasets.tables.protocols import apply_protocol, find_protocol
from pushforward.datasets.tables.read import Numbers, known_suffix, read_table, select_columns, to_numbers
from pushforward.datasets.tables.splits import Splits
from pushforward.datasets.targets.names import PREFIX, TARGETS, targets
from pushforward.datasets.toys.toy import CURVES, TOYS

TOY_ROWS = 250_000


class DatasetEntry(NamedTuple):
    """One line of the list of known data sets and targets.

    For a toy, ``rows`` is the default, and any number can be drawn; a target, being a log-density, has None. ``where``
    is ``bundled``, ``downloaded`` or ``not downloaded``.
    """

    name: str
    kind: str
    rows: int | None
    columns: int
    where: str
    description: str


def names(folder: str | Path | None = None) -> list[DatasetEntry]:
    """List the data sets and targets known by name, without loading any.

    Args:
        folder: Data folder, with downloaded data sets; see ``data_folder``.
    """
    path = data_folder(folder)

    def where(available: bool) -> str:
        return "downloaded" if available else "not downloaded"

    return [
        *(DatasetEntry(toy.name, "toy", TOY_ROWS, 2, "bundled", toy.description) for toy in TOYS.values()),
        *(DatasetEntry(e.name, "scikit-learn", e.rows, e.columns, "bundled", e.description) for e in BUNDLED.values()),
        *(
            DatasetEntry(u.name, "UCI", u.rows, u.columns, where(bool(find_uci(u, path))), u.description)
            for u in UCI.values()
        ),
        *(
            DatasetEntry(s.name, "literature", s.rows, s.columns, where(is_available(s, path)), s.description)
            for s in LITERATURE.values()
        ),
        *(DatasetEntry(PREFIX + t.name, "target", None, t.features, "bundled", t.description) for t in targets()),
    ]


class _Source(NamedTuple):
    """Columns that were read from a source, before context, protocol and checks are applied."""

    name: str
    where: str
    origin: str
    numbers: Numbers
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    file_columns: int | None = None
    places: Mapping[str, int] = MappingProxyType({})
    left_out: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def load(
    source: str | Path,
    *,
    rows: int | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    context: Sequence[str] = (),
    protocol: str | None = None,
    fold: int = 0,
    folder: str | Path | None = None,
) -> Dataset:
    """Load a data set.

    Args:
        source: The name of a toy or a data set (see :func:`names`), or the path of a file.
        rows: Number of rows: samples to draw from a toy (250,000 by default), or the size of a random subset of a
            table (by default all rows).
        seed: Seed of the samples, or of the subset.
        columns: Columns to use; all by default.
        drop: Columns to leave out.
        context: Columns to condition on instead of modelling them.
        protocol: How columns are selected and rows are split: ``rnade``, ``half`` or ``tenths`` (see
            :mod:`pushforward.datasets.tables.protocols`); None keeps all columns and does not fix a split.
        fold: Fold of the protocol.
        folder: Data folder, with downloaded data sets; see ``data_folder``.

    Raises:
        DataError: If there is no such data set, or it cannot be used; the message says what to do.

    Example:
        >>> load("moons", rows=500).rows.shape
        (500, 2)
    """
    if rows is not None and rows < 1:
        raise DataError(f"data.rows: expected at least 1; got {rows}")
    clash = [name for name in context if name in drop]
    if clash:
        raise DataError(f"data.context: column {clash[0]!r} is also in data.drop; take it out of one of them")
    if protocol is not None:
        find_protocol(protocol, fold)
    if isinstance(source, str) and source.startswith(PREFIX):
        raise DataError(f"{source}: is a log-density and has no rows; `pushforward fit {source}` fits it")
    name = _known_name(source)
    if name in LITERATURE:
        if protocol is not None:
            raise DataError(f"{name}: comes with its published columns and parts; leave data.protocol out")
        return load_literature(
            name, data_folder(folder), rows=rows, seed=seed, columns=columns, drop=drop, context=context
        )
    if name in TOYS:
        found = _load_toy(name, TOY_ROWS if rows is None else rows, seed, columns, drop, context)
    else:
        found = _subsample(_load_table(name, source, columns, drop, context, folder), rows, seed)
    numbers, notes = found.numbers, found.notes
    splits: Splits | None = None
    if protocol is not None:
        exception = found.left_out.get(protocol)
        numbers, splits, protocol_notes = apply_protocol(protocol, fold, found.where, numbers, context, exception)
        notes = (*notes, *protocol_notes)
    features, given, schema, column_notes = features_and_context(found.where, numbers, context)
    places = tuple(found.places[name] for name in schema.order) if found.places else ()
    schema = dataclasses.replace(schema, file_columns=found.file_columns, places=places)
    # With a column dropped or conditioned on, the toy's density is not that of the rows.
    toy = TOYS.get(name) if features.shape[1] == 2 else None
    notes = (*notes, *column_notes)
    is_file = not any(name in known for known in (TOYS, BUNDLED, UCI))
    return Dataset(found.name, found.origin, features, schema, notes, toy, found.sha256, given, splits, is_file)


def stored_name(source: str) -> str | None:
    """Return the name of the data set that a source refers to; None for a file or a toy."""
    name = _known_name(source)
    return name if any(name in known for known in (BUNDLED, UCI, LITERATURE)) else None


def load_columns(
    name: str, columns: Sequence[str], folder: str | Path | None = None
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Load columns of a data set (not a toy): all rows, in their order.

    Returns:
        The matrix ``(n, len(columns))``, and notes for the user.

    Raises:
        DataError: If the data set is not available, or lacks a column.
    """
    if name in LITERATURE:
        stored = open_literature(LITERATURE[name], data_folder(folder))
        notes = tuple(f"{name}: {note}" for note in stored.about["notes"])
        indices, more = _column_indices(name, columns, stored.about["columns"])
        return gather_columns(stored.parts, indices), (*notes, *more)
    found = _load_table(name, name, None, (), (), folder)
    indices, more = _column_indices(name, columns, found.numbers.names)
    return found.numbers.matrix[:, indices], (*found.notes, *more)


def _column_indices(name: str, columns: Sequence[str], has: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of columns, and a note on the columns that are not used."""
    if missing := [column for column in columns if column not in has]:
        raise DataError(f"{name}: lacks the columns {', '.join(missing)}; it has {', '.join(has)}")
    indices = [has.index(column) for column in columns]
    if extra := [column for column in has if column not in columns]:
        return indices, (f"{name}: ignored {', '.join(extra)}, which the model does not use",)
    return indices, ()


def _load_toy(
    name: str, rows: int, seed: int, columns: Sequence[str] | None, drop: Sequence[str], context: Sequence[str]
) -> _Source:
    samples = TOYS[name].sample(rows, np.random.default_rng(seed))
    everything = Numbers(("x1", "x2"), ("double", "double"), samples)
    return _Source(name, name, "toy", _take_columns(name, everything, columns, drop, context))


def _load_table(
    name: str,
    source: str | Path,
    columns: Sequence[str] | None,
    drop: Sequence[str],
    context: Sequence[str],
    folder: str | Path | None,
) -> _Source:
    """Read a data set of scikit-learn or of UCI, or a file."""
    if name in BUNDLED:
        numbers, notes = read_bundled(name)
        return _Source(name, name, "scikit-learn", _take_columns(name, numbers, columns, drop, context), notes)
    if name in UCI:
        uci = UCI[name]
        read = read_uci(uci, data_folder(folder))
        chosen = _take_columns(name, read.numbers, columns, drop, context)
        places = dict(zip(read.numbers.names, read.places, strict=True))
        origin, left_out = str(read.path), uci.left_out
        return _Source(name, name, origin, chosen, read.notes, read.sha256, read.width, places, left_out)
    path = Path(source)
    if not path.exists() and (known_suffix(path) is None or path.suffix == "") and len(path.parts) == 1:
        raise DataError(_unknown(str(source)))
    table = read_table(path)
    numbers = to_numbers(table, path.name, select_columns(path.name, table.column_names, columns, drop, context))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _Source(_stem(path), path.name, str(path), numbers, (), sha256, table.num_columns)


def _subsample(source: _Source, rows: int | None, seed: int) -> _Source:
    """Take a random subset of the rows, if fewer are asked for than there are."""
    numbers = source.numbers
    n = len(numbers.matrix)
    if rows is None or rows == n:
        return source
    if rows > n:
        note = f"{source.where}: has {n} rows, fewer than the {rows} asked for"
        return source._replace(notes=(*source.notes, note))
    chosen = np.sort(np.random.default_rng(seed).choice(n, size=rows, replace=False))
    note = f"{source.where}: a random subset, {rows} of {n} rows"
    return source._replace(
        numbers=Numbers(numbers.names, numbers.types, numbers.matrix[chosen]), notes=(*source.notes, note)
    )


def _known_name(source: str | Path) -> str:
    """Return the known name that a source refers to, or else the source itself."""
    if isinstance(source, Path):
        return ""
    name = source.strip().lower().replace("_", "-")
    if name in CURVES:
        raise DataError(
            f"{name}: {CURVES[name]} has no area, so samples on it have no density in the plane; "
            f"choose another toy, or add noise to the samples and give them as a file"
        )
    return name if any(name in known for known in (TOYS, BUNDLED, UCI, LITERATURE)) else source


def _unknown(source: str) -> str:
    known = [entry.name for entry in names() if entry.rows is not None]
    close = f"did you mean {PREFIX + source!r}? " if source in TARGETS else did_you_mean(source, known)
    return f"unknown dataset {source!r}; {close}see `pushforward datasets`, or name a file that exists"


def _take_columns(
    where: str, numbers: Numbers, columns: Sequence[str] | None, drop: Sequence[str], context: Sequence[str]
) -> Numbers:
    chosen = select_columns(where, numbers.names, columns, drop, context)
    keep = [numbers.names.index(column) for column in chosen]
    return Numbers(tuple(chosen), tuple(numbers.types[k] for k in keep), numbers.matrix[:, keep])


def _stem(path: Path) -> str:
    known = known_suffix(path)
    return path.name if known is None else path.name[: -len(known)] or path.name
