"""The process of jobs that are not run by ``pushforward fit``: baselines, peers (other libraries), plugins' methods.

``python -m pushforward.benchmark.worker JOBS`` takes the jobs of one split as JSON (see ``jobs.worker_argument``) and
writes ``test_scores.parquet`` and ``result.json`` to the run folder of each. An error is one line on stderr, and exit
code 1. It runs inside :mod:`pushforward.benchmark.child`, which only makes it end with its parent.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pushforward.benchmark.methods import METHODS, Method, parse_method
from pushforward.benchmark.peers import build_peer, peer_options, train_peer
from pushforward.benchmark.suites import set_name
from pushforward.common.files import atomic_write, json_safe
from pushforward.common.text import one_line
from pushforward.config.read import load_config
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.evaluate.baselines import Baseline, fit_baselines
from pushforward.evaluate.likelihood import log_prob
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import write_row_scores
from pushforward.train.data import Prepared, load_data, prepare
from pushforward.train.defaults import data_options
from pushforward.train.device import choose_device, threads_for

MIXTURE_SECONDS = 60.0
"""Time limit of the Gaussian mixture, unless the budget of a fit is smaller."""


def run(jobs: dict[str, Any]) -> None:
    """Run jobs of one split.

    Args:
        jobs: The data set, its configuration, the budget, and for each job a method and a folder.

    Raises:
        ConfigError: If a peer does not have an option, or is not installed.
        DataError: If the data cannot be read.
        DivergedError: If the loss of a peer was never finite.
        RuntimeError: If the method of a plugin fails.
    """
    methods = [parse_method(spec) for spec in jobs["methods"]]
    config = load_config(jobs["source"], overrides=[*jobs["overrides"], f"seed={jobs['seed']}"])
    data = data_options(config.model_dump())
    prepared = prepare(load_data(data), data)
    if not len(prepared.test.rows):
        raise ValueError(f"{jobs['source']}: there are no test rows")
    for method, folder in zip(methods, map(Path, jobs["folders"]), strict=True):
        if method.kind == "peer":
            _run_peer(method, prepared, jobs, folder)
        elif method.kind == "plugin":
            _run_plugin(method, prepared, jobs, folder)
    if any(method.kind == "baseline" for method in methods):
        _run_baselines(methods, prepared, jobs)


def _run_baselines(methods: list[Method], prepared: Prepared, jobs: dict[str, Any]) -> None:
    wanted = [method.spec for method in methods]
    limit = MIXTURE_SECONDS if jobs["seconds"] is None else min(MIXTURE_SECONDS, jobs["seconds"])
    baselines = fit_baselines(
        prepared.train.rows,
        prepared.validation.rows,
        prepared.test.rows,
        seed=jobs["seed"],
        seconds=limit if "gaussian-mixture" in wanted else 0.0,
    )
    by_name = {baseline.name: baseline for baseline in baselines}
    for method, folder in zip(methods, map(Path, jobs["folders"]), strict=True):
        if method.kind == "baseline":
            baseline: Baseline = by_name[method.spec]
            facts = {"flow": baseline.name, "parameters": baseline.parameters, "steps": None}
            facts |= {"seconds": baseline.seconds, "stop_reason": "", "detail": baseline.detail}
            _write(folder, prepared, np.asarray(baseline.log_probs, dtype=np.float64), facts)


def _run_peer(method: Method, prepared: Prepared, jobs: dict[str, Any], folder: Path) -> None:
    name = set_name(jobs["source"])
    budget = [f"train.{key}={jobs[key]}" for key in ("seconds", "steps") if jobs[key] is not None]
    config = method.config(jobs["source"], name, [] if method.has_own_budget else budget)
    rows, features = prepared.train.rows.shape
    options = peer_options(config, method, rows=rows, features=features)
    device = choose_device(jobs["device"])
    torch.manual_seed(jobs["seed"])
    peer = build_peer(method, features, options.flow).to(device)
    points = prepared.training_rows(device), prepared.validation_rows(device)
    with threads_for(options.flow, options.train.batch_size, features):
        training = train_peer(peer, *points, options.train)
    standardize = prepared.standardize
    test = standardize(torch.from_numpy(prepared.test.rows))[0].float()
    log_probs = log_prob(peer, test).double().numpy() + standardize.log_det
    sizes = {key: getattr(options.flow, key) for key in ("layers", "hidden", "blocks", "bins", "bound", "dropout")}
    sizes |= {key: getattr(options.train, key) for key in ("learning_rate", "batch_size")}
    facts = {
        "flow": f"{method.library} {method.flow}",
        "parameters": sum(p.numel() for p in peer.parameters() if p.requires_grad),
        "steps": training.steps,
        "seconds": training.seconds,
        "stop_reason": training.stop_reason,
        "detail": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sizes.items()),
        "curve": training.curve,
        "val_nll_standardized": training.validation_nll,
    }
    _write(folder, prepared, log_probs, facts)


def _run_plugin(method: Method, prepared: Prepared, jobs: dict[str, Any], folder: Path) -> None:
    train, validation, test = (part.rows.copy() for part in (prepared.train, prepared.validation, prepared.test))
    budget = {key: jobs[key] for key in ("seed", "seconds", "steps")}
    try:
        began = time.perf_counter()
        fitted = METHODS[method.spec](train, validation, **budget)
        seconds = time.perf_counter() - began
        found = fitted.log_prob(test)
        log_probs = np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found, dtype=np.float64)
    except Exception as error:  # of somebody else's code
        raise RuntimeError(f"{type(error).__name__}: {one_line(error)}") from error
    if log_probs.shape != (len(test),):
        raise RuntimeError(f"log_prob: expected numbers of shape ({len(test)},); got {log_probs.shape}")
    if not (log_probs < np.inf).all():
        raise RuntimeError("log_prob: expected numbers below infinity; got NaN or infinity")
    known = {key: getattr(fitted, key, None) for key in ("parameters", "steps")}
    facts: dict[str, Any] = {key: value if isinstance(value, int) else None for key, value in known.items()}
    facts |= {"flow": method.spec, "seconds": seconds, "stop_reason": "", "detail": METHODS.about(method.spec)}
    _write(folder, prepared, log_probs, facts)


def _write(folder: Path, prepared: Prepared, log_probs: Any, facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_row_scores(RunFolder(folder), prepared.dataset.in_file(prepared.splits.test), log_probs)
    dataset, parts = prepared.dataset, ("train", "validation", "test")
    facts = facts | {
        "rows": {part: len(getattr(prepared, part).rows) for part in parts},
        "features": prepared.train.rows.shape[1],
        "log_scale": -prepared.standardize.log_det,
        "fingerprint": rows_fingerprint(dataset.schema.names, prepared.test.rows),
        "is_drawn": dataset.source == "toy",
        "sha256": dataset.sha256 or "",
        "notes": list(dataset.notes),
    }
    with atomic_write(folder / "result.json") as partial:
        partial.write_text(json.dumps(json_safe(facts), allow_nan=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the jobs of the first argument."""
    try:
        run(json.loads(sys.argv[1]))
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
