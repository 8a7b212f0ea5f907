"""Open rows for scoring: those of a file, or of a data set known by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.origin import load_columns
from pushforward.datasets.registry import stored_name
from pushforward.datasets.tables.checks.range import ContextRange
from pushforward.datasets.tables.numbers.cells import complete_rows
from pushforward.datasets.tables.obstacles import rows_left_out
from pushforward.datasets.tables.read import mark_missing
from pushforward.datasets.tables.request import Missing
from pushforward.datasets.tables.schema import Schema
from pushforward.datasets.tables.stream import CHUNK_ROWS, RowStream
from pushforward.datasets.toys.toy import TOYS

Array = NDArray[np.float64]


class Rows(Protocol):
    """A source of rows, read chunk by chunk: a :class:`RowStream`, or a data set in memory.

    Attributes:
        notes: Notes for the user, before reading.
        weights: The weights of each chunk so far ``(n,)``; None without a column of weights.
    """

    notes: tuple[str, ...]
    weights: list[Array] | None

    @property
    def findings(self) -> tuple[str, ...]:
        """Notes for the user on the rows read so far."""
        ...

    @property
    def rows(self) -> int | None:
        """Number of rows, or an estimate; None if unknown."""
        ...

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Yield features ``(n, D)`` and context ``(n, C)``."""
        ...


class NamedRows:
    """All rows of a known data set in the order of its file, with the columns of a schema.

    The five sets of the literature come in the order training, validation, test.

    Args:
        name: Its name.
        schema: The columns.
        folder: Data folder, with downloaded data sets.
        missing: Whether rows with missing values are refused, or left out.

    Raises:
        DataError: If the data set is not available, lacks columns, or has missing values.
    """

    weights: list[Array] | None = None

    def __init__(
        self, name: str, schema: Schema, folder: str | Path | None = None, missing: Missing = "refuse"
    ) -> None:
        wanted = (*schema.names, *schema.context_names)
        self._matrix, self.notes = load_columns(name, wanted, folder)
        self._name = name
        self._features = len(schema.columns)
        self._range = ContextRange(schema.context)
        complete = complete_rows(mark_missing(self._matrix, schema.missing_values))
        left_out = int((~complete).sum())
        if left_out and missing == "refuse":
            raise DataError(f"{name}: {left_out:,} rows have missing values (data.missing_values)")
        self._left_out = rows_left_out(name, left_out, len(complete))
        if left_out:
            self._matrix = self._matrix[complete]

    @property
    def findings(self) -> tuple[str, ...]:
        """Notes for the user on the rows read so far: rows left out, and context outside the recorded range."""
        return (*self._left_out, *self._range.notes(self._name))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._matrix)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(self._matrix), CHUNK_ROWS):
            chunk = self._matrix[start : start + CHUNK_ROWS]
            self._range.add(chunk[:, self._features :])
            yield np.ascontiguousarray(chunk[:, : self._features]), np.ascontiguousarray(chunk[:, self._features :])


def open_rows(
    source: str,
    schema: Schema,
    folder: str | Path | None = None,
    *,
    missing: Missing = "refuse",
    weight: str | None = None,
) -> Rows:
    """Open a data set by its name, as ``fit`` takes it, or else a file.

    Args:
        source: The name or the path.
        schema: The columns.
        folder: Data folder, with downloaded data sets.
        missing: Whether rows with missing values are refused, or left out.
        weight: The column of a file with weights of the rows, if it has one; None for none.

    Raises:
        DataError: If there is no such file or data set, or it lacks columns of the schema.
    """
    if source in TOYS and not Path(source).exists():
        raise DataError(f"{source}: a toy is sampled, it has no rows of its own; give a file")
    name = stored_name(source)
    return RowStream(source, schema, missing, weight) if name is None else NamedRows(name, schema, folder, missing)


def weight_notes(rows: Rows, source: str, column: str | None) -> tuple[str, ...]:
    """Return a line about the weights of rows that were opened for a model with weights.

    Args:
        rows: The rows.
        source: Where they are from, for the line.
        column: The column with the weights of the model's own rows (data.weight); None without weights.
    """
    if column is None:
        return ()
    what = f"has no column {column!r}; its rows count equally" if rows.weights is None else f"weights are {column!r}"
    return (f"{source}: {what} (data.weight)",)
