"""Small SVG charts, one for each column: PIT histograms, quantiles of samples against held-out rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pushforward.common.markup import Html, join, tag
from pushforward.evaluate.statistics import Array

SHOWN = 12
"""Number of charts shown; the others are folded away."""


@dataclass(frozen=True)
class PitHistogram:
    """A PIT histogram with the 95 % band of a perfect fit.

    Attributes:
        name: Name of the latent feature.
        counts: Number of rows in each bin ``(B,)``.
        low: Lower end of the band: the 2.5 % quantile of the count of a bin under a perfect fit.
        high: Upper end of the band: the 97.5 % quantile.
        misfit: Pearson's chi-squared over its degrees of freedom, about 1 for a perfect fit.
    """

    name: str
    counts: Array
    low: float
    high: float
    misfit: float

    @property
    def outside(self) -> int:
        """Number of bins outside the band."""
        return int(((self.counts < self.low) | (self.counts > self.high)).sum())


def pit_histograms(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[PitHistogram]:
    """Build histograms, merging bins so that each expects at least five rows.

    Args:
        names: Names of the latent features.
        counts: For each feature, the number of rows in bins of equal width from 0 to 1.

    Raises:
        ValueError: If counts are not a table with a row for each name.
    """
    table = np.asarray(counts, dtype=np.int64)
    if table.ndim != 2 or len(table) != len(names) or not table.size:
        raise ValueError(f"pit_histograms: expected counts ({len(names)}, bins); got shape {table.shape}")
    out = []
    for name, fine in zip(names, table, strict=True):
        rows, fine_bins = int(fine.sum()), len(fine)
        divisors = [bins for bins in range(fine_bins, 1, -1) if fine_bins % bins == 0]
        bins = next((bins for bins in divisors if rows / bins >= 5), divisors[-1] if divisors else fine_bins)
        coarse = fine.reshape(bins, fine_bins // bins).sum(axis=1)
        expected = rows / bins
        low, high = binomial_band(rows, 1 / bins)
        misfit = float(((coarse - expected) ** 2).sum() / max(expected, 1e-9) / max(bins - 1, 1))
        out.append(PitHistogram(name, coarse, low, high, misfit))
    return out


def binomial_band(trials: int, probability: float, tail: float = 0.025) -> tuple[int, int]:
    """Return the ``tail`` and ``1 - tail`` quantiles of a binomial distribution, without scipy.

    Example:
        >>> binomial_band(100, 0.5)
        (40, 60)
    """
    if trials <= 0:
        return 0, 0
    # The probability beyond ten standard deviations is negligible.
    mean, reach = trials * probability, 10 * math.sqrt(trials * probability * (1 - probability)) + 10
    first, last = max(0, math.floor(mean - reach)), min(trials, math.ceil(mean + reach))
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(probability) + (trials - k) * math.log1p(-probability)
        for k in range(first, last + 1)
    ]  # fmt: skip
    cdf = np.cumsum(np.exp(logs))
    low = first + int(np.searchsorted(cdf, tail, side="right"))
    return low, first + int(np.searchsorted(cdf, 1 - tail, side="left"))


def pit_multiples(items: Sequence[PitHistogram]) -> Html:
    """Draw PIT histograms side by side, with a band that holds 95 % of the bins under a perfect fit."""
    return _multiples([(item.name, _outside_text(item), _pit_chart(item)) for item in items])


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of one column, for samples and held-out rows.

    Attributes:
        name: Name of the column.
        held_out: Quantiles of the held-out rows ``(L,)``.
        samples: Quantiles of the samples ``(L,)``.
        gap: Largest difference, relative to the range between the outer quantiles of the held-out rows.
    """

    name: str
    held_out: Array
    samples: Array
    gap: float


def quantile_pairs(
    names: Sequence[str], held_out: Sequence[Sequence[float]], samples: Sequence[Sequence[float]]
) -> list[Quantiles]:
    """Pair the quantiles of each column, and measure their largest difference.

    Args:
        names: Names of the columns.
        held_out: For each column, quantiles of the held-out rows.
        samples: For each column, quantiles of the samples at the same levels.
    """
    out = []
    for name, left, right in zip(names, held_out, samples, strict=True):
        data, drawn = np.array(left, dtype=np.float64), np.array(right, dtype=np.float64)
        span = float(data[-1] - data[0]) or 1.0
        out.append(Quantiles(name, data, drawn, float(np.abs(drawn - data).max() / abs(span))))
    return out


def quantile_multiples(items: Sequence[Quantiles]) -> Html:
    """Draw quantiles side by side; on the diagonal, samples and held-out rows have the same quantiles."""
    return _multiples([(item.name, f"gap {100 * item.gap:.1f} %", _quantile_chart(item)) for item in items])


def _outside_text(item: PitHistogram) -> str:
    return f"{item.outside} of {len(item.counts)} out"


def _pit_chart(item: PitHistogram) -> Html:
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
    return _small_svg([*bars, band, middle], label, "0 0 200 100")


def _quantile_chart(item: Quantiles) -> Html:
    values = np.concatenate([item.held_out, item.samples])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    span = (high - low) or 1.0
    x, y = (6 + 138 * (side - low) / span for side in (item.held_out, item.samples))
    dots = [
        tag("circle", cx=f"{a:.1f}", cy=f"{150 - b:.1f}", r=2.6, class_="f0")
        for a, b in zip(x, y, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    line = tag("line", x1=6, x2=144, y1=144, y2=6, class_="expected")
    label = f"Quantiles of {item.name}, samples against test rows; largest gap {100 * item.gap:.1f} % of the range"
    return _small_svg([line, *dots], label, "0 0 150 150")


def _small_svg(parts: Sequence[Html], label: str, box: str) -> Html:
    return tag("svg", tag("title", label), *parts, viewBox=box, role="img", aria_label=label)


def _multiples(items: Sequence[tuple[str, str, Html]]) -> Html:
    blocks = (
        tag("div", tag("p", tag("span", name, title=name), tag("span", remark)), chart) for name, remark, chart in items
    )
    return tag("div", join(blocks), class_="multiples few" if len(items) <= 4 else "multiples")
