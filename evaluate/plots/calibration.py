"""Pictures of calibration: quantiles of samples against held-out rows, and PIT histograms."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pushforward.common.text import shorten
from pushforward.evaluate.calibration import Calibration
from pushforward.evaluate.likelihood import Array
from pushforward.evaluate.plots.canvas import FLOW_COLOR, HELD_OUT_COLOR, MUTED_COLOR, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 12
"""Maximum number of columns drawn; the worst are chosen."""


def quantiles(calibration: Calibration, path: str | Path) -> None:
    """Draw the quantiles of the samples against those of the held-out rows, one panel a column.

    Both axes are in data units; on the diagonal the quantiles agree. With more columns than panels, the columns with
    the largest differences relative to the held-out range are shown.

    Args:
        calibration: Result of ``calibrate``.
        path: File to write.
    """
    held_out, samples = np.array(calibration.held_out), np.array(calibration.samples)
    spread = np.maximum(held_out[:, -1] - held_out[:, 0], 1e-300)
    worst = np.abs(samples - held_out).mean(axis=1) / spread

    def draw(axis: "Axes", column: int) -> None:
        x, y = held_out[column], samples[column]
        low, high = min(x[0], y[0]), max(x[-1], y[-1])
        margin = 0.04 * (high - low) or 0.5
        ends = (low - margin, high + margin)
        axis.plot(ends, ends, color=MUTED_COLOR, lw=0.8)
        axis.plot(x, y, color=FLOW_COLOR, marker="o", ms=2.2, lw=0.9)
        axis.set(xlim=ends, ylim=ends)
        axis.set_box_aspect(1)
        for side in ("x", "y"):
            axis.locator_params(axis=side, nbins=3)
            axis.ticklabel_format(axis=side, style="sci", scilimits=(-3, 4), useMathText=True)

    levels = calibration.levels
    title = f"Quantiles {100 * levels[0]:g} % to {100 * levels[-1]:g} %: samples of the flow against held-out rows"
    _panels(calibration.columns, worst, draw, title, path, labels=("held out", "samples"))


def pit(calibration: Calibration, path: str | Path) -> None:
    """Draw the PIT histograms, one panel a latent feature, with the 95 % band of a perfect fit.

    Args:
        calibration: Result of ``calibrate``.
        path: File to write.
    """
    from scipy import stats

    counts, edges = np.array(calibration.pit_counts), np.array(calibration.pit_edges)
    bins, rows = counts.shape[1], counts[0].sum()
    expected = rows / bins
    low, high = stats.binom(rows, 1.0 / bins).ppf([0.025, 0.975]) / expected
    worst = ((counts - expected) ** 2).sum(axis=1)
    top = max(1.15 * float(counts.max()) / expected, high + 0.15)

    def draw(axis: "Axes", column: int) -> None:
        axis.axhspan(low, high, color=MUTED_COLOR, alpha=0.2, lw=0)
        axis.axhline(1.0, color=MUTED_COLOR, lw=0.8)
        axis.stairs(counts[column] / expected, edges, color=HELD_OUT_COLOR, lw=1.2)
        axis.set(xlim=(0, 1), ylim=(0, top), xticks=(0, 0.5, 1))

    title = "Probability integral transform of held-out rows, with the 95 % band of a perfect fit"
    # Latent features are not columns: layers permute and mix them.
    names = [f"latent {i}" for i in range(len(counts))]
    _panels(names, worst, draw, title, path, labels=("PIT", "relative to uniform"))


def _panels(
    names: list[str],
    worst: Array,
    draw: Callable[["Axes", int], None],
    title: str,
    path: str | Path,
    *,
    labels: tuple[str, str],
) -> None:
    features = len(names)
    shown = sorted(np.argsort(-worst, kind="stable")[:PANELS].tolist())
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    if len(shown) < features:
        title += f"\nthe {len(shown)} of {features} that differ most"
    with canvas(path, max(2.1 * across + 0.6, 4.8), 2.1 * down + 0.7) as figure:
        axes: Any = figure.subplots(down, across, squeeze=False, sharey=labels[0] == "PIT")
        for i, axis in enumerate(axes.flat):
            if i >= len(shown):
                axis.set_axis_off()
                continue
            column = shown[i]
            draw(axis, column)
            name = names[column]
            axis.set_title(shorten(name, 24), fontsize=8.5)
        figure.supxlabel(labels[0], fontsize=9)
        figure.supylabel(labels[1], fontsize=9)
        figure.suptitle(title, fontsize=10)
