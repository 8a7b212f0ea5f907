"""Open rows for scoring: those of a file, or of a data set known by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.registry import load_columns, stored_name
from pushforward.datasets.tables.schema import Schema
from pushforward.datasets.tables.stream import CHUNK_ROWS, RowStream
from pushforward.datasets.toys.toy import TOYS

Array = NDArray[np.float64]


class Rows(Protocol):
    """A source of rows, read chunk by chunk: a :class:`RowStream`, or a data set in memory."""

    notes: tuple[str, ...]

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

    Raises:
        DataError: If the data set is not available, or lacks columns.
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
        for start in range(0, len(self._matrix), CHUNK_ROWS):
            chunk = self._matrix[start : start + CHUNK_ROWS]
            yield np.ascontiguousarray(chunk[:, : self._features]), np.ascontiguousarray(chunk[:, self._features :])


def open_rows(source: str, schema: Schema, folder: str | Path | None = None) -> Rows:
    """Open a data set by its name, as ``fit`` takes it, or else a file.

    Raises:
        DataError: If there is no such file or data set, or it lacks columns of the schema.
    """
    if source in TOYS and not Path(source).exists():
        raise DataError(f"{source}: a toy is sampled, it has no rows of its own; give a file")
    name = stored_name(source)
    return RowStream(source, schema) if name is None else NamedRows(name, schema, folder)
