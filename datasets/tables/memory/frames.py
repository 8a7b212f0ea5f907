"""Rows in memory for scoring: columns of frames are found by their names, those of arrays by their places."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.tables.files.plain_reader import PlainReader
from pushforward.datasets.tables.memory.objects import ObjectTable
from pushforward.datasets.tables.obstacles import GIVEN, check_usable
from pushforward.datasets.tables.read import check_has, read_columns
from pushforward.datasets.tables.schema import Schema

Array = NDArray[np.float64]

_ROWS = "the rows"


def feature_rows(rows: Any, schema: Schema, *, alone: bool = False) -> Array:
    """Return the features of rows ``(n, D)``.

    Args:
        rows: A frame, a dict of columns or a structured array, which may have other columns and any order; or an array,
            a tensor or a list of rows with the features in their order, or with all columns in the order of the table.
        schema: The columns.
        alone: Whether an array has the features only, because the context is given apart.

    Raises:
        DataError: If this is not a table, lacks columns, or has cells that are not finite numbers.
    """
    return _matrix(ObjectTable(rows, _ROWS), _ROWS, schema.names, schema, alone=alone)


def context_rows(rows: Any, context: Any, schema: Schema) -> Array | None:
    """Return the context of rows ``(n, C)``: that which is given, or else those columns of the rows.

    Args:
        rows: The rows, as for ``feature_rows``; None if there are none, as for sampling.
        context: The context of each row, or one for all ``(1, C)``, of the same kinds; or None.
        schema: The columns.

    Returns:
        The context, or None for a schema without.

    Raises:
        DataError: As for ``feature_rows``; and if there is no context, one that is not used, or one for other rows.
    """
    wanted = schema.context_names
    if not wanted:
        if context is not None:
            raise DataError("given: expected nothing, as the density is not conditional; got context rows")
        return None
    table = None if rows is None else ObjectTable(rows, _ROWS)
    if context is None:
        if table is None or not (table.named or len(table.names) == len(schema.order)):
            count = "1 row" if table is None else f"{table.rows} rows"
            raise DataError(f"given: expected {count} of {_columns(wanted)}; got nothing")
        return _matrix(table, _ROWS, wanted, schema)
    given = ObjectTable(context, GIVEN)
    if table is not None and given.rows not in (1, table.rows):
        raise DataError(f"given: expected {table.rows} rows; got {given.rows}")
    return _matrix(given, GIVEN, wanted, schema, alone=True)


def _matrix(table: ObjectTable, where: str, wanted: Sequence[str], schema: Schema, *, alone: bool = False) -> Array:
    """Return the wanted columns of a table as a matrix."""
    if table.named:
        check_has(where, wanted, table.names)
        table = table.select(k for k, name in enumerate(table.names) if name in wanted)
    else:
        if len(table.names) not in (len(wanted), len(wanted) if alone else len(schema.order)):
            raise DataError(f"{where}: expected {_columns(wanted)}; got {len(table.names)}")
        known = wanted if len(table.names) == len(wanted) else schema.order
        table = table.select(map(known.index, wanted), wanted)
    content = PlainReader(table, schema.spellings).read()
    columns = read_columns(content, content.column_names, schema.missing_values)
    check_usable(where, columns.obstacles, len(wanted))
    return np.ascontiguousarray(columns.numbers.select(wanted).matrix)


def _columns(names: Sequence[str]) -> str:
    """Return as in ``8 columns (a, b, c, ...)``."""
    shown = ", ".join(names if len(names) <= 4 else [*names[:3], "..."])
    return f"{len(names)} column{'s' * (len(names) != 1)} ({shown})"
