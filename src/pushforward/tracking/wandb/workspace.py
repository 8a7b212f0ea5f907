"""Define a Weights & Biases workspace for fits: charts of single fits first, then of many fits.

The charts use the metrics that fits record; the definition needs no server.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pushforward.common.errors import ConfigError
from pushforward.common.plugins import load_plugins
from pushforward.tracking.wandb.remote import WandbServerError, client_environment, default_entity
from pushforward.train.problems.base import Problem
from pushforward.train.problems.registry import PROBLEMS

BASELINE_NAMES = ("gaussian", "gaussian-mixture", "kde")
"""Baselines whose NLL is drawn beside the curves."""

_PICTURES_OF_ALL = ("progress/samples", "pictures/training")
# Configuration keys with the largest effect on the NLL, and whether their axis is logarithmic.
_TUNED = {"flow.name": False, "flow.layers": False, "flow.hidden": True, "flow.bins": False, "flow.dropout": False}
_TUNED |= {"train.learning_rate": True, "train.weight_decay": False}
_COLUMNS = (
    "run:state",
    "tags:__ALL__",
    "config:flow.name.value",
    "config:flow.layers.value",
    "summary:best/val_nll",
    "summary:test/nll",
    "summary:test/nll_se",
    "summary:kl_to_truth",
    "summary:parameters",
    "summary:seconds",
)


def dashboard_json(entity: str, project: str, name: str, *, tags: tuple[str, ...] = ()) -> str:
    """Return the workspace as indented JSON, in the form that the server takes; needs no account and no network.

    Raises:
        ConfigError: If ``pushforward[workspaces]`` is not installed.
    """
    view = _workspace(entity, project, name, tags)._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    facts = {"entity": entity, "project": project, "name": name, "spec": spec}
    return json.dumps(facts, indent=2, ensure_ascii=False)


def save_dashboard(
    entity: str | None, project: str, name: str, *, tags: tuple[str, ...] = (), timeout: float = 20.0
) -> str:
    """Save a new workspace, and return its URL.

    Args:
        entity: User or team of the project; by default that of the API key.
        project: The project.
        name: Name of the workspace.
        tags: Show only runs with one of these tags, such as the name of a data set.
        timeout: Seconds to wait for an answer of the server.

    Raises:
        ConfigError: If ``pushforward[workspaces]`` is not installed.
        WandbLoginError: If there is no valid API key.
        WandbServerError: If the server does not answer in time.
    """
    _libraries()
    user = default_entity(timeout)  # fails at once without a key or network
    entity = entity or user
    with tempfile.TemporaryDirectory() as scratch:
        # In a separate process with a time limit: the library waits without one.
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, json.dumps([entity, project, name, list(tags)])],
                env=client_environment(Path(scratch)) | {"WANDB_SILENT": "true"},
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=3 * timeout + 15,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WandbServerError("the W&B server does not answer; the workspace is not saved") from None
    lines = done.stdout.split()
    if done.returncode or not lines:
        messages = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise WandbServerError(f"the workspace is not saved: {messages[-1]}")
    return lines[-1]


def _libraries() -> tuple[Any, Any]:
    """Import the library's modules of workspaces and of panels."""
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ConfigError("a dashboard needs wandb-workspaces: pip install 'pushforward[workspaces]'") from None
    return workspaces, panels


def _sections(workspaces: Any, panels: Any) -> list[Any]:
    """Return the sections of the workspace, with their panels."""
    line = panels.LinePlot
    baselines = [f"baseline/{baseline}" for baseline in BASELINE_NAMES]
    validation = {"title_y": "nats", "point_visualization_method": "bucketing-gorilla"}

    def scalar(title: str, metric: str) -> Any:
        return panels.ScalarChart(title=title, metric=metric)

    def curve(title: str, *metrics: str, **options: Any) -> Any:
        return line(title=title, x="global_step", y=list(metrics), title_x="step", **options)

    def layers(title: str, prefix: str, **options: Any) -> Any:
        return line(title=title, x="global_step", metric_regex=f"^{prefix}/.*", title_x="step", **options)

    def scatter(title: str, x: str, y: str = "test/nll", **options: Any) -> Any:
        return panels.ScatterPlot(title=title, x=panels.SummaryMetric(x), y=panels.SummaryMetric(y), **options)

    outcome = [
        scalar("Validation NLL, best (nats)", "best/val_nll"),
        scalar("Test NLL (nats)", "test/nll"),
        scalar("Test NLL, standard error", "test/nll_se"),
        panels.BarPlot(title="Test NLL (nats)", metrics=["test/nll"], max_runs_to_show=30),
        panels.RunComparer(diff_only="split"),
    ]
    load_plugins()
    kinds = [PROBLEMS[kind] for kind in PROBLEMS.names()]
    curves = [
        curve("Validation NLL and baselines", "val/nll", *baselines, **validation),
        line(title="Validation NLL by time", x="seconds", y=["val/nll", *baselines], title_x="seconds", **validation),
        curve("Training NLL", "train/nll", **validation),
        line(title="Training NLL by time", x="seconds", y=["train/nll"], title_x="seconds", **validation),
    ]
    losses = [
        curve("Validation loss", "val/loss", **validation),
        curve("Training loss", "train/loss", **validation),
        curve("Weight of the KL term", "train/kl_weight"),
    ]
    training = [
        curve("Base term", "train/base", title_y="nats"),
        curve("Log-determinant", "train/log_det", title_y="nats"),
        layers("Log-determinant by layer", "log_det", title_y="nats"),
        curve("Gradient norm", "train/grad_norm", log_y=True),
        layers("Gradient norm by layer", "grad_norm", log_y=True),
        curve("Learning rate", "train/learning_rate"),
        curve("Rows per second", "perf/rows_per_s"),
    ]
    drawn = dict.fromkeys(f"pictures/{picture}" for kind in kinds for picture in kind.pictures)
    pictures = [
        panels.MediaBrowser(title=key.split("/")[1].capitalize(), media_keys=[key], num_columns=2)
        for key in (*_PICTURES_OF_ALL, *drawn)
    ]
    columns = [
        panels.ParallelCoordinatesPlotColumn(panels.Config(key), display_name=key, log=log)
        for key, log in _TUNED.items()
    ]
    columns.append(panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric("best/val_nll"), inverted=True))
    many = [
        panels.ParallelCoordinatesPlot(title="What decides the validation NLL", columns=columns),
        scatter("Size and test NLL", "parameters", log_x=True),
        scatter("Time and test NLL", "seconds", log_x=True),
        panels.ParameterImportancePlot(with_respect_to="best/val_nll"),
        line(
            title="Validation NLL by flow",
            x="seconds",
            y=["val/nll"],
            groupby="flow.name.value",
            groupby_aggfunc="median",
            groupby_rangefunc="minmax",
            title_x="seconds",
            title_y="nats",
        ),
    ]

    def section(name: str, panels: list[Any], is_open: bool = True) -> Any:
        rows = -(-len(panels) // 3)
        layout = workspaces.SectionLayoutSettings(columns=3, rows=rows)  # all panels on one page
        return workspaces.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)

    def of_kind(kind: type[Problem]) -> Any:
        found = [
            scalar(chart.title, chart.metrics[0]) if chart.is_final else curve(chart.title, *chart.metrics)
            for chart in kind.charts
        ]
        return section(f"Fits of kind {kind.kind}", found, is_open=False)

    return [
        section("Outcome", outcome),
        section("Likelihood", curves),
        section("Losses of other objectives", losses, is_open=False),
        *(of_kind(kind) for kind in kinds if kind.charts),
        section("Training", training),
        section("Pictures", pictures),
        section("Worst rows", [panels.WeavePanelSummaryTable(table_name="tables/worst_rows")], is_open=False),
        section("Many fits", many, is_open=False),
    ]


def _workspace(entity: str, project: str, name: str, tags: tuple[str, ...]) -> Any:
    workspaces, panels = _libraries()
    filters = [workspaces.Tags().isin(list(tags))] if tags else []

    class FlatKeys(workspaces.Workspace):  # type: ignore[misc, name-defined]  # the library is imported above
        """A workspace for configurations with dotted keys, which the library takes for nested ones."""

        def _to_model(self) -> Any:
            view = super()._to_model()
            for group in view.spec.section.panel_bank_config.sections:
                for panel in group.panels:
                    for column in getattr(panel.config, "columns", ()):
                        column.accessor = _flat(column.accessor)
            return view

    return FlatKeys(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(workspaces, panels),
        settings=workspaces.WorkspaceSettings(x_axis="global_step", max_runs=20),
        runset_settings=workspaces.RunsetSettings(
            filters=filters,
            order=[workspaces.Ordering(workspaces.Metric("CreatedTimestamp"), ascending=False)],
            pinned_columns=list(_COLUMNS),
        ),
    )


def _flat(accessor: str) -> str:
    """Convert ``config:flow.value.name``, a nested key, to ``config:flow.name.value``, a dotted key."""
    found = re.fullmatch(r"config:(\w+)\.value\.(.+)", accessor)
    return f"config:{found[1]}.{found[2]}.value" if found else accessor


if __name__ == "__main__":
    entity, project, name, tags = json.loads(sys.argv[1])
    print(_workspace(entity, project, name, tuple(tags)).save().url)
