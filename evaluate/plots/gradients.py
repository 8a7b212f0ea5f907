"""Pictures of gradient estimators: variance and signal over training, by layer, and what a gradient costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pushforward.evaluate.plots.axes import Axis
from pushforward.evaluate.plots.canvas import ACCENTS, FLOW, HELD_OUT, MUTED, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as AnyAxis

_LOOKS: dict[str, tuple[str, str, str]] = {
    "score-function-bare": (ACCENTS[1], "v", "score function, bare"),
    "score-function": (ACCENTS[3], "^", "score function"),
    "path-wise": (HELD_OUT, "s", "path-wise"),
    "path": (FLOW, "o", "path, one pass"),
    "path-two-pass": (ACCENTS[2], "x", "path, two passes"),
}
_MOST_GROUPS = 12


def gradient_study(results: Mapping[str, Any], path: str | Path) -> None:
    """Draw a study of gradient estimators.

    Above, the variance of a gradient and its signal-to-noise ratio over training, with bars of one standard error, of
    all parameters together. Dotted lines are formulas, where they are known; hollow marks are bounds of a signal that
    is not seen. Below, the variance of each group of parameters at the last checkpoint, and the median time of a
    gradient with its quartiles.

    Args:
        results: As in ``gradients.json``, see ``train.gradient_study``.
        path: Where the picture goes.
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
            f"{results['flow']} learns {results['target']} by the {results['trained_by']} gradient; "
            f"{results['points']:,} points a gradient",
            fontsize=10,
        )


def _over_training(axis: "Axes", checkpoints: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    steps = np.array([row["step"] for row in checkpoints])
    for name in checkpoints[0]["estimators"]:
        colour, marker, label = _LOOKS[name]
        rows = [row["estimators"][name]["groups"]["all"] for row in checkpoints]
        values, errors = (_numbers([row[which] for row in rows]) for which in (key, f"{key}_se"))
        shown = values > 0
        # On a logarithmic axis a bar may not reach down to nothing.
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
        unseen = (values == 0) & (errors > 0)
        if marker != "x" and unseen.any():
            bounds = errors[unseen]
            axis.errorbar(
                steps[unseen],
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
            look: dict[str, Any] = {"ls": ":", "lw": 0.9, "zorder": 5, "color": "black"}
            look |= {"marker": "_", "markersize": 16} if len(steps) == 1 else {}
            formula = "formula" if name == "path" else None
            axis.plot(steps, np.where(known > 0, known, np.nan), label=formula, **look)
    axis.set(yscale="log", xlabel="step", ylabel=title)
    _plain_numbers(axis.yaxis, axis.get_ylim())
    axis.grid(axis="y", color=MUTED, alpha=0.2, lw=0.5)
    if len(steps) > 1:
        # Steps are denser at the start, and so are measurements.
        axis.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
        axis.set_xlim(-0.001 * float(steps[-1]), 1.06 * float(steps[-1]))
        axis.set_xticks(steps, [f"{step:,}" for step in steps])
    else:
        axis.set_xticks(steps)


def _by_group(axis: "Axes", checkpoint: Mapping[str, Any]) -> None:
    """A line of marks for each group of parameters."""
    estimators = checkpoint["estimators"]
    groups = [group for group in next(iter(estimators.values()))["groups"] if group != "all"]
    if len(groups) > _MOST_GROUPS:  # those that vary most, by the estimator that varies most
        noisiest = {g: max(_number(e["groups"][g]["variance"]) for e in estimators.values()) for g in groups}
        kept = sorted(groups, key=lambda g: -noisiest[g])[:_MOST_GROUPS]
        groups = [group for group in groups if group in kept]
    places = np.arange(len(groups))
    for name, found in estimators.items():
        colour, marker, _ = _LOOKS[name]
        values = _numbers([found["groups"][group]["variance"] for group in groups])
        errors = _numbers([found["groups"][group]["variance_se"] for group in groups])
        shown = values > 0
        bars = np.stack([np.minimum(errors, 0.9 * values)[shown], errors[shown]])
        axis.errorbar(
            values[shown],
            places[shown],
            xerr=bars,
            color=colour,
            marker=marker,
            markersize=8 if marker == "x" else 5,
            ls="none",
            elinewidth=0.9,
        )
    axis.set(xscale="log", xlabel=f"variance of a gradient, by layer, at step {checkpoint['step']:,}")
    _plain_numbers(axis.xaxis, axis.get_xlim())
    axis.set_yticks(places, groups)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.grid(axis="y", color=MUTED, alpha=0.2, lw=0.5)


def _costs(axis: "Axes", checkpoints: Sequence[Mapping[str, Any]]) -> None:
    """Bars of the median over the checkpoints."""
    names = list(checkpoints[0]["estimators"])
    for place, name in enumerate(names):
        rows = [row["estimators"][name] for row in checkpoints]
        median = float(np.median([row["milliseconds"] for row in rows]))
        low, high = np.median([row["milliseconds_quartiles"] for row in rows], axis=0)
        axis.barh(place, median, color=_LOOKS[name][0], height=0.62)
        axis.plot([low, high], [place, place], color="black", lw=1.0)
        axis.annotate(
            f"{median:.3g}", (max(high, median), place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axis.set_yticks(range(len(names)), [_LOOKS[name][2] for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("milliseconds a gradient: median, quartiles")
    axis.set_xlim(0, 1.18 * axis.dataLim.x1)


def _plain_numbers(axis: "AnyAxis", limits: tuple[float, float]) -> None:
    """Ticks of a logarithmic axis that read as numbers, also where the range holds less than a power of ten."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = Axis(*limits, log=True).ticks(4)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_ticklabels([f"{tick:,g}" if 1e-4 <= tick < 1e6 else f"{tick:.0e}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _numbers(values: Sequence[float | None]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.array([_number(value) for value in values], dtype=np.float64)
