"""Write rows in the format of the table that the density was fitted to."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.tables.dequantize import snap
from pushforward.datasets.tables.schema import Column, Schema
from pushforward.datasets.tables.table_file import TableFile

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]


def write_table(path: str | Path, rows: Array, context: Array | None, schema: Schema) -> None:
    """Write rows with the names, order, number types and resolutions of a schema.

    The file is written atomically.

    Args:
        path: Its suffix is ``.csv``, ``.csv.gz`` or ``.parquet``.
        rows: Features, shape (n, D).
        context: Conditioning columns, shape (n, C); None if the schema has none.
        schema: The columns.

    Raises:
        DataError: If the file has another suffix.
        RunError: If the file cannot be written.
    """
    table = rows_table(rows, context, schema)
    with TableFile(Path(path), table.schema) as file:
        file.write(table)


def rows_table(rows: Array, context: Array | None, schema: Schema) -> "pa.Table":
    """Return rows with the names, order, number types and resolutions of a schema, as ``write_table`` writes them.

    Args:
        rows: Features, shape (n, D).
        context: Conditioning columns, shape (n, C); None if the schema has none.
        schema: The columns.
    """
    return RowTables(schema).table(rows, context)


class RowTables:
    """Turns matrices into tables with the names, order, number types and resolutions of a schema.

    Integers stay integers, 32-bit floats stay 32-bit, and features of a column with a grid are rounded to it; the
    context is written as it was given.

    Args:
        columns: The columns.

    Attributes:
        schema: Names and types of the columns of the tables.
        clipped: For columns with ties, how many values were beyond the recorded range and became its ends.
    """

    def __init__(self, columns: Schema) -> None:
        import pyarrow as pa

        self._columns = columns
        types = {column.name: pa.type_for_alias(column.type) for column in (*columns.columns, *columns.context)}
        self.schema = pa.schema([(name, types[name]) for name in columns.order])
        self.clipped = Counter[str]()

    def table(self, rows: Array, context: Array | None = None) -> "pa.Table":
        """Return a table of features ``(n, D)`` and conditioning columns ``(n, C)``."""
        import pyarrow as pa

        known, columns = self._columns, dict[str, Any]()
        parts = ((rows, known.columns), (np.empty((len(rows), 0)) if context is None else context, known.context))
        for matrix, described in parts:
            matrix = np.asarray(matrix, dtype=np.float64)
            if matrix.shape != (len(rows), len(described)):
                raise ValueError(f"write_table: expected shape ({len(rows)}, {len(described)}); got {matrix.shape}")
            for k, column in enumerate(described):
                is_feature = described is known.columns
                # The context is written as it was given; adding 0.0 turns -0.0 into 0.0.
                values = on_grid(matrix[:, k], column) if is_feature else _whole(matrix[:, k], column) + 0.0
                if is_feature and column.tied and column.step is not None:
                    # A column with ties is a scale with ends, such as a count or a grade.
                    values = self._clip(values, column)
                columns[column.name] = _arrow_column(values, column)
        return pa.table([columns[name] for name in known.order], schema=self.schema)

    def _clip(self, values: Array, column: Column) -> Array:
        inside: Array = np.clip(values, column.minimum, column.maximum)
        moved = int(((values < column.minimum) | (values > column.maximum)).sum())
        if moved:
            self.clipped[column.name] += moved
        return inside


def _arrow_column(values: Array, column: Column) -> Any:
    import pyarrow as pa

    kind = pa.type_for_alias(column.type)
    if column.integer:
        limits = np.iinfo(kind.to_pandas_dtype())
        # The float just below 2**63 is the largest that fits into a 64-bit integer.
        top = np.nextafter(float(limits.max), 0) if limits.bits == 64 else limits.max
        values = np.clip(values, limits.min, top)
    return pa.array(values.astype(kind.to_pandas_dtype()), type=kind)


def _whole(values: Array, column: Column) -> Array:
    """Round the values of a column of integers."""
    return np.rint(values) + 0.0 if column.integer else values


def on_grid(values: Array, column: Column) -> Array:
    """Round values to the grid of a column, to the doubles that its decimals parse to (0.3, not 0.1 + 0.2)."""
    if column.step is None or column.offset is None:
        return _whole(values, column)
    values = snap(values, column.step, column.offset)
    decimals = column.decimals
    # Adding 0.0 turns -0.0 into 0.0.
    return (values if decimals is None else np.round(values, decimals)) + 0.0
