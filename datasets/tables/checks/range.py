"""Context outside the recorded range: a density given such values is an extrapolation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.tables.schema import Column

Array = NDArray[np.float64]

# A column with at most so many different values is a code or a count; one between two of them means nothing.
_FEW_VALUES = 20
# Values this close to a point of the grid, in steps, lie on it.
_TOLERANCE = 1e-6


class ContextRange:
    """Counts the rows whose context lies outside the recorded range, or between the recorded values.

    Args:
        columns: The conditioning columns.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._counts = [0] * len(columns)
        self.rows = 0
        self._outside = 0

    def add(self, context: Array) -> None:
        """Look at the next rows ``(n, C)``."""
        self.rows += len(context)
        if not self._columns:
            return
        unseen = np.stack([unrecorded(column, context[:, k]) for k, column in enumerate(self._columns)], axis=1)
        self._counts = [count + int(more) for count, more in zip(self._counts, unseen.sum(axis=0), strict=True)]
        self._outside += int(unseen.any(axis=1).sum())

    def notes(self, where: str) -> tuple[str, ...]:
        """Return one line if there are such rows."""
        if not self._outside:
            return ()
        values = ", ".join(
            f"{column.name} of {recorded(column)}"
            for column, count in zip(self._columns, self._counts, strict=True)
            if count
        )
        return (
            f"{where}: {self._outside:,} of {self.rows:,} rows have a context outside the recorded values "
            f"({values}); their densities are an extrapolation",
        )


def unrecorded(column: Column, values: Array) -> NDArray[np.bool_]:
    """Return which values ``(n,)`` lie outside the recorded range, or off the grid of a column of few values."""
    outside: NDArray[np.bool_] = (values < column.minimum) | (values > column.maximum)
    if column.step and column.offset is not None and column.distinct <= _FEW_VALUES:
        steps = (values - column.offset) / column.step
        outside |= np.abs(steps - np.rint(steps)) > _TOLERANCE
    return outside


def recorded(column: Column) -> str:
    """Describe the recorded values, as in ``0 to 3`` or ``0 to 3 in steps of 1``."""
    steps = f" in steps of {column.step:g}" if column.step and column.distinct <= _FEW_VALUES else ""
    return f"{column.minimum:g} to {column.maximum:g}{steps}"
