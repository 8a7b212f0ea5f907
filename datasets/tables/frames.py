"""Read rows from objects with named columns: pandas, polars and Arrow tables, dicts, and NumPy's structured arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError, TableError
from pushforward.common.text import one_line
from pushforward.datasets.tables.obstacles import report
from pushforward.datasets.tables.read import check_has, read_columns
from pushforward.datasets.tables.schema import Schema

Array = NDArray[np.float64]


def feature_rows(rows: Any, schema: Schema) -> Array:
    """Return the features of rows ``(n, D)``: an array as it is, the columns of a frame by their names."""
    return _columns(rows, "the rows", schema.names, schema.missing_values)


def context_rows(rows: Any, context: Any, schema: Schema) -> Array | None:
    """Return the context of rows ``(n, C)``: that which is given, or else the columns of a frame of rows.

    Raises:
        DataError: If a frame lacks columns, or cells cannot be used.
    """
    if context is None and (not schema.context or not is_frame(rows)):
        return None
    return _columns(rows if context is None else context, "the context", schema.context_names, schema.missing_values)


def is_frame(rows: Any) -> bool:
    """Whether an object has columns with names."""
    if isinstance(rows, Mapping) or hasattr(rows, "__arrow_c_stream__"):
        return True
    has_fields = getattr(getattr(rows, "dtype", None), "names", None) is not None
    return has_fields or (hasattr(rows, "columns") and hasattr(rows, "to_numpy"))


def _columns(rows: Any, where: str, names: Sequence[str], missing_values: Sequence[float]) -> Array:
    """Return columns of rows as a matrix; a frame may have others, and any order."""
    import pyarrow as pa

    if not is_frame(rows):
        matrix: Array = np.asarray(rows, dtype=np.float64)
        return matrix
    fields = getattr(getattr(rows, "dtype", None), "names", None)
    try:
        table = pa.table({name: rows[name] for name in fields} if fields else rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a table of columns with names; got {one_line(error)}") from error
    check_has(where, names, table.column_names)
    columns = read_columns(table, names, missing_values)
    if columns.obstacles:
        raise TableError(report(where, columns.obstacles, len(names)), "the density needs a number in each cell")
    return columns.numbers.matrix
