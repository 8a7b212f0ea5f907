"""How much time does recording metrics cost a fit, with and without Weights & Biases?

    python benchmarks/dashboards.py [--quick] [--repeats 5] [--out]

The same fits, with the same number of steps, run in turns in fresh processes: Weights & Biases off, offline, and online
with a server on the loopback interface that answers after 50 ms. The times of training and of the whole command without
evaluation are compared. All of them write rows of metrics; their cost (metrics of single layers included) is measured
by comparing a fit that writes one in 25 steps with a fit that writes none.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from measure import Target

ROOT = Path(__file__).resolve().parent.parent
TARGET_SHARE = 0.03
_DELAY_SECONDS = 0.05
_SHORTEST_DEFAULT_SECONDS = 10.0
# A toy has the shortest steps, so rows are written most often; the digits have the most columns of the built-in data.
# The short fit measures the cost of the start in seconds, which is smaller than the variation of long fits.
CASES = {"moons": ("moons", 1_500), "digits": ("digits", 1_200), "start": ("digits", 300)}
MODES = ("off", "offline", "online")


def main() -> None:
    parser = measure.parser(__doc__, repeats=5)
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; repeatable")
    parser.add_argument("--mode", choices=(*MODES[1:], "no rows"), action="append", help="only this mode; repeatable")
    arguments = parser.parse_args()
    repeats = 2 if arguments.quick else arguments.repeats
    facts = measure.machine(arguments.threads, ["wandb"])
    measure.print_header(facts)
    records, targets = [], []
    for name in arguments.case or CASES:
        data, steps = CASES[name]
        steps = steps // 2 if arguments.quick else steps
        fits: dict[str, list[dict[str, float]]] = {
            mode: [] for mode in ("off", *(arguments.mode or (*MODES[1:], "no rows")))
        }
        for repeat in range(repeats):
            order = list(fits)
            for mode in order[repeat % len(order) :] + order[: repeat % len(order)]:
                fits[mode].append(_fit(data, steps, mode))
        rows = []
        for mode in fits:
            cells = [f"{statistics.median(one['training'] for one in fits[mode]):.2f}"]
            for part in ("training", "command"):
                shares = [100 * (a[part] / b[part] - 1) for a, b in zip(fits[mode], fits["off"], strict=True)]
                cells += (
                    []
                    if mode == "off"
                    else [f"{statistics.median(shares):+.1f} ({min(shares):+.1f} to {max(shares):+.1f})"]
                )
            if mode != "off":
                more = [a["training"] - b["training"] for a, b in zip(fits[mode], fits["off"], strict=True)]
                cells.append(f"{statistics.median(more):+.2f} ({min(more):+.2f} to {max(more):+.2f})")
            rows.append([f"{name}, {steps:,} steps, {mode}", *cells, *["" for _ in range(4 - len(cells))]])
            records.append({"case": name, "steps": steps, "mode": mode, "fits": fits[mode]})
        measure.table(["", "training, s", "against off, %", "whole command, %", "seconds more"], rows)
        for mode in [mode for mode in ("offline", "online") if mode in fits]:
            pairs = [(a["training"], b["training"]) for a, b in zip(fits[mode], fits["off"], strict=True)]
            if name == "start":
                more, most = statistics.median(a - b for a, b in pairs), TARGET_SHARE * _SHORTEST_DEFAULT_SECONDS
                targets.append(Target(f"seconds that W&B {mode} takes at the start", more, most))
                continue
            share = statistics.median(a / b - 1 for a, b in pairs)
            targets.append(Target(f"{name}: share of the training that W&B {mode} takes", share, TARGET_SHARE))
        if "no rows" in fits:
            share = statistics.median(
                b["training"] / a["training"] - 1 for a, b in zip(fits["no rows"], fits["off"], strict=True)
            )
            targets.append(Target(f"{name}: share of the training that rows of metrics take", share, TARGET_SHARE))
    measure.print_targets(targets)
    measure.write_json(arguments.out, "dashboards", facts, records, targets)


def _fit(data: str, steps: int, mode: str) -> dict[str, float]:
    """Return the times of training and of the whole command, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        environment = clean | {"HOME": str(home), "NETRC": str(home / "netrc")}
        environment["PUSHFORWARD_CACHE"] = os.environ.get(
            "PUSHFORWARD_CACHE", str(Path.home() / ".cache" / "pushforward")
        )
        words = [
            "fit",
            data,
            f"train.steps={steps}",
            "train.patience=1",
            "train.evaluate=false",
            "--seed",
            "0",
            "--json",
        ]
        words += [f"train.log_every={steps}"] if mode == "no rows" else []
        words += ["--out", "run", "--wandb", "off" if mode == "no rows" else mode]
        if mode != "online":
            return _timed(words, folder, environment)
        sys.path.insert(0, str(ROOT))
        from tests.fixtures.wandb_server import WandbServer

        with WandbServer(home) as server:
            server.delay = _DELAY_SECONDS
            return _timed(words, folder, environment | server.environment | {"OMP_NUM_THREADS": ""})


def _timed(words: list[str], folder: str, environment: dict[str, str]) -> dict[str, float]:
    environment = {key: value for key, value in environment.items() if value}
    before = time.perf_counter()
    command = [sys.executable, "-m", "pushforward", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - before
    if done.returncode:
        raise SystemExit(f"dashboards: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"training": float(results["seconds"]), "command": seconds}


if __name__ == "__main__":
    main()
