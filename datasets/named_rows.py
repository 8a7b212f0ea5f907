"""Rows to score: those of a file, or of a data set that is known by its name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.registry import load_columns, stored_name
from pushforward.datasets.tables.schema import Schema
from pushforward.datasets.tables.stream import PART_ROWS, RowStream
from pushforward.datasets.toys.toy import TOYS

Array = NDArray[np.float64]


class Rows(Protocol):
    """What rows are read from, a part at a time: a :class:`RowStream`, or a data set in memory."""

    notes: tuple[str, ...]

    @property
    def rows(self) -> int | None:
        """Number of rows, as far as it is known."""
        ...

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Yield features ``(n, D)`` and context ``(n, C)``."""
        ...


class NamedRows:
    """All rows of a known data set in the order of its file, in the columns of a schema.

    The five sets of the literature come training part first, then validation, then test.

    Args:
        name: Its name.
        schema: The columns.
        folder: Where downloaded data sets are.

    Raises:
        DataError: The data set is not there, or lacks columns.
    """

    def __init__(self, name: str, schema: Schema, folder: str | Path | None = None) -> None:
        wanted = (*schema.names, *schema.context_names)
        self._matrix, self.notes = load_columns(name, wanted, folder)
        self._features = len(schema.columns)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._matrix)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(self._matrix), PART_ROWS):
            part = self._matrix[start : start + PART_ROWS]
            yield np.ascontiguousarray(part[:, : self._features]), np.ascontiguousarray(part[:, self._features :])


def open_rows(source: str, schema: Schema, folder: str | Path | None = None) -> Rows:
    """Open what a command was given: the name of a data set, as ``fit`` takes it, else a file.

    Raises:
        DataError: There is no such file or data set, or it lacks columns of the schema.
    """
    if source in TOYS and not Path(source).exists():
        raise DataError(f"{source}: a toy is drawn, it has no rows of its own; give a file")
    name = stored_name(source)
    return RowStream(source, schema) if name is None else NamedRows(name, schema, folder)
