"""Run the jobs of a benchmark: their order, their processes, and the time limits."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pushforward.benchmark.folder import BenchmarkFolder, program_version
from pushforward.benchmark.jobs import (
    BenchmarkPlan,
    Job,
    JobResult,
    fit_command,
    python,
    shell_command,
    worker_argument,
)
from pushforward.benchmark.methods import parse_method
from pushforward.benchmark.sources import in_benchmark_options
from pushforward.benchmark.suites import labels
from pushforward.common.errors import RunError
from pushforward.common.processes import ended_by, last_line
from pushforward.common.signals import StopOnSignal
from pushforward.common.text import one_line, shorten
from pushforward.evaluate.statistics import mean_and_se
from pushforward.runs.row_scores import read_row_scores

_CHILD = "pushforward.benchmark.child"
_WORKER = "pushforward.benchmark.worker"
# Expected seconds besides training, until a job of the kind has ended: Python, imports, data, kernels and scores.
_AROUND_A_FIT, _BASELINES = 20.0, 30.0
# How far a running job may exceed the total time: in seconds, and as a share of it.
_GRACE, _GRACE_SHARE = 30.0, 0.1
_POLL = 0.05


@dataclass(eq=False)
class RunningJob:
    """A running process: the job of a trained method, or the baselines of one split together.

    Attributes:
        jobs: The jobs of the process.
        folders: Their run folders.
        command: The command, for the record.
        process: The process.
        log: File with its stderr.
        began: Start time by the monotonic clock.
        limit: Seconds after which it is killed.
    """

    jobs: list[Job]
    folders: list[Path]
    command: str
    process: "subprocess.Popen[Any]"
    log: Path
    began: float
    limit: float


class JobScheduler:
    """Runs the jobs of a plan that have no result yet.

    Args:
        plan: The jobs.
        folder: The folder of the benchmark.
        parallel: Number of processes in parallel.
        seconds: Time limit of the whole benchmark, from now on; None for no limit.
        is_retry: Whether to run failed jobs again.
        checksums: SHA-256 of the files of the data sets that have one.
        notify: Called with a line of text for each job that ends.
        progress: Called with the number of ended jobs, the number of all jobs, and a text about the running ones.
        on_result: Called with each new result.

    Attributes:
        signum: The signal that ended the benchmark; None if none did.
        stopped: Why it ended before all jobs had; empty if it did not.
    """

    def __init__(
        self,
        plan: BenchmarkPlan,
        folder: BenchmarkFolder,
        *,
        parallel: int = 1,
        seconds: float | None = None,
        is_retry: bool = False,
        checksums: Mapping[str, str] | None = None,
        notify: Callable[[str], None] = lambda text: None,
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
        on_result: Callable[[JobResult], None] = lambda result: None,
    ) -> None:
        self.plan, self.folder = plan, folder
        self.signum: int | None = None
        self.stopped = ""
        self._version, self._checksums = program_version(), checksums or {}
        self._parallel = parallel
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds
        self._grace = 0.0 if seconds is None else max(_GRACE, _GRACE_SHARE * seconds)
        self._notify, self._progress, self._on_result = notify, progress, on_result
        jobs = plan.jobs
        self._total = len(jobs)
        done = {job for job, result in folder.results.items() if result.status == "finished" or not is_retry}
        self._waiting = group_jobs([job for job in jobs if job not in done])
        self._ended = self._total - sum(map(len, self._waiting))
        self._running: list[RunningJob] = []

    def run(self) -> None:
        """Run until no job is left, the time is over, or a signal comes.

        Raises:
            RunError: If the record cannot be written.
            KeyboardInterrupt: At the second Ctrl-C.
        """
        try:
            with StopOnSignal() as signals:
                while True:
                    self._start_jobs()
                    if not self._running:
                        break
                    time.sleep(_POLL)
                    for running in list(self._running):
                        self._check(running)
                    if signals.signum is not None:
                        self.signum, self.stopped = signals.signum, "stopped by a signal"
                        break
                    if time.monotonic() > self._deadline + self._grace:
                        self.stopped = "the time limit is reached"
                        break
        finally:
            for running in list(self._running):
                self._kill(running)
                self._discard(running)

    @property
    def jobs_left(self) -> int:
        """Number of jobs without a result."""
        return self._total - self._ended

    def expected_seconds(self, jobs: Sequence[Job]) -> float:
        """Estimate how long a process for these jobs takes: from results of the same methods, else from the budget."""
        results = [r for r in self.folder.results.values() if r.status == "finished" and r.wall_seconds is not None]
        methods = {job.method for job in jobs}
        same = [r for r in results if r.method in methods]
        near = [r for r in same if r.source == jobs[0].source] or same
        if near:
            return max(r.wall_seconds or 0.0 for r in near)
        seconds = self.plan.budget.seconds or 0.0
        return min(seconds, 60.0) + _BASELINES if _kind(jobs) == "baseline" else seconds + _AROUND_A_FIT

    def _start_jobs(self) -> None:
        while self._waiting and len(self._running) < self._parallel and not self.stopped:
            jobs = self._waiting[0]
            expected = 0.0 if self._deadline == math.inf else self.expected_seconds(jobs)
            if time.monotonic() + expected > self._deadline:
                self.stopped = "the time limit is reached"
                return
            self._waiting.pop(0)
            self._running.append(self._start(jobs))
            self._show_progress()

    def _start(self, jobs: list[Job]) -> RunningJob:
        plan, budget = self.plan, self.plan.budget
        folders = [self.folder.new_run_folder(job) for job in jobs]
        if _kind(jobs) == "fit":
            arguments = fit_command(jobs[0], plan.suite, budget, folders[0])
            command, module = shell_command(["pushforward", *arguments], budget), "pushforward"
            arguments = [*arguments, "--json"]
        else:
            arguments = [worker_argument(jobs, plan.suite, budget, folders)]
            command, module = shell_command([python(), "-m", _WORKER, *arguments], budget), _WORKER
        # A method with its own budget has no limit: it may take longer than the others.
        has_own_budget = any(parse_method(job.method).has_own_budget for job in jobs)
        limit = math.inf if budget.seconds is None or has_own_budget else 3.0 * budget.seconds + 300.0
        environment = dict(os.environ) | {"OMP_NUM_THREADS": str(budget.threads)}
        # A process group of its own: Ctrl-C in the terminal reaches the benchmark only, which then kills the group.
        own_group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        log_path = self.folder.log(jobs[0])
        began = time.monotonic()
        try:
            with open(log_path, "wb") as log:
                process = subprocess.Popen(
                    [python(), "-m", _CHILD, module, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment,
                    **own_group,
                )
        except OSError as error:
            raise RunError(f"{log_path}: cannot start a fit: {error.strerror or error}") from None
        return RunningJob(jobs, folders, command, process, log_path, began, limit)

    def _check(self, running: RunningJob) -> None:
        """Record the results of a process that has ended; kill one that has exceeded its limit."""
        code = running.process.poll()
        wall = time.monotonic() - running.began
        failure = ""
        if code is None:
            if wall < running.limit:
                return
            self._kill(running)
            failure = f"not done after {wall:.0f} s"
        elif code != 0:
            failure = in_benchmark_options(_last_output(running, code), self.plan.suite)
        self._running.remove(running)
        self._close(running)
        for job, folder in zip(running.jobs, running.folders, strict=True):
            result = self._result(running, job, folder, failure, wall)
            self.folder.add(result)
            self._ended += 1
            self._notify(self._line(result))
            self._on_result(result)
        self._show_progress()

    def _result(self, running: RunningJob, job: Job, folder: Path, failure: str, wall: float) -> JobResult:
        base: dict[str, Any] = job._asdict() | {
            "wall_seconds": round(wall, 3),
            "threads": self.plan.budget.threads,
            "command": running.command,
            "version": self._version,
            "sha256": self._checksums.get(job.source, ""),
            "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        if failure:
            return JobResult(**base, status="failed", reason=failure)
        try:
            facts = _facts_of_fit(folder) if _kind([job]) == "fit" else _read_json(folder / "result.json")
            _, log_probs = read_row_scores(folder / "test_scores.parquet")
            mean, se = mean_and_se(log_probs, where="test_scores.parquet")
        except (RunError, OSError, ValueError, KeyError, TypeError) as error:
            return JobResult(**base, status="failed", reason=f"left no scores of test rows: {one_line(error)}")
        kept = {key: value for key, value in facts.items() if key in JobResult.__dataclass_fields__}
        kept["notes"] = tuple(kept.get("notes", ()))
        scores = (folder / "test_scores.parquet").relative_to(self.folder.path).as_posix()
        return JobResult(**base | kept, status="finished", log_prob=mean, log_prob_se=se, scores=scores)

    def _line(self, result: JobResult) -> str:
        """A line about a job that has ended."""
        suite, job = self.plan.suite, result.job
        both = len({task.dequantize for task in self.plan.tasks}) > 1
        name = labels(suite.sets).get(job.source, job.source)
        name += ", dequantized" if both and job.dequantize == "auto" else ""
        where = f"{name}, {suite.fold_word} {job.fold}" + (f", seed {job.seed}" if len(self.plan.seeds) > 1 else "")
        head = f"[{self._ended}/{self._total}] {where}, {parse_method(job.method).label}: "
        if result.status == "failed":
            return f"{head}failed: {result.reason}"
        scale = result.log_scale if suite.units == "standardized" else 0.0
        mean = math.nan if result.log_prob is None else suite.sign * (result.log_prob + scale)
        error = "" if result.log_prob_se is None else f" ± {result.log_prob_se:.3f}"
        steps = "" if result.steps is None else f", {result.steps:,} steps"
        return f"{head}{mean:.3f}{error}{steps}, {result.wall_seconds or 0.0:.0f} s"

    def _show_progress(self) -> None:
        texts = (
            f"{Path(running.jobs[0].source).stem} {parse_method(running.jobs[-1].method).label}"
            for running in self._running
        )
        self._progress(self._ended, self._total, ", ".join(texts))

    def _kill(self, running: RunningJob) -> None:
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(running.process.pid, signal.SIGKILL)
            else:
                running.process.kill()
        running.process.wait()

    def _close(self, running: RunningJob) -> None:
        stream: IO[bytes] | None = running.process.stdin
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()

    def _discard(self, running: RunningJob) -> None:
        """Remove the run folders of a killed process: its jobs will start again."""
        self._running.remove(running)
        self._close(running)
        for folder in running.folders:
            shutil.rmtree(folder, ignore_errors=True)


def group_jobs(jobs: Sequence[Job]) -> list[list[Job]]:
    """Group jobs by process: the baselines of a split run together, at the place of the first one."""
    groups: list[list[Job]] = []
    baselines: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        if _kind([job]) != "baseline":
            groups.append([job])
        elif job.split in baselines:
            baselines[job.split].append(job)
        else:
            baselines[job.split] = [job]
            groups.append(baselines[job.split])
    return groups


def _kind(jobs: Sequence[Job]) -> str:
    """The kind of method of the jobs of a process."""
    return parse_method(jobs[0].method).kind


def _facts_of_fit(folder: Path) -> dict[str, Any]:
    """Read the values of a result from the run folder of a fit."""
    results, schema = _read_json(folder / "results.json"), _read_json(folder / "schema.json")
    data, standardized = results["test_nll"], results["test_nll_standardized"]
    facts = {key: results[key] for key in ("features", "flow", "parameters", "steps", "seconds", "stop_reason")}
    return facts | {
        "rows": schema["rows"],
        # If a row has no density, the mean is not finite in any units.
        "log_scale": 0.0 if data is None or standardized is None else data - standardized,
        "fingerprint": results["test_rows_sha256"],
        "is_drawn": schema["source"] == "toy",
        "sha256": schema.get("sha256") or "",
        "notes": schema.get("notes", ()),
    }


def _read_json(path: Path) -> Mapping[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _last_output(running: RunningJob, code: int) -> str:
    """The last line that a failed process wrote to its log, or the signal that ended it."""
    if code < 0:
        return ended_by(code)
    text = ""
    with contextlib.suppress(OSError):
        text = last_line(running.log.read_text(encoding="utf-8", errors="replace"))
    return shorten(re.sub(r"^(python -m )?pushforward fit: ", "", text) or "no message", 300)
