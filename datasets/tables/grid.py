"""The grid that recorded values lie on: measuring and writing down rounds every number to one."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

# A decimal resolution is believed only while float error is this small a part of it: beyond, any number passes.
_LARGEST_ERROR = 4e-3
_MOST_DECIMALS = 15
# Gaps between levels written with a few digits differ in the last one; they still are one gap.
_SAME_GAP = 1e-3
# Repeats below _FEW_TIES need no explanation; above _MANY_TIES the values are levels, whatever their spacing.
_FEW_TIES, _MANY_TIES = 0.01, 0.5
# Fraction of the values on a grid that makes it theirs, and of the gaps that makes one common.
_MOST_VALUES, _COMMON = 0.9, 0.1


class Grid(NamedTuple):
    """Points ``offset + k step``.

    ``regular`` is False where some of the values lie beside the grid: it then is the most common spacing of the
    values, not an exact divisor of all.
    """

    step: float
    offset: float
    regular: bool


def find_step(values: Array, precision: float = 2.0**-52) -> Grid | None:
    """Find the grid on which recorded values lie.

    First the fewest decimals that write every value, then the greatest common divisor of the differences at that
    resolution. Where such a grid is absent, or far too fine to explain how often values repeat, the grid of nine
    values in ten (9.0333333333 among 9.0, 9.1, 9.2), or else the most common gap between neighbouring values.

    Args:
        values: Finite numbers, any order.
        precision: Relative spacing of the number type they were stored in.

    Returns:
        The grid, or None for values without one: fewer than two of them, or recorded to full precision.

    Example:
        >>> find_step(np.array([9.5, 10.25, 9.75]))
        Grid(step=0.25, offset=9.5, regular=True)
    """
    values = np.asarray(values, dtype=np.float64).ravel() + 0.0
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) < 2:
        return None
    exact = _decimal_grid(levels, counts, precision, share=1.0)
    if exact is not None and explains(exact.step, levels, counts):
        return exact
    ties = 1 - len(levels) / len(values)
    if ties <= _FEW_TIES:
        return exact
    most = _decimal_grid(levels, counts, precision, share=_MOST_VALUES)
    if most is not None and explains(most.step, levels, counts):
        return most
    gap, share = _common_gap(levels)
    if ties >= _MANY_TIES or share >= _COMMON:
        return Grid(gap, float(levels[counts.argmax()]), regular=False)
    return exact


def _decimal_grid(levels: Array, counts: Counts, precision: float, share: float) -> Grid | None:
    """Return the coarsest decimal grid that holds at least ``share`` of the values."""
    largest = float(np.abs(levels).max())
    for decimals in range(_MOST_DECIMALS + 1):
        scaled = levels * 10.0**decimals
        if largest * 10.0**decimals >= 2.0**53:
            return None
        counted = np.rint(scaled)
        # Whole numbers are exact in every type; decimals carry a rounding of their own and one of the product.
        error = 2 * precision * np.abs(scaled) if decimals else np.zeros_like(scaled)
        if decimals and error.max() > _LARGEST_ERROR:
            return None
        on = np.abs(scaled - counted) <= error
        if counts[on].sum() >= share * counts.sum() and on.sum() > 1:
            divisor = int(np.gcd.reduce(np.diff(counted[on].astype(np.int64))))
            return Grid(divisor / 10**decimals, float(counted[on][0]) / 10**decimals, regular=bool(on.all()))
    return None


def explains(step: float, levels: Array, counts: Counts) -> bool:
    """Whether a smooth law recorded on a grid of this step would repeat about as often as the values do.

    The comparison is generous (a factor of five or so): it has to tell a grid from one that is finer by orders of
    magnitude.
    """
    n = int(counts.sum())
    ties = 1 - len(levels) / n
    low, high = np.quantile(levels, [0.25, 0.75])
    spread = max(high - low, (levels[-1] - levels[0]) / 10)
    return bool(ties <= _FEW_TIES or n * step / spread >= ties / 10)


def _common_gap(levels: Array) -> tuple[float, float]:
    """Most common distance between neighbours, as the shortest decimal that agrees with it, and its share."""
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
