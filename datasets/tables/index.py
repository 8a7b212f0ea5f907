"""Find columns that are an index of the rows, as pandas and R write one, and no data."""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

# What pandas calls the index of a table, or a column to which a file gives no name.
_NAMELESS = re.compile(r"Unnamed: \d+(\.\d+)?|__index_level_\d+__|\s*")
# From this many rows on, a shuffled run of consecutive integers is not due to chance.
_ENOUGH_ROWS = 20
# Share of different values in an index that repeats: .63 in a bootstrap, .5 in two tables that were joined.
_DISTINCT = 0.3


def find_index(table: "pa.Table", unnamed: Collection[str] = (), declared: Collection[str] = ()) -> tuple[str, ...]:
    """Return the columns that are an index of the rows; none if nothing else would be left.

    These are the columns that the file declares to be one; first columns without a name, or with one that pandas gives
    such a column, in which every row has its own integer, text or date, or integers repeat rarely; and a column without
    a name or called ``index`` that numbers the rows from 0 or 1, in any order.

    Args:
        table: The table.
        unnamed: Columns to which the file gives no name.
        declared: Columns that the file declares to be an index.
    """
    found: list[str] = []
    for k, name in enumerate(table.column_names):
        nameless = name in unnamed or bool(_NAMELESS.fullmatch(name))
        first = nameless and (k == len(found) or name.startswith("__index_level_"))
        is_index = name in declared
        is_index = is_index or (first and (_is_key(table.column(k)) or _repeats_keys(table.column(k))))
        is_index = is_index or ((nameless or name.lower() == "index") and _counts_rows(table.column(k)))
        if is_index:
            found.append(name)
    return tuple(found) if len(found) < table.num_columns else ()


def numbers_rows(values: NDArray[np.float64]) -> bool:
    """Whether a column ``(n,)`` counts the rows: consecutive integers in order or, in many rows, in any order."""
    n = len(values)
    if n < 3 or not np.isfinite(values).all() or (values % 1).any():
        return False
    if (np.diff(values) == 1).all():
        return True
    if n < _ENOUGH_ROWS or values.max() - values.min() != n - 1:
        return False
    return len(np.unique(values)) == n


def _is_key(column: Any) -> bool:
    """Whether every row has its own integer, text or date."""
    import pyarrow as pa
    from pyarrow import compute

    if column.null_count or pa.types.is_nested(column.type) or pa.types.is_boolean(column.type):
        return False
    if pa.types.is_floating(column.type) and not _whole(column):
        return False
    return bool(compute.count_distinct(column).as_py() == len(column))


def _repeats_keys(column: Any) -> bool:
    """Whether a column holds integers most of which repeat rarely, as the index of a bootstrap or of joined tables."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_integer(column.type) or column.null_count:
        return False
    return bool(len(column) >= _ENOUGH_ROWS and compute.count_distinct(column).as_py() >= _DISTINCT * len(column))


def _counts_rows(column: Any) -> bool:
    """Whether a column holds the numbers of the rows, from 0 or 1, in any order."""
    import pyarrow as pa
    from pyarrow import compute

    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or not _is_key(column):
        return False
    ends = compute.min_max(column).as_py()
    return ends["min"] in (0, 1) and ends["max"] - ends["min"] == len(column) - 1


def _whole(column: Any) -> bool:
    from pyarrow import compute

    return bool(compute.all(compute.equal(compute.floor(column), column)).as_py())
