"""The content of the files of a run: results.json, schema.json, the status, and the summary for dashboards."""

import math
from typing import Any

from torch import nn

from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.evaluation import SplitScores
from pushforward.evaluate.likelihood import Nll, kl_to_truth, nll_from
from pushforward.flows import KernelDensity
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import rows_fingerprint
from pushforward.train.data import Prepared
from pushforward.train.trainer import State

_DASHBOARD_NAMES = {
    "val_nll": "best/val_nll",
    "test_nll": "test/nll",
    "test_nll_se": "test/nll_se",
    "test_nll_new": "test/nll_new",
    "test_nll_new_se": "test/nll_new_se",
}


def results_content(
    run: RunFolder,
    prepared: Prepared,
    state: State,
    density: FittedDensity,
    scores: SplitScores,
    *,
    flow: str,
) -> dict[str, Any]:
    """The content of ``results.json``; NLLs in nats, NaN without test rows.

    If some test rows are copies of training rows, the NLL of the other test rows is added.

    Args:
        run: The run folder.
        prepared: The data.
        state: The state after training.
        density: The fitted density.
        scores: Its log-densities on the split.
        flow: Description of the density.
    """
    dataset, test = prepared.dataset, prepared.test
    test_nll = nll_from(scores.test) if len(test.rows) else Nll(math.nan, math.nan, 0)
    results: dict[str, Any] = {
        "run": str(run.path),
        "dataset": dataset.name,
        "flow": flow,
        "features": dataset.rows.shape[1],
        "rows": len(dataset.rows),
        "parameters": stored_numbers(density.flow),
        "steps": state.progress.step,
        "seconds": round(state.progress.seconds, 3),
        "stop_reason": state.progress.stop_reason,
        "train_nll": nll_from(scores.train).nll,
        "val_nll": nll_from(scores.validation).nll,
        "test_nll": test_nll.nll,
        "test_nll_se": test_nll.se,
        "test_nll_standardized": test_nll.nll + prepared.standardize.log_det,
        "test_rows_sha256": rows_fingerprint(dataset.schema.names, test.rows) if len(test.rows) else None,
    }
    if prepared.repeats is not None and 0 < prepared.repeats.test.sum() < len(test.rows):
        new = nll_from(scores.test[~prepared.repeats.test])
        results |= {"test_rows_new": new.rows, "test_nll_new": new.nll, "test_nll_new_se": new.se}
    if dataset.toy is not None and len(test.rows):
        kl, se = kl_to_truth(dataset.toy.log_prob(test.rows), scores.test)
        results |= {"kl_to_truth": kl, "kl_to_truth_se": se}
    return results


def stored_numbers(model: nn.Module) -> int:
    """How many numbers a density stores: parameters, and the rows of kernel densities."""
    rows = (m.points.numel() for m in model.modules() if isinstance(m, KernelDensity))
    return sum(p.numel() for p in model.parameters()) + sum(rows)


def schema_content(prepared: Prepared) -> dict[str, Any]:
    """The content of ``schema.json``: the source of the rows, their number, and the columns."""
    dataset = prepared.dataset
    parts = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    return {
        "dataset": dataset.name,
        "source": dataset.source,
        "sha256": dataset.sha256,
        "rows": {name: len(part.rows) for name, part in parts.items()},
        "notes": list(prepared.notes),
        "bin_widths": prepared.bin_widths.tolist(),
        **dataset.schema.to_dict(),
    }


def status_content(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers in a run's ``state.json``, for the list of runs."""
    return {key: results[key] for key in ("dataset", "flow", "steps", "val_nll", "test_nll")}


def dashboard_summary(results: dict[str, Any]) -> dict[str, Any]:
    """The results under the names that dashboards use."""
    left_out = ("run", "dataset", "test_rows_sha256")
    return {_DASHBOARD_NAMES.get(key, key): value for key, value in results.items() if key not in left_out}
