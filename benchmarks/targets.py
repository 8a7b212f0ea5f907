"""How well do flows fit unnormalised densities, and does the path gradient improve it?

    python benchmarks/targets.py [--quick] [--seconds 60] [--repeats 3] [--out]

Fits by the command, each in a fresh process, one after the other. First, targets in two dimensions with the defaults:
log Z beside its known value. Second, ManyWell-32 and the mixture in six dimensions: the same flow for the same time
with the path-wise and with the path gradient, which take turns, over seeds: effective sample sizes from samples of the
flow (reverse) and of the target (forward).
"""

import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import measure
from measure import Target

PLANAR = ("double-well", "double-well-2", "u1", "u2", "u3", "u4")
HARD = {"many-well": 32, "gaussian-mixture": 6}
GRADIENTS = ("path-wise", "path")
LOG_Z_ERROR = 0.05


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="time of each fit to a hard target")
    parser.add_argument("--flow", default="nsf-ar", help="flow of the hard targets")
    parser.add_argument("--only", choices=("planar", "hard"), help="only this part")
    arguments = parser.parse_args()
    seconds = 10.0 if arguments.quick else arguments.seconds
    facts = measure.machine(arguments.threads, ["nflows"])
    measure.print_header(facts)
    records: list[dict[str, Any]] = []
    targets: list[Target] = []
    if arguments.only != "hard":
        rows = []
        for name in PLANAR:
            found = _fit(name, ["--seed", "0"])
            records.append(found)
            error = abs(found["log_z"] - found["log_z_known"])
            targets.append(Target(f"{name}: error of log Z, nats", error, LOG_Z_ERROR))
            z = f"{found['log_z']:.4f} ± {found['log_z_se']:.4f}"
            shares = [f"{found[key]:.3f}" for key in ("reverse_ess", "forward_ess")]
            rows.append([name, f"{found['log_z_known']:.4f}", z, *shares, f"{found['seconds']:.0f}"])
        measure.table(["defaults", "log Z", "estimate", "reverse ESS", "forward ESS", "s"], rows)
    if arguments.only != "planar":
        rows = []
        for name, features in HARD.items():
            fits: dict[str, list[dict[str, Any]]] = {gradient: [] for gradient in GRADIENTS}
            for seed in range(1 if arguments.quick else arguments.repeats):
                for gradient in GRADIENTS[:: 1 if seed % 2 else -1]:
                    keys = [f"target.features={features}", f"flow={arguments.flow}", f"train.seconds={seconds:g}"]
                    fits[gradient].append(_fit(name, [*keys, f"train.gradient={gradient}", "--seed", str(seed)]))
            for gradient, found in fits.items():
                records += found
                off = [f"{one['log_z'] - one['log_z_known']:+.3f}" for one in found]
                cells = [_spread([one[key] for one in found]) for key in ("reverse_ess", "forward_ess", "kl_to_truth")]
                steps = f"{statistics.median(one['steps'] for one in found):,.0f}"
                rows.append([f"{name}, {features}, {gradient}", *cells, ", ".join(off), steps])
        head = [f"{seconds:g} s", "reverse ESS", "forward ESS", "KL(target || flow)", "log Z off by", "steps"]
        measure.table(head, rows)
    measure.print_targets(targets)
    measure.write_json(arguments.out, "targets", facts, records, targets)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _fit(name: str, words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pushforward", "fit", f"target:{name}", *words, "train.evaluate=false"]
        command += ["--wandb", "off", "--json", "--out", "run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"targets: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"words": words}


if __name__ == "__main__":
    main()
