"""Read the columns of a known schema from another file, chunk by chunk or all at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError, TableError
from pushforward.datasets.tables.checks.range import ContextRange
from pushforward.datasets.tables.files.local_file import LocalFile
from pushforward.datasets.tables.files.table_reader import TableReader
from pushforward.datasets.tables.numbers.cells import LARGEST_INTEGER, Cells, Obstacle, complete_rows
from pushforward.datasets.tables.numbers.spellings import understood_notes, unit_notes
from pushforward.datasets.tables.obstacles import report, rows_left_out
from pushforward.datasets.tables.read import (
    ENCODE,
    NotNumbersError,
    check_has,
    column_numbers,
    ignored_columns,
    mark_missing,
)
from pushforward.datasets.tables.reader import open_reader
from pushforward.datasets.tables.request import Missing
from pushforward.datasets.tables.schema import Schema

Array = NDArray[np.float64]

CHUNK_ROWS = 1 << 16
"""Rows of a chunk, except for the last."""


class RowStream:
    """Reads the columns of a schema from another file, in memory that does not grow with the number of rows.

    Columns are found by name, in any order; other columns are ignored, and a note says so. A file without names must
    have exactly the schema's columns, in the order of the file the schema came from, or all the columns of that file if
    it had no names either.

    Iterating yields features ``(n, D)`` and context ``(n, C)``, :data:`CHUNK_ROWS` rows at a time. After a cell that
    cannot be used, the rest of the file is only checked and the chunks have no rows, so that the final error describes
    the whole file.

    Args:
        path: The file, or ``-`` for standard input.
        schema: The columns.
        missing: Whether rows with missing or infinite cells are refused, or left out.
        weight: A column with weights of the rows; None for none.

    Attributes:
        notes: Notes for the user, before reading.
        weights: The weights of each chunk so far ``(n,)``; None if the file has no such column.

    Raises:
        DataError: If the file cannot be read, or lacks columns; while iterating, if cells cannot be used.
    """

    def __init__(
        self, path: str | Path, schema: Schema, missing: Missing = "refuse", weight: str | None = None
    ) -> None:
        self._file = LocalFile(path)
        self._where = self._file.name
        self._missing = missing
        self._missing_values = schema.missing_values
        self._left_out = 0
        self._range = ContextRange(schema.context)
        self._reader = open_reader(self._file, schema.spellings)
        self._features = len(schema.columns)
        weights = (weight,) if weight is not None and self._reader.named and weight in self._reader.names else ()
        self.weights: list[Array] | None = [] if weights else None
        self._names = (*schema.names, *schema.context_names, *weights)
        self._in_file, notes = _match(self._where, self._reader, self._names, schema)
        found = self._reader.spellings
        understood = understood_notes(found, self._in_file)
        units = unit_notes(schema.spellings, found, zip(self._names, self._in_file, strict=True))
        self.notes = (*self._file.notes, *self._reader.notes, *understood, *units, *notes)

    @property
    def rows(self) -> int | None:
        """Number of rows of the file. For text an estimate from what was read so far; None before that."""
        return self._reader.rows

    @property
    def findings(self) -> tuple[str, ...]:
        """Notes for the user on what was read so far: lines and rows left out, context outside the recorded range."""
        left_out = rows_left_out(self._where, self._left_out, self._left_out + self._range.rows)
        return (*self._reader.findings, *left_out, *self._range.notes(self._where))

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        if self.weights is not None:
            self.weights.clear()
        pending: list[Array] = []
        count = 0
        for matrix in self._matrices():
            if not len(matrix):
                yield self._features_and_context(matrix)
                continue
            pending.append(matrix)
            count += len(matrix)
            if count >= CHUNK_ROWS:
                joined = np.concatenate(pending)
                whole = count - count % CHUNK_ROWS
                for start in range(0, whole, CHUNK_ROWS):
                    yield self._features_and_context(joined[start : start + CHUNK_ROWS])
                pending, count = [joined[whole:]], count - whole
        if count:
            yield self._features_and_context(np.concatenate(pending))

    def _features_and_context(self, matrix: Array) -> tuple[Array, Array]:
        if self.weights is not None:
            matrix, weights = matrix[:, :-1], matrix[:, -1]
            if (weights < 0).any():
                what = f"column {self._names[-1]!r} has {weights.min():g}"
                raise DataError(f"{self._where}: {what}; expected weights of at least 0 (data.weight)")
            self.weights.append(weights)
        features, context = matrix[:, : self._features], matrix[:, self._features :]
        self._range.add(context)
        return np.ascontiguousarray(features), np.ascontiguousarray(context)

    def _matrices(self) -> Iterator[Array]:
        """Yield matrices ``(n, D + C)`` of any length; raise at the end of the file if any cell cannot be used."""
        cells = {name: Cells(name) for name in self._names}
        texts: dict[str, str] = {}
        integers: dict[str, bool] = {}  # for columns with values beyond the integers that float64 represents exactly
        rows, bad = 0, False
        for table in self._reader.tables(self._in_file):
            columns = []
            for index, name in enumerate(self._names):
                if name in texts:
                    continue
                try:
                    values, _ = column_numbers(table.column(index), before=rows)
                except NotNumbersError as error:
                    texts[name] = str(error)
                    continue
                columns.append(mark_missing(values, self._missing_values))
                cells[name].add(values)
                if cells[name].largest > LARGEST_INTEGER and name not in integers:
                    integers[name] = self._reader.holds_integers(self._in_file[index])
            rows += table.num_rows
            bad = bad or bool(texts)
            bad = bad or any(cell.too_large(integers=integers.get(name, False)) for name, cell in cells.items())
            incomplete = any(cell.incomplete for cell in cells.values())
            bad = bad or (incomplete and self._missing == "refuse")
            # Without rows, so that the caller can still stop early.
            matrix = np.empty((0, len(self._names))) if bad else np.stack(columns, axis=1)
            if incomplete and not bad:
                complete = complete_rows(matrix)
                self._left_out += int((~complete).sum())
                matrix = matrix[complete]
            yield matrix
        self._refuse(self._obstacles(cells, texts, integers))
        if rows and self._left_out == rows:
            raise DataError(f"{self._where}: all {rows:,} rows have missing values; no row is left")

    def _obstacles(self, cells: dict[str, Cells], texts: dict[str, str], integers: dict[str, bool]) -> list[Obstacle]:
        """Return what cannot be used in the whole file, column by column."""
        found = []
        for index, name in enumerate(self._names):
            if name in texts:
                what = self._reader.describe(self._in_file[index]) or texts[name]
                found.append(Obstacle(name, what, ENCODE))
            elif obstacle := cells[name].obstacle(integers=integers.get(name, False)):
                found.append(obstacle)
        return [obstacle for obstacle in found if not (obstacle.in_rows and self._missing == "drop")]

    def _refuse(self, obstacles: list[Obstacle]) -> None:
        if not obstacles:
            return
        if all(obstacle.in_rows for obstacle in obstacles):
            advice = "the model needs a number in each cell: fill these cells, or remove their rows"
        else:
            advice = f"the model needs numbers in {'this column' if len(obstacles) == 1 else 'these columns'}: "
            advice += "write them as in the table that it was fitted to"
        raise TableError(report(self._where, obstacles, len(self._names)), advice)


def read_rows(path: str | Path, schema: Schema) -> tuple[Array, Array, tuple[str, ...]]:
    """Read the columns of a schema from another file, as :class:`RowStream` does, all at once.

    Returns:
        Features (n, D), context (n, C) and the notes.

    Raises:
        DataError: If columns are missing or cannot be used.
    """
    stream = RowStream(path, schema)
    features, contexts = zip(*stream, strict=True)
    return np.concatenate(features), np.concatenate(contexts), (*stream.notes, *stream.findings)


def _match(
    where: str, reader: TableReader, wanted: Sequence[str], schema: Schema
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names in the file of the wanted columns, and notes for the user."""
    has = reader.names
    name_in_file = {name: name for name in has}
    if not reader.named:
        same_width = len(has) == schema.file_columns
        by_index = same_width and bool(schema.places)
        # The generated names x1, x2, ... say nothing if the columns of the schema had these names in another order.
        order = [has.index(name) for name in schema.order if name in has]
        by_default_name = same_width and set(wanted) <= set(has) and order == sorted(order)
        if len(has) != len(wanted) and not by_default_name and not by_index:
            raise DataError(
                f"{where}: has {len(has)} columns and no names, but the model has {len(wanted)}; "
                f"expected, in this order: {', '.join(schema.order)}"
            )
        if by_index:
            name_in_file = {name: has[index] for name, index in zip(schema.order, schema.places, strict=True)}
            return tuple(name_in_file[name] for name in wanted), ()
        if not by_default_name:
            name_in_file = dict(zip(schema.order, has, strict=True))
    twice = [name for name in wanted if has.count(name) > 1]
    if twice:
        raise DataError(
            f"{where}: column {twice[0]!r} appears {has.count(twice[0])} times; give every column its own name"
        )
    check_has(where, wanted, list(name_in_file))
    return tuple(name_in_file[name] for name in wanted), ignored_columns(where, wanted, list(name_in_file))
