"""The location and the scale of columns, robust to a few values far outside."""

from statistics import NormalDist

import numpy as np

from pushforward.evaluate.statistics import Array
from pushforward.flows import Bijection, Chain, LogTails, Standardize

FAR = 20.0
"""Values further from the median than this, in robust standard deviations, do not count for location and scale."""

HEAVY = 100.0
"""A column has heavy tails if a value is further from the median than this, and ..."""

DOMINATED = 2.0
"""... its standard deviation is this many times that of the values that count.

Columns of 20 tables without outliers, some with a value that most rows share, reach 60 robust standard deviations."""

BOUND = 5.0
"""Heavy tails begin at this many standard deviations of the values that count."""

_INTERQUARTILE_RANGE = 2.0 * NormalDist().inv_cdf(0.75)  # of the standard Gaussian


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
        median, unit = np.median(column), robust_std(column)
        near = column[np.abs(column - median) <= FAR * unit]
        has_outliers = np.abs(both[:, k] - median).max() > HEAVY * unit
        if has_outliers and 0 < near.std() < both[:, k].std() / DOMINATED:
            mean[k], std[k], heavy[k] = near.mean(), near.std(), True
    tails = LogTails(len(std), BOUND, heavy) if any(heavy) else None
    return Standardize(mean.tolist(), std.tolist()), tails


def robust_std(column: Array) -> float:
    """Standard deviation of the Gaussian with the column's quartiles.

    If most values are equal, as in a column of zeros with few others, the quartiles are those of the others. Returns
    infinity if these are equal, too.
    """
    for values in (column, column[column != np.median(column)]):
        if len(values):
            low, high = np.quantile(values, [0.25, 0.75])
            if high > low:
                return float((high - low) / _INTERQUARTILE_RANGE)
    return float("inf")


def in_one(standardize: Standardize, tails: LogTails | None) -> Bijection:
    """Both maps of :func:`scale_columns` as one."""
    return standardize if tails is None else Chain([standardize, tails])
