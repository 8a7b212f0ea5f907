"""Pictures of an autoencoder: posterior means in latent space, reconstructions, samples."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pushforward.evaluate.likelihood import Array
from pushforward.evaluate.plots.canvas import ACCENT_COLORS, FLOW_COLOR, HELD_OUT_COLOR, MUTED_COLOR, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 5_000
"""Maximum number of points drawn; more would only overlap."""

_COLOURS = (FLOW_COLOR, HELD_OUT_COLOR, *ACCENT_COLORS, "#F0E442", "#000000", "#7B4DB0", "#8C510A")
_MAX_LABELS = len(_COLOURS)


def latent_plane(
    centres: Tensor | Array,
    path: str | Path,
    *,
    labels: Sequence[object] | Tensor | Array | None = None,
    prior: Tensor | Array | None = None,
) -> None:
    """Draw the posterior centres of rows in latent space.

    Two latent features are drawn directly, more are projected on the first two principal axes, one is drawn as a
    histogram.

    Args:
        centres: From ``Autoencoder.encode``, ``(n, L)``.
        path: File to write.
        labels: A label for each row, shown as colours.
        prior: Samples of the prior ``(m, L)``, drawn in grey in the background.

    Raises:
        ValueError: Without two finite rows, or if labels or prior do not match the centres.
    """
    points = _as_rows(centres, "latent_plane", "centres")
    prior_points = None if prior is None else _as_rows(prior, "latent_plane", "samples of the prior")
    if prior_points is not None and prior_points.shape[1] != points.shape[1]:
        raise ValueError(
            f"latent_plane: expected samples of the prior with {points.shape[1]} features; got {prior_points.shape[1]}"
        )
    names = None if labels is None else np.asarray([str(_without_decimals(label)) for label in labels])
    if names is not None and len(names) != len(points):
        raise ValueError(f"latent_plane: expected {len(points)} labels; got {len(names)}")
    finite = np.isfinite(points).all(axis=1)
    points, names = points[finite], None if names is None else names[finite]
    if len(points) < 2:
        raise ValueError(f"latent_plane: expected at least two finite rows; got {len(points)}")
    points, names = points[:POINTS], None if names is None else names[:POINTS]
    features = points.shape[1]
    axis_names = [f"latent feature {i + 1}" for i in range(features)]
    if features > 2:
        mean = points.mean(axis=0)
        _, spread, axes = np.linalg.svd(points - mean, full_matrices=False)
        share = spread**2 / max(float((spread**2).sum()), 1e-300)
        points = (points - mean) @ axes[:2].T
        prior_points = None if prior_points is None else (prior_points - mean) @ axes[:2].T
        axis_names = [f"principal axis {i + 1} of {features} ({share[i]:.0%} of the variance)" for i in range(2)]
    groups = [(name, points[names == name]) for name in _sorted_labels(names)] if names is not None else [("", points)]
    with canvas(path, 5.6 if names is None else 6.4, 5.2) as figure:
        axis = figure.subplots()
        if features == 1:
            _histograms(axis, groups, prior_points)
            axis.set(xlabel=axis_names[0], ylabel="probability density")
        else:
            if prior_points is not None:
                axis.scatter(
                    prior_points[:POINTS, 0],
                    prior_points[:POINTS, 1],
                    s=6,
                    color=MUTED_COLOR,
                    alpha=0.35,
                    lw=0,
                    label="prior",
                    rasterized=True,
                    zorder=1,
                )
            size, alpha = float(np.clip(9_000 / len(points), 3.0, 14.0)), float(np.clip(2_000 / len(points), 0.4, 0.85))
            for (name, part), colour in zip(groups, _COLOURS, strict=False):
                x, y = part[:, 0], part[:, 1]
                label = name or "posterior centres"
                axis.scatter(x, y, s=size, color=colour, alpha=alpha, lw=0, label=label, rasterized=True, zorder=2)
                if name:
                    _annotate(axis, name, float(np.median(x)), float(np.median(y)), colour)
            axis.set(xlabel=axis_names[0], ylabel=axis_names[1])
            axis.set_aspect("equal", adjustable="datalim")
        if names is not None or prior_points is not None:
            legend = axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.6, handletextpad=0.3)
            for handle in legend.legend_handles:
                if handle is not None:
                    handle.set_alpha(1.0)
        axis.set_title(f"Posterior centres of {len(points):,} rows")


def reconstructions(
    originals: Tensor | Array,
    reconstructed: Tensor | Array,
    path: str | Path,
    *,
    shape: tuple[int, int] | None = None,
    limits: tuple[float, float] | None = None,
    columns: int = 10,
) -> None:
    """Draw rows as images, each above its reconstruction.

    Args:
        originals: Rows ``(n, D)``; the first ``2 * columns`` are drawn.
        reconstructed: From ``Autoencoder.reconstruct``, ``(n, D)``.
        path: File to write.
        shape: Height and width of an image; square by default.
        limits: Values of white and of black; by default the minimum and maximum of the originals.
        columns: Number of images in a line.

    Raises:
        ValueError: If rows are not images of that shape, or the numbers of rows differ.
    """
    before, after = _images(originals, shape, "reconstructions"), _images(reconstructed, shape, "reconstructions")
    if len(before) != len(after):
        raise ValueError(f"reconstructions: expected as many reconstructions as rows ({len(before)}); got {len(after)}")
    before, after = before[: 2 * columns], after[: 2 * columns]
    limits = limits or (float(before.min()), float(before.max()))
    columns = min(columns, len(before))
    bands = math.ceil(len(before) / columns)
    height, width = before.shape[1:]
    aspect = height / width
    with canvas(path, 0.72 * columns + 1.1, 1.5 * aspect * bands + 0.45) as figure:
        grid = figure.subplots(2 * bands, columns, squeeze=False)
        for band in range(bands):
            for row, (images, name) in enumerate(((before, "row"), (after, "decoded"))):
                cells = grid[2 * band + row]
                for i, cell in enumerate(cells):
                    index = band * columns + i
                    _image(cell, images[index] if index < len(images) else None, limits)
                cells[0].set_ylabel(name, rotation=0, ha="right", va="center")
        figure.suptitle("Rows and their reconstructions from the posterior centres", fontsize=10)


def sample_grid(
    samples: Tensor | Array,
    path: str | Path,
    *,
    shape: tuple[int, int] | None = None,
    limits: tuple[float, float] | None = None,
    columns: int = 8,
    title: str = "Samples",
) -> None:
    """Draw samples as images, ``columns`` by ``columns`` of them.

    Args:
        samples: Rows ``(n, D)``; the first ``columns ** 2`` are drawn.
        path: File to write.
        shape: Height and width of an image; square by default.
        limits: Values of white and of black; by default the minimum and maximum.
        columns: Number of images in a line, and of lines.
        title: Title of the picture.

    Raises:
        ValueError: If rows are not images of that shape.
    """
    images = _images(samples, shape, "sample_grid")[: columns**2]
    limits = limits or (float(images.min()), float(images.max()))
    rows = math.ceil(len(images) / columns)
    aspect = images.shape[1] / images.shape[2]
    with canvas(path, 0.6 * columns, 0.6 * aspect * rows + 0.35) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for i, cell in enumerate(grid.flat):
            _image(cell, images[i] if i < len(images) else None, limits)
        figure.suptitle(title, fontsize=10)


def _annotate(axis: "Axes", name: str, x: float, y: float, colour: str) -> None:
    """Write a label in the middle of its points: ten colours alone are hard to distinguish."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "alpha": 0.85, "linewidth": 0.9}
    axis.annotate(name, (x, y), ha="center", va="center", fontsize=8, fontweight="bold", bbox=box, zorder=3)


def _image(axis: "Axes", image: Array | None, limits: tuple[float, float]) -> None:
    axis.set(xticks=[], yticks=[])
    if image is None:
        axis.set_axis_off()
        return
    axis.imshow(image, cmap="gray_r", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    for spine in axis.spines.values():
        spine.set(visible=True, color=MUTED_COLOR, linewidth=0.4)


def _histograms(axis: "Axes", groups: Sequence[tuple[str, Array]], prior_points: Array | None) -> None:
    values = np.concatenate([part for _, part in groups])
    edges = np.histogram_bin_edges(values, bins=int(np.clip(np.sqrt(len(values)), 10, 60)))
    width = float(edges[1] - edges[0])
    # Stacked histograms of one density: areas are the shares of the labels.
    axis.hist(
        [part[:, 0] for _, part in groups],
        bins=list(edges),
        weights=[np.full(len(part), 1.0 / (len(values) * width)) for _, part in groups],
        color=list(_COLOURS[: len(groups)]),
        label=[name or "posterior centres" for name, _ in groups],
        stacked=True,
        alpha=0.7,
    )
    if prior_points is not None:
        axis.hist(prior_points[:, 0], bins=30, density=True, histtype="step", color=MUTED_COLOR, lw=1.4, label="prior")


def _sorted_labels(names: "np.ndarray[tuple[int], np.dtype[np.str_]]") -> list[str]:
    """Return the different labels, sorted as numbers if possible."""
    found = np.unique(names)
    if len(found) > _MAX_LABELS:
        raise ValueError(f"latent_plane: expected at most {_MAX_LABELS} different labels; got {len(found)}")
    try:
        return sorted(map(str, found), key=float)
    except ValueError:
        return [str(name) for name in found]


def _without_decimals(label: object) -> object:
    """Convert a whole float to an int: 3 rather than 3.0."""
    value = label.item() if hasattr(label, "item") else label
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _images(rows: Tensor | Array, shape: tuple[int, int] | None, where: str) -> Array:
    array = _as_rows(rows, where, "rows")
    features = array.shape[1]
    side = math.isqrt(features)
    height, width = shape or (side, side)
    if height * width != features:
        expected = f"rows of {height} x {width} values" if shape else "rows that are square images, or a shape"
        raise ValueError(f"{where}: expected {expected}; got {features} features")
    return array.reshape(-1, height, width)


def _as_rows(rows: Tensor | Array, where: str, what: str) -> Array:
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu().double().numpy()
    array = np.asarray(rows, dtype=np.float64)
    if array.ndim != 2 or len(array) == 0:
        raise ValueError(f"{where}: expected {what} of shape (rows, features); got {array.shape}")
    return array
