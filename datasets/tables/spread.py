"""The spread of a column's usual values, whatever a few others are."""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FAR = 20.0
"""Values further from the median than this, in robust standard deviations, are far outside."""

_INTERQUARTILE_RANGE = 2.0 * NormalDist().inv_cdf(0.75)  # of the standard Gaussian


def robust_std(column: NDArray[np.float64]) -> float:
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


def is_usual(column: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each value ``(n,)`` is not far outside."""
    usual: NDArray[np.bool_] = np.abs(column - np.median(column)) <= FAR * robust_std(column)
    return usual
