"""Weights of rows: a column of their table, or numbers in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import number_text
from pushforward.datasets.tables.memory.objects import read_object
from pushforward.datasets.tables.read import Columns, read_columns

Array = NDArray[np.float64]


def read_weights(weights: Any, rows: int, where: str = "data.weight") -> Array:
    """Return weights in memory as an array ``(n,)``.

    Args:
        weights: One number a row: an array, a tensor, a list, or a frame of one column.
        rows: Number of rows ``n``.
        where: What they are called in messages.

    Raises:
        DataError: If these are not as many finite numbers of at least 0.
    """
    content = read_object(weights, where)
    names = [name for name in content.table.column_names if name not in content.index]
    if len(names) != 1 or content.table.num_rows != rows:
        size = f"{content.table.num_rows} rows of {len(names)} columns" if len(names) != 1 else content.table.num_rows
        raise DataError(f"{where}: expected {rows} numbers; got {size}")
    return _only(read_columns(content.table, names), names[0], f"{where}:")


def split_weights(table: Columns, name: str) -> tuple[Columns, Array]:
    """Return a table without its column of weights, and these ``(n,)``.

    Raises:
        DataError: If these are not finite numbers of at least 0.
    """
    weights = _only(table, name, f"data.weight: column {name!r}")
    others = tuple(other for other in table.names if other != name)
    numbers = table.numbers.select([other for other in table.numbers.names if other != name])
    return Columns(others, numbers, table.obstacles), weights


def _only(table: Columns, name: str, where: str) -> Array:
    found = {obstacle.column: obstacle.what for obstacle in table.obstacles}
    if name in found:
        raise DataError(f"{where} {found[name]}; expected finite numbers of at least 0")
    weights: Array = table.numbers.select([name]).matrix[:, 0]
    if (weights < 0).any():
        row = int((weights < 0).argmax())
        raise DataError(
            f"{where} has {number_text(weights[row])} in row {row + 1}; expected finite numbers of at least 0"
        )
    return weights


def check_some(weights: Array) -> None:
    """Raise if no weight is above 0."""
    if not (weights > 0).any():
        raise DataError("data.weight: is 0 in every row; expected some weights above 0")


def scale_weights(weights: Array) -> Array:
    """Scale weights ``(n,)`` so that the largest is in [1, 2), as float32 has no room for those of 1e-46 or 1e39.

    Only their ratios count. These stay exactly as they are, as the factor is a power of two.

    Example:
        >>> scale_weights(np.array([3.0, 6.0]))
        array([0.75, 1.5 ])
    """
    _, exponent = np.frexp(weights.max(initial=0.0))
    scaled: Array = np.ldexp(weights, 1 - exponent)
    return scaled
