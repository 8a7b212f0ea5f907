"""Picture of training: NLL, its two terms, gradient norm and learning rate against the step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pushforward.evaluate.likelihood import Array
from pushforward.evaluate.plots.canvas import ACCENT_COLORS, FLOW_COLOR, HELD_OUT_COLOR, MUTED_COLOR, canvas
from pushforward.evaluate.statistics import rolling_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def training_curves(
    metrics: Sequence[Mapping[str, Any]], path: str | Path, baselines: Mapping[str, float] | None = None
) -> None:
    """Draw NLL, base term and log-determinant, gradient norm and learning rate.

    The training NLL of single batches is faint, its rolling mean bold; the best validation step is marked. The range
    of the NLL leaves out the first steps; baselines outside are only listed in the legend.

    Args:
        metrics: Rows with ``step`` and any of ``train/nll``, ``train/base``, ``train/log_det``,
            ``train/grad_norm``, ``train/learning_rate``, ``val/nll``, ``val/nll_se``; all likelihoods in nats.
        path: File to write.
        baselines: NLL of baselines by name, in the units of ``val/nll``.

    Raises:
        ValueError: If no row has a training or validation NLL.
    """
    train_steps, train = _series(metrics, "train/nll")
    val_steps, val = _series(metrics, "val/nll")
    if len(train) + len(val) == 0:
        raise ValueError("training_curves: expected rows with train/nll or val/nll; got none")
    with canvas(path, 9.6, 5.4) as figure:
        grid = figure.add_gridspec(2, 3, height_ratios=[1.55, 1.0])
        main, beside = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2])
        if len(train):
            main.plot(train_steps, train, color=FLOW_COLOR, alpha=0.25, lw=0.7)
            main.plot(train_steps, rolling_mean(train), color=FLOW_COLOR, label="training (rolling mean)")
        if len(val):
            _validation(main, metrics, val_steps, val)
        _limits(main, train, val, list((baselines or {}).values()))
        _baselines(main, baselines or {})
        main.set(ylabel="NLL (nats)", xlabel="step")
        beside.set_axis_off()
        beside.legend(*main.get_legend_handles_labels(), loc="upper left", borderaxespad=0.0)
        panels = (
            (("train/base", "train/log_det"), ("base term", "log-determinant"), "terms of the NLL (nats)"),
            (("train/grad_norm",), (None,), "gradient norm"),
            (("train/learning_rate",), (None,), "learning rate"),
        )
        for column, (keys, labels, title) in enumerate(panels):
            axis = figure.add_subplot(grid[1, column])
            for colour, key, label in zip((FLOW_COLOR, HELD_OUT_COLOR), keys, labels, strict=False):
                steps, values = _series(metrics, key)
                smooth = values if key == "train/learning_rate" else rolling_mean(values)
                if smooth is not values:
                    axis.plot(steps, values, color=colour, alpha=0.25, lw=0.7)
                axis.plot(steps, smooth, color=colour, label=label)
            _, values = _series(metrics, keys[0])
            axis.set(xlabel="step", ylabel=title)
            if keys == ("train/grad_norm",) and len(values) and values.min() > 0:
                _logarithmic(axis)
            else:
                axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
            if labels[0]:
                axis.legend()


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array]:
    pairs = [(row["step"], row[key]) for row in metrics if row.get(key) is not None and "step" in row]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[:, 0], array[:, 1]


def _validation(axis: "Axes", metrics: Sequence[Mapping[str, Any]], steps: Array, values: Array) -> None:
    errors = dict(zip(*_series(metrics, "val/nll_se"), strict=True))
    band = np.array([errors.get(step, 0.0) for step in steps])
    axis.fill_between(steps, values - band, values + band, color=HELD_OUT_COLOR, alpha=0.2, lw=0)
    axis.plot(steps, values, color=HELD_OUT_COLOR, marker="o", ms=2.5, label="validation ± standard error")
    best = int(values.argmin())
    axis.plot(
        steps[best],
        values[best],
        marker="*",
        ms=11,
        color="black",
        ls="none",
        zorder=5,
        label=f"best: {values[best]:.3f}\nat step {steps[best]:,.0f}",
    )


def _limits(axis: "Axes", train: Array, val: Array, baselines: list[float]) -> None:
    # The first steps are often far above all others, and would flatten the curves.
    later = np.concatenate([train[len(train) // 20 :], val[len(val) // 20 :]])
    low, high = float(later.min()), float(np.quantile(later, 0.98))
    span = max(high - low, 1e-3 * max(1.0, abs(low)))
    near = [value for value in baselines if low - span <= value <= high + span]
    low, high = min([low, *near]), max([high, *near])
    axis.set_ylim(low - 0.08 * (high - low or span), high + 0.08 * (high - low or span))


def _baselines(axis: "Axes", baselines: Mapping[str, float]) -> None:
    low, high = axis.get_ylim()
    for i, (name, value) in enumerate(baselines.items()):
        if not np.isfinite(value):
            continue
        colour = ACCENT_COLORS[i % len(ACCENT_COLORS)]
        label = f"{name}: {value:.3f}"
        if low <= value <= high:
            axis.axhline(value, color=colour, ls=LINES[i % len(LINES)], lw=1.2, label=label)
        else:
            side = "above" if value > high else "below"
            axis.plot([], [], color=MUTED_COLOR, ls="none", label=f"{label} ({side})")


def _logarithmic(axis: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    # Over many decades, only powers of ten fit.
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
