"""Seeded splits of rows into training, validation and test sets."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError

Indices = NDArray[np.intp]


class Splits(NamedTuple):
    """Row indices of the three sets: disjoint, increasing, together all rows."""

    train: Indices
    validation: Indices
    test: Indices


def split(n: int, seed: int, validation_fraction: float = 0.1, test_fraction: float = 0.1) -> Splits:
    """Split ``n`` rows at random.

    The training set, and every set whose fraction is above 0, gets at least one row. The split depends on ``n``,
    ``seed`` and the fractions only. Duplicate rows may end up in different sets.

    Raises:
        ValueError: If a fraction is negative, or nothing is left to train on.
        DataError: If there are fewer rows than sets.

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
    while validation + test >= n:  # few rows and large fractions: keep one row for training
        validation, test = (validation - 1, test) if validation >= test else (validation, test - 1)
    shuffled = np.random.default_rng(seed).permutation(n).astype(np.intp)
    return Splits(
        np.sort(shuffled[validation + test :]),
        np.sort(shuffled[:validation]),
        np.sort(shuffled[validation : validation + test]),
    )


def evenly_spaced(n: int, limit: int) -> Indices:
    """Return the indices of at most ``limit`` of ``n`` rows, evenly spaced, because the rows may be sorted."""
    return np.arange(n) if n <= limit else np.linspace(0, n - 1, limit).round().astype(np.intp)
