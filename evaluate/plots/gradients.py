"""Pictures of gradient estimators: variance and signal-to-noise ratio over training, by layer, and their cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pushforward.evaluate.plots.axes import Axis
from pushforward.evaluate.plots.canvas import ACCENT_COLORS, FLOW_COLOR, HELD_OUT_COLOR, MUTED_COLOR, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as AnyAxis

_STYLES: dict[str, tuple[str, str, str]] = {
    "score-function-bare": (ACCENT_COLORS[1], "v", "score function, bare"),
    "score-function": (ACCENT_COLORS[3], "^", "score function"),
    "path-wise": (HELD_OUT_COLOR, "s", "path-wise"),
    "path": (FLOW_COLOR, "o", "path, one pass"),
    "path-two-pass": (ACCENT_COLORS[2], "x", "path, two passes"),
}
_MAX_GROUPS = 12


def gradient_study(results: Mapping[str, Any], path: str | Path) -> None:
    """Draw a study of gradient estimators.

    Top: variance and signal-to-noise ratio of the gradient of all parameters over training, with bars of one standard
    error. Dotted lines are exact formulas, if known; hollow markers are upper bounds of a signal that was not detected.
    Bottom: variance of each group of parameters at the last checkpoint, and the median time of a gradient with its
    quartiles.

    Args:
        results: Contents of ``gradients.json``.
        path: File to write.
    """
    checkpoints = results["checkpoints"]
    with canvas(path, 9.6, 6.4) as figure:
        (variance, ratio), (groups, cost) = figure.subplots(2, 2)
        _over_training(variance, checkpoints, "variance", "variance of a gradient")
        _over_training(ratio, checkpoints, "snr", "signal-to-noise ratio")
        _by_group(groups, checkpoints[-1])
        _costs(cost, checkpoints)
        figure.legend(*variance.get_legend_handles_labels(), loc="outside lower center", ncols=6)
        figure.suptitle(
            f"{results['flow']} fitted to {results['target']} with the {results['trained_by']} gradient; "
            f"{results['samples']:,} samples a gradient",
            fontsize=10,
        )


def _over_training(axis: "Axes", checkpoints: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    steps = np.array([row["step"] for row in checkpoints])
    for name in checkpoints[0]["estimators"]:
        colour, marker, label = _STYLES[name]
        rows = [row["estimators"][name]["groups"]["all"] for row in checkpoints]
        values, errors = (_numbers([row[which] for row in rows]) for which in (key, f"{key}_se"))
        shown = values > 0
        # On a logarithmic axis a bar must not reach zero.
        below = np.minimum(errors, 0.9 * values)[shown]
        axis.errorbar(
            steps[shown],
            values[shown],
            np.stack([below, errors[shown]]),
            color=colour,
            marker=marker,
            markersize=8 if marker == "x" else 5,
            ls="none" if marker == "x" else "-",
            lw=1.2,
            elinewidth=0.9,
            capsize=2,
            label=label,
        )
        undetected = (values == 0) & (errors > 0)
        if marker != "x" and undetected.any():
            bounds = errors[undetected]
            axis.errorbar(
                steps[undetected],
                bounds,
                0.25 * bounds,
                uplims=True,
                color=colour,
                marker=marker,
                markersize=5,
                markerfacecolor="white",
                ls="none",
                elinewidth=0.9,
            )
        known = _numbers([row.get(f"{key}_known") for row in rows])
        if np.isfinite(known).any():
            style: dict[str, Any] = {"ls": ":", "lw": 0.9, "zorder": 5, "color": "black"}
            style |= {"marker": "_", "markersize": 16} if len(steps) == 1 else {}
            formula = "formula" if name == "path" else None
            axis.plot(steps, np.where(known > 0, known, np.nan), label=formula, **style)
    axis.set(yscale="log", xlabel="step", ylabel=title)
    _number_ticks(axis.yaxis, axis.get_ylim())
    axis.grid(axis="y", color=MUTED_COLOR, alpha=0.2, lw=0.5)
    if len(steps) > 1:
        # Measurements are denser at the start.
        axis.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
        axis.set_xlim(-0.001 * float(steps[-1]), 1.06 * float(steps[-1]))
        axis.set_xticks(steps, [f"{step:,}" for step in steps])
    else:
        axis.set_xticks(steps)


def _by_group(axis: "Axes", checkpoint: Mapping[str, Any]) -> None:
    """Draw a line of markers for each group of parameters."""
    estimators = checkpoint["estimators"]
    groups = [group for group in next(iter(estimators.values()))["groups"] if group != "all"]
    if len(groups) > _MAX_GROUPS:  # keep the groups with the largest variance of any estimator
        largest = {g: max(_number(e["groups"][g]["variance"]) for e in estimators.values()) for g in groups}
        kept = sorted(groups, key=lambda g: -largest[g])[:_MAX_GROUPS]
        groups = [group for group in groups if group in kept]
    y = np.arange(len(groups))
    for name, found in estimators.items():
        colour, marker, _ = _STYLES[name]
        values = _numbers([found["groups"][group]["variance"] for group in groups])
        errors = _numbers([found["groups"][group]["variance_se"] for group in groups])
        shown = values > 0
        bars = np.stack([np.minimum(errors, 0.9 * values)[shown], errors[shown]])
        axis.errorbar(
            values[shown],
            y[shown],
            xerr=bars,
            color=colour,
            marker=marker,
            markersize=8 if marker == "x" else 5,
            ls="none",
            elinewidth=0.9,
        )
    axis.set(xscale="log", xlabel=f"variance of a gradient, by layer, at step {checkpoint['step']:,}")
    _number_ticks(axis.xaxis, axis.get_xlim())
    axis.set_yticks(y, groups)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.grid(axis="y", color=MUTED_COLOR, alpha=0.2, lw=0.5)


def _costs(axis: "Axes", checkpoints: Sequence[Mapping[str, Any]]) -> None:
    """Draw the time of a gradient: the median over the checkpoints."""
    names = list(checkpoints[0]["estimators"])
    for y, name in enumerate(names):
        rows = [row["estimators"][name] for row in checkpoints]
        median = float(np.median([row["milliseconds"] for row in rows]))
        low, high = np.median([row["milliseconds_quartiles"] for row in rows], axis=0)
        axis.barh(y, median, color=_STYLES[name][0], height=0.62)
        axis.plot([low, high], [y, y], color="black", lw=1.0)
        axis.annotate(f"{median:.3g}", (max(high, median), y), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(names)), [_STYLES[name][2] for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("milliseconds a gradient: median, quartiles")
    axis.set_xlim(0, 1.18 * axis.dataLim.x1)


def _number_ticks(axis: "AnyAxis", limits: tuple[float, float]) -> None:
    """Label a logarithmic axis with plain numbers, also if its range is less than a power of ten."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = Axis(*limits, log=True).ticks(4)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_ticklabels([f"{tick:,g}" if 1e-4 <= tick < 1e6 else f"{tick:.0e}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _numbers(values: Sequence[float | None]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.array([_number(value) for value in values], dtype=np.float64)
