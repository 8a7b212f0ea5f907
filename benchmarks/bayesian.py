"""Does a network with a posterior over its weights have a better predictive density on small tables?

    python benchmarks/bayesian.py --data FOLDER [--splits 5] [--processes 1] [--quick] [--out]

The folder holds the six regression tables ``NAME.csv.gz``, rows of features and then the target, no header: airfoil,
concrete, energy, housing, parkinsons (telemonitoring) and yacht. Each split uses a random tenth of the rows for
testing, the same for all methods. Scores are mean test log-densities of the target in nats per row, in its own units,
over splits, with the standard error of that mean; differences are paired by split.

- homoscedastic: one hidden layer of 50 rectified units, AdamW; early stopping and one of four weight decays are chosen
  on a tenth of the training rows, whose mean squared error is the noise variance. ``refit`` trains with the chosen
  decay and number of steps on all training rows. The better of the two is the baseline of the other methods.
- mean-field, flow: ``BayesianNetwork`` of the same network, on all training rows, without validation: the last weights.
- flow, heteroscedastic (with ``--heteroscedastic``): the same with a second output for the size of the noise. Its
  likelihood is another one, so it does not count for the bound.
- conditional flow: ``nsf-ar`` of one feature given the inputs, maximum likelihood with early stopping on a tenth of the
  training rows. It can have a very large density at target values that repeat many times (the cap of housing).

Options were chosen on single splits of the same tables, from other seeds than those reported. After ``--minutes`` no
new split begins, so that tables may differ by one split.
"""

import concurrent.futures
import gzip
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Target

Array = np.ndarray[Any, np.dtype[np.float64]]
TABLES = ("airfoil", "concrete", "energy", "housing", "parkinsons", "yacht")
BASELINES = ("homoscedastic", "homoscedastic, refit")
BAYESIAN = ("mean-field", "flow")
HETEROSCEDASTIC = "flow, heteroscedastic"
RIVALS = (*BASELINES, *BAYESIAN, HETEROSCEDASTIC, "conditional flow")
WEIGHT_DECAYS = (0.0, 1e-2, 1e-1, 1.0)
HIDDEN = 50
_SHORT = 20  # times fewer steps in the quick form


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the six tables")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="jobs in parallel; a job is a table and a split")
    parser.add_argument("--minutes", type=float, default=20.0, help="no new job begins after this time (default 20)")
    parser.add_argument(
        "--heteroscedastic", action="store_true", help="also the flow with noise that depends on the inputs"
    )
    arguments = parser.parse_args()
    bayesian = (*BAYESIAN, HETEROSCEDASTIC) if arguments.heteroscedastic else BAYESIAN
    if arguments.quick:
        arguments.splits = 2
    os.environ["OMP_NUM_THREADS"] = "1"
    facts = measure.machine(1, ["scikit-learn"])
    measure.print_header(facts)
    tables = [(table, split) for split in range(arguments.splits) for table in arguments.tables]
    jobs = [(arguments.data, table, split, bayesian, arguments.quick) for table, split in tables]
    records: list[dict[str, Any]] = []
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
        began, futures = time.perf_counter(), [pool.submit(one_split, *job) for job in jobs]
        for future in concurrent.futures.as_completed(futures):
            if future.cancelled():
                continue
            found = future.result()
            records += found
            scores = ", ".join(f"{r['rival']} {r['log_prob']:.3f} ({r['cpu_seconds']:.0f} s)" for r in found)
            print(f"{found[0]['table']}, split {found[0]['split']}: {scores}", flush=True)
            if time.perf_counter() - began > 60.0 * arguments.minutes:
                for pending in futures:
                    pending.cancel()
    print()
    targets = [] if arguments.quick else _targets(records)
    _report(records, [t for t in arguments.tables if any(r["table"] == t for r in records)])
    measure.print_targets(targets)
    measure.write_json(arguments.out, "bayesian", facts, records, targets)


def one_split(folder: Path, name: str, split: int, bayesian: Sequence[str], quick: bool) -> list[dict[str, Any]]:
    """Fit all methods to one split of one table."""
    import torch

    torch.set_num_threads(1)
    with gzip.open(folder / f"{name}.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    rows = rows[np.random.RandomState(split).permutation(len(rows))]
    tenth = len(rows) // 10
    train, test = rows[tenth:], rows[:tenth]
    records = []

    def add(rival: str, scores: Array, seconds: float) -> None:
        record = {"table": name, "split": split, "rival": rival, "rows": len(train), "features": rows.shape[1] - 1}
        records.append(record | {"log_prob": float(scores.mean()), "cpu_seconds": seconds})

    makers: dict[str, Callable[[], dict[str, Array]]] = {
        "homoscedastic": lambda: _homoscedastic(train, test, split, quick),
        **{
            rival: lambda rival=rival: {rival: _bayesian(rival, train, test, split, quick)}  # type: ignore[misc]
            for rival in bayesian
        },
        "conditional flow": lambda: {"conditional flow": _conditional(train, test, split, quick)},
    }
    for make in makers.values():
        began = time.process_time()
        made = make()
        seconds = time.process_time() - began
        for rival, scores in made.items():
            add(rival, scores, seconds)
    return records


def _bayesian(rival: str, train: Array, test: Array, seed: int, quick: bool) -> Array:
    import torch

    from pushforward.flows import Chain, Flow
    from pushforward.flows.bayesian.density import build_bayesian_network
    from pushforward.train.objectives.evidence import Evidence
    from pushforward.train.objectives.likelihood import RowTensors
    from pushforward.train.options import TrainOptions
    from pushforward.train.state import start
    from pushforward.train.trainer import Trainer

    posterior, _, heteroscedastic = rival.partition(", ")
    settings = SETTINGS[posterior]
    torch.manual_seed(seed)
    standardize, y_scale = _standardizer(train)
    x, y = standardize(train)
    network = build_bayesian_network(
        1,
        x.shape[1],
        posterior,
        hidden=(HIDDEN,),
        noise="heteroscedastic" if heteroscedastic else "learned",
        samples=1_000,
        **settings["network"],
    )
    flow = Flow(network, Chain([], features=1))
    steps = STEPS // (_SHORT if quick else 1)
    options = TrainOptions(steps=steps, learning_rate=1e-2, ema_decay=0.0, validate_every=steps, **settings["train"])
    rows = RowTensors(y, x)
    evidence = Evidence(rows, rows, options.batch_size, seed=seed, **settings["evidence"])
    Trainer(options).run(start(flow, options, seed=seed), evidence)
    x, y = standardize(test)
    with torch.no_grad():
        scores: Array = flow.log_prob(y, x).double().numpy()
    return scores - math.log(y_scale)


STEPS = 3_000
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mean-field": {
        "network": {"prior": "inputs", "prior_scale": 1.0},
        "train": {"batch_size": 256},
        "evidence": {"samples": 4, "gradient": "path"},
    },
    "flow": {
        "network": {"prior": "fixed", "prior_scale": 2.0},
        "train": {"batch_size": 512},
        "evidence": {"samples": 8, "gradient": "path-wise"},
    },
}


def _standardizer(train: Array) -> tuple[Callable[[Array], tuple[Any, Any]], float]:
    """Return a function from rows to standardised inputs ``(n, D)`` and targets ``(n, 1)``, and the targets' scale."""
    import torch

    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1.0)

    def standardize(rows: Array) -> tuple[Any, Any]:
        z = torch.from_numpy((rows - mean) / scale).float()
        return z[:, :-1], z[:, -1:]

    return standardize, float(scale[-1])


def _homoscedastic(train: Array, test: Array, seed: int, quick: bool) -> dict[str, Array]:
    standardize, y_scale = _standardizer(train)
    tenth = len(train) // 10
    steps = 2_000 // (_SHORT if quick else 1)
    kept, validation = standardize(train[tenth:]), standardize(train[:tenth])
    trained = [_train(kept, validation, decay, steps, seed) for decay in WEIGHT_DECAYS]
    best = min(range(len(trained)), key=lambda i: trained[i][1])
    network, variance, step = trained[best]
    refitted, _, _ = _train(standardize(train), None, WEIGHT_DECAYS[best], steps, seed, stop=step)
    x, y = standardize(test)
    return {
        rival: (-0.5 * (y - net(x)).detach().double().square() / variance - 0.5 * math.log(2 * math.pi * variance))
        .squeeze(1)
        .numpy()
        - math.log(y_scale)
        for rival, net in zip(BASELINES, (network, refitted), strict=True)
    }


def _train(
    train: tuple[Any, Any], validation: tuple[Any, Any] | None, decay: float, steps: int, seed: int, stop: int = 0
) -> tuple[Any, float, int]:
    """Train the network; return it, its smallest validation error (mean squared), and the step of that."""
    import copy

    import torch

    torch.manual_seed(seed)
    x, y = train
    network = torch.nn.Sequential(torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1))
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


def _conditional(train: Array, test: Array, seed: int, quick: bool) -> Array:
    import torch

    from pushforward.flows import build
    from pushforward.train.maximize import maximize_likelihood
    from pushforward.train.objectives.likelihood import RowTensors
    from pushforward.train.options import TrainOptions
    from pushforward.train.state import start

    torch.manual_seed(seed)
    standardize, y_scale = _standardizer(train)
    tenth = len(train) // 10
    kept, validation = (RowTensors(y, x) for x, y in (standardize(train[tenth:]), standardize(train[:tenth])))
    flow = build("nsf-ar", 1, train.shape[1] - 1, layers=2, hidden=64, blocks=1, bins=8, dropout=0.1)
    settings = TrainOptions(
        steps=2_000 // (_SHORT if quick else 1), batch_size=256, learning_rate=3e-3, weight_decay=1e-2, patience=0.4
    )
    flow = maximize_likelihood(start(flow, settings), kept, validation, settings).flow
    x, y = standardize(test)
    with torch.no_grad():
        scores: Array = flow.log_prob(y, x).double().numpy()
    return scores - math.log(y_scale)


def _scores(records: Sequence[dict[str, Any]], table: str, rival: str) -> list[float]:
    found = [r for r in records if (r["table"], r["rival"]) == (table, rival)]
    return [r["log_prob"] for r in sorted(found, key=lambda r: r["split"])]


def _with_error(values: Sequence[float]) -> str:
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.3f} ± {se:.3f}"


def _baseline(records: Sequence[dict[str, Any]], table: str) -> list[float]:
    """Scores of the better of the two homoscedastic networks on this table."""
    return max((_scores(records, table, rival) for rival in BASELINES), key=statistics.fmean)


def _report(records: Sequence[dict[str, Any]], tables: Sequence[str]) -> None:
    rivals = [rival for rival in RIVALS if any(r["rival"] == rival for r in records)]
    rows = []
    for table in tables:
        scores = [_scores(records, table, rival) for rival in rivals]
        rows.append([table, len(scores[0]), *map(_with_error, scores)])
    measure.table(["", "splits", *rivals], rows, title="test log-density, nats a row in data units: higher is better")
    others = [rival for rival in rivals if rival not in BASELINES]
    rows = []
    for table in tables:
        base = _baseline(records, table)
        gains = [[a - b for a, b in zip(_scores(records, table, rival), base, strict=True)] for rival in others]
        rows.append([table, *map(_with_error, gains)])
    measure.table(["", *others], rows, title="paired differences to the better homoscedastic network")
    seconds = [[table, *(f"{_seconds(records, table, rival):.1f}" for rival in rivals)] for table in tables]
    measure.table(["", *rivals], seconds, title="CPU seconds of a fit, medians (the first two are one)")


def _seconds(records: Sequence[dict[str, Any]], table: str, rival: str) -> float:
    return statistics.median(r["cpu_seconds"] for r in records if (r["table"], r["rival"]) == (table, rival))


def _targets(records: Sequence[dict[str, Any]]) -> list[Target]:
    if {record["table"] for record in records} != set(TABLES):
        return []
    found = []
    for rival in BAYESIAN:
        gains = {
            table: statistics.fmean(_scores(records, table, rival)) - statistics.fmean(_baseline(records, table))
            for table in TABLES
        }
        won = sum(gain > 0 for gain in gains.values())
        found.append(Target(f"{rival}: tables better than the homoscedastic network", won, 4, at_most=False))
    return found


if __name__ == "__main__":
    main()
