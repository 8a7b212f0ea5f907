"""Plan and run a benchmark: data sets, methods and published numbers in one table.

:func:`benchmark_plan` turns arguments into jobs, and :func:`run_benchmark` runs them in a folder
(:mod:`pushforward.benchmark.folder`). The result is ``table.txt``, ``table.json`` and ``table.html`` there, and with
Weights & Biases a run of the job type ``benchmark``.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import BenchmarkPlan, Budget, JobResult, Task
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
    """The result of :func:`run_benchmark`.

    Attributes:
        path: The folder.
        table: The table of all results so far.
        signum: The signal that ended it; None if none did.
        stopped: Why it ended before all jobs had; empty if it did not.
        location: URL or folder of the run of Weights & Biases; None without one.
    """

    path: Path
    table: BenchmarkTable
    signum: int | None = None
    stopped: str = ""
    location: str | None = None


@dataclass(frozen=True)
class Request:
    """The jobs that were asked for, and what is left out.

    Attributes:
        plan: The jobs.
        missing: Data sets that are not available, by label, and what to do.
        notes: Methods that are left out, and why.
    """

    plan: BenchmarkPlan
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
    parallel: int = 1,
    device: str = "auto",
) -> Request:
    """Make the jobs of a benchmark from the arguments of the command.

    Args:
        arguments: A suite, or data sets and files.
        sets: A selection of its data sets, separated by commas.
        methods: Methods in lists separated by commas; empty for those of the suite.
        folds: Divisions of the rows, as in ``0-9``; None for those of the suite.
        seeds: Fits on each division.
        protocol: ``data.protocol`` for data sets and files.
        columns: ``data.columns`` for data sets and files.
        drop: ``data.drop`` for data sets and files.
        dequantize: ``off``, ``auto`` or ``both``; None for that of the suite.
        seconds: Training time of a fit.
        steps: Training steps of a fit, instead of ``seconds``.
        parallel: Number of jobs in parallel, which share the cores.
        device: Device of the fits.

    Raises:
        ConfigError: If a name is unknown or arguments contradict each other.
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
                _check_unique_set_names(sources)
                for source in sources:
                    method.config(source, set_name(source))
    tasks = [
        Task(source, value)
        for source in sources
        if source not in missing
        for value in _DEQUANTIZE[dequantize or suite.dequantize]
    ]
    plan = BenchmarkPlan(
        suite,
        tuple(tasks),
        suite.folds if folds is None else chosen_folds(suite, folds),
        tuple(range(seeds)),
        tuple(kept),
        Budget(seconds, steps, threads_per_job(parallel), device),
    )
    return Request(plan, {names[source]: why for source, why in missing.items()}, tuple(notes))


def run_benchmark(
    request: Request,
    out: Path | None = None,
    *,
    parallel: int = 1,
    seconds: float | None = None,
    is_retry: bool = False,
    wandb: str = "off",
    notify: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Benchmark:
    """Run the jobs that have no result yet, and write the table.

    Args:
        request: The jobs.
        out: The folder; None for ``runs/benchmark-SUITE``.
        parallel: Number of jobs in parallel.
        seconds: Time limit of the whole benchmark, from now on; None for no limit.
        is_retry: Whether to run failed jobs again.
        wandb: Mode of Weights & Biases: ``auto``, ``online``, ``offline`` or ``off``.
        notify: Called with a line of text for each job that ends, and for each data set or method that is left out.
        progress: Called with the number of ended jobs, the number of all jobs, and a text about the running ones.

    Raises:
        DataError: If none of the data sets is available and the folder has no result, or if a data set that the user
            named cannot be read.
        RunUsageError: If the folder contains something else.
        RunError: If it cannot be written, or all jobs have failed.
    """
    plan, suite = request.plan, request.plan.suite
    checksums = read_sources(plan)
    with BenchmarkFolder.open(out or default_folder(suite), suite, plan.budget) as folder:
        for text in (*(f"{name}: {why}" for name, why in request.missing.items()), *request.notes):
            notify(text)
        folder.select_current_data(checksums)
        for text in _set_aside_notes(folder):
            notify(text)
        if not plan.jobs and not folder.results:
            _raise_nothing_to_run(request)
        tracker = _Tracker(folder, plan, wandb, notify)
        scheduler = JobScheduler(
            plan,
            folder,
            parallel=parallel,
            seconds=seconds,
            is_retry=is_retry,
            checksums=checksums,
            notify=notify,
            progress=progress,
            on_result=tracker.result,
        )
        code = 1
        try:
            scheduler.run()
            code = 0 if scheduler.signum is None else 128 + scheduler.signum
        finally:
            # Write the results so far also after an error or a second Ctrl-C.
            folder.select_current_data(checksums)  # a file may have changed in the meantime
            ended = [f"ended early: {scheduler.stopped}"] if scheduler.stopped else []
            notes = [*request.notes, *_set_aside_notes(folder), *ended]
            table = build_table(
                folder, suite, plan.jobs, jobs_left=scheduler.jobs_left, missing=request.missing, notes=notes
            )
            with contextlib.suppress(RunError) if code == 1 else contextlib.nullcontext():
                write_table_files(folder, table)
            tracker.finish(table, code)
        if table.is_empty and scheduler.signum is None and not scheduler.stopped:
            reason = next((r.reason for r in table.results if r.status == "failed"), "")
            raise RunError(f"no job has finished: {reason}; see {folder.path / 'logs'}")
        return Benchmark(folder.path, table, scheduler.signum, scheduler.stopped, tracker.location)


def write_table_files(folder: BenchmarkFolder, table: BenchmarkTable) -> None:
    """Write the table as text, JSON and HTML.

    Raises:
        RunError: If a file cannot be written.
    """
    from pushforward.benchmark.page import benchmark_page
    from pushforward.benchmark.text import table_lines

    folder.write("table.txt", "\n".join(table_lines(table)) + "\n")
    folder.write("table.json", json.dumps(table_dict(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    folder.write("table.html", benchmark_page(table))


def default_folder(suite: Suite) -> Path:
    """Return the default folder: the same for the same arguments, so that the benchmark is resumed."""
    name = suite.name
    if name == FILES:
        name = "-".join(label.replace("/", "-") for label in list(labels(suite.sets).values())[:3])
        name += f"-and-{len(suite.sets) - 3}-more" if len(suite.sets) > 3 else ""
    return Path("runs") / f"benchmark-{name}"


def threads_per_job(parallel: int) -> int:
    """Return the threads of each of ``parallel`` jobs: an equal share of the cores, at most ``OMP_NUM_THREADS``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // parallel)
    with contextlib.suppress(KeyError, ValueError):
        threads = max(1, min(threads, int(os.environ["OMP_NUM_THREADS"])))
    return threads


def check_device(name: str) -> None:
    """Check that a device exists, before anything runs.

    Raises:
        ConfigError: If the name is wrong or the device is not available.
    """
    load_config("iris", overrides=[f"device={name}"])
    if name not in ("auto", "cpu"):
        from pushforward.train.device import choose_device  # imports torch

        choose_device(name)


class _Tracker:
    """Records the benchmark as one run of Weights & Biases: the score of each job as it ends, and the table."""

    def __init__(self, folder: BenchmarkFolder, plan: BenchmarkPlan, mode: str, notify: Callable[[str], None]) -> None:
        from pushforward.tracking.wandb.tracker import WandbTracker, turned_off, wandb_mode

        self._suite, self._names = plan.suite, labels(plan.suite.sets)
        self._step = len(folder.results)
        self._tracker = None
        if variable := turned_off(mode):
            notify(f"W&B is off: {variable}")
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
                warn=lambda text: notify(f"warning: {text}"),
            )

    @property
    def location(self) -> str | None:
        """URL or folder of the run; None without one."""
        return None if self._tracker is None else self._tracker.location

    def result(self, result: JobResult) -> None:
        """Record the score of a job."""
        self._step += 1
        if self._tracker is None or result.log_prob is None:
            return
        scale = result.log_scale if self._suite.units == "standardized" else 0.0
        score = self._suite.sign * (result.log_prob + scale)
        key = f"jobs/{self._names.get(result.source, result.source)}/{result.method}"
        values = {key: score, "jobs/ended": float(self._step)}
        self._tracker.log(values, self._step, seconds=result.wall_seconds or 0.0, kind=JOB_TYPE)

    def finish(self, table: BenchmarkTable, code: int) -> None:
        """Record the table, and wait until it is written."""
        if self._tracker is None:
            return
        columns, rows = long_table(table)
        self._tracker.table("tables/benchmark", columns, rows, step=self._step)
        summary = {
            f"score/{table.labels[task]}/{spec}": table.suite.sign * entry.score.mean
            for (task, spec), entry in table.entries.items()
            if entry.score is not None
        }
        self._tracker.summary(summary | {"jobs": len(table.results), "jobs_left": table.jobs_left})
        self._tracker.finish(code)


def _check_unique_set_names(sources: Sequence[str]) -> None:
    """Check that ``{set}`` has a different value for each data set."""
    known: dict[str, str] = {}
    for source in sources:
        other = known.setdefault(set_name(source), source)
        if other != source:
            raise ConfigError(
                f"--methods: {{set}} would be {set_name(source)} for {other} and for {source}; rename one of them, or "
                "give each a benchmark of its own"
            )


def _set_aside_notes(folder: BenchmarkFolder) -> list[str]:
    """Notes on results that are left out because their data have changed."""
    names = labels(list(folder.set_aside))
    return [
        f"{names[source]}: the data have changed since {count} run{'s were' if count > 1 else ' was'} made; "
        f"{'they are' if count > 1 else 'it is'} set aside, and run again on request"
        for source, count in folder.set_aside.items()
    ]


def _raise_nothing_to_run(request: Request) -> None:
    from pushforward.common.errors import DataError

    if request.missing:
        names = ", ".join(request.missing)
        first = next(iter(request.missing.values()))
        raise DataError(f"{request.plan.suite.name}: none of its data sets is available ({names}): {first}")
    raise ConfigError(f"--methods: no method is left: {'; '.join(request.notes)}")
