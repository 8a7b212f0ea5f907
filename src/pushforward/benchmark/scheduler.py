"""The running of a benchmark: which cells, in which order, in which processes, and until when."""

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
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pushforward.benchmark.folder import BenchmarkFolder, program_version
from pushforward.benchmark.jobs import (
    Cell,
    Plan,
    Result,
    fit_command,
    in_shell,
    python,
    read_scores,
    worker_order,
)
from pushforward.benchmark.methods import parse_method
from pushforward.benchmark.sources import as_options
from pushforward.common.errors import RunError
from pushforward.experiment.signals import StopOnSignal

_CHILD = "pushforward.benchmark.child"
_WORKER = "pushforward.benchmark.worker"
# Before any cell of a kind has ended: Python, imports, reading, kernels and scores, in seconds.
_AROUND_A_FIT, _BASELINES = 20.0, 30.0
# Beyond the time of everything, how long a cell that was thought to fit may still take.
_GRACE, _GRACE_SHARE = 30.0, 0.1
_POLL = 0.05


@dataclass(eq=False)
class Job:
    """A process: one trained method, or the baselines of one split together."""

    cells: list[Cell]
    kind: str
    folders: list[Path] = field(default_factory=list)
    command: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    log: Path | None = None
    began: float = 0.0
    limit: float = math.inf

    @property
    def source(self) -> str:
        """The data set."""
        return self.cells[0].source


class JobScheduler:
    """Runs the cells of a plan that have no result yet.

    Args:
        plan: What is to be run.
        folder: Where everything is kept.
        jobs: Processes side by side.
        seconds: Time for all of it, from now on; None for no limit.
        is_retry: Whether cells that have failed are tried again.
        checksums: SHA-256 of the files of the data sets, as far as they have one.
        tell: Takes a line for each cell that ends.
        progress: Told how many cells have ended, of how many, and what runs.
        recorded: Told of each new result.

    Attributes:
        signum: The signal that ended it, None if none did.
        stopped: Why it ended before all cells had; empty where it did not.
    """

    def __init__(
        self,
        plan: Plan,
        folder: BenchmarkFolder,
        *,
        jobs: int = 1,
        seconds: float | None = None,
        is_retry: bool = False,
        checksums: Mapping[str, str] | None = None,
        tell: Callable[[str], None] = lambda text: None,
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
        recorded: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self.plan, self.folder = plan, folder
        self.signum: int | None = None
        self.stopped = ""
        self._version, self._checksums = program_version(), checksums or {}
        self._most = jobs
        self._until = math.inf if seconds is None else time.monotonic() + seconds
        self._grace = 0.0 if seconds is None else max(_GRACE, _GRACE_SHARE * seconds)
        self._tell, self._progress, self._recorded = tell, progress, recorded
        cells = plan.cells
        self._total = len(cells)
        done = {c for c, result in folder.results.items() if result.status == "finished" or not is_retry}
        self._waiting = _grouped([cell for cell in cells if cell not in done])
        self._ended = self._total - sum(len(job.cells) for job in self._waiting)
        self._live: list[Job] = []

    def run(self) -> None:
        """Run until there is nothing left, the time is over, or a signal comes.

        Raises:
            RunError: If the record cannot be written.
            KeyboardInterrupt: At the second Ctrl-C.
        """
        try:
            with StopOnSignal() as signals:
                while True:
                    self._start_jobs()
                    if not self._live:
                        break
                    time.sleep(_POLL)
                    for job in list(self._live):
                        self._look_at(job)
                    if signals.signum is not None:
                        self.signum, self.stopped = signals.signum, "stopped by a signal"
                        break
                    if time.monotonic() > self._until + self._grace:
                        self.stopped = "the time for everything is over"
                        break
        finally:
            for job in list(self._live):
                self._kill(job)
                self._forget(job)

    @property
    def cells_left(self) -> int:
        """Cells without a result."""
        return self._total - self._ended

    def _start_jobs(self) -> None:
        while self._waiting and len(self._live) < self._most and not self.stopped:
            job = self._waiting[0]
            if time.monotonic() + self._expected(job) > self._until:
                self.stopped = "the time for everything is over"
                return
            self._waiting.pop(0)
            self._start(job)
            self._live.append(job)
            self._show()

    def _start(self, job: Job) -> None:
        plan, budget = self.plan, self.plan.budget
        job.folders = [self.folder.free_run(cell) for cell in job.cells]
        if job.kind == "fit":
            arguments = fit_command(job.cells[0], plan.suite, budget, job.folders[0])
            job.command, module = in_shell(["pushforward", *arguments], budget), "pushforward"
            arguments = [*arguments, "--json"]
        else:
            arguments = [worker_order(job.cells, plan.suite, budget, job.folders)]
            job.command, module = in_shell([python(), "-m", _WORKER, *arguments], budget), _WORKER
        # A method that says itself how long it is fitted takes as long as it says.
        own = any(parse_method(cell.method).has_own_budget for cell in job.cells)
        if budget.seconds is not None and not own:
            job.limit = 3.0 * budget.seconds + 300.0
        environment = dict(os.environ) | {"OMP_NUM_THREADS": str(budget.threads)}
        # A process group of its own: Ctrl-C in the terminal reaches the benchmark alone, which kills all of it at once.
        alone: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        job.log = self.folder.log(job.cells[0])
        job.began = time.monotonic()
        try:
            with open(job.log, "wb") as log:
                job.process = subprocess.Popen(
                    [python(), "-m", _CHILD, module, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment,
                    **alone,
                )
        except OSError as error:
            raise RunError(f"{job.log}: cannot start a fit: {error.strerror or error}") from None

    def _look_at(self, job: Job) -> None:
        """Take in what came of a job if it has ended."""
        assert job.process is not None
        code = job.process.poll()
        wall = time.monotonic() - job.began
        trouble = ""
        if code is None:
            if wall < job.limit:
                return
            self._kill(job)
            trouble = f"not done after {wall:.0f} s"
        elif code != 0:
            trouble = as_options(_last_words(job, code), self.plan.suite)
        self._live.remove(job)
        self._close(job)
        for cell, folder in zip(job.cells, job.folders, strict=True):
            result = self._result(job, cell, folder, trouble, wall)
            self.folder.add(result)
            self._ended += 1
            self._tell(self._line(result))
            self._recorded(result)
        self._show()

    def _result(self, job: Job, cell: Cell, folder: Path, trouble: str, wall: float) -> Result:
        base: dict[str, Any] = cell._asdict() | {
            "wall_seconds": round(wall, 3),
            "threads": self.plan.budget.threads,
            "command": job.command,
            "version": self._version,
            "sha256": self._checksums.get(cell.source, ""),
            "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        if trouble:
            return Result(**base, status="failed", reason=trouble)
        try:
            facts = _facts_of_fit(folder) if job.kind == "fit" else _json(folder / "result.json")
            _, log_probs = read_scores(folder / "test_scores.parquet")
        except (RunError, OSError, ValueError, KeyError, TypeError) as error:
            text = f"left no scores of test rows: {' '.join(str(error).split())}"
            return Result(**base, status="failed", reason=text)
        from pushforward.benchmark.scores import mean_and_se

        mean, se = mean_and_se(log_probs)
        kept = {key: value for key, value in facts.items() if key in Result.__dataclass_fields__}
        kept["notes"] = tuple(kept.get("notes", ()))
        scores = (folder / "test_scores.parquet").relative_to(self.folder.path).as_posix()
        return Result(**base | kept, status="finished", log_prob=mean, log_prob_se=se, scores=scores)

    def _line(self, result: Result) -> str:
        """One line on a cell that has ended."""
        suite, cell = self.plan.suite, result.cell
        from pushforward.benchmark.suites import labels

        both = len({column.dequantize for column in self.plan.columns}) > 1
        name = labels(suite.sets).get(cell.source, cell.source)
        name += ", spread" if both and cell.dequantize == "auto" else ""
        where = f"{name}, {suite.fold_word} {cell.fold}" + (f", seed {cell.seed}" if len(self.plan.seeds) > 1 else "")
        what = f"[{self._ended}/{self._total}] {where}, {parse_method(cell.method).label}: "
        if result.status == "failed":
            return f"{what}failed: {result.reason}"
        scale = result.log_scale if suite.units == "standardized" else 0.0
        mean = math.nan if result.log_prob is None else suite.sign * (result.log_prob + scale)
        error = "" if result.log_prob_se is None else f" ± {result.log_prob_se:.3f}"
        steps = "" if result.steps is None else f", {result.steps:,} steps"
        return f"{what}{mean:.3f}{error}{steps}, {result.wall_seconds or 0.0:.0f} s"

    def _expected(self, job: Job) -> float:
        """How long a job will take, from those like it, else from the budget."""
        if self._until == math.inf:
            return 0.0
        results = [r for r in self.folder.results.values() if r.status == "finished" and r.wall_seconds is not None]
        methods = {cell.method for cell in job.cells}
        same = [r for r in results if r.method in methods]
        near = [r for r in same if r.source == job.source] or same
        if near:
            return max(r.wall_seconds or 0.0 for r in near)
        seconds = self.plan.budget.seconds or 0.0
        return min(seconds, 60.0) + _BASELINES if job.kind == "baseline" else seconds + _AROUND_A_FIT

    def _show(self) -> None:
        running = ", ".join(f"{Path(job.source).stem} {parse_method(job.cells[-1].method).label}" for job in self._live)
        self._progress(self._ended, self._total, running)

    def _kill(self, job: Job) -> None:
        assert job.process is not None
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(job.process.pid, signal.SIGKILL)
            else:
                job.process.kill()
        job.process.wait()

    def _close(self, job: Job) -> None:
        assert job.process is not None
        stream: IO[bytes] | None = job.process.stdin
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()

    def _forget(self, job: Job) -> None:
        """Remove what a killed job has begun: it will be run again from its start."""
        self._live.remove(job)
        self._close(job)
        for folder in job.folders:
            shutil.rmtree(folder, ignore_errors=True)


def _grouped(cells: Sequence[Cell]) -> list[Job]:
    """Cells as processes: baselines of a split are fitted together, where the first of them stands."""
    jobs: list[Job] = []
    baselines: dict[tuple[Any, ...], Job] = {}
    for cell in cells:
        kind = parse_method(cell.method).kind
        if kind != "baseline":
            jobs.append(Job([cell], kind))
        elif cell.split in baselines:
            baselines[cell.split].cells.append(cell)
        else:
            baselines[cell.split] = Job([cell], kind)
            jobs.append(baselines[cell.split])
    return jobs


def _facts_of_fit(folder: Path) -> dict[str, Any]:
    """What a run folder says that a result holds."""
    results, schema = _json(folder / "results.json"), _json(folder / "schema.json")
    data, standardized = results["test_nll"], results["test_nll_standardized"]
    facts = {key: results[key] for key in ("features", "flow", "parameters", "steps", "seconds", "stop_reason")}
    return facts | {
        "rows": schema["rows"],
        # Where a row has no density the mean has no finite value, in any units.
        "log_scale": 0.0 if data is None or standardized is None else data - standardized,
        "fingerprint": results["test_rows_sha256"],
        "is_drawn": schema["source"] == "toy",
        "sha256": schema.get("sha256") or "",
        "notes": schema.get("notes", ()),
    }


def _json(path: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _last_words(job: Job, code: int) -> str:
    if code < 0:
        often = " (often: out of memory)" if code == -9 else ""
        return f"its process was ended by {signal.Signals(-code).name}{often}"
    lines: list[str] = []
    if job.log is not None:
        with contextlib.suppress(OSError):
            lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = re.sub(r"^(python -m )?pushforward fit: ", "", lines[-1].strip()) if lines else "no message"
    return last if len(last) <= 300 else f"{last[:297]}..."
