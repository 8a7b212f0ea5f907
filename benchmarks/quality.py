"""Which test log-likelihood is reached in a minute of wall-clock time, compilation included?

    python benchmarks/quality.py [--quick] [--seconds 60] [--sets protein magic ...] [--seeds 1] [--cold] [--out]
    python benchmarks/quality.py --data FOLDER      (default: benchmarks/data; README.md says what belongs in it)

Every run is a fresh process. Its clock starts when torch is imported and the data are in memory, before the import of
the library, so that building the flow and compiling or loading native kernels count. ``--cold`` gives every run of
pushforward an empty kernel cache, as on a new machine.

All libraries use the same loop: nsf-ar (5 layers, 128 hidden, 2 blocks, 8 bins), batches of 512 without replacement,
gradient clipping at 5, a cosine from the learning rate to zero over the time budget, and the weights of the best
validation. Peers train with Adam, pushforward with its own AdamW without decay, which is the same update. The clock
stops during validations (20 a run, on at most 2,000 rows), except the first, which may compile something. The row
``pushforward fit`` is the loop of the command with its defaults (width, batch size, moving average, warm-up and so on)
on the same split; its validations count in its time.

A schedule of 60 s says little about 15 s, so ``pushforward fit`` also runs with small budgets: its time to reach the
score of nflows is that of the shortest run whose test score is no worse. A budget shorter than compilation is exceeded;
the column ``ended`` has the actual time. Scores are mean test log-likelihoods in nats, standardised units.
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import torch
import uci
from measure import Target

SCORES = 20
VALIDATION_ROWS = 2_000
FIT = "pushforward fit"
# Small budgets as shares of the full one: 5, 10 and 14 s of 60.
SMALL_SHARES = (1 / 12, 1 / 6, 14 / 60)


def main() -> None:
    parser = measure.parser(__doc__, repeats=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="time budget of a run")
    parser.add_argument("--sets", nargs="+", choices=uci.NAMES, default=list(uci.NAMES))
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of runs of each configuration, with different seeds"
    )
    parser.add_argument("--rivals", nargs="+", default=["nflows"], help="peers; the targets are about nflows")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[5e-4, 1e-3], help="learning rates of the common loop"
    )
    parser.add_argument(
        "--small", nargs="+", type=float, help="small budgets of pushforward fit (default: 5, 10 and 14 of 60)"
    )
    parser.add_argument(
        "--ours", nargs="+", choices=["loop", "fit"], default=["loop", "fit"], help="which runs of pushforward"
    )
    parser.add_argument("--data", type=Path, default=uci.DEFAULT_FOLDER, help="folder with raw/ and uci/")
    parser.add_argument("--cold", action="store_true", help="an empty kernel cache for every run of pushforward")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run(**json.loads(arguments.worker), data=arguments.data)))
        return
    if not (arguments.data / "raw").is_dir():
        print(f"quality: expected the folder {arguments.data} with raw/ and uci/ in it; see --data")
        sys.exit(2)
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 15.0)
        arguments.sets = arguments.sets if "--sets" in sys.argv else ["protein"]
    facts = measure.machine(arguments.threads, ["nflows", "zuko", "normflows"])
    measure.print_header(facts)
    import rivals

    peers = rivals.available(arguments.rivals)
    small = arguments.small or [round(share * arguments.seconds, 2) for share in SMALL_SHARES]
    records: list[dict[str, Any]] = []
    targets: list[Target] = []
    for name in arguments.sets:
        found = _runs_of(name, peers, small, arguments)
        records += found
        _report(name, found, arguments.seconds, targets)
        if arguments.out:
            _draw(name, found, arguments.seconds, arguments.out)
    measure.print_targets(targets)
    measure.write_json(arguments.out, "quality", facts, records, targets)


def _runs_of(
    name: str, peers: Sequence[str], small: Sequence[float], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run every configuration with every seed, in an order that rotates with the seed."""
    runs: list[tuple[str, float | None, float]] = [
        (library, rate, arguments.seconds)
        for rate in arguments.rates
        for library in [*peers, *(["pushforward"] if "loop" in arguments.ours else [])]
    ]
    if "fit" in arguments.ours:
        runs += [(FIT, None, budget) for budget in (arguments.seconds, *small)]
    found = []
    for seed in range(arguments.seeds):
        first = seed % len(runs)
        for library, rate, seconds in runs[first:] + runs[:first]:
            options = {"name": name, "library": library, "rate": rate, "seconds": seconds, "seed": seed}
            record = _in_fresh_process(options | {"threads": torch.get_num_threads()}, arguments)
            found.append(record)
            label = library if rate is None else f"{library} {rate:g}"
            print(f"  {name}, {label}, {seconds:g} s, seed {seed}: {_describe(record)}", file=sys.stderr, flush=True)
    return found


def _describe(record: dict[str, Any]) -> str:
    return record["error"] or f"{record['test']:.3f} nats after {record['steps']:,} steps"


def _in_fresh_process(options: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", json.dumps(options), "--data", str(arguments.data)]
    with tempfile.TemporaryDirectory() as cache:
        environment = dict(os.environ)
        if arguments.cold:
            environment["PUSHFORWARD_CACHE"] = cache
        # Scores and imports are not in the budget; a run that does not end is killed.
        limit = 3.0 * options["seconds"] + 300.0
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=limit)
        except subprocess.TimeoutExpired:
            return _failed(options, f"not done after {limit:.0f} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return _failed(options, last[:160])
    record: dict[str, Any] = options | json.loads(done.stdout.strip().splitlines()[-1])
    return record


def _failed(options: dict[str, Any], error: str) -> dict[str, Any]:
    missing = {"test": math.nan, "validation": math.nan, "steps": 0, "curve": [], "parameters": 0, "start": math.nan}
    missing["ended"] = math.nan
    return options | missing | {"error": error}


def run(
    name: str, library: str, rate: float | None, seconds: float, seed: int, threads: int, data: Path
) -> dict[str, Any]:
    """Run one configuration; called in a fresh process."""
    torch.set_num_threads(threads)
    table = uci.load(name, data)
    torch.manual_seed(seed)
    if library == FIT:
        return _fit(table, seconds, seed)
    assert rate is not None
    return _common_loop(table, library, rate, seconds, seed)


class Clock:
    """Seconds since its construction, without those inside ``with`` blocks."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.paused = 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self.began - self.paused

    def __enter__(self) -> None:
        self.stopped = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.paused += time.perf_counter() - self.stopped


def _common_loop(table: uci.Table, library: str, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Train a flow of any library in the common loop."""
    clock = Clock()
    import rivals

    rival = rivals.build(library, "nsf-ar", table.features, seed=seed)
    optimizer = rival.optimizer(rate)
    update = rival.updating(optimizer)
    validation = table.validation[:VALIDATION_ROWS]
    generator = torch.Generator().manual_seed(seed)
    batch = min(512, len(table.train))
    order = torch.randperm(len(table.train), generator=generator)
    position, steps, error = 0, 0, ""
    curve: list[tuple[float, float]] = []
    best, weights = -math.inf, copy.deepcopy(rival.module.state_dict())
    start = math.nan
    while True:
        spent = clock.seconds() / seconds
        # The first step and the first validation count, because they compile and load; the clock stops for the others.
        if steps and (spent >= len(curve) / SCORES or spent >= 1.0):
            with clock if curve else contextlib.nullcontext():
                score = _mean_log_prob(rival, validation)
                curve.append((min(spent, 1.0) * seconds, score))
                if score > best:
                    best, weights = score, copy.deepcopy(rival.module.state_dict())
        if steps and spent >= 1.0:
            break
        if position + batch > len(order):
            order, position = torch.randperm(len(table.train), generator=generator), 0
        x = table.train[order[position : position + batch]]
        position += batch
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, spent)))
        with rival.within():
            optimizer.zero_grad(set_to_none=True)
            loss = -rival.log_prob(x).mean()
            loss.backward()
            update()
        steps += 1
        if steps == 1:
            start = clock.seconds()
        if not math.isfinite(loss.item()):
            error = f"loss not finite at step {steps}"
            break
    ended = clock.seconds()
    rival.module.load_state_dict(weights)
    test = _mean_log_prob(rival, table.test)
    return {
        "test": test,
        "validation": best,
        "steps": steps,
        "curve": curve,
        "parameters": rival.size,
        "start": start,
        "ended": ended,
        "error": error if not math.isfinite(test) else "",
    }


def _fit(table: uci.Table, seconds: float, seed: int) -> dict[str, Any]:
    """Train as ``pushforward fit`` does, from the split rows to the best weights."""
    clock = Clock()
    from pushforward.config.schema import Config
    from pushforward.train.architecture import build_model
    from pushforward.train.callbacks import Callback
    from pushforward.train.defaults import resolve
    from pushforward.train.gaussian import initialize_base
    from pushforward.train.objectives.likelihood import Likelihood, RowTensors
    from pushforward.train.state import State, start as start_state
    from pushforward.train.trainer import Trainer

    # The source is not read: `auto` depends on the numbers of rows and columns only.
    asked = Config.model_validate({"data": {"source": "table"}, "train": {"seconds": seconds}, "seed": seed})
    options = resolve(asked.model_dump(), rows=len(table.train), features=table.features, is_toy=False)
    flow = build_model(options.flow, table.features, seed=seed)
    torch.manual_seed(seed)
    initialize_base(flow, table.train[torch.randperm(len(table.train))[:20_000]])
    state = start_state(flow, options.train, seed=seed)
    # The time before the loop counts in the budget; at least a step or two remain.
    left = dataclasses.replace(options.train, seconds=max(0.1, seconds - clock.seconds()))
    curve: list[tuple[float, float]] = []

    class Curve(Callback):
        """Keeps the validation scores with the time of the clock."""

        def on_validation(self, state: State, metrics: dict[str, float]) -> None:
            curve.append((clock.seconds(), -metrics["val/nll"]))

    points = RowTensors(table.train), RowTensors(table.validation[:VALIDATION_ROWS])
    likelihood = Likelihood(*points, left.batch_size, seed=seed)
    state = Trainer(left, callbacks=[Curve()]).run(state, likelihood)
    ended = clock.seconds()
    with torch.no_grad():
        test = float(torch.cat([flow.log_prob(rows) for rows in table.test.split(4096)]).double().mean())
    return {
        "test": test,
        "validation": -state.progress.best_loss,
        "steps": state.progress.step,
        "curve": curve,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "start": curve[0][0] if curve else math.nan,
        "ended": ended,
        "stopped": state.progress.stop_reason,
        "error": "",
    }


def _mean_log_prob(rival: Any, points: torch.Tensor) -> float:
    rival.module.eval()
    with rival.within(), torch.no_grad():
        score = torch.cat([rival.log_prob(rows) for rows in points.split(2048)]).double().mean().item()
    rival.module.train()
    return float(score)


def _label(record: dict[str, Any]) -> str:
    return record["library"] if record["rate"] is None else f"{record['library']}, {record['rate']:g}"


def _report(name: str, records: list[dict[str, Any]], seconds: float, targets: list[Target]) -> None:
    """Print a line for each configuration, and add the targets."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((_label(record), record["seconds"]), []).append(record)
    rows = []
    medians: dict[tuple[str, float], float] = {}
    ended: dict[tuple[str, float], float] = {}
    for key, members in groups.items():
        tests = [r["test"] for r in members if not r["error"]]
        ended[key] = statistics.median([r["ended"] for r in members if not r["error"]] or [math.nan])
        medians[key] = statistics.median(tests) if tests else math.nan
        least, most = (min(tests), max(tests)) if tests else (math.nan, math.nan)
        rows.append(
            [
                key[0],
                f"{key[1]:g}",
                f"{members[0]['parameters']:,}",
                f"{statistics.median([r['start'] for r in members if not r['error']] or [math.nan]):.1f}",
                f"{ended[key]:.1f}",
                f"{statistics.median(r['steps'] for r in members):,.0f}",
                f"{medians[key]:.3f}" if tests else members[0]["error"],
                f"{least:.3f} to {most:.3f}" if len(tests) > 1 else "one run",
            ]
        )
    columns = ["", "budget s", "parameters", "first step s", "ended s", "steps", "test nats", "least to most"]
    measure.table(columns, rows, title=f"{name}: mean test log-likelihood in nats, standardised units")

    wanted = _best_of_nflows(records, seconds)
    if math.isnan(wanted):
        return
    for family in ("pushforward,", FIT):
        ours = [v for (label, budget), v in medians.items() if label.startswith(family) and budget == seconds]
        if name == "protein" and ours:
            what = FIT if family == FIT else "pushforward in the same loop, its better rate"
            targets.append(Target(f"protein, {seconds:g} s, {what}: nats above nflows", max(ours) - wanted, 1.0, False))
    reached = [ended[key] for key, value in medians.items() if key[0] == FIT and value >= wanted]
    earliest = min(reached, default=math.inf)
    targets.append(
        Target(f"{name}: seconds of {FIT} for nflows' {seconds:g} s ({wanted:.3f} nats)", earliest, seconds / 4)
    )
    for label in dict.fromkeys(label for label, _ in groups):
        times = [t for record in groups.get((label, seconds), []) for t, score in record["curve"] if score >= wanted]
        if times and not label.startswith("nflows"):
            print(f"{name}: validation of {label} ({seconds:g} s) passes {wanted:.3f} nats at {min(times):.1f} s")
    print()


def _best_of_nflows(records: Sequence[dict[str, Any]], seconds: float) -> float:
    """Median test score of nflows over seeds, at its better learning rate."""
    tests: dict[float, list[float]] = {}
    for record in records:
        if record["library"] == "nflows" and record["seconds"] == seconds and not record["error"]:
            tests.setdefault(record["rate"], []).append(record["test"])
    return max((statistics.median(scores) for scores in tests.values()), default=math.nan)


def _draw(name: str, records: list[dict[str, Any]], seconds: float, folder: Path) -> None:
    """Draw validation curves over wall-clock time, and test scores at the end of each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"pushforward": "#1b6ca8", FIT: "#d1495b", "nflows": "#555555", "zuko": "#3a8f5c"}
    styles = ("-", "--", ":", "-.")
    rates = sorted({r["rate"] for r in records if r["rate"] is not None})
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    labelled: set[str] = set()
    for record in records:
        if record["error"] or not record["curve"]:
            continue
        is_small = record["seconds"] != seconds
        colour = colours.get(record["library"], "#8a6fb0")
        style = "-" if record["rate"] is None else styles[rates.index(record["rate"]) % len(styles)]
        label = _label(record)
        times, scores = zip(*record["curve"], strict=True)
        axes.plot(
            times,
            scores,
            style,
            color=colour,
            alpha=0.45 if is_small else 0.9,
            linewidth=1.0 if is_small else 1.7,
            label=None if is_small or label in labelled else label,
        )
        if not is_small:
            labelled.add(label)
        axes.plot(record["ended"], record["test"], "o", color=colour, markersize=5, markeredgecolor="white")
    wanted = _best_of_nflows(records, seconds)
    if not math.isnan(wanted):
        axes.axhline(wanted, color=colours["nflows"], linewidth=0.8, alpha=0.6)
    # The first scores are far below all others and are cut off.
    ends = [r["test"] for r in records if math.isfinite(r["test"])]
    if ends:
        low, high = min(ends), max(ends)
        seen = [s for r in records for _, s in r["curve"] if math.isfinite(s)]
        margin = max(high - low, 0.5)
        axes.set_ylim(max(min(seen), low - 1.2 * margin), max(*seen, high) + 0.15 * margin)
    axes.set_xlim(0, 1.03 * max([seconds, *(r["ended"] for r in records if not r["error"])]))
    axes.set_xlabel("wall-clock seconds, compiling included")
    axes.set_ylabel("mean log-likelihood, nats (standardised)")
    axes.set_title(f"{name}: validation curves; dots are test scores at the end of a run", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"quality-{name}.png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
