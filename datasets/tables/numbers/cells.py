"""Check the cells of a table for what a density cannot use: missing, infinite or too large values, constants."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_INTEGER = 2.0**53
"""Beyond this, different integers round to the same float64."""

LARGEST_VALUE = 1e150
"""Beyond this, a square overflows."""

SMALLEST_SPREAD = 1e-150
"""Below this, the square of a deviation underflows."""

RESCALE = "rescale it"
"""What to do with a column of numbers that are too large or too small."""


@dataclass(frozen=True)
class Obstacle:
    """Why a column cannot be used as it is.

    Args:
        column: Name of the column.
        what: What is wrong, as in ``holds text ('red' in row 1)``.
        remedy: What to do to keep the column, as in ``encode it as numbers``; empty if nothing helps.
        in_rows: Whether only some rows cannot be used, so that the others can be kept.
    """

    column: str
    what: str
    remedy: str
    in_rows: bool = False


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
        magnitude = np.abs(values)
        largest = float(magnitude.max(initial=0.0))
        if np.isfinite(largest):
            self.largest = max(self.largest, largest)
        else:
            self.largest = max(self.largest, float(magnitude.max(initial=0.0, where=np.isfinite(values))))
            for what, bad in (("missing", np.isnan(values)), ("infinite", np.isinf(values))):
                if bad.any():
                    self._first[what] = self._first[what] or self.rows + int(bad.argmax()) + 1
                    self._counts[what] += int(bad.sum())
        self.rows += len(values)

    @property
    def incomplete(self) -> bool:
        """Whether a cell so far is missing or infinite."""
        return any(self._counts.values())

    def too_large(self, *, integers: bool) -> bool:
        """Whether a value so far is too large for float64, or for its square."""
        return self.largest > (LARGEST_INTEGER if integers else LARGEST_VALUE)

    def obstacle(self, *, integers: bool) -> Obstacle | None:
        """Return what is wrong with the column so far; None if all its cells can be used.

        Args:
            integers: Whether the column holds 64-bit integers.
        """
        if self.rows and sum(self._counts.values()) == self.rows:
            return Obstacle(self.name, self._without_values(), "fill it")
        if integers and self.largest > LARGEST_INTEGER:
            what = "holds integers beyond 2**53, which float64 cannot represent exactly"
            return Obstacle(self.name, what, "subtract a constant")
        if self.largest > LARGEST_VALUE:
            return Obstacle(self.name, f"holds {self.largest:.3g}, whose square overflows", RESCALE)
        parts = [self._about(what, count) for what, count in self._counts.items() if count]
        return Obstacle(self.name, f"has {' and '.join(parts)}", "fill these cells", in_rows=True) if parts else None

    def _without_values(self) -> str:
        """Say what a column without a finite number holds."""
        missing, infinite = self._counts["missing"], self._counts["infinite"]
        if not infinite:
            return "has no values at all"
        return f"has no finite values ({missing:,} missing, {infinite:,} infinite)"

    def _about(self, what: str, count: int) -> str:
        """Describe cells, as in ``21 missing values (1.3 %, first in row 2)``."""
        if count == 1:
            return f"1 {what} value (in row {self._first[what]})"
        share = 100 * count / self.rows
        percent = f"{share:.0f}" if share >= 10 else f"{share:.2g}"
        return f"{count:,} {what} values ({percent} %, first in row {self._first[what]:,})"


def complete_rows(matrix: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which rows ``(n,)`` of a matrix ``(n, D)`` have a finite number in every cell."""
    return np.asarray(np.isfinite(matrix).all(axis=1))


def constant_value(values: NDArray[np.float64]) -> float | None:
    """Return the one value that all finite cells ``(n,)`` share; None if they differ or there are fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite[0]) if len(finite) > 1 and bool((finite == finite[0]).all()) else None


def narrow_spread(values: NDArray[np.float64]) -> str:
    """Say that the finite cells ``(n,)`` differ by too little for a variance in float64; empty if they do not."""
    finite = values[np.isfinite(values)]
    spread = float(np.ptp(finite)) if len(finite) else 0.0
    return f"varies by only {spread:.3g}, whose square underflows" if 0.0 < spread < SMALLEST_SPREAD else ""
