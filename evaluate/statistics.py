"""The mean of a sample and its standard error; rolling means."""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def mean_and_se(values: Array, weights: Array | None = None, *, where: str) -> tuple[float, float]:
    """Return the mean of values that may be infinite, and its standard error with ``n - 1`` degrees of freedom.

    Args:
        values: Values ``(n,)``.
        weights: Weights ``(n,)``, at least 0; None for equal ones. Values of weight 0 do not count, and
            the standard error is that of a ratio of means.
        where: Name of the caller, for the error message.

    Returns:
        Mean and standard error. The error is NaN for a single value, infinite if the mean is infinite; both are NaN
        if all weights are 0.

    Raises:
        ValueError: Without any value.

    Example:
        >>> mean_and_se(np.array([1.0, 3.0]), where="example")
        (2.0, 1.0)
    """
    if len(values) == 0:
        raise ValueError(f"{where}: expected at least one row; got none")
    if weights is not None:
        return _weighted(values[weights > 0], weights[weights > 0])
    with np.errstate(invalid="ignore"):  # inf and -inf together have no mean
        mean = float(values.mean())
    if not math.isfinite(mean):
        return mean, math.nan if math.isnan(mean) else math.inf
    return mean, float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _weighted(values: Array, weights: Array) -> tuple[float, float]:
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    shares = weights / weights.sum()
    with np.errstate(invalid="ignore"):
        mean = float((shares * values).sum())
    if not math.isfinite(mean):
        return mean, math.nan if math.isnan(mean) else math.inf
    squares = float((np.square(shares) * np.square(values - mean)).sum())
    return mean, math.sqrt(squares * n / (n - 1)) if n > 1 else math.nan


def rolling_mean(values: Array) -> Array:
    """Compute the centred rolling mean ``(n,) -> (n,)`` over a fortieth of the values, shorter at both ends.

    Windows have an odd width, so that they are symmetric. Fewer than 80 values are returned as they are.
    """
    width = max(1, len(values) // 40)
    if width == 1:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))
