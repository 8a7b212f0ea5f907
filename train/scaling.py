"""The location and the scale of columns, robust to a few values far outside."""

import numpy as np

from pushforward.datasets.tables.spread import is_usual, robust_std
from pushforward.evaluate.statistics import Array
from pushforward.flows import Bijection, Chain, LogTails, Standardize

HEAVY = 50.0
"""A column has heavy tails if a value is further from the median than this, in robust standard deviations, and ..."""

DOMINATED = 2.0
"""... its standard deviation is this many times that of the values that are not far outside.

Of 26 tables at hand, the yacht table has a column of five levels that exceeds the second limit, but reaches 36 robust
standard deviations; in others a few values reach 57, which hardly matters."""

BOUND = 5.0
"""Heavy tails begin at this many standard deviations of the values that are not far outside."""


def scale_columns(rows: Array, validation: Array) -> tuple[Standardize, LogTails | None]:
    """Find the map to zero mean and unit standard deviation, and the columns with heavy tails.

    A single value of 1e6 among a thousand near 0 has a standard deviation of 3e4, on which the others are one point.
    Where values far outside dominate it, they are left out of mean and standard deviation, and the column's tails are
    mapped by a logarithm; all other columns keep mean and standard deviation of all their values.

    Args:
        rows: Training rows ``(n, D)``, none of whose columns is constant; they alone decide location and scale.
        validation: Validation rows ``(m, D)``; a value far outside makes a tail heavy in these as well.

    Returns:
        The map from the units of the data to standardised ones, and the map of the tails, None without heavy tails.
    """
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    heavy = [False] * len(std)
    both = np.concatenate([rows, validation])
    for k, column in enumerate(rows.T):
        near = column[is_usual(column)]
        has_outliers = np.abs(both[:, k] - np.median(column)).max() > HEAVY * robust_std(column)
        if has_outliers and 0 < near.std() < both[:, k].std() / DOMINATED:
            mean[k], std[k], heavy[k] = near.mean(), near.std(), True
    tails = LogTails(len(std), BOUND, heavy) if any(heavy) else None
    return Standardize(mean.tolist(), std.tolist()), tails


def in_one(standardize: Standardize, tails: LogTails | None) -> Bijection:
    """Both maps of :func:`scale_columns` as one."""
    return standardize if tails is None else Chain([standardize, tails])
