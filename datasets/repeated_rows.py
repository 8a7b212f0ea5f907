"""Held-out rows that also stand among the training rows: a likelihood of them measures memory too."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.dataset import Dataset
from pushforward.datasets.tables.splits import Splits

_FEWEST = 0.01
# Beyond so many rows they are not looked for.
_MOST_ROWS = 2_000_000
_BLOCK_ROWS = 4096
# The multipliers of SplitMix64 (Steele, Lea and Flood 2014), whose finaliser spreads every bit over all others.
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Repeats:
    """Which held-out rows are equal to a training row.

    Attributes:
        validation: One truth value for each validation row.
        test: The same for each test row.
    """

    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]

    @property
    def note(self) -> str:
        """How many there are, in words."""
        parts = {"validation": self.validation, "test": self.test}
        told = [
            f"{int(copies.sum()):,} of {len(copies):,} {part} rows"
            for part, copies in parts.items()
            if _are_many(copies)
        ]
        return f"{' and '.join(told)} also stand among the training rows: what is measured there is memory too"


def find_repeats(dataset: Dataset, splits: Splits) -> Repeats | None:
    """Find held-out rows that stand among the training rows as well; None if at most one in a hundred does.

    A row is what is modelled and what it is conditioned on. A single column is not looked at, since there a value that
    repeats tells nothing about the rows, and neither are more than two million rows.

    Time: a pass over the rows and sorting 64 bits of each; memory: 24 bytes a row.
    """
    matrix = dataset.rows if not dataset.context.shape[1] else np.hstack((dataset.rows, dataset.context))
    if matrix.shape[1] < 2 or len(matrix) > _MOST_ROWS:
        return None
    found = held_out(matrix, splits)
    return found if _are_many(found.validation) or _are_many(found.test) else None


def held_out(matrix: NDArray[np.float64], splits: Splits) -> Repeats:
    """Compare the validation and the test rows of a matrix ``(n, D)`` with its training rows.

    Example:
        >>> rows = np.repeat(np.arange(6.0).reshape(3, 2), 2, axis=0)
        >>> held_out(rows, Splits(np.array([0, 2]), np.array([1, 4]), np.array([3, 5]))).test
        array([ True, False])
    """
    keys = _keys(matrix)
    train = np.unique(keys[splits.train])
    return Repeats(np.isin(keys[splits.validation], train), np.isin(keys[splits.test], train))


def _are_many(copies: NDArray[np.bool_]) -> bool:
    return int(copies.sum()) > _FEWEST * len(copies)


def _keys(matrix: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return 64 bits for each row ``(n,)``: equal for equal rows, and for others as good as never."""
    keys = np.zeros(len(matrix), dtype=np.uint64)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        # Adding zero makes the two zeros one.
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
