"""Measuring and printing for the benchmarks: interleaved timing, a header about the machine, tables, JSON.

Calls take turns within each repeat, and a different one begins each time, so that a busy or hot machine slows all of
them alike. Ratios are medians of the ratios within the repeats. The first call and the rest of the warm-up are reported
separately: compilation is a cost, but not of every step.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_SHORTEST_SAMPLE_SECONDS = 0.01
_FEWEST_REPEATS = 3


@dataclass
class Times:
    """Seconds of a call in each repeat, and of the warm-up before."""

    first_seconds: float = 0.0
    warmup_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def ratio(self, other: "Times") -> float:
        """Median over the repeats of this time divided by the other in the same repeat."""
        pairs = list(zip(self.seconds, other.seconds, strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else float("nan")


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmups: int = 3,
    budget_seconds: float = 30.0,
    clock: Callable[[Callable[[], object], int], float] | None = None,
) -> dict[str, Times]:
    """Time calls in turns.

    Args:
        calls: The calls by name.
        repeats: Number of rounds with one turn of every call; a turn repeats a short call for about 10 ms.
        warmups: Calls before the first round; a call of more than a second is warmed up once.
        budget_seconds: No new round begins after this time, but there are at least three.
        clock: Returns the seconds of a number of calls; None for the wall clock.

    Returns:
        The times of one call by name; for a call that raised, the error and no times.
    """
    clock = clock or wall
    all_times = {name: Times() for name in calls}
    turns: dict[str, int] = {}
    for name, call in calls.items():
        times = all_times[name]
        try:
            times.first_seconds = times.warmup_seconds = last = clock(call, 1)
            for _ in range(warmups - 1 if last < 1.0 else 0):
                last = clock(call, 1)
                times.warmup_seconds += last
        except Exception as error:  # a library without the operation is a line in the table
            times.error = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            continue
        turns[name] = max(1, min(100, int(_SHORTEST_SAMPLE_SECONDS / max(last, 1e-7))))
    began = time.perf_counter()
    names = list(turns)
    for repeat in range(repeats):
        if repeat >= _FEWEST_REPEATS and time.perf_counter() - began > budget_seconds:
            break
        first = repeat % max(1, len(names))
        for name in names[first:] + names[:first]:
            times = all_times[name]
            if times.error:
                continue
            try:
                times.seconds.append(clock(calls[name], turns[name]) / turns[name])
            except Exception as error:
                times.error = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
                times.seconds.clear()
    return all_times


def wall(call: Callable[[], object], number: int) -> float:
    """Seconds of a number of calls by the wall clock."""
    before = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - before


def parser(description: str | None, *, repeats: int = 15) -> argparse.ArgumentParser:
    """Return a parser with the options of every script."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a small version: a minute or two")
    made.add_argument("--threads", type=int, help="threads of torch, the same for all (default: torch's default)")
    made.add_argument("--repeats", type=int, default=repeats, help=f"number of rounds (default {repeats})")
    made.add_argument(
        "--out",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help=f"write JSON and pictures to this folder (without a value: {RESULTS.parent.name}/{RESULTS.name})",
    )
    return made


def _without_folders(arguments: Sequence[str]) -> list[str]:
    """The arguments with file names instead of paths, which have no meaning on another machine."""
    return [Path(word).name if "/" in word else word for word in arguments]


def machine(threads: int | None = None, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Return facts about versions and machine; set the number of threads if given."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    versions = {}
    for name in ("pushforward", "torch", *libraries):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *_without_folders(sys.argv[1:])]),
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def print_header(facts: Mapping[str, Any]) -> None:
    """Print date, command, versions and machine."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    load = "/".join(f"{value:g}" for value in facts["load_average"])
    print(f"{facts['date']}: {facts['command']}")
    print(f"python {facts['python']}, {versions}")
    print(f"{facts['cpu']}, {facts['cpus']} CPUs, {facts['threads']} threads, {facts['system']}; load average {load}")
    if facts["load_average"] and facts["load_average"][0] > 0.5:
        print("other programs are running: ratios are reliable, milliseconds are not")
    print(flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Print an aligned Markdown table; the first column is text, the others are numbers."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(name), 3, *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]

    def line(row: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(aligned)} |"

    if title:
        print(f"{title}\n")
    print(line(columns))
    print(
        "|" + "|".join("-" * (width + 2) if not i else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    )
    for row in cells:
        print(line(row))
    print(flush=True)


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds with at least three digits."""
    value = 1e3 * seconds
    if value != value:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(times: Times) -> str:
    """Format the quartiles in milliseconds."""
    low, high = times.quartiles
    return f"{milliseconds(low)}-{milliseconds(high)}" if times.seconds else times.error or "-"


TIME_COLUMNS = ("parameters", "first call", "warm-up", "median", "quartiles", "rounds", "times ours")


def time_cells(times: Times, parameters: int | None, ours: Times | None) -> list[str]:
    """Return the table cells for ``TIME_COLUMNS``, in milliseconds."""
    return [
        "" if parameters is None else f"{parameters:,}",
        milliseconds(times.first_seconds),
        milliseconds(times.warmup_seconds),
        milliseconds(times.median),
        spread(times),
        str(len(times.seconds)),
        "" if ours is None or not times.seconds or not ours.seconds else f"{times.ratio(ours):.2f}",
    ]


@dataclass(frozen=True)
class Target:
    """A bound that the project has set itself, and the measured value."""

    what: str
    measured: float
    bound: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound


def print_targets(targets: Sequence[Target]) -> None:
    """Print measured values beside their bounds."""
    if targets:
        rows = [
            [
                target.what,
                f"{target.measured:.3g}",
                f"{'at most' if target.at_most else 'at least'} {target.bound:.3g}",
                "yes" if target.met else "NO",
            ]
            for target in targets
        ]
        table(["target", "measured", "wanted", "met"], rows)


def write_json(
    folder: Path | None, name: str, facts: Mapping[str, Any], results: Any, targets: Sequence[Target]
) -> None:
    """Write all measurements to ``folder/name.json``; do nothing without a folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"machine": facts, "results": results, "targets": [asdict(t) | {"met": t.met} for t in targets]}
    path.write_text(json.dumps(_finite(content), indent=1) + "\n")
    print(f"written: {path}")


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by None for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _cpu() -> str:
    with contextlib.suppress(OSError):
        facts: dict[str, str] = {}
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
        if "model name" in facts:
            return f"{facts['model name']} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"
    return platform.processor() or platform.machine()
