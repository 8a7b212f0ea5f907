"""Corner plot: histograms of the columns and contours of their pairs, samples of the flow and held-out rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pushforward.common.text import shorten
from pushforward.evaluate.likelihood import Array
from pushforward.evaluate.plots.canvas import FLOW_COLOR, HELD_OUT_COLOR, canvas
from pushforward.evaluate.samples import ks_distances

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 8
"""Maximum number of columns: 28 pairs are still readable."""

SHARES = (0.9, 0.5)
"""Shares of the rows inside the contours."""


def corner(
    samples: Array, held_out: Array, columns: Sequence[str], path: str | Path, *, max_columns: int = COLUMNS
) -> None:
    """Draw histograms on the diagonal and, below it, contours that hold 50 % and 90 % of the rows.

    Axes span the central 99.8 % of the held-out rows. With more than ``max_columns`` columns, those with the largest
    Kolmogorov-Smirnov distance between samples and held-out rows are shown.

    Args:
        samples: Samples of the flow ``(n, D)``.
        held_out: Held-out rows ``(m, D)``.
        columns: Names of the columns.
        path: File to write.
        max_columns: Maximum number of columns.

    Raises:
        ValueError: If tables differ in columns, or have no finite row.
    """
    for name, table in (("samples", samples), ("held_out", held_out)):
        if table.ndim != 2 or table.shape[1] != len(columns):
            raise ValueError(f"corner: expected {name} of shape (rows, {len(columns)}); got {table.shape}")
    x, y = (table[np.isfinite(table).all(axis=1)] for table in (samples, held_out))
    if len(x) == 0 or len(y) == 0:
        raise ValueError("corner: expected finite rows on both sides; got none")
    shown: list[int] = list(range(len(columns)))
    if len(columns) > max_columns:
        worst = np.argsort(-ks_distances(x, y), kind="stable")[:max_columns]
        shown = sorted(int(column) for column in worst)
    names = [shorten(columns[i], 16) for i in shown]
    count = len(shown)
    low, high = np.quantile(y[:, shown], [0.001, 0.999], axis=0)
    margin = np.where(high > low, 0.04 * (high - low), 0.5)
    limits = list(zip(low - margin, high + margin, strict=True))
    side = 1.25 * count + 0.9 if count > 1 else 3.6
    with canvas(path, max(side, 4.2), max(side, 3.2), dpi=110 if count > 4 else 130) as figure:
        axes: Any = figure.subplots(count, count, squeeze=False)
        for i, j in np.ndindex(count, count):
            axis: Axes = axes[i, j]
            if j > i:
                axis.set_axis_off()
                continue
            axis.set_xlim(*limits[j])
            if i == j:
                _histograms(axis, x[:, shown[j]], y[:, shown[j]], limits[j])
            else:
                axis.set_ylim(*limits[i])
                pair = [shown[j], shown[i]]
                _contours(axis, y[:, pair], (limits[j], limits[i]), HELD_OUT_COLOR, dashed=True)
                _contours(axis, x[:, pair], (limits[j], limits[i]), FLOW_COLOR, dashed=False)
            axis.locator_params(axis="x", nbins=3 if count > 2 else 5, min_n_ticks=2)
            axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
            if i == count - 1:
                axis.set_xlabel(names[j])
                axis.tick_params(axis="x", labelrotation=40 if count > 2 else 0)
            else:
                axis.tick_params(labelbottom=False)
                axis.xaxis.get_offset_text().set_visible(False)
            if i != j:
                axis.locator_params(axis="y", nbins=3 if count > 2 else 5, min_n_ticks=2)
                axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
            if j == 0 and i > 0:
                axis.set_ylabel(names[i])
            elif i != j:
                axis.tick_params(labelleft=False)
                axis.yaxis.get_offset_text().set_visible(False)
        figure.align_labels()
        title = "Flow against held-out rows"
        if count < len(columns):
            title += f": the {count} of {len(columns)} columns that differ most"
        figure.suptitle(title, fontsize=10)
        _legend(axes[0, 0] if count == 1 else axes[0, count - 1], len(x), len(y), single=count == 1)


def _histograms(axis: "Axes", x: Array, y: Array, limits: tuple[float, float]) -> None:
    bins = np.linspace(*limits, int(np.clip(np.sqrt(min(len(x), len(y))), 8, 50)) + 1)
    for values, colour, line, filled in ((y, HELD_OUT_COLOR, "--", False), (x, FLOW_COLOR, "-", True)):
        # Rows outside the axis count too, unlike with density=True, so that areas are comparable.
        heights = np.histogram(values, bins)[0] / (len(values) * (bins[1] - bins[0]))
        if filled:
            axis.stairs(heights, bins, fill=True, color=colour, alpha=0.2)
        axis.stairs(heights, bins, color=colour, lw=1.2, ls=line)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_ylim(bottom=0.0)


def _contours(
    axis: "Axes", points: Array, limits: tuple[tuple[float, float], tuple[float, float]], colour: str, *, dashed: bool
) -> None:
    bins = int(np.clip(len(points) ** 0.4, 12, 40))
    counts, first, second = np.histogram2d(points[:, 0], points[:, 1], bins=bins, range=limits)
    smooth = _smooth(counts)
    ordered = np.sort(smooth.ravel())[::-1]
    mass = np.cumsum(ordered)
    if mass[-1] <= 0:
        return
    levels = [float(ordered[np.searchsorted(mass, share * mass[-1])]) for share in SHARES]
    if len(points) < 200 or not 0 < levels[0] < levels[1] < ordered[0]:
        # Too few or too concentrated points for meaningful contours.
        axis.scatter(points[:400, 0], points[:400, 1], s=5, color=colour, alpha=0.6, linewidths=0)
        return
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in (first, second)]
    if not dashed:
        axis.contourf(*centres, smooth.T, levels=[*levels, ordered[0]], colors=[colour, colour], alpha=0.15)
    axis.contour(
        *centres, smooth.T, levels=levels, colors=colour, linewidths=[0.9, 1.2], linestyles="--" if dashed else "-"
    )


def _smooth(counts: Array) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(counts, sigma=1.0, mode="nearest"))


def _legend(axis: "Axes", samples: int, held_out: int, *, single: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=FLOW_COLOR, label=f"flow ({samples:,})"),
        Line2D([], [], color=HELD_OUT_COLOR, ls="--", label=f"held out ({held_out:,})"),
    ]
    if single:
        axis.set_ylim(0.0, 1.15 * axis.get_ylim()[1])
        axis.legend(handles=handles, loc="upper center", ncols=2)
    else:
        axis.legend(handles=handles, loc="upper right", borderaxespad=0.0)
