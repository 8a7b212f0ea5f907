"""Small charts, one for each column: PIT histograms of held-out noise, quantiles of samples against held-out rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pushforward.common.markup import Html, join, tag
from pushforward.evaluate.plots.axes import Array

SHOWN = 12
"""Columns drawn large; the others are there to open."""


@dataclass(frozen=True)
class Pit:
    """A PIT histogram beside what a perfect fit would give.

    Attributes:
        name: What it is of.
        counts: Rows in each bin ``(B,)``.
        low: Counts below this are rarer than 1 in 40 in one bin of a perfect fit.
        high: The same above.
        misfit: Pearson's chi-squared over its degrees of freedom, about 1 for a perfect fit.
    """

    name: str
    counts: Array
    low: float
    high: float
    misfit: float

    @property
    def outside(self) -> int:
        """Bins outside the band."""
        return int(((self.counts < self.low) | (self.counts > self.high)).sum())


def pit_histograms(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Pit]:
    """Histograms with as many bins as their rows can fill: five rows are expected in each.

    Args:
        names: What they are of.
        counts: Rows in each of equally wide bins from 0 to 1.

    Raises:
        ValueError: For counts that are no table.
    """
    table = np.asarray(counts, dtype=np.int64)
    if table.ndim != 2 or len(table) != len(names) or not table.size:
        raise ValueError(f"pit_histograms: expected counts ({len(names)}, bins); got shape {table.shape}")
    out = []
    for name, fine in zip(names, table, strict=True):
        rows, finest = int(fine.sum()), len(fine)
        sizes = [bins for bins in range(finest, 1, -1) if finest % bins == 0]
        bins = next((bins for bins in sizes if rows / bins >= 5), sizes[-1] if sizes else finest)
        coarse = fine.reshape(bins, finest // bins).sum(axis=1)
        expected = rows / bins
        low, high = binomial_band(rows, 1 / bins)
        misfit = float(((coarse - expected) ** 2).sum() / max(expected, 1e-9) / max(bins - 1, 1))
        out.append(Pit(name, coarse, low, high, misfit))
    return out


def binomial_band(trials: int, chance: float, beyond: float = 0.025) -> tuple[int, int]:
    """Counts between which a binomial number lies, but for a chance of ``beyond`` on either side.

    Example:
        >>> binomial_band(100, 0.5)
        (40, 60)
    """
    if trials <= 0:
        return 0, 0
    # Nothing is lost beyond ten standard deviations.
    mean, reach = trials * chance, 10 * math.sqrt(trials * chance * (1 - chance)) + 10
    first, last = max(0, math.floor(mean - reach)), min(trials, math.ceil(mean + reach))
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(chance) + (trials - k) * math.log1p(-chance)
        for k in range(first, last + 1)
    ]  # fmt: skip
    below = np.cumsum(np.exp(logs))
    low = first + int(np.searchsorted(below, beyond, side="right"))
    return low, first + int(np.searchsorted(below, 1 - beyond, side="left"))


def pit_multiples(items: Sequence[Pit]) -> Html:
    """PIT histograms side by side: the band holds 95 % of the bins of a perfect fit."""
    return _multiples([(item.name, _bins_out(item), _pit(item)) for item in items])


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of one column, samples against held-out rows, and how far apart they are at most.

    ``gap`` is in units of the distance between the outer quantiles of the held-out rows.
    """

    name: str
    held_out: Array
    samples: Array
    gap: float


def quantile_pairs(
    names: Sequence[str], held_out: Sequence[Sequence[float]], samples: Sequence[Sequence[float]]
) -> list[Quantiles]:
    """Quantiles of each column, with their largest distance.

    Args:
        names: Columns.
        held_out: Quantiles of held-out rows, for each column.
        samples: Quantiles of samples at the same levels.
    """
    out = []
    for name, left, right in zip(names, held_out, samples, strict=True):
        data, drawn = np.array(left, dtype=np.float64), np.array(right, dtype=np.float64)
        span = float(data[-1] - data[0]) or 1.0
        out.append(Quantiles(name, data, drawn, float(np.abs(drawn - data).max() / abs(span))))
    return out


def quantile_multiples(items: Sequence[Quantiles]) -> Html:
    """Quantiles side by side: on the diagonal, samples are spread as the held-out rows are."""
    return _multiples([(item.name, f"gap {100 * item.gap:.1f} %", _quantiles(item)) for item in items])


def _bins_out(item: Pit) -> str:
    return f"{item.outside} of {len(item.counts)} out"


def _pit(item: Pit) -> Html:
    top = 1.12 * max(float(item.counts.max()), item.high)
    expected = float(item.counts.sum()) / len(item.counts)
    width = 200 / len(item.counts)

    def y(value: float) -> float:
        return 100 * (1 - value / top)

    bars = [
        tag("rect", x=f"{i * width + 0.7:.1f}", y=f"{y(n):.1f}", width=f"{width - 1.4:.1f}",
            height=f"{100 - y(n):.1f}", class_="bar" if item.low <= n <= item.high else "bar out")
        for i, n in enumerate(item.counts)
    ]  # fmt: skip
    band = tag("rect", x=0, width=200, y=f"{y(item.high):.1f}", height=f"{y(item.low) - y(item.high):.1f}",
               class_="tolerance")  # fmt: skip
    middle = tag("line", x1=0, x2=200, y1=f"{y(expected):.1f}", y2=f"{y(expected):.1f}", class_="expected")
    label = f"PIT histogram of {item.name}: {item.outside} of {len(item.counts)} bins outside the 95 % band"
    return _small([*bars, band, middle], label, "0 0 200 100")


def _quantiles(item: Quantiles) -> Html:
    both = np.concatenate([item.held_out, item.samples])
    both = both[np.isfinite(both)]
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    span = (high - low) or 1.0
    x, y = (6 + 138 * (values - low) / span for values in (item.held_out, item.samples))
    dots = [
        tag("circle", cx=f"{a:.1f}", cy=f"{150 - b:.1f}", r=2.6, class_="f0")
        for a, b in zip(x, y, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    line = tag("line", x1=6, x2=144, y1=144, y2=6, class_="expected")
    label = f"Quantiles of {item.name}, samples against test rows: {100 * item.gap:.1f} % of the range apart at most"
    return _small([line, *dots], label, "0 0 150 150")


def _small(parts: Sequence[Html], label: str, box: str) -> Html:
    return tag("svg", tag("title", label), *parts, viewBox=box, role="img", aria_label=label)


def _multiples(items: Sequence[tuple[str, str, Html]]) -> Html:
    blocks = (
        tag("div", tag("p", tag("span", name, title=name), tag("span", remark)), chart) for name, remark, chart in items
    )
    return tag("div", join(blocks), class_="multiples few" if len(items) <= 4 else "multiples")
