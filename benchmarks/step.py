"""How long do a training step, a log_prob and a sample take, compared with peers and with bare matrix products?

    python benchmarks/step.py [--quick] [--threads 2] [--repeats 15] [--out]
    python benchmarks/step.py --flows nsf-ar --features 8 43 --batches 512 --rivals nflows zuko zuko-mlp --eager

For each flow, number of features and number of rows, all libraries take turns. A step is zero_grad, the mean of
log_prob, backward, clip_grad_norm_(5) and the optimiser's step on a fixed batch. The matrix products are those of the
six linear layers of every conditioner, dense and without anything else: forward and backward for the step, forward for
log_prob and sample. Then follow the spline alone, forward and backward, and sample and log_prob of pushforward at
10,000 rows (an autoregressive peer takes about a minute a call there: --peer-samples 10000).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import measure
import rivals
import torch
from measure import Target, Times

OPERATIONS = ("step", "log_prob", "sample")
PRODUCTS = "matrix products"
SPLINES = ((512, 8), (512, 43), (4096, 43))
# Bounds on the time of a step as a share of the peer's, for nsf-ar and for the others; plain variants are lighter.
_STEP_BOUNDS = {"nsf-ar": {"nflows": 1 / 3, "zuko": 1 / 2}}
_OTHER_BOUND = {"nflows": 1 / 2}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--flows", nargs="+", choices=rivals.FLOWS, default=list(rivals.FLOWS))
    parser.add_argument("--features", nargs="+", type=int, default=[2, 8, 21, 43, 63])
    parser.add_argument("--batches", nargs="+", type=int, default=[512, 4096], help="rows of a step and of a log_prob")
    parser.add_argument("--rivals", nargs="+", choices=rivals.PEERS, default=list(rivals.PEERS))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--eager", action="store_true", help="also pushforward without native kernels")
    parser.add_argument("--sample-points", type=int, default=512, help="number of samples in the comparison with peers")
    parser.add_argument(
        "--own-points", type=int, default=10_000, help="rows of sample and log_prob of pushforward alone"
    )
    parser.add_argument("--peer-samples", type=int, metavar="N", help="also N samples of nsf-ar of nflows at D=43")
    parser.add_argument(
        "--seconds-each", type=float, default=20.0, help="time limit of the repeats of one configuration"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        _make_quick(arguments, sys.argv[1:])
    facts = measure.machine(arguments.threads, ["nflows", "zuko", "normflows", "torchflows"])
    measure.print_header(facts)
    print("5 layers, 128 hidden, 2 residual blocks, 8 bins, bound 5, float32; milliseconds\n")
    peers = rivals.available(arguments.rivals)
    ours = ["pushforward", *(["pushforward-eager"] if arguments.eager else [])]

    records: list[dict[str, Any]] = []
    targets: list[Target] = []
    _splines(arguments, records, targets)
    for flow in arguments.flows:
        for features in arguments.features:
            _cells(flow, features, [*ours, *peers], arguments, records, targets)
    if "nsf-ar" in arguments.flows:
        _own_samples(arguments, records, targets)
    _pivots(records, arguments)
    measure.print_targets(targets)
    measure.write_json(arguments.out, "step", facts, records, targets)


def _make_quick(arguments: argparse.Namespace, given: list[str]) -> None:
    small = {
        "features": [8, 43],
        "batches": [512],
        "rivals": ["nflows", "zuko", "zuko-mlp"],
        "repeats": 5,
        "seconds_each": 4.0,
        "sample_points": 256,
    }
    for name, value in small.items():
        if f"--{name.replace('_', '-')}" not in given:  # explicit options stay
            setattr(arguments, name, value)


def _cells(
    flow: str,
    features: int,
    names: list[str],
    arguments: argparse.Namespace,
    records: list[dict[str, Any]],
    targets: list[Target],
) -> None:
    """Measure all operations of one flow with one number of features."""
    shapes = rivals.conditioner_shapes(flow, features)
    most = max(arguments.batches)
    torch.manual_seed(1)
    points = torch.randn(most, features)
    built: dict[str, rivals.Rival] = {}
    for name in names:
        try:
            rival = rivals.build(name, flow, features, away=0.02)
            with rival.within():
                rival.log_prob(points[:512])  # initialises layers that depend on data
        except Exception as error:
            print(f"{name} cannot build {flow} of {features} features: {' '.join(str(error).split())[:100]}\n")
        else:
            built[name] = rival
    # Steps come last, because they change the weights.
    for operation in ("sample", "log_prob", "step"):
        if operation not in arguments.operations:
            continue
        for rows in [arguments.sample_points] if operation == "sample" else arguments.batches:
            calls: dict[str, Callable[[], object]] = {}
            for name, rival in built.items():
                if name == "nflows-fused" and operation != "step":
                    continue  # the same model with another optimiser
                rival.module.train(operation == "step")
                x = points[:rows]
                calls[name] = {
                    "step": lambda rival=rival, x=x: rival.step(x),
                    "log_prob": lambda rival=rival, x=x: rival.scoring(x),
                    "sample": lambda rival=rival, rows=rows: rival.sampling(rows),
                }[operation]()
            calls[PRODUCTS] = rivals.products(shapes, rows, backward=operation == "step")
            all_times = measure.interleave(calls, repeats=arguments.repeats, budget_seconds=arguments.seconds_each)
            sizes = {name: rival.size for name, rival in built.items()}
            what = {"operation": operation, "flow": flow, "features": features, "rows": rows}
            _report(what, all_times, sizes, records)
            _judge(what, all_times, targets)


def _report(
    what: dict[str, Any], all_times: dict[str, Times], sizes: dict[str, int], records: list[dict[str, Any]]
) -> None:
    ours = all_times.get("pushforward")
    rows = [[name, *measure.time_cells(times, sizes.get(name), ours)] for name, times in all_times.items()]
    title = ", ".join(f"{value}" if key in ("operation", "flow") else f"{value} {key}" for key, value in what.items())
    measure.table(["", *measure.TIME_COLUMNS], rows, title=title)
    for name, times in all_times.items():
        ratio = times.ratio(ours) if ours else None
        records.append(
            what
            | {
                "rival": name,
                "parameters": sizes.get(name),
                "median": times.median,
                "times_ours": ratio,
                **asdict(times),
            }
        )


def _judge(what: dict[str, Any], all_times: dict[str, Times], targets: list[Target]) -> None:
    operation, flow, features = what["operation"], what["flow"], what["features"]
    ours = all_times.get("pushforward")
    if ours is None or not ours.seconds:
        return

    def against(name: str, bound: float) -> None:
        if name in all_times and all_times[name].seconds:
            label = f"{operation} of {flow}, D={features}, {what['rows']} rows: share of {name}"
            targets.append(Target(label, ours.ratio(all_times[name]), bound))

    if operation == "step" and what["rows"] == 512 and features in (8, 43):
        bounds = _STEP_BOUNDS.get(flow, _OTHER_BOUND)
        for library, bound in bounds.items():
            for name in all_times:
                if name.split("-")[0] == library:
                    against(name, bound)
        if flow == "nsf-ar" and features == 8:
            against(PRODUCTS, 2.0)
    if operation == "sample" and flow == "nsf-ar" and features == 43:
        against("nflows", 1 / 40)


def _splines(arguments: argparse.Namespace, records: list[dict[str, Any]], targets: list[Target]) -> None:
    """Measure the spline alone, forward and backward."""
    for points, features in SPLINES:
        calls = rivals.splines(features, points)
        all_times = measure.interleave(calls, repeats=arguments.repeats, budget_seconds=arguments.seconds_each)
        _report(
            {"operation": "spline alone, forward + backward", "rows": points, "features": features},
            all_times,
            {},
            records,
        )
        ratio = all_times["pushforward"].ratio(all_times["nflows"])
        targets.append(
            Target(f"spline alone, ({points}, {features}), forward + backward: share of nflows", ratio, 1 / 4.5)
        )


def _own_samples(arguments: argparse.Namespace, records: list[dict[str, Any]], targets: list[Target]) -> None:
    """Measure sample and log_prob of pushforward at many rows, and samples of nflows if asked for."""
    points, features = arguments.own_points, 43
    for flow in ("maf", "nsf-ar"):
        rival = rivals.build("pushforward", flow, features, away=0.02)
        rival.log_prob(torch.randn(512, features))
        rival.module.eval()
        calls = {"sample": rival.sampling(points), "log_prob": rival.scoring(torch.randn(points, features))}
        all_times = measure.interleave(calls, repeats=arguments.repeats, budget_seconds=arguments.seconds_each)
        rows = [[name, *measure.time_cells(t, rival.size, None)[:-1]] for name, t in all_times.items()]
        measure.table(
            ["", *measure.TIME_COLUMNS[:-1]], rows, title=f"ours alone, {flow}, {features} features, {points} rows"
        )
        for name, times in all_times.items():
            records.append(
                {"operation": f"own {name}", "flow": flow, "features": features, "rows": points, **asdict(times)}
                | {"rival": "pushforward", "median": times.median}
            )
        if flow == "nsf-ar":
            ratio = all_times["sample"].ratio(all_times["log_prob"])
            targets.append(Target(f"sample of nsf-ar, D=43, {points} points: times our log_prob", ratio, 1.5))
    if arguments.peer_samples:
        number = arguments.peer_samples
        calls = {}
        for name in ("pushforward", "nflows"):
            rival = rivals.build(name, "nsf-ar", features, away=0.02)
            rival.module.eval()
            calls[name] = rival.sampling(number)
        all_times = measure.interleave(calls, repeats=3, warmups=1, budget_seconds=0.0)
        _report({"operation": "sample", "flow": "nsf-ar", "features": features, "rows": number}, all_times, {}, records)
        ratio = all_times["pushforward"].ratio(all_times["nflows"])
        targets.append(Target(f"sample of nsf-ar, D=43, {number} points: share of nflows", ratio, 1 / 40))


def _pivots(records: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print a table for each operation: medians, and in brackets their multiples of pushforward's."""
    for operation in OPERATIONS:
        chosen = [r for r in records if r["operation"] == operation and r.get("rival") and "times_ours" in r]
        for rows in sorted({r["rows"] for r in chosen}):
            cells = [r for r in chosen if r["rows"] == rows]
            names = list(dict.fromkeys(r["rival"] for r in cells))
            lines = []
            for flow, features in dict.fromkeys((r["flow"], r["features"]) for r in cells):
                found = {r["rival"]: r for r in cells if (r["flow"], r["features"]) == (flow, features)}
                lines.append([f"{flow}, D={features}", *(_pivot_cell(found.get(name)) for name in names)])
            measure.table(
                ["", *names], lines, title=f"{operation}, {rows} rows: median milliseconds (times pushforward's)"
            )


def _pivot_cell(record: dict[str, Any] | None) -> str:
    if record is None or not record["seconds"]:
        return "-"
    text = measure.milliseconds(record["median"])
    ratio = record["times_ours"]
    return text if record["rival"] == "pushforward" or ratio is None or ratio != ratio else f"{text} ({ratio:.2f})"


if __name__ == "__main__":
    main()
