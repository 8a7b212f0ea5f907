"""Check the cells of a table: missing, infinite, or too large values are refused."""

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import leave_out

LARGEST_INTEGER = 2.0**53
"""Beyond this, different integers round to the same float64."""

LARGEST_VALUE = 1e150
"""Beyond this, a square overflows."""


class Cells:
    """Running check of one column, chunk by chunk, in constant memory.

    Args:
        name: Name of the column.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self.largest = 0.0
        self._counts = {"missing": 0, "infinite": 0}
        self._first = {"missing": 0, "infinite": 0}

    def add(self, values: NDArray[np.float64]) -> None:
        """Check the next rows ``(n,)``; NaN stands for a missing cell."""
        largest = float(np.abs(values).max(initial=0.0))
        if np.isfinite(largest):
            self.largest = max(self.largest, largest)
        else:
            for what, bad in (("missing", np.isnan(values)), ("infinite", np.isinf(values))):
                if bad.any():
                    self._first[what] = self._first[what] or self.rows + int(bad.argmax()) + 1
                    self._counts[what] += int(bad.sum())
        self.rows += len(values)

    @property
    def bad(self) -> bool:
        """Whether :meth:`check` will raise, whatever rows follow."""
        return any(self._counts.values()) or self.largest > LARGEST_VALUE

    def check(self, where: str, *, integers: bool) -> None:
        """Raise if the column cannot be used.

        Args:
            where: Name of the table, for the message.
            integers: Whether the column holds 64-bit integers.

        Raises:
            DataError: If a cell is missing, infinite or too large.
        """
        advice = leave_out(self.name)
        for what, count in self._counts.items():
            if count == self.rows:
                raise DataError(f"{where}: column {self.name!r} has no values at all; drop it with {advice}")
            if count:
                cells = f"{count} {what} value{'s' if count > 1 else ''}"
                first = f"{'first ' if count > 1 else ''}in row {self._first[what]}"
                remedy = f"remove or fill these rows, or drop the column with {advice}"
                raise DataError(f"{where}: column {self.name!r} has {cells} ({first}); {remedy}")
        if integers and self.largest > LARGEST_INTEGER:
            raise DataError(
                f"{where}: column {self.name!r} holds integers beyond 2**53, which float64 cannot represent exactly; "
                f"drop it with {advice}"
            )
        if self.largest > LARGEST_VALUE:
            raise DataError(
                f"{where}: column {self.name!r} holds {self.largest:.3g}, whose square overflows; "
                f"rescale it or drop it with {advice}"
            )
