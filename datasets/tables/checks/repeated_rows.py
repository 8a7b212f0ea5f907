"""Find held-out rows that are also training rows: their likelihood rewards memorization."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.tables.splits import Splits

MAX_ROWS = 2_000_000
"""Larger data sets are not searched."""

_MIN_SHARE = 0.01
_BLOCK_ROWS = 4096
# The multipliers of SplitMix64 (Steele, Lea and Flood 2014), whose finalizer mixes every bit into all others.
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Repeats:
    """Which held-out rows are equal to a training row.

    Attributes:
        validation: One boolean for each validation row.
        test: One boolean for each test row.
    """

    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]

    @property
    def note(self) -> str:
        """One line for the user: how many there are."""
        parts = {"validation": self.validation, "test": self.test}
        counts = [
            f"{int(copies.sum()):,} of {len(copies):,} {part} rows"
            for part, copies in parts.items()
            if _are_many(copies)
        ]
        return f"{' and '.join(counts)} also appear among the training rows: their likelihood measures memorization too"


def find_repeats(rows: NDArray[np.float64], context: NDArray[np.float64], splits: Splits) -> Repeats | None:
    """Find held-out rows that are also training rows; None if at most one in a hundred is.

    Features ``(n, D)`` and context ``(n, C)`` are compared. Tables of a single column are skipped, since repeated
    values say nothing about repeated rows there, and so are tables of more than two million rows.

    Time: a pass over the rows and sorting 64 bits of each; memory: 24 bytes per row.
    """
    matrix = rows if not context.shape[1] else np.hstack((rows, context))
    if matrix.shape[1] < 2 or len(matrix) > MAX_ROWS:
        return None
    found = compare_rows(matrix, splits)
    return found if _are_many(found.validation) or _are_many(found.test) else None


def compare_rows(matrix: NDArray[np.float64], splits: Splits) -> Repeats:
    """Compare the validation and the test rows of a matrix ``(n, D)`` with its training rows.

    Example:
        >>> rows = np.repeat(np.arange(6.0).reshape(3, 2), 2, axis=0)
        >>> compare_rows(rows, Splits(np.array([0, 2]), np.array([1, 4]), np.array([3, 5]))).test
        array([ True, False])
    """
    keys = _keys(matrix)
    train = np.unique(keys[splits.train])
    return Repeats(np.isin(keys[splits.validation], train), np.isin(keys[splits.test], train))


def _are_many(copies: NDArray[np.bool_]) -> bool:
    return int(copies.sum()) > _MIN_SHARE * len(copies)


def _keys(matrix: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each row ``(n,)``."""
    keys = np.zeros(len(matrix), dtype=np.uint64)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        # Adding 0.0 turns -0.0 into 0.0.
        block = (matrix[start : start + _BLOCK_ROWS] + 0.0).view(np.uint64)
        key = keys[start : start + _BLOCK_ROWS]
        for column in block.T:
            key ^= column
            key ^= key >> np.uint64(30)
            key *= _FIRST
            key ^= key >> np.uint64(27)
            key *= _SECOND
            key ^= key >> np.uint64(31)
            key += np.uint64(1)
    return keys
