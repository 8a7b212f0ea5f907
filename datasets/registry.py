"""Load data sets by name or by path, and list those known by name."""

import dataclasses
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
from pushforward.datasets.tables.cells import complete_rows
from pushforward.datasets.tables.files.kind import table_stem
from pushforward.datasets.tables.files.local_file import STDIN, LocalFile
from pushforward.datasets.tables.obstacles import (
    Missing,
    Request,
    find_obstacles,
    find_remedy,
    refuse,
    rows_left_out,
)
from pushforward.datasets.tables.protocols import apply_protocol, find_protocol
from pushforward.datasets.tables.read import (
    Columns,
    Numbers,
    check_has,
    ignored_columns,
    mark_missing,
    read_columns,
    read_content,
    select_columns,
)
from pushforward.datasets.tables.spellings import Spelling, understood_notes
from pushforward.datasets.tables.splits import Indices, Splits
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
    table: Columns
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    file_columns: int | None = None
    places: Mapping[str, int] = MappingProxyType({})
    left_out: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    row_numbers: Indices | None = None
    is_file: bool = False
    spellings: Mapping[str, Spelling] = MappingProxyType({})


def load(
    source: str | Path,
    *,
    rows: int | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    context: Sequence[str] = (),
    missing: Missing = "refuse",
    missing_values: Sequence[float] = (),
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
        missing: What becomes of rows with a missing or infinite cell in one of the columns: the table is refused, or
            these rows are left out (``drop``).
        missing_values: Numbers that stand for a missing cell, such as -9999.
        protocol: How columns are selected and rows are split: ``rnade``, ``half`` or ``tenths`` (see
            :mod:`pushforward.datasets.tables.protocols`); None keeps all columns and does not fix a split.
        fold: Fold of the protocol.
        folder: Data folder, with downloaded data sets; see ``data_folder``.

    Raises:
        DataError: If there is no such data set, or it cannot be used; the message says what to do. It is a
            ``TableError`` with a line for each column that cannot be used.

    Example:
        >>> load("moons", rows=500).rows.shape
        (500, 2)
    """
    if rows is not None and rows < 1:
        raise DataError(f"data.rows: expected at least 1; got {rows}")
    clash = [name for name in context if name in drop]
    if clash:
        raise DataError(f"data.given: column {clash[0]!r} is also in data.drop; take it out of one of them")
    if protocol is not None:
        find_protocol(protocol, fold)
    if isinstance(source, str) and source.startswith(PREFIX):
        raise DataError(f"{source}: is a log-density and has no rows; `pushforward fit {source}` fits it")
    name = _known_name(source)
    if name in LITERATURE:
        if protocol is not None:
            raise DataError(f"{name}: comes with its published columns and parts; leave data.protocol out")
        if missing_values:
            raise DataError(f"{name}: comes without missing values; leave data.missing_values out")
        return load_literature(
            name, data_folder(folder), rows=rows, seed=seed, columns=columns, drop=drop, context=context
        )
    if name in TOYS:
        found = _load_toy(name, TOY_ROWS if rows is None else rows, seed, columns, drop, context)
        rows = None
    else:
        found = _load_table(name, source, columns, drop, context, missing_values, folder)
    asked = Request(str(source), columns, drop, context, missing, missing_values, rows, seed, protocol, fold)
    table = found.table
    obstacles = find_obstacles(table, asked)
    if not obstacles:
        return _dataset(found, asked)
    failure = ""
    if remedy := find_remedy(table, obstacles, asked):
        try:
            _dataset(found, remedy.options)
        except DataError as error:
            remedy, failure = None, f"without these, {error}"
    raise refuse(found.where, table, obstacles, asked, remedy, failure)


def _dataset(found: _Source, asked: Request) -> Dataset:
    """Take columns and rows as asked, and describe them."""
    kept = [
        name
        for name in found.table.numbers.names
        if (asked.columns is None or name in asked.columns or name in asked.context) and name not in asked.drop
    ]
    found = found._replace(table=Columns(tuple(kept), found.table.numbers.select(kept)))
    found = _subsample(_leave_out_rows(found), asked.rows, asked.seed)
    numbers, notes = found.table.numbers, found.notes
    splits: Splits | None = None
    if asked.protocol is not None:
        exception = found.left_out.get(asked.protocol)
        numbers, splits, protocol_notes = apply_protocol(
            asked.protocol, asked.fold, found.where, numbers, asked.context, exception
        )
        notes = (*notes, *protocol_notes)
    features, given, schema, column_notes = features_and_context(found.where, numbers, asked.context)
    schema = dataclasses.replace(
        schema.with_spellings(found.spellings),
        file_columns=found.file_columns,
        places=tuple(found.places[name] for name in schema.order) if found.places else (),
        missing_values=tuple(map(float, asked.missing_values)),
    )
    # With a column dropped or conditioned on, the toy's density is not that of the rows.
    toy = TOYS.get(found.name) if found.origin == "toy" and features.shape[1] == 2 else None
    return Dataset(
        name=found.name,
        source=found.origin,
        rows=features,
        schema=schema,
        notes=(*notes, *column_notes),
        toy=toy,
        sha256=found.sha256,
        context=given,
        splits=splits,
        is_file=found.is_file,
        row_numbers=found.row_numbers,
    )


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
    found = _load_table(name, name, None, (), (), (), folder)
    numbers = found.table.numbers
    indices, more = _column_indices(name, columns, numbers.names)
    return numbers.matrix[:, indices], (*found.notes, *more)


def _column_indices(name: str, columns: Sequence[str], has: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of columns, and a note on the columns that are not used."""
    check_has(name, columns, has)
    return [has.index(column) for column in columns], ignored_columns(name, columns, has)


def _load_toy(
    name: str, rows: int, seed: int, columns: Sequence[str] | None, drop: Sequence[str], context: Sequence[str]
) -> _Source:
    samples = TOYS[name].sample(rows, np.random.default_rng(seed))
    everything = Numbers(("x1", "x2"), ("double", "double"), samples)
    chosen = _take_columns(name, everything, columns, drop, context)
    return _Source(name, name, "toy", Columns(chosen.names, chosen))


def _load_table(
    name: str,
    source: str | Path,
    columns: Sequence[str] | None,
    drop: Sequence[str],
    context: Sequence[str],
    missing_values: Sequence[float],
    folder: str | Path | None,
) -> _Source:
    """Read a data set of scikit-learn or of UCI, or a file."""
    if name in BUNDLED:
        numbers, notes = read_bundled(name)
        chosen = _take_columns(name, numbers, columns, drop, context)
        mark_missing(chosen.matrix, missing_values)
        return _Source(name, name, "scikit-learn", Columns(chosen.names, chosen), notes)
    if name in UCI:
        uci = UCI[name]
        read = read_uci(uci, data_folder(folder))
        chosen = _take_columns(name, read.numbers, columns, drop, context)
        mark_missing(chosen.matrix, missing_values)
        places = dict(zip(read.numbers.names, read.places, strict=True))
        return _Source(
            name,
            name,
            str(read.path),
            Columns(chosen.names, chosen),
            read.notes,
            read.sha256,
            read.width,
            places,
            uci.left_out,
        )
    path = Path(source)
    if not path.exists() and path.suffix == "" and len(path.parts) == 1 and str(path) != STDIN:
        raise DataError(_unknown(str(source)))
    file = LocalFile(source)
    content = read_content(file)
    chosen_names = select_columns(file.name, content.table.column_names, columns, drop, context, content.index)
    index = [column for column in content.index if column not in chosen_names and column not in drop]
    left_out = (f"{file.name}: left out the index {', '.join(index)}; data.columns can name it",) if index else ()
    return _Source(
        table_stem(file.name),
        file.name,
        file.source,
        read_columns(content.table, chosen_names, missing_values),
        (*content.notes, *left_out, *understood_notes(content.spellings, chosen_names)),
        file.checksum(),
        content.table.num_columns - len(index),
        is_file=True,
        spellings=content.spellings,
    )


def _leave_out_rows(source: _Source) -> _Source:
    """Leave out the rows with a missing or an infinite cell."""
    numbers = source.table.numbers
    complete = complete_rows(numbers.matrix)
    rows = len(complete)
    if complete.all():
        return source
    note = rows_left_out(source.where, rows - int(complete.sum()), rows)
    return _take_rows(source, np.flatnonzero(complete), *note)


def _subsample(source: _Source, rows: int | None, seed: int) -> _Source:
    """Take a random subset of the rows, if fewer are asked for than there are."""
    n = len(source.table.numbers.matrix)
    if rows is None or rows == n:
        return source
    if rows > n:
        note = f"{source.where}: has {n} rows, fewer than the {rows} asked for"
        return source._replace(notes=(*source.notes, note))
    chosen = np.sort(np.random.default_rng(seed).choice(n, size=rows, replace=False))
    return _take_rows(source, chosen, f"{source.where}: a random subset, {rows} of {n} rows")


def _take_rows(source: _Source, chosen: Indices, *notes: str) -> _Source:
    """Keep the rows with these indices ``(k,)``, and add notes."""
    names, numbers = source.table.names, source.table.numbers
    return source._replace(
        table=Columns(names, numbers.take(chosen)),
        notes=(*source.notes, *notes),
        row_numbers=chosen if source.row_numbers is None else source.row_numbers[chosen],
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
    return numbers.select(select_columns(where, numbers.names, columns, drop, context))
