"""Axes of the SVG charts: ranges, ticks and their labels, positions of values; thinning of long curves."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pushforward.common.numbers import minus
from pushforward.evaluate.statistics import Array

POINTS = 400
"""Maximum number of points of a line: about one for each pixel."""


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis.

    Attributes:
        low: Value at the start.
        high: Value at the end, above ``low``.
        log: Whether the axis is logarithmic; both ends are then positive.
    """

    low: float
    high: float
    log: bool = False

    def share(self, values: Array) -> Array:
        """Relative positions of values: 0 at the start, 1 at the end, beyond them outside the axis."""
        values = np.asarray(values, dtype=np.float64)
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(np.log(values / self.low) / math.log(self.high / self.low))
        return np.asarray((values - self.low) / (self.high - self.low))

    def at(self, value: float) -> float:
        """Relative position of one value."""
        return float(self.share(np.array([value]))[0])

    def ticks(self, count: int = 5) -> list[float]:
        """Return about ``count`` round values inside the range."""
        return _log_ticks(self.low, self.high, count) if self.log else nice_ticks(self.low, self.high, count)

    def labels(self, count: int = 5) -> list[tuple[float, str]]:
        """Return ticks with their labels."""
        ticks = self.ticks(count)
        return list(zip(ticks, tick_labels(ticks, log=self.log), strict=True))


def axis_around(values: Array, *, log: bool = False, margin: float = 0.06) -> Axis:
    """Return an axis that holds all finite values with a margin; it has a positive length even if all are equal.

    Args:
        values: The values ``(n,)``; values that are not finite are ignored, on a logarithmic axis also those below 0.
        log: Whether the axis is logarithmic.
        margin: Share of the range that is added at both ends.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values) & ((values > 0) if log else True)]
    if not len(values):
        return Axis(0.1, 1.0, log=True) if log else Axis(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        if high < 1.5 * low:
            low, high = low / 1.5, high * 1.5
        wider = (high / low) ** margin
        return Axis(low / wider, high * wider, log=True)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        wider = 0.05 * abs(low) or 1.0
        return Axis(low - wider, high + wider)
    span = high - low
    if not math.isfinite(span):  # close to the largest float64
        return Axis(low / 4, high / 4)
    return Axis(low - margin * span, high + margin * span)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten between two values.

    Example:
        >>> nice_ticks(0.0, 1.0), nice_ticks(-3.0, 722.0)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 200.0, 400.0, 600.0])
    """
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = math.floor(math.log10(rough))
    step = min((m * 10.0**power for m in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + 1
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, digits) for number in range(first, last + 1)]


def tick_labels(ticks: Sequence[float], *, log: bool = False) -> list[str]:
    """Format ticks with just enough decimals to distinguish them, thousands as k, millions as M.

    Example:
        >>> tick_labels([0.0, 0.5, 1.0]), tick_labels([0.0, 200.0, 400.0]), tick_labels([0.0, 20_000.0, 40_000.0])
        (['0.0', '0.5', '1.0'], ['0', '200', '400'], ['0', '20k', '40k'])
    """
    if log:
        return [_power(tick) for tick in ticks]
    largest = max((abs(tick) for tick in ticks), default=0.0)
    gap = min((b - a for a, b in itertools.pairwise(ticks)), default=largest or 1.0)
    if largest >= 1e8 or (largest and largest < 1e-4):
        return ["0" if tick == 0 else _exponent(f"{tick:.3g}") for tick in ticks]
    scale, unit = next(((s, u) for s, u in ((1e6, "M"), (1e3, "k")) if largest >= 10 * s), (1.0, ""))
    digits = max(0, -math.floor(math.log10(gap / scale) + 1e-9)) if gap > 0 else 0
    if unit and digits > 1:  # 99,992 is easier to read than 99.992k
        return [minus(f"{tick:,.{max(0, digits - (3 if unit == 'k' else 6))}f}") for tick in ticks]
    return ["0" if tick == 0 and unit else minus(f"{tick / scale:.{min(digits, 8)}f}{unit}") for tick in ticks]


def thinned_indices(values: Array, points: int = POINTS) -> Array:
    """Choose the points of a long curve to draw: the minimum and maximum of each interval, the first and the last.

    Args:
        values: Finite values in order ``(n,)``.
        points: Maximum number of points.

    Returns:
        Increasing indices ``(m,)``; all of them if there are at most ``points`` values.
    """
    if len(values) <= points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), max(1, (points - 2) // 2) + 1).astype(int)
    kept = [0, len(values) - 1]
    for start, end in itertools.pairwise(edges.tolist()):
        kept += [start + int(values[start:end].argmin()), start + int(values[start:end].argmax())]
    return np.unique(kept)


def axis_without_first_steps(curves: Sequence[Array], references: Sequence[float] = ()) -> Axis:
    """Return the axis of training curves, ignoring their first steps, whose large values would flatten the rest.

    Args:
        curves: Values in order, each ``(n,)``.
        references: Values of horizontal lines; those far from the curves do not widen the range.
    """
    kept = [curve[np.isfinite(curve)] for curve in curves]
    kept = [curve[max(len(curve) // 12, 2 * (len(curve) > 8)) :] for curve in kept if len(curve)]
    if not kept:
        return axis_around(np.array(list(references)))
    ends = np.array([[curve.min(), np.quantile(curve, 0.98)] for curve in kept])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    span = max(high - low, 1e-3 * max(1.0, abs(low)))
    near = [value for value in references if low - span / 2 <= value <= high + span / 2]
    return axis_around(np.array([low, high, *near]))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for parts in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in range(first, last + 1) for m in parts]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= count + 1:
            break
    if len(ticks) > count + 1:
        ticks = ticks[:: math.ceil(len(ticks) / count)]
    # Between two powers of ten there may be at most one of these.
    return ticks if len(ticks) > 1 else nice_ticks(low, high, count)


def _power(value: float) -> str:
    if 1e-3 <= value < 1e3:
        return f"{value:.3g}"
    if 1e3 <= value < 1e8:
        return tick_labels([value])[0]
    return _exponent(f"{value:.0e}")


def _exponent(text: str) -> str:
    """Shorten 2e+08 to 2e8."""
    mantissa, e, exponent = text.partition("e")
    return minus(f"{mantissa}e{int(exponent)}" if e else text)
