"""How do time and memory grow with rows, features, layers and bins?

    python benchmarks/scaling.py [--quick] [--flow nsf-ar] [--repeats 7] [--out]

Every measurement is a fresh process with one operation (a training step, a log_prob or a sample) of one flow of one
library. Time is the median over repeats. Memory is the peak of resident memory minus that before the operation, from
``/proc/self/status`` after resetting the peak (elsewhere from ``getrusage``, which cannot be reset). pushforward and
nflows take turns. The number of rows varies for log_prob only; features, layers and bins for all three, at 512 rows (64
samples). Exponents are slopes of straight lines through the logarithms of the upper half of each axis, where constant
costs matter least.
"""

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
from measure import Target

LIBRARIES = ("pushforward", "nflows")
OPERATIONS = ("step", "log_prob", "sample")
BASE = {"rows": 512, "features": 8, "layers": 5, "bins": 8}
AXES: dict[str, list[int]] = {
    "rows": [256, 1024, 4096, 16384, 65536],
    "features": [2, 4, 8, 16, 32, 64],
    "layers": [1, 2, 4, 8, 16],
    "bins": [4, 8, 16, 32, 64],
}
QUICK_AXES: dict[str, list[int]] = {
    "rows": [512, 16384],
    "features": [4, 36],
    "layers": [2, 8],
    "bins": [4, 32],
}
SAMPLE_POINTS = 64


def main() -> None:
    parser = measure.parser(__doc__, repeats=7)
    parser.add_argument("--flow", default="nsf-ar", choices=("realnvp", "maf", "nsf-c", "nsf-ar"))
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument(
        "--point-seconds", type=float, default=10.0, help="time limit of the repeats of one measurement"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(point(**json.loads(arguments.worker))))
        return
    axes = QUICK_AXES if arguments.quick else AXES
    if arguments.quick:
        arguments.repeats = min(arguments.repeats, 3)
        arguments.point_seconds = min(arguments.point_seconds, 2.0)
        if "--operations" not in sys.argv:
            arguments.operations = ["step", "log_prob"]
    facts = measure.machine(arguments.threads, ["nflows"])
    measure.print_header(facts)
    print(f"{arguments.flow}; except for the axis: {BASE}, 128 hidden, 2 blocks, float32\n")

    records: list[dict[str, Any]] = []
    for axis in arguments.axes:
        for operation in ["log_prob"] if axis == "rows" else arguments.operations:
            for value in axes[axis]:
                for library in LIBRARIES:
                    options = (
                        {"library": library, "flow": arguments.flow, "operation": operation} | BASE | {axis: value}
                    )
                    options |= {"repeats": arguments.repeats, "seconds": arguments.point_seconds}
                    options |= {"threads": facts["threads"]}
                    records.append(_in_fresh_process(options) | {"axis": axis, "value": value})
            _report(axis, operation, records)
    _slopes(records)
    if arguments.out:
        _draw(records, arguments.flow, arguments.out)
    targets: list[Target] = []
    measure.write_json(arguments.out, "scaling", facts, records, targets)


def _in_fresh_process(options: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return options | {"median": math.nan, "times": [], "memory_mb": math.nan, "parameters": 0, "error": last[:160]}
    record: dict[str, Any] = options | json.loads(done.stdout.strip().splitlines()[-1]) | {"error": ""}
    return record


def point(
    library: str,
    flow: str,
    operation: str,
    rows: int,
    features: int,
    layers: int,
    bins: int,
    repeats: int,
    seconds: float,
    threads: int,
) -> dict[str, Any]:
    """Make one measurement; called in a fresh process."""
    import rivals
    import torch

    torch.set_num_threads(threads)
    rival = rivals.build(library, flow, features, rivals.Sizes(layers=layers, bins=bins), away=0.02)
    x = torch.randn(rows, features)

    def make(points: torch.Tensor, number: int) -> Any:
        if operation == "step":
            return rival.step(points)
        return rival.scoring(points) if operation == "log_prob" else rival.sampling(number)

    rival.module.train(operation == "step")
    make(x[:8], 8)()  # loads and compiles, at a size that hardly changes the peak of memory
    call = make(x, SAMPLE_POINTS)
    gc.collect()
    before = _reset_peak()
    call()
    peak = _peak_mb() - before
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < repeats and (len(times) < 3 or time.perf_counter() - began < seconds):
        times.append(measure.wall(call, 1))
    return {"median": statistics.median(times), "times": times, "memory_mb": peak, "parameters": rival.size}


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def _reset_peak() -> float:
    """Reset the peak of resident memory if the system can; return the current value in megabytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_mb("VmRSS")
    except OSError:
        return _peak_mb()


def _peak_mb() -> float:
    try:
        return _status_mb("VmHWM")
    except OSError:
        import resource

        unit = 1024 * 1024 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _of(records: Sequence[dict[str, Any]], axis: str, operation: str, library: str) -> list[dict[str, Any]]:
    wanted = (axis, operation, library)
    return [r for r in records if (r["axis"], r["operation"], r["library"]) == wanted and math.isfinite(r["median"])]


def _report(axis: str, operation: str, records: Sequence[dict[str, Any]]) -> None:
    found = [r for r in records if (r["axis"], r["operation"]) == (axis, operation)]
    rows = []
    for value in dict.fromkeys(r["value"] for r in found):
        ours, peer = (next(r for r in found if (r["library"], r["value"]) == (name, value)) for name in LIBRARIES)
        rows.append(
            [
                f"{value:,}",
                *(measure.milliseconds(r["median"]) for r in (ours, peer)),
                *(_range(r["times"]) for r in (ours, peer)),
                _times(peer["median"] / ours["median"]),
                *(_megabytes(r["memory_mb"]) for r in (ours, peer)),
                *(f"{r['parameters']:,}" for r in (ours, peer)),
            ]
        )
    names = ("pushforward", "nflows")
    columns = [axis, *(f"{n} ms" for n in names), "least-most", "least-most", "times ours"]
    columns += [*(f"{n} MB" for n in names), *(f"{n} parameters" for n in names)]
    measure.table(columns, rows, title=f"{operation} against {axis}: median milliseconds, peak memory above the start")
    for record in found:
        if record["error"]:
            print(f"{record['library']}, {axis} {record['value']:,}: {record['error']}\n")


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}"


def _megabytes(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}" if value >= 0.1 else "<0.1"


def _range(times: Sequence[float]) -> str:
    return f"{measure.milliseconds(min(times))}-{measure.milliseconds(max(times))}" if times else "-"


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Fit a line by least squares through the logarithms of the upper half of the points; return its slope."""
    upper = [(math.log(x), math.log(y)) for x, y in points[-max(2, (len(points) + 1) // 2) :] if x > 0 and y > 0]
    if len(upper) < 2:
        return math.nan
    x_mean, y_mean = (statistics.fmean(p[i] for p in upper) for i in (0, 1))
    spread = sum((x - x_mean) ** 2 for x, _ in upper)
    return sum((x - x_mean) * (y - y_mean) for x, y in upper) / spread


def _slopes(records: Sequence[dict[str, Any]]) -> None:
    rows = []
    for axis, operation in dict.fromkeys((r["axis"], r["operation"]) for r in records):
        cells = []
        for key in ("median", "memory_mb"):
            for library in LIBRARIES:
                slope = _slope([(r["value"], r[key]) for r in _of(records, axis, operation, library) if r[key] > 0.001])
                cells.append("-" if math.isnan(slope) else f"{slope:.2f}")
        rows.append([f"{operation} against {axis}", *cells])
    measure.table(["", "ours, time", "nflows, time", "ours, memory", "nflows, memory"], rows, title="fitted exponents")


def _draw(records: Sequence[dict[str, Any]], flow: str, folder: Path) -> None:
    """Draw time (above) and memory (below) over each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    colours = {"step": "#d1495b", "log_prob": "#1b6ca8", "sample": "#3a8f5c"}
    styles = {"pushforward": ("-", "o"), "nflows": ("--", "s")}
    axes_named = list(dict.fromkeys(r["axis"] for r in records))
    figure, grid = plt.subplots(
        2, len(axes_named), figsize=(3.6 * len(axes_named) + 1, 6.4), layout="constrained", squeeze=False, sharey="row"
    )
    for column, axis in enumerate(axes_named):
        for row, (key, scale) in enumerate((("median", 1e3), ("memory_mb", 1.0))):
            panel = grid[row][column]
            for operation in OPERATIONS:
                for library, (style, marker) in styles.items():
                    found = [r for r in _of(records, axis, operation, library) if r[key] > 0.1 or key == "median"]
                    if not found:
                        continue
                    x, y = [r["value"] for r in found], [scale * r[key] for r in found]
                    slope = _slope(list(zip(x, y, strict=True)))
                    label = f"{operation}, {library}" + ("" if math.isnan(slope) else f" ({slope:.2f})")
                    panel.loglog(
                        x, y, style, color=colours[operation], marker=marker, markersize=4, linewidth=1.4, label=label
                    )
            values = sorted({r["value"] for r in records if r["axis"] == axis})
            panel.xaxis.set_major_locator(FixedLocator(values))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticklabels([f"{v // 1024}k" if v >= 1024 and v % 1024 == 0 else str(v) for v in values])
            panel.grid(alpha=0.25, which="both")
            panel.set_xlabel(axis)
            panel.legend(fontsize=6.5, loc="upper left")
            if column == 0:
                panel.set_ylabel("milliseconds" if row == 0 else "peak megabytes above the start")
    for row, (key, scale) in zip(grid, (("median", 1e3), ("memory_mb", 1.0)), strict=True):
        seen = [scale * r[key] for r in records if math.isfinite(r[key]) and r[key] > (0.1 if key != "median" else 0.0)]
        if seen:  # room above the curves for the legends
            low, high = min(seen) / 1.5, max(seen)
            row[0].set_ylim(low, high * (high / low) ** 0.5)
    figure.suptitle(f"{flow}: solid ours, dashed nflows; in brackets the fitted exponent", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "scaling.png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
