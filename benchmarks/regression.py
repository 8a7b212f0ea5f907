"""Regression: p(y given x) by a conditional flow, Bayesian networks and a network with one noise level.

    python benchmarks/regression.py --data FOLDER [--splits 20] [--processes 2] [--tables NAME ...] [--quick] [--out]

The folder holds the six regression tables ``NAME.csv`` or ``NAME.csv.gz``, rows of features and then the response, no
header: airfoil, concrete, energy, housing, parkinsons (telemonitoring) and yacht. Each split holds out a random tenth
of the rows for testing, and a tenth of the rest for validation, the same for all methods. Scores are mean test NLLs of
the response in nats a row, in its own units, over splits; differences are paired by split. Budgets are in steps, so
that the results do not depend on the load.

- flow: what ``pushforward fit FILE data.response=...`` fits by default, a conditional flow.
- bayesian-network: ``flow=bayesian-network``, a flow as the posterior over all weights of a network with 50 hidden
  units; ``mean-field`` with a factorised Gaussian instead.
- homoscedastic: the same network with one noise level, AdamW; early stopping and one of four weight decays are chosen
  on the validation rows, whose mean squared error is the noise variance. ``refit`` trains with the chosen decay and
  number of steps on the validation rows, too. The better of the two is the baseline of the other methods on a table.

Published NLLs of NGBoost, 20 splits: Duan et al. (2020), https://arxiv.org/abs/1910.03225, table 1. The response of the
yacht table is the logarithm of the resistance less its mean, 1.0845, which the published NLL is converted to.
"""

import copy
import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from measure import Target
from torch import Tensor, nn

TABLES = ("airfoil", "concrete", "energy", "housing", "parkinsons", "yacht")
BASELINES = ("homoscedastic", "homoscedastic, refit")
STEPS = {"flow": 1_000, "homoscedastic": 2_000, "bayesian-network": 3_000, "mean-field": 3_000}
KEYS: dict[str, dict[str, Any]] = {
    "flow": {},
    "bayesian-network": {"flow": "bayesian-network"},
    "mean-field": {"flow": "bayesian-network", "flow.base": "diagonal"},
}
NGBOOST = {"concrete": 3.04, "energy": 0.60, "yacht": 0.20 - 1.0845, "housing": 2.43}
WEIGHT_DECAYS = (0.0, 1e-2, 1e-1, 1.0)
HIDDEN = 50
_SHORT = 20  # times fewer steps in the quick form


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the six tables")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2, help="jobs in parallel")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.splits = 2
    os.environ["OMP_NUM_THREADS"] = "1"
    facts = measure.machine(1)
    measure.print_header(facts)
    files = {path.name.partition(".")[0]: path for path in sorted(arguments.data.glob("*.csv*"))}
    jobs = list(itertools.product(STEPS, range(arguments.splits), arguments.tables))
    records: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(fit, files[table], method, split, arguments.quick) for method, split, table in jobs]
        for future in as_completed(futures):
            for record in future.result():
                records.append(record)
                print("{table} {split} {method}: NLL {nll:.3f}, {cpu_seconds:.0f} s".format(**record), flush=True)
    print()
    targets = [] if arguments.quick else _targets(records)
    _report(records)
    measure.print_targets(targets)
    measure.write_json(arguments.out, "regression", facts, records, targets)


def fit(path: Path, method: str, split: int, quick: bool) -> list[dict[str, Any]]:
    """Fit a method to a split of a table, and return its numbers on the test rows; those of both baselines at once."""
    from pushforward.config.read import make_config
    from pushforward.evaluate.regression import regression_report
    from pushforward.train import fitting
    from pushforward.train.problems.registry import plan

    torch.set_num_threads(1)
    began = time.process_time()
    width = np.loadtxt(path, delimiter=",", max_rows=1).size
    keys = {"response": f"x{width}", "seed": split, "test_fraction": 0.1, "validation_fraction": 0.1}
    steps = STEPS[method] // (_SHORT if quick else 1)
    problem: Any = plan(make_config(str(path), keys | {"steps": steps} | KEYS.get(method, {})).model_dump())
    test = problem.prepared.test
    record = {"table": path.name.partition(".")[0], "split": split, "test_rows": len(test.rows)}
    if method == "homoscedastic":
        nlls = homoscedastic(problem.prepared, steps, split)
        seconds = time.process_time() - began
        return [record | {"method": name, "nll": nll, "cpu_seconds": seconds} for name, nll in nlls.items()]
    fitted = fitting.fit(problem)
    scores = problem.score(fitted.density)
    seconds = time.process_time() - began
    numbers = {
        "nll": scores.numbers["test_nll"],
        **regression_report(fitted.density.model, test.rows, test.context, ["y"]).summary(),
        "steps": fitted.state.progress.step,
        "cpu_seconds": seconds,
    }
    return [record | {"method": method} | numbers]


def homoscedastic(prepared: Any, steps: int, seed: int) -> dict[str, float]:
    """Test NLL of both baselines, in nats a row and data units."""
    device = torch.device("cpu")
    train, validation = prepared.training_rows(device), prepared.validation_rows(device)
    kept, held_out = (train.context, train.x), (validation.context, validation.x)
    trained = [_train(kept, held_out, decay, steps, seed) for decay in WEIGHT_DECAYS]
    best = min(range(len(trained)), key=lambda i: trained[i][1])
    network, variance, step = trained[best]
    both = (torch.cat([kept[0], held_out[0]]), torch.cat([kept[1], held_out[1]]))
    refitted, _, _ = _train(both, None, WEIGHT_DECAYS[best], steps, seed, stop=step)
    x = prepared.scale_context(torch.from_numpy(prepared.test.context))[0].float()
    y, log_det = prepared.standardize(torch.from_numpy(prepared.test.rows))
    out = {}
    for name, net in zip(BASELINES, (network, refitted), strict=True):
        squares = (y - net(x)).detach().double().square() / variance
        log_probs = -0.5 * (squares + math.log(2.0 * math.pi * variance)).squeeze(1) + log_det
        out[name] = -float(log_probs.mean())
    return out


def _train(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None,
    decay: float,
    steps: int,
    seed: int,
    stop: int = 0,
) -> tuple[nn.Module, float, int]:
    """Train the network; return it, its smallest validation error (mean squared), and the step of that."""
    torch.manual_seed(seed)
    x, y = train
    network: nn.Module = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=decay, fused=True)
    best, best_error, best_step = network, math.inf, 0
    for step in range(stop or steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        (network(x[chosen]) - y[chosen]).square().mean().backward()
        optimizer.step()
        if validation is not None and (step + 1) % 25 == 0:
            with torch.no_grad():
                error = float((network(validation[0]) - validation[1]).square().mean())
            if error < best_error:
                best, best_error, best_step = copy.deepcopy(network), error, step + 1
    return (network if validation is None else best), best_error, best_step


def _values(records: Sequence[Mapping[str, Any]], table: str, method: str, key: str = "nll") -> list[float]:
    found = [record for record in records if (record["table"], record["method"]) == (table, method)]
    return [record[key] for record in sorted(found, key=lambda record: record["split"])]


def _with_error(values: Sequence[float]) -> str:
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.3f} ± {se:.3f}"


def _gains(records: Sequence[Mapping[str, Any]], table: str, method: str) -> list[float]:
    """NLL of the better baseline of this table, minus that of the method, split by split."""
    base = min((_values(records, table, name) for name in BASELINES), key=statistics.fmean)
    return [a - b for a, b in zip(base, _values(records, table, method), strict=True)]


def _report(records: Sequence[Mapping[str, Any]]) -> None:
    tables = [table for table in TABLES if any(record["table"] == table for record in records)]
    methods = (*BASELINES, *KEYS)
    rows = [
        [
            table,
            len(_values(records, table, "flow")),
            *(_with_error(_values(records, table, method)) for method in methods),
            f"{NGBOOST[table]:.2f}" if table in NGBOOST else "",
        ]
        for table in tables
    ]
    measure.table(["", "splits", *methods, "NGBoost"], rows, title="test NLL, nats a row: lower is better")
    rows = []
    for table in tables:
        gains = [_gains(records, table, method) for method in KEYS]
        rows.append([table, *(f"{_with_error(gain)} ({sum(g > 0 for g in gain)})" for gain in gains)])
    measure.table(["", *KEYS], rows, title="gain over the better homoscedastic network (splits in which it is better)")
    shown = ("crps", "rmse", "within_0.5", "within_0.9", "within_0.95", "cpu_seconds")
    rows = [
        [table, method, *(f"{statistics.fmean(_values(records, table, method, key)):.3g}" for key in shown)]
        for table in tables
        for method in KEYS
    ]
    measure.table(["", "method", *shown], rows, title="means over the splits")


def _targets(records: Sequence[Mapping[str, Any]]) -> list[Target]:
    if {record["table"] for record in records} != set(TABLES):
        return []
    won = sum(statistics.fmean(_gains(records, table, "flow")) > 0 for table in TABLES)
    return [Target("flow: tables better than the homoscedastic network", won, len(TABLES), at_most=False)]


if __name__ == "__main__":
    main()
