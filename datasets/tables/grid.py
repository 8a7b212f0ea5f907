"""Find the grid that recorded values lie on: measured numbers are rounded to a resolution."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

# A decimal resolution is accepted only while float error is at most this part of it: beyond, any number passes.
_MAX_ERROR = 4e-3
_MAX_DECIMALS = 15
# Relative tolerance: gaps between levels written with few digits differ in the last digit.
_SAME_GAP = 1e-3
# Fraction of ties below which no grid is needed, and above which the values are discrete levels, whatever the spacing.
_FEW_TIES, _MANY_TIES = 0.01, 0.5
# Fraction of values that must lie on a grid, and fraction of gaps that must be equal to count as a common gap.
_SHARE_ON_GRID, _SHARE_OF_GAPS = 0.9, 0.1


class Grid(NamedTuple):
    """The points ``offset + k resolution``.

    ``regular`` is False if some values lie off the grid: its resolution is then the most common spacing of the values,
    not an exact divisor of all differences.
    """

    resolution: float
    offset: float
    regular: bool


def find_resolution(values: Array, precision: float = 2.0**-52) -> Grid | None:
    """Find the grid on which recorded values lie.

    Takes the fewest decimals that represent every value, then the greatest common divisor of the differences in these
    units. If there is no such grid, or it is far too fine to explain how often values repeat, it takes the grid of nine
    values in ten (9.0333333333 among 9.0, 9.1, 9.2), or else the most common gap between neighbouring values.

    Args:
        values: Finite numbers, any order.
        precision: Machine epsilon of the number type they were stored in.

    Returns:
        The grid; None for fewer than two different values, or for values recorded to full precision.

    Example:
        >>> find_resolution(np.array([9.5, 10.25, 9.75]))
        Grid(resolution=0.25, offset=9.5, regular=True)
    """
    values = np.asarray(values, dtype=np.float64).ravel() + 0.0
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) < 2:
        return None
    exact = _decimal_grid(levels, counts, precision, share=1.0)
    if exact is not None and explains_ties(exact.resolution, levels, counts):
        return exact
    ties = 1 - len(levels) / len(values)
    if ties <= _FEW_TIES:
        return exact
    most = _decimal_grid(levels, counts, precision, share=_SHARE_ON_GRID)
    if most is not None and explains_ties(most.resolution, levels, counts):
        return most
    gap, share = _common_gap(levels)
    if ties >= _MANY_TIES or share >= _SHARE_OF_GAPS:
        return Grid(gap, float(levels[counts.argmax()]), regular=False)
    return exact


def _decimal_grid(levels: Array, counts: Counts, precision: float, share: float) -> Grid | None:
    """Return the coarsest decimal grid that holds at least ``share`` of the values."""
    largest = float(np.abs(levels).max())
    for decimals in range(_MAX_DECIMALS + 1):
        scaled = levels * 10.0**decimals
        if largest * 10.0**decimals >= 2.0**53:
            return None
        rounded = np.rint(scaled)
        # Integers are exact in every type; decimals carry their own rounding and that of the product.
        error = 2 * precision * np.abs(scaled) if decimals else np.zeros_like(scaled)
        if decimals and error.max() > _MAX_ERROR:
            return None
        on = np.abs(scaled - rounded) <= error
        if counts[on].sum() >= share * counts.sum() and on.sum() > 1:
            divisor = int(np.gcd.reduce(np.diff(rounded[on].astype(np.int64))))
            return Grid(divisor / 10**decimals, float(rounded[on][0]) / 10**decimals, regular=bool(on.all()))
    return None


def explains_ties(resolution: float, levels: Array, counts: Counts) -> bool:
    """Whether a smooth distribution rounded to this resolution would have about as many ties as the values have.

    The comparison is generous (a factor of about five): it only has to reject grids that are too fine by orders of
    magnitude.
    """
    n = int(counts.sum())
    ties = 1 - len(levels) / n
    low, high = np.quantile(levels, [0.25, 0.75])
    spread = max(high - low, (levels[-1] - levels[0]) / 10)
    return bool(ties <= _FEW_TIES or n * resolution / spread >= ties / 10)


def _common_gap(levels: Array) -> tuple[float, float]:
    """Return the most common gap between neighbours, as the shortest decimal that fits, and its share of the gaps."""
    gaps = np.sort(np.diff(levels))
    ends = np.searchsorted(gaps, gaps * (1 + _SAME_GAP), side="right")
    sizes = ends - np.arange(len(gaps))
    if sizes.max() == 1:
        return float(gaps[len(gaps) // 2]), 1 / len(gaps)
    start = int(sizes.argmax())
    share = float(sizes[start]) / len(gaps)
    low, high = gaps[start], gaps[ends[start] - 1]
    middle = float(gaps[(start + ends[start] - 1) // 2])
    for digits in range(1, 16):
        short = float(f"{middle:.{digits - 1}e}")
        if low * (1 - 1e-6) <= short <= high * (1 + 1e-6):
            return short, share
    return middle, share
