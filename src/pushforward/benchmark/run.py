"""Data sets, methods and published numbers in one table: what `pushforward benchmark` does.

A benchmark is a folder (:mod:`pushforward.benchmark.folder`). What is run is decided by :func:`benchmark_plan`,
run by :func:`run_benchmark`, and told as ``table.txt``, ``table.json`` and ``table.html`` and, where Weights & Biases
records, as a run of the job type ``benchmark``.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Budget, Column, Plan, Result
from pushforward.benchmark.methods import Method, parse_methods
from pushforward.benchmark.scheduler import JobScheduler
from pushforward.benchmark.sources import column_names, missing_sets, read_sources
from pushforward.benchmark.suites import FILES, Suite, chosen_folds, chosen_sets, labels, set_name, suite_of
from pushforward.benchmark.table import BenchmarkTable, build_table
from pushforward.benchmark.table_data import long_table, table_dict
from pushforward.common.errors import ConfigError, RunError
from pushforward.config.read import load_config

JOB_TYPE = "benchmark"

_DEQUANTIZE: Mapping[str, tuple[Any, ...]] = {"off": ("off",), "auto": ("auto",), "both": ("off", "auto")}


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark leaves.

    Attributes:
        path: The folder.
        table: What was found so far.
        signum: The signal that ended it, None if none did.
        stopped: Why it ended before all cells had; empty where it did not.
        location: Where Weights & Biases has it; None where it does not record.
    """

    path: Path
    table: BenchmarkTable
    signum: int | None = None
    stopped: str = ""
    location: str | None = None


@dataclass(frozen=True)
class Request:
    """What is to be run, and what cannot be.

    Attributes:
        plan: The cells.
        missing: Data sets that are not there, by label, and what to do.
        notes: Methods that are left out, and why.
    """

    plan: Plan
    missing: Mapping[str, str]
    notes: tuple[str, ...]


def benchmark_plan(
    arguments: Sequence[str],
    *,
    sets: str | None = None,
    methods: Sequence[str] = (),
    folds: str | None = None,
    seeds: int = 1,
    protocol: str | None = None,
    columns: str | None = None,
    drop: str | None = None,
    dequantize: str | None = None,
    seconds: float | None = 60.0,
    steps: int | None = None,
    jobs: int = 1,
    device: str = "auto",
) -> Request:
    """Decide what is run.

    Args:
        arguments: A suite, or data sets and files.
        sets: Some of its data sets, with commas.
        methods: What is compared, lists with commas; those of the suite if not given.
        folds: Divisions of the rows, as in ``0-9``; those of the suite if not given.
        seeds: Fits of each division.
        protocol: ``data.protocol`` for data sets and files.
        columns: ``data.columns`` for them.
        drop: ``data.drop`` for them.
        dequantize: ``off``, ``auto`` or ``both``; what the suite says if not given.
        seconds: Time of a fit.
        steps: Steps of a fit, in place of that.
        jobs: Fits side by side, which share the cores.
        device: Where they run.

    Raises:
        ConfigError: If something is unknown or contradicts something else.
    """
    suite = suite_of(arguments, protocol, columns=column_names("columns", columns), drop=column_names("drop", drop))
    check_device(device)
    if (seconds is None) == (steps is None):
        raise ConfigError("benchmark: expected seconds or steps for a fit")
    sources = suite.sets if sets is None else chosen_sets(suite, [name.strip() for name in sets.split(",")])
    missing = missing_sets(sources)
    names = labels(suite.sets)
    kept, notes = list[Method](), list[str]()
    for method in parse_methods(methods or suite.methods):
        if method.missing_package:
            notes.append(f"{method.label} is left out: {method.library} is not installed, pip install {method.library}")
        else:
            kept.append(method)
            if any("{set}" in file for file in method.files):
                _check_set_names(sources)
                for source in sources:
                    method.config(source, set_name(source))
    measured = [
        Column(source, value)
        for source in sources
        if source not in missing
        for value in _DEQUANTIZE[dequantize or suite.dequantize]
    ]
    plan = Plan(
        suite,
        tuple(measured),
        suite.folds if folds is None else chosen_folds(suite, folds),
        tuple(range(seeds)),
        tuple(kept),
        Budget(seconds, steps, threads_of(jobs), device),
    )
    return Request(plan, {names[source]: why for source, why in missing.items()}, tuple(notes))


def run_benchmark(
    request: Request,
    out: Path | None = None,
    *,
    jobs: int = 1,
    seconds: float | None = None,
    is_retry: bool = False,
    wandb: str = "off",
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Benchmark:
    """Run what has not been run, and write the table.

    Args:
        request: What is to be run.
        out: The folder; ``runs/benchmark-SUITE`` if not given.
        jobs: Fits side by side.
        seconds: Time for everything, from now on; None for no limit.
        is_retry: Whether to try again what has failed.
        wandb: Where Weights & Biases records: ``auto``, ``online``, ``offline`` or ``off``.
        tell: Takes a line for each cell that ends, and for what is left out.
        progress: Told how many cells have ended, of how many, and what runs.

    Raises:
        DataError: If none of the data sets is there, and the folder has no result either; or if one that the user
            named cannot be used.
        RunUsageError: If the folder holds something else.
        RunError: If it cannot be written, or no cell has finished and none is left.
    """
    plan, suite = request.plan, request.plan.suite
    checksums = read_sources(plan)
    with BenchmarkFolder.open(out or default_folder(suite), suite, plan.budget) as folder:
        for text in (*(f"{name}: {why}" for name, why in request.missing.items()), *request.notes):
            tell(text)
        folder.keep_one_data(checksums)
        for text in _set_aside(folder):
            tell(text)
        if not plan.cells and not folder.results:
            _nothing(request)
        tracker = _Tracker(folder, plan, wandb, tell)
        session = JobScheduler(
            plan,
            folder,
            jobs=jobs,
            seconds=seconds,
            is_retry=is_retry,
            checksums=checksums,
            tell=tell,
            progress=progress,
            recorded=tracker.result,
        )
        code = 1
        try:
            session.run()
            code = 0 if session.signum is None else 128 + session.signum
        finally:
            # Also after an error, or a second Ctrl-C: what is there is told.
            folder.keep_one_data(checksums)  # a file may also have changed meanwhile
            ended = [f"ended early: {session.stopped}"] if session.stopped else []
            notes = [*request.notes, *_set_aside(folder), *ended]
            table = build_table(
                folder, suite, plan.cells, left=session.cells_left, missing=request.missing, notes=notes
            )
            with contextlib.suppress(RunError) if code == 1 else contextlib.nullcontext():
                write_table_files(folder, table)
            tracker.finish(table, code)
        if table.is_empty and session.signum is None and not session.stopped:
            failed = next((r.reason for r in table.results if r.status == "failed"), "")
            raise RunError(f"no cell has finished: {failed}; see {folder.path / 'logs'}")
        return Benchmark(folder.path, table, session.signum, session.stopped, tracker.location)


def write_table_files(folder: BenchmarkFolder, table: BenchmarkTable) -> None:
    """Write the table as text, JSON and a page.

    Raises:
        RunError: If one cannot be written.
    """
    from pushforward.benchmark.page import benchmark_page
    from pushforward.benchmark.text import table_lines

    folder.write("table.txt", "\n".join(table_lines(table)) + "\n")
    folder.write("table.json", json.dumps(table_dict(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    folder.write("table.html", benchmark_page(table))


def default_folder(suite: Suite) -> Path:
    """Where a benchmark works unless told otherwise; the same for the same arguments, so that it goes on."""
    name = suite.name
    if name == FILES:
        name = "-".join(label.replace("/", "-") for label in list(labels(suite.sets).values())[:3])
        name += f"-and-{len(suite.sets) - 3}-more" if len(suite.sets) > 3 else ""
    return Path("runs") / f"benchmark-{name}"


def threads_of(jobs: int) -> int:
    """Threads of each of so many fits side by side: their share of the cores, within ``OMP_NUM_THREADS``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // jobs)
    with contextlib.suppress(KeyError, ValueError):
        threads = max(1, min(threads, int(os.environ["OMP_NUM_THREADS"])))
    return threads


def check_device(name: str) -> None:
    """Complain of a device that is no name of one, or is not here, before anything is run.

    Raises:
        ConfigError: As `pushforward fit` does.
    """
    load_config("iris", overrides=[f"device={name}"])
    if name not in ("auto", "cpu"):
        from pushforward.train.device import choose_device  # takes torch

        choose_device(name)


class _Tracker:
    """The benchmark as one run of Weights & Biases: its cells as they end, and the table."""

    def __init__(self, folder: BenchmarkFolder, plan: Plan, mode: str, tell: Callable[[str], None]) -> None:
        from pushforward.tracking.wandb.tracker import WandbTracker, wandb_mode

        self._suite, self._names = plan.suite, labels(plan.suite.sets)
        self._step = len(folder.results)
        self._tracker = None
        if wandb_mode(mode) != "off":
            budget = plan.budget
            config = {"suite": plan.suite.name, "seconds": budget.seconds, "steps": budget.steps}
            config |= {"threads": budget.threads, "device": budget.device, "folds": len(plan.folds)}
            config |= {"methods": ", ".join(m.spec for m in plan.methods), "sets": ", ".join(self._names.values())}
            self._tracker = WandbTracker(
                folder.path,
                config,
                mode=mode,
                name=folder.path.resolve().name,
                tags=(JOB_TYPE, plan.suite.name),
                job_type=JOB_TYPE,
                warn=lambda text: tell(f"warning: {text}"),
            )

    @property
    def location(self) -> str | None:
        """Where the run is."""
        return None if self._tracker is None else self._tracker.location

    def result(self, result: Result) -> None:
        """Record the score of a cell."""
        self._step += 1
        if self._tracker is None or result.log_prob is None:
            return
        scale = result.log_scale if self._suite.units == "standardized" else 0.0
        score = self._suite.sign * (result.log_prob + scale)
        key = f"cells/{self._names.get(result.source, result.source)}/{result.method}"
        values = {key: score, "cells/ended": float(self._step)}
        self._tracker.log(values, self._step, seconds=result.wall_seconds or 0.0, kind=JOB_TYPE)

    def finish(self, table: BenchmarkTable, code: int) -> None:
        """Record the table, and wait until that is done."""
        if self._tracker is None:
            return
        columns, rows = long_table(table)
        self._tracker.table("tables/benchmark", columns, rows, step=self._step)
        summary = {
            f"score/{table.labels[column]}/{spec}": table.suite.sign * entry.score.mean
            for (column, spec), entry in table.entries.items()
            if entry.score is not None
        }
        self._tracker.summary(summary | {"cells": len(table.results), "cells_left": table.left})
        self._tracker.finish(code)


def _check_set_names(sources: Sequence[str]) -> None:
    """Complain where ``{set}`` would stand for two of the data sets."""
    known: dict[str, str] = {}
    for source in sources:
        other = known.setdefault(set_name(source), source)
        if other != source:
            raise ConfigError(
                f"--methods: {{set}} would be {set_name(source)} for {other} and for {source}; rename one of them, or "
                "give each a benchmark of its own"
            )


def _set_aside(folder: BenchmarkFolder) -> list[str]:
    """What is said of cells of other data."""
    names = labels(list(folder.set_aside))
    return [
        f"{names[source]}: the data have changed since {count} run{'s were' if count > 1 else ' was'} made; "
        f"{'they are' if count > 1 else 'it is'} set aside, and run again when asked for"
        for source, count in folder.set_aside.items()
    ]


def _nothing(request: Request) -> None:
    from pushforward.common.errors import DataError

    if request.missing:
        names = ", ".join(request.missing)
        first = next(iter(request.missing.values()))
        raise DataError(f"{request.plan.suite.name}: none of its data sets is here ({names}): {first}")
    raise ConfigError(f"--methods: nothing is left to compare: {'; '.join(request.notes)}")
