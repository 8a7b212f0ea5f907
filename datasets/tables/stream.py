"""Rows of a file for a schema that is known: a part at a time, or all at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.tables.cells import LARGEST_INTEGER, Cells
from pushforward.datasets.tables.parts import Parts, open_parts
from pushforward.datasets.tables.read import NotNumbersError, about_text, column_numbers
from pushforward.datasets.tables.schema import Schema

Array = NDArray[np.float64]

PART_ROWS = 1 << 16
"""Rows of a part, but for the last."""


class RowStream:
    """The columns of a schema, read from another file in memory that does not grow with its rows.

    Columns are found by name, in any order; other columns are left aside, and a note says so. A file without names
    must have exactly the schema's columns, in the order of the file the schema came from, or all the columns of that
    file, if it had no names either.

    Iterating yields features ``(n, D)`` and context ``(n, C)``, :data:`PART_ROWS` rows at a time. A cell that cannot be
    used ends that; the rest of the file is then only looked through, with parts of no rows, so that the error says of
    the whole file what is wrong with it, in the words in which ``load`` would.

    Args:
        path: The file.
        schema: The columns.

    Attributes:
        notes: What the user should know.

    Raises:
        DataError: The file cannot be read, or lacks columns; when iterating, if cells cannot be used.
    """

    def __init__(self, path: str | Path, schema: Schema) -> None:
        self._where = Path(path).name
        self._parts = open_parts(Path(path))
        self._features = len(schema.columns)
        self._names = (*schema.names, *schema.context_names)
        self._in_file, self.notes = _match(self._where, self._parts, self._names, schema)

    @property
    def rows(self) -> int | None:
        """Number of rows of the file; of text, an estimate from what was read so far, None before that."""
        return self._parts.rows

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        waiting: list[Array] = []
        count = 0
        for matrix in self._matrices():
            if not len(matrix):
                yield self._divided(matrix)
                continue
            waiting.append(matrix)
            count += len(matrix)
            if count >= PART_ROWS:
                joined = np.concatenate(waiting)
                whole = count - count % PART_ROWS
                for start in range(0, whole, PART_ROWS):
                    yield self._divided(joined[start : start + PART_ROWS])
                waiting, count = [joined[whole:]], count - whole
        if count:
            yield self._divided(np.concatenate(waiting))

    def _divided(self, matrix: Array) -> tuple[Array, Array]:
        features, context = matrix[:, : self._features], matrix[:, self._features :]
        return np.ascontiguousarray(features), np.ascontiguousarray(context)

    def _matrices(self) -> Iterator[Array]:
        """Yield rows ``(n, D + C)`` of any number until a cell cannot be used, and raise at the end of the file."""
        cells = {name: Cells(name) for name in self._names}
        texts: dict[str, str] = {}
        integers: dict[str, bool] = {}  # of the columns with values that integers of 64 bits would not keep apart
        rows, bad = 0, False
        for table in self._parts.tables(self._in_file):
            columns = []
            for place, name in enumerate(self._names):
                if name in texts:
                    continue
                try:
                    values, _ = column_numbers(table.column(place), before=rows)
                except NotNumbersError as error:
                    texts[name] = str(error)
                    continue
                columns.append(values)
                cells[name].add(values)
                if cells[name].largest > LARGEST_INTEGER and name not in integers:
                    integers[name] = self._parts.holds_integers(self._in_file[place])
            rows += table.num_rows
            bad = bad or bool(texts) or any(integers.values()) or any(column.bad for column in cells.values())
            # No rows, but a chance for who iterates to give up.
            yield np.empty((0, len(self._names))) if bad else np.stack(columns, axis=1)
        if texts:
            described = {
                name: self._parts.describe(self._in_file[place]) or texts[name]
                for place, name in enumerate(self._names)
                if name in texts
            }
            everything = len(texts) == len(self._parts.names)
            raise DataError(f"{self._where}: {about_text(described, everything=everything)}")
        for name, column in cells.items():
            column.check(self._where, integers=integers.get(name, False))


def read_rows(path: str | Path, schema: Schema) -> tuple[Array, Array, tuple[str, ...]]:
    """Read the columns of a schema from another file: what :class:`RowStream` yields, in one piece.

    Returns:
        Features (n, D), context (n, C) and the notes.

    Raises:
        DataError: Columns are missing or cannot be used.
    """
    stream = RowStream(path, schema)
    features, contexts = zip(*stream, strict=True)
    return np.concatenate(features), np.concatenate(contexts), stream.notes


def _match(where: str, parts: Parts, wanted: Sequence[str], schema: Schema) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find what the wanted columns are called in the file; also returns the notes."""
    has = parts.names
    called = {name: name for name in has}
    if not parts.named:
        of_file = len(has) == schema.file_columns
        placed = of_file and bool(schema.places)
        whole = of_file and set(wanted) <= set(has)
        if len(has) != len(wanted) and not whole and not placed:
            raise DataError(
                f"{where}: has {len(has)} columns and no names, but the model has {len(wanted)}; "
                f"expected, in this order: {', '.join(schema.order)}"
            )
        if placed:
            called = {name: has[place] for name, place in zip(schema.order, schema.places, strict=True)}
            return tuple(called[name] for name in wanted), ()
        if not whole:
            called = dict(zip(schema.order, has, strict=True))
    missing = [name for name in wanted if name not in called]
    if missing:
        raise DataError(f"{where}: lacks the columns {', '.join(missing)}; it has {', '.join(called)}")
    extra = [name for name in called if name not in wanted]
    notes = (f"{where}: left aside {', '.join(extra)}, which the model does not know",) if extra else ()
    return tuple(called[name] for name in wanted), notes
