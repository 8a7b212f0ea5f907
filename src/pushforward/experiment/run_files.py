"""The content of the files of a run: results.json, the status, and the summary for dashboards."""

from typing import Any

from torch import nn

from pushforward.common.files import json_safe
from pushforward.flows import KernelDensity
from pushforward.runs.folder import RunFolder
from pushforward.train.problems.base import Fitted, Problem, Scores

_DASHBOARD_NAMES = {
    "val_nll": "best/val_nll",
    "test_nll": "test/nll",
    "test_nll_se": "test/nll_se",
    "test_nll_new": "test/nll_new",
    "test_nll_new_se": "test/nll_new_se",
}


def results_content(run: RunFolder, problem: Problem, fitted: Fitted, scores: Scores) -> dict[str, Any]:
    """The content of ``results.json``: what was fitted, and the final numbers of its kind of problem."""
    progress = fitted.state.progress
    return {
        "run": str(run.path),
        "dataset": problem.name,
        "problem": problem.kind,
        "flow": fitted.name,
        "features": problem.features,
        "rows": problem.facts.get("rows"),
        "parameters": stored_numbers(fitted.density.model),
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "stop_reason": progress.stop_reason,
        "val_loss": progress.best_loss,
        **scores.numbers,
        "headline": [json_safe(vars(headline)) for headline in scores.headline],
    }


def stored_numbers(model: nn.Module) -> int:
    """How many numbers a density stores: parameters, and the rows of kernel densities."""
    rows = (m.points.numel() for m in model.modules() if isinstance(m, KernelDensity))
    return sum(p.numel() for p in model.parameters()) + sum(rows)


def status_content(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers in a run's ``state.json``, for the list of runs."""
    return {key: results[key] for key in ("dataset", "problem", "flow", "steps", "val_nll", "test_nll")}


def dashboard_summary(results: dict[str, Any]) -> dict[str, Any]:
    """The results under the names that dashboards use."""
    left_out = ("run", "dataset", "test_rows_sha256", "headline")
    return {_DASHBOARD_NAMES.get(key, key): value for key, value in results.items() if key not in left_out}
