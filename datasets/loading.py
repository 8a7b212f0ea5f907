"""Load rows to fit a density to: a toy, a data set known by name, a file, or rows in memory."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pushforward.common.errors import DataError
from pushforward.datasets.dataset import Dataset, features_and_context
from pushforward.datasets.origin import Origin, read_named, read_source
from pushforward.datasets.registry import DATASETS, known_name
from pushforward.datasets.sources.data_folder import data_folder
from pushforward.datasets.sources.literature import load_literature
from pushforward.datasets.sources.literature_sets import LITERATURE
from pushforward.datasets.tables.memory.frame_kind import FrameKind
from pushforward.datasets.tables.memory.objects import is_a
from pushforward.datasets.tables.numbers.cells import complete_rows
from pushforward.datasets.tables.obstacles import find_obstacles, find_remedy, refuse, rows_left_out
from pushforward.datasets.tables.protocols import apply_protocol, find_protocol
from pushforward.datasets.tables.read import Columns
from pushforward.datasets.tables.request import Missing, Request
from pushforward.datasets.tables.splits import Splits
from pushforward.datasets.tables.weights import check_some, read_weights, split_weights
from pushforward.datasets.targets.names import PREFIX
from pushforward.datasets.toys.toy import TOYS


def load(
    source: Any,
    *,
    rows: int | None = None,
    seed: int = 0,
    columns: str | Sequence[str] | None = None,
    drop: str | Sequence[str] = (),
    context: str | Sequence[str] = (),
    response: str | Sequence[str] = (),
    given: Any = None,
    weight: Any = None,
    missing: Missing = "refuse",
    missing_values: Sequence[float] = (),
    protocol: str | None = None,
    fold: int = 0,
    folder: str | Path | None = None,
    name: str = "data",
) -> Dataset:
    """Load rows.

    Args:
        source: The name of a toy or a data set (see :func:`names`), the path of a file, or rows in memory: an array, a
            torch tensor, a pandas, polars or Arrow table, a dict of columns, or a list of rows. Columns without names
            are called ``x1``, ``x2``, ...; one dimension is one column.
        rows: Number of rows: samples to draw from a toy (250,000 by default), or the size of a random subset of a
            table (by default all rows).
        seed: Seed of the samples, or of the subset.
        columns: Columns to use; all by default.
        drop: Columns to leave out.
        context: Columns to condition on instead of modelling them.
        response: Columns to model given all the others, instead of ``context``.
        given: Rows in memory to condition on, as many as those of a file or in memory; columns without names are called
            ``c1``, ``c2``, ...
        weight: The column with the weights of the rows, which is neither modelled nor conditioned on; or weights in
            memory ``(n,)``, for rows of a file or in memory.
        missing: What becomes of rows with a missing or infinite cell in one of the columns: the table is refused, or
            these rows are left out (``drop``).
        missing_values: Numbers that stand for a missing cell, such as -9999.
        protocol: How columns are selected and rows are split: ``rnade``, ``half`` or ``tenths`` (see
            :mod:`pushforward.datasets.tables.protocols`); None keeps all columns and does not fix a split.
        fold: Fold of the protocol.
        folder: Data folder, with downloaded data sets; see ``data_folder``.
        name: Name of rows in memory.

    Raises:
        DataError: If there is no such data set, or it cannot be used; the message says what to do. It is a
            ``TableError`` with a line for each column that cannot be used.

    Example:
        >>> load("moons", rows=500).rows.shape
        (500, 2)
        >>> load([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]]).schema.names
        ('x1', 'x2')
    """
    added = known_name(source) if isinstance(source, str) else None
    if added in DATASETS.names():
        source, name = DATASETS[added](), added
    is_named = isinstance(source, str | Path)
    _check_index(source, given, "given")
    _check_index(source, weight, "weight")
    has_weights = weight is not None and not isinstance(weight, str)
    asked = Request(
        source=str(source) if is_named else name,
        columns=None if columns is None else _listed(columns),
        drop=_listed(drop),
        context=_listed(context),
        response=_listed(response),
        weight=None if has_weights else weight,
        missing=missing,
        missing_values=missing_values,
        rows=rows,
        seed=seed,
        protocol=protocol,
        fold=fold,
        in_python=not is_named or given is not None or has_weights,
    )
    asked.check()
    if protocol is not None:
        find_protocol(protocol, fold)
    if isinstance(source, str) and source.startswith(PREFIX):
        raise DataError(f"{source}: is a log-density and has no rows; `pushforward fit {source}` fits it")
    known = known_name(source) if is_named else None
    if known is None:
        found, asked = read_source(source, asked, name, given)
    else:
        for what, value in (("given", given), ("weight", weight if has_weights else None)):
            if value is not None:
                raise DataError(f"{what}: goes with rows in memory or in a file; got the data set {known}")
        if known in LITERATURE:
            _check_literature(known, asked)
            return load_literature(known, data_folder(folder), asked)
        found = read_named(known, asked, folder)
        asked = dataclasses.replace(asked, rows=None) if known in TOYS else asked
    if asked.weight is not None:
        table, weights = split_weights(found.table, asked.weight)
        found = found._replace(table=table, weights=weights)
    elif has_weights:
        found = found._replace(weights=read_weights(weight, len(found.table.numbers.matrix)))
    kind = FrameKind() if is_named else FrameKind.of(source, given)
    return dataclasses.replace(_checked(found, asked), kind=kind, given_apart=given is not None)


def _check_index(rows: Any, other: Any, where: str) -> None:
    """Raise if two pandas objects have the same index in different orders: they are paired by place."""
    if not all(is_a(one, "pandas", "DataFrame", "Series") for one in (rows, other)) or rows.index.equals(other.index):
        return
    if Counter(rows.index) == Counter(other.index):
        raise DataError(f"{where}: has the index of the rows in another order; align it, as in {where}.loc[rows.index]")


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _check_literature(name: str, asked: Request) -> None:
    """Raise if options do not go with a set of the literature."""
    if asked.protocol is not None:
        raise DataError(f"{name}: comes with its published columns and parts; leave data.protocol out")
    if asked.missing_values:
        raise DataError(f"{name}: comes without missing values; leave data.missing_values out")
    if asked.weight is not None:
        raise DataError(f"{name}: comes without weights of its rows; leave data.weight out")


def _checked(found: Origin, asked: Request) -> Dataset:
    """Make a data set of columns; if some cannot be used, raise an error with options that work."""
    obstacles = find_obstacles(found.table, asked)
    if not obstacles:
        return _dataset(found, asked)
    failure = ""
    if remedy := find_remedy(found.table, obstacles, asked):
        try:
            _dataset(found, remedy.options)
        except DataError as error:
            remedy, failure = None, f"without these, {error}"
    raise refuse(found.where, found.table, obstacles, asked, remedy, failure)


def _dataset(found: Origin, asked: Request) -> Dataset:
    """Take columns and rows as asked, and describe them."""
    needed = {*asked.given, *asked.context, *asked.response}
    kept = [
        name
        for name in found.table.numbers.names
        if (asked.columns is None or name in asked.columns or name in needed) and name not in asked.drop
    ]
    found = found._replace(table=Columns(tuple(kept), found.table.numbers.select(kept)))
    found = _subsample(_leave_out_rows(found), asked.rows, asked.seed)
    if found.weights is not None:
        check_some(found.weights)
    numbers, notes = found.table.numbers, found.notes
    splits: Splits | None = None
    if asked.protocol is not None:
        exception = found.left_out.get(asked.protocol)
        numbers, splits, protocol_notes = apply_protocol(
            asked.protocol, asked.fold, found.where, numbers, asked.context_of(numbers.names), exception
        )
        notes = (*notes, *protocol_notes)
    features, context, schema, column_notes = features_and_context(found.where, numbers, asked)
    schema = dataclasses.replace(
        schema.with_spellings(found.spellings),
        file_columns=found.file_columns,
        places=tuple(found.places[name] for name in schema.order) if found.places else (),
        missing_values=tuple(map(float, asked.missing_values)),
    )
    # With a column dropped or conditioned on, the toy's density is not that of the rows.
    toy = TOYS.get(found.name) if found.source == "toy" and features.shape[1] == 2 else None
    return Dataset(
        name=found.name,
        source=found.source,
        rows=features,
        schema=schema,
        notes=(*notes, *column_notes),
        toy=toy,
        sha256=found.sha256,
        context=context,
        splits=splits,
        is_file=found.is_file,
        row_numbers=found.row_numbers,
        weights=found.weights,
    )


def _leave_out_rows(found: Origin) -> Origin:
    """Leave out the rows with a missing or an infinite cell."""
    complete = complete_rows(found.table.numbers.matrix)
    rows = len(complete)
    if complete.all():
        return found
    return found.take(np.flatnonzero(complete), *rows_left_out(found.where, rows - int(complete.sum()), rows))


def _subsample(found: Origin, rows: int | None, seed: int) -> Origin:
    """Take a random subset of the rows, if fewer are asked for than there are."""
    n = len(found.table.numbers.matrix)
    if rows is None or rows == n:
        return found
    if rows > n:
        return found._replace(notes=(*found.notes, f"{found.where}: has {n} rows, fewer than the {rows} asked for"))
    chosen = np.sort(np.random.default_rng(seed).choice(n, size=rows, replace=False))
    return found.take(chosen, f"{found.where}: a random subset, {rows} of {n} rows")
