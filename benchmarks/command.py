"""How long does ``pushforward fit moons`` take, from the shell to its report?

    python benchmarks/command.py [--quick] [--repeats 3] [--data-set moons] [-- key=value ...]

Times the command in fresh processes, W&B off, with a new folder each time. The times of its phases follow from the
modification times of the files in the run folder; ``--cold`` starts every process with an empty kernel cache.
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

TARGET_SECONDS = 20.0
TARGET_MODULES = 90
# A phase ends when the first of these files is written.
PHASES = (
    ("start, data, flow", ("checkpoints/start/config.json", "checkpoints/start", "schema.json", "config.yaml")),
    ("training", ("results.json",)),
    ("evaluation", ("evaluation.json",)),
    ("pictures, samples", ("report.html", "samples/samples.csv")),
)


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--data-set", default="moons")
    parser.add_argument("--cold", action="store_true", help="start every process with an empty kernel cache")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="arguments of the command")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    facts = measure.machine(arguments.threads)
    measure.print_header(facts)
    print(f"pushforward fit {' '.join([arguments.data_set, *arguments.keys])} --wandb off --seed N\n")
    help_seconds = [_seconds(["--help"]) for _ in range(repeats)]
    records = []
    for repeat in range(repeats):
        record = _fit(arguments.data_set, arguments.keys, seed=repeat, threads=arguments.threads, cold=arguments.cold)
        records.append(record)
        print(f"  run {repeat + 1}: {record['seconds']:.1f} s", file=sys.stderr, flush=True)
    rows = [["pushforward --help", *_cells(help_seconds)]]
    for phase in dict.fromkeys(name for record in records for name in record["phases"]):
        rows.append([f"fit: {phase}", *_cells([r["phases"][phase] for r in records if phase in r["phases"]])])
    rows.append(["fit, from the shell to its end", *_cells([r["seconds"] for r in records])])
    measure.table(["", "median s", "least", "most"], rows)
    last = records[-1]["results"]
    facts_of_last = [
        f"{key} {last[key]:.4g}"
        for key in ("steps", "test_nll", "kl_to_truth")
        if isinstance(last.get(key), int | float)
    ]
    print(f"the last run: {', '.join(facts_of_last)}\n")
    whole = statistics.median(r["seconds"] for r in records)
    modules = _modules(arguments.data_set)
    print(
        f"modules of ours that a short fit loads, by room: {', '.join(f'{room} {n}' for room, n in modules.items())}\n"
    )
    targets = [
        Target(f"fit {arguments.data_set} from the shell to its report: seconds", whole, TARGET_SECONDS),
        Target(f"modules of ours that fit {arguments.data_set} loads", sum(modules.values()), TARGET_MODULES),
    ]
    measure.print_targets(targets)
    measure.write_json(arguments.out, "command", facts, records, targets)


def _cells(seconds: list[float]) -> list[str]:
    return [f"{value:.2f}" for value in (statistics.median(seconds), min(seconds), max(seconds))]


def _command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "pushforward", *words]


def _seconds(words: list[str]) -> float:
    before = time.perf_counter()
    subprocess.run(_command(words), capture_output=True, check=True)
    return time.perf_counter() - before


def _fit(data_set: str, keys: list[str], *, seed: int, threads: int | None, cold: bool) -> dict[str, Any]:
    """Fit in a fresh process; return its time, the times of its phases, and its results."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        if cold:
            environment["PUSHFORWARD_CACHE"] = str(Path(folder) / "cache")
        out = Path(folder) / "run"
        words = ["fit", data_set, *keys, "--out", str(out), "--seed", str(seed), "--wandb", "off", "--json"]
        # In a temporary folder: the repository's folders would shadow packages of the same names.
        began, before = time.time(), time.perf_counter()
        done = subprocess.run(_command(words), capture_output=True, text=True, cwd=folder, env=environment, check=False)
        seconds = time.perf_counter() - before
        if done.returncode:
            raise SystemExit(f"command: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
        phases: dict[str, float] = {}
        reached = began
        for phase, files in PHASES:
            written = [(out / name).stat().st_mtime for name in files if (out / name).exists()]
            if written:
                phases[phase] = max(0.0, written[0] - reached)
                reached = max(reached, written[0])
        phases["leaving"] = max(0.0, began + seconds - reached)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        results = json.loads(lines[-1]) if lines else json.loads((out / "results.json").read_text())
        return {"seconds": seconds, "phases": phases, "results": results}


_COUNT = """
import collections, json, sys
from pushforward.cli import main
main(sys.argv[1:], standalone_mode=False)
rooms = [
    ".".join(name.split(".")[1:3] if name.count(".") > 2 else name.split(".")[1:2])
    for name, module in sys.modules.items()
    if name.startswith("pushforward.") and not module.__file__.endswith("__init__.py")
]
print(json.dumps(dict(collections.Counter(rooms).most_common())))
"""


def _modules(data_set: str) -> dict[str, int]:
    """Count the files of the package that a short fit imports, by room; the ``__init__`` of packages do not count."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", data_set, "data.rows=500", "train.steps=5", "--out", "run", "--wandb", "off"]
        command = [sys.executable, "-c", _COUNT, *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


if __name__ == "__main__":
    main()
