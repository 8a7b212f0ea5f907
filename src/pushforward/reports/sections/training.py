"""The section about training: NLL and its two terms, gradient norm, learning rate, throughput, single layers."""

from collections.abc import Sequence

import numpy as np

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import count, measured
from pushforward.evaluate.plots.charts import Mark, Reference, Series, line_chart
from pushforward.evaluate.statistics import rolling_mean
from pushforward.reports.page import details, figure
from pushforward.reports.sections.model import FLOW, parts_of
from pushforward.runs.record import Array, RunRecord, items, number

_PANELS = (
    (("train/base", "train/log_det"), ("base", "minus the log-determinant"), "The two terms of the NLL", "nats", False),
    (("train/grad_norm",), ("gradient norm",), "Gradient norm before clipping", "norm", True),
    (("train/learning_rate",), ("learning rate",), "Learning rate", "learning rate", False),
    (("perf/rows_per_s",), ("rows per second",), "Throughput", "rows per second", False),
)

_BASELINE = "baseline/"

_MEMBER = "member-"
"""Prefix of the members of a mixture in the names of metrics."""

_SMOOTHED = 80
"""From this number of values on, a curve is drawn as its rolling mean, with single values faint."""


def training(record: RunRecord) -> Child:
    """Build the section about training."""
    steps, nll = record.curve(loss_key(record, "train"))
    at, validation = record.curve(loss_key(record, "val"))
    name = "loss" if loss_key(record, "val").endswith("loss") else "NLL"
    if len(nll) + len(validation) < 2:
        what = (
            f"One {name} was recorded: {measured([*nll, *validation][0])} nats." if len(nll) + len(validation) else ""
        )
        text = tag("p", what or "metrics.jsonl has no likelihoods (yet).", class_="missing")
        return join([text, _panels(record)])
    series = []
    if len(nll):
        # The window of the rolling mean is a fortieth of the values.
        if smooth := len(nll) >= _SMOOTHED:
            series.append(Series("training batches", steps, nll, faint=True))
        series.append(
            Series("training, rolling mean", steps, rolling_mean(nll)) if smooth else Series("training", steps, nll)
        )
    mark, caption = None, "NLL of the training batches and of the validation rows, in nats and data units."
    members = record.config.get("flow.members")
    if isinstance(members, int) and members > 1:
        caption = (
            f"NLL of the training batches, the mean over the {members} flows, and of the validation rows under their "
            "average, in nats and data units."
        )
    kinds = [part.kind for part in parts_of(record)]
    if FLOW in kinds and len(kinds) > 1:
        caption += " Both are of the flow alone, before it is averaged with the other parts of the density."
    elif kinds and FLOW not in kinds and record.config.get("flow.name") != "gaussian":
        caption += " Both are of the trained flow, which was replaced by another density in the end."
    if len(nll) >= _SMOOTHED:
        caption += " Faint: single training batches."
    if name == "loss":
        caption = "The minimised loss. Every validation uses the same random numbers."
    if "target" in record.sections:
        caption = (
            "Training steps use a tempered target that reaches the target itself after the first part of the budget; "
            "validation uses the target itself, with the same random numbers every time."
        )
    if len(validation):
        error = standard_errors_at(record, at) if name == "NLL" else None
        series.append(
            Series(
                "validation" if error is None else "validation ± standard error", at, validation, error=error, colour=1
            )
        )
        best = int(validation.argmin())
        step, value = float(at[best]), float(validation[best])
        best_text = measured(value, float(error[best]) if error is not None else None)
        mark = Mark(f"best: {best_text} at step {count(step)}", step, value)
        caption += " The weights of the best validation are kept."
    if record.stride > 1:
        caption += f" One in {count(record.stride)} of the recorded batches is shown."
    # NLLs of baselines are not comparable with another loss.
    references, rows = _baselines(record) if name == "NLL" else ([], "")
    if references:
        caption += f" Baselines are NLLs on the {rows} rows."
        if rows == "test":
            caption += " Those on the validation rows, comparable with the curve, were not recorded."
    main = line_chart(
        series,
        label=f"{name} against the step, for training and validation{'; ' + mark.name if mark else ''}",
        x_name="step",
        y_name="NLL (nats)" if name == "NLL" else "loss",
        references=references,
        mark=mark,
        skip_start=True,
        height=320,
    )
    return join([figure(main, caption), _panels(record)])


def loss_key(record: RunRecord, part: str) -> str:
    """Return the metric that a fit minimised: the NLL or another loss, of ``train`` or ``val``."""
    return f"{part}/loss" if len(record.curve("val/loss")[0]) else f"{part}/nll"


def standard_errors_at(record: RunRecord, steps: Array) -> Array | None:
    """Return the standard errors of the validation NLL at steps ``(n,)``; None if none was recorded."""
    known = dict(zip(*(values.tolist() for values in record.curve("val/nll_se")), strict=True))
    return np.array([known.get(step, 0.0) for step in steps.tolist()]) if known else None


def _panels(record: RunRecord) -> Html:
    charts = [_panel(record, *panel) for panel in _PANELS]
    panels = tag("div", *(chart for chart in charts if chart is not None), class_="two")
    layers = [
        _layers(record, "log_det/", "Minus the log-determinant", "nats"),
        _layers(record, "grad_norm/", "Gradient norm", "norm", log=True),
    ]
    return join([panels, *layers])


def _baselines(record: RunRecord) -> tuple[list[Reference], str]:
    """Return baselines as reference lines, and the rows they were scored on: validation rows if recorded, else test."""
    listed = {str(item.get("name")): item for item in items(record.evaluation, "baselines")}
    validation: dict[str, float | None] = {name: number(item, "validation_nll") for name, item in listed.items()}
    for row in record.metrics:
        if row.get("kind") == "reference":
            keys = [key for key in row if key.startswith(_BASELINE)]
            validation |= {key.removeprefix(_BASELINE): number(row, key) for key in keys}
    known = {name: nll for name, nll in validation.items() if nll is not None}
    rows = "validation" if known else "test"
    if not known:
        tested = {name: number(item, "nll", "nll") for name, item in listed.items()}
        known = {name: nll for name, nll in tested.items() if nll is not None}
    lines = []
    for i, (name, nll) in enumerate(known.items()):
        label = str(listed.get(name, {}).get("label") or name.replace("-", " "))
        lines.append(Reference(label, nll, colour=2 + i % 6, dash=1 + i))
    return lines, rows


def _panel(
    record: RunRecord, keys: Sequence[str], names: Sequence[str], title: str, unit: str, log: bool
) -> Html | None:
    series = []
    for colour, (key, name) in enumerate(zip(keys, names, strict=True)):
        steps, values = record.curve(key)
        if np.isfinite(values).sum() < 2:  # one point is not a curve
            continue
        if key != "train/learning_rate" and len(values) >= _SMOOTHED:
            series.append(Series(name, steps, values, colour=colour, faint=True))
            values = rolling_mean(values)
        series.append(Series(name, steps, values, colour=colour))
    if not series:
        return None
    chart = line_chart(
        series,
        label=f"{title} against the step",
        x_name="step",
        y_name=unit,
        log=log,
        skip_start=not log and keys[0] == "train/base",
        height=150,
        legend=len(keys) > 1,
    )
    return figure(chart, title=title)


def _layers(record: RunRecord, prefix: str, title: str, unit: str, *, log: bool = False) -> Html | None:
    """Build foldable charts, one for each layer or each member of a mixture."""
    panels = []
    keys = record.keys(prefix)
    is_mixture = any(key.startswith(f"{prefix}{_MEMBER}") for key in keys)
    for key in keys:
        steps, values = record.curve(key)
        # The log-determinant of standardising is constant.
        if not np.isfinite(values).any() or key == f"{prefix}standardize":
            continue
        name = key.removeprefix(prefix)
        number = name.removeprefix(_MEMBER)
        name = f"flow {int(number) + 1}" if is_mixture and number.isdecimal() else name
        chart = line_chart(
            [Series(name, steps, values)],
            label=f"{title} of {'' if is_mixture else 'layer '}{name} against the step",
            x_name="step",
            y_name=unit,
            log=log,
            height=110,
            legend=False,
        )
        panels.append(figure(chart, title=name))
    if not panels:
        return None
    what = "flow" if is_mixture else "layer"
    return details(f"{title} of each {what} ({len(panels)})", tag("div", *panels, class_="two"))
