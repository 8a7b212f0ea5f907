"""Pictures of a fit: two-dimensional densities, latents against the normal distribution."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pushforward.evaluate.likelihood import Array, Density, device_of, log_prob
from pushforward.evaluate.plots.canvas import FLOW_COLOR, HELD_OUT_COLOR, MUTED_COLOR, canvas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

GRID = 300
"""Grid points along each axis of a density picture."""

POINTS = 5_000
"""Maximum number of points drawn; more would only overlap."""


def density_2d(
    flow: Density,
    samples: Tensor | Array,
    held_out: Tensor | Array,
    true_log_prob: "Callable[[Array], Array] | None",
    path: str | Path,
    *,
    columns: "Sequence[str]" = ("x₁", "x₂"),
    dtype: torch.dtype = torch.float64,
) -> None:
    """Draw the true density (held-out rows if it is unknown), the fitted density and samples of the flow.

    Both densities share one colour scale; the fitted one is clipped at its top.

    Args:
        flow: A density in two dimensions, without context.
        samples: Samples of the flow ``(n, 2)``.
        held_out: Held-out rows ``(m, 2)``.
        true_log_prob: The true log-density of float64 arrays, ``(k, 2) -> (k,)``, if known.
        path: File to write.
        columns: Names of the two columns.
        dtype: Precision of the flow.

    Raises:
        ValueError: If rows do not have two columns.
    """
    samples, held_out = _two_columns(samples, "samples"), _two_columns(held_out, "held_out")
    low, high = np.quantile(held_out, [0.001, 0.999], axis=0)
    margin = 0.12 * np.maximum(high - low, 1e-6)
    low, high = low - margin, high + margin
    centres = [low[i] + (np.arange(GRID) + 0.5) * (high[i] - low[i]) / GRID for i in range(2)]
    grid = np.stack(np.meshgrid(*centres), axis=-1).reshape(-1, 2)
    points = torch.as_tensor(grid, dtype=dtype, device=device_of(flow))
    fitted = np.exp(log_prob(flow, points).double().cpu().numpy()).reshape(GRID, GRID)
    true = None
    if true_log_prob is not None:
        true = np.exp(np.asarray(true_log_prob(grid), dtype=np.float64)).reshape(GRID, GRID)
    # A fit may have a few very high values: scale by the true density, or by a quantile of the fitted one.
    finite = fitted[np.isfinite(fitted)]
    top = float(true.max()) if true is not None else float(np.quantile(finite, 0.999)) if finite.size else 1.0
    aspect = float(np.clip((high[1] - low[1]) / (high[0] - low[0]), 0.5, 1.6))
    extent = (low[0], high[0], low[1], high[1])
    with canvas(path, 10.2, 2.9 * aspect + 0.75) as figure:
        axes: list[Axes] = list(figure.subplots(1, 3, sharex=True, sharey=True))
        image: Any = None
        for axis, density, title in zip(axes, (true, fitted), ("True density", "Fitted density"), strict=False):
            if density is None:
                _scatter(axis, held_out, HELD_OUT_COLOR)
                axis.set_title(f"Held-out rows ({min(len(held_out), POINTS):,})")
                continue
            image = axis.imshow(
                density, extent=extent, origin="lower", cmap="viridis", vmin=0.0, vmax=top, aspect="auto"
            )
            axis.set_title(title)
        _scatter(axes[2], samples, FLOW_COLOR)
        axes[2].set_title(f"Samples of the flow ({min(len(samples), POINTS):,})")
        for axis in axes:
            axis.set(xlim=extent[:2], ylim=extent[2:], xlabel=columns[0])
            axis.set_box_aspect(aspect)
        axes[0].set_ylabel(columns[1])
        bar = figure.colorbar(image, ax=axes, shrink=0.92, pad=0.01, aspect=30, extend="max")
        bar.set_label("probability per unit area")
        bar.outline.set_visible(False)


def latent(latents: Tensor | Array, path: str | Path) -> None:
    """Draw the latents of held-out rows against the normal distribution.

    Left: quantiles of every latent feature minus those of N(0, 1), with a pointwise 95 % band. Right: the two features
    with the largest correlation, with circles that hold 50, 90 and 99 % of a normal distribution.

    Args:
        latents: Latents of held-out rows ``(n, D)``.
        path: File to write.

    Raises:
        ValueError: Without two finite rows.
    """
    from scipy import stats

    points = _as_array(latents)
    points = points[np.isfinite(points).all(axis=1)]
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"latent: expected at least two finite rows of latents; got shape {points.shape}")
    rows, features = points.shape
    ranks = np.arange(1, rows + 1)
    # Few ranks in the middle, all of them in the tails.
    shown_ranks = np.unique(
        np.concatenate([np.geomspace(1, rows, 150), rows + 1 - np.geomspace(1, rows, 150)]).astype(int)
    )
    normal = stats.norm.ppf((ranks - 0.5) / rows)[shown_ranks - 1]
    orders = stats.beta(shown_ranks, rows + 1 - shown_ranks)  # distribution of uniform order statistics
    lower, upper = stats.norm.ppf(orders.ppf(0.025)), stats.norm.ppf(orders.ppf(0.975))
    with canvas(path, 7.4, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        left.fill_between(
            normal, lower - normal, upper - normal, color=MUTED_COLOR, alpha=0.25, lw=0, label="95 % if normal"
        )
        left.axhline(0.0, color=MUTED_COLOR, lw=0.8)
        for column in range(features):
            left.plot(
                normal,
                np.sort(points[:, column])[shown_ranks - 1] - normal,
                color=FLOW_COLOR,
                lw=1.0,
                alpha=max(0.25, min(1.0, 4.0 / features)),
                label=f"{features} features" if features > 1 else "latents",
            )
        handles, labels = left.get_legend_handles_labels()
        left.legend(handles[:2], labels[:2], loc="upper center", ncols=2)
        low, high = left.get_ylim()
        left.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
        left.set(xlabel="quantile of N(0, 1)", ylabel="quantile of the latents - that of N(0, 1)")
        left.set_title("Quantiles")
        if features == 1:
            right.hist(
                points[:, 0],
                bins=int(np.clip(np.sqrt(rows), 10, 60)),
                density=True,
                color=FLOW_COLOR,
                alpha=0.5,
                label="latents",
            )
            line = np.linspace(-4, 4, 200)
            right.plot(line, stats.norm.pdf(line), color=HELD_OUT_COLOR, label="N(0, 1)")
            right.set(xlabel="latent", ylabel="probability density", title="Histogram")
            right.legend()
            return
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = np.nan_to_num(np.corrcoef(points, rowvar=False))
        np.fill_diagonal(correlation, 0.0)
        first, second = sorted(divmod(int(np.abs(correlation).argmax()), features))
        _scatter(right, points[:, [first, second]], FLOW_COLOR)
        angle = np.linspace(0, 2 * np.pi, 200)
        for share in (0.5, 0.9, 0.99):
            radius = np.sqrt(-2 * np.log(1 - share))
            right.plot(radius * np.cos(angle), radius * np.sin(angle), color=HELD_OUT_COLOR, lw=1.0)
            right.annotate(
                f"{share:.0%}",
                (0, radius),
                ha="center",
                va="center",
                fontsize=7,
                color=HELD_OUT_COLOR,
                bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )
        reach = max(3.6, float(np.quantile(np.abs(points[:, [first, second]]), 0.9995)) + 0.2)
        right.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel=f"latent {first}", ylabel=f"latent {second}")
        right.set_aspect("equal")
        right.set_title(f"Most correlated pair (r = {correlation[first, second]:+.3f})")


def _scatter(axis: "Axes", points: Array, colour: str) -> None:
    shown = points[:POINTS]
    size = float(np.clip(6_000 / max(len(shown), 1), 1.5, 12.0))
    alpha = float(np.clip(1_500 / max(len(shown), 1), 0.35, 0.8))
    axis.scatter(shown[:, 0], shown[:, 1], s=size, color=colour, alpha=alpha, linewidths=0, rasterized=True)


def _two_columns(rows: Tensor | Array, name: str) -> Array:
    array = _as_array(rows)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ValueError(f"density_2d: expected {name} of shape (rows, 2); got {array.shape}")
    return array


def _as_array(rows: Tensor | Array) -> Array:
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu().double().numpy()
    return np.asarray(rows, dtype=np.float64)
