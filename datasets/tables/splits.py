"""Seeded division of rows into training, validation and test parts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError

Indices = NDArray[np.intp]


class Splits(NamedTuple):
    """Row numbers of the three parts: disjoint, increasing, together all rows."""

    train: Indices
    validation: Indices
    test: Indices


def split(n: int, seed: int, validation_fraction: float = 0.1, test_fraction: float = 0.1) -> Splits:
    """Divide ``n`` rows at random.

    A part whose fraction is above 0 gets at least one row, and so does training. Which rows go where depends on
    ``n``, ``seed`` and the fractions only. Rows that repeat each other may fall in different parts.

    Raises:
        ValueError: A fraction is negative or they leave nothing to train on.
        DataError: There are fewer rows than parts.

    Example:
        >>> [len(part) for part in split(100, seed=0)]
        [80, 10, 10]
    """
    fractions = (validation_fraction, test_fraction)
    if not all(0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise ValueError(f"split: expected fractions of at least 0 that add up to less than 1; got {fractions}")
    needed = 1 + sum(fraction > 0 for fraction in fractions)
    if n < needed:
        raise DataError(f"split: {n} rows cannot fill {needed} parts; give more rows")
    validation, test = (max(1, round(n * fraction)) if fraction > 0 else 0 for fraction in fractions)
    while validation + test >= n:  # few rows and large fractions: training keeps one
        validation, test = (validation - 1, test) if validation >= test else (validation, test - 1)
    shuffled = np.random.default_rng(seed).permutation(n).astype(np.intp)
    return Splits(
        np.sort(shuffled[validation + test :]),
        np.sort(shuffled[:validation]),
        np.sort(shuffled[validation : validation + test]),
    )


def spread(n: int, most: int) -> Indices:
    """Places of at most so many of ``n`` rows, evenly spread: a table may be sorted, and so are the parts of it."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.intp)
