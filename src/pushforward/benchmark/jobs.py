"""Jobs of a benchmark: one method on one division of one data set; their commands and their results."""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pushforward.benchmark.methods import Method, parse_method
from pushforward.benchmark.suites import Dequantize, Suite, set_name
from pushforward.common.plugins import VARIABLE
from pushforward.common.text import as_argument

Status = Literal["finished", "failed"]


class Task(NamedTuple):
    """A data set of the table: with its values as they are, or dequantized.

    Attributes:
        source: Name or path of the data set.
        dequantize: ``data.dequantize``.
    """

    source: str
    dequantize: Dequantize


class Job(NamedTuple):
    """A method on one division of a data set, with one seed.

    Attributes:
        source: Name or path of the data set.
        dequantize: ``data.dequantize``.
        fold: Number of the division of the rows.
        seed: Seed of the fit.
        method: The method, as :attr:`Method.spec` names it.
    """

    source: str
    dequantize: Dequantize
    fold: int
    seed: int
    method: str

    @property
    def task(self) -> Task:
        """Its data set in the table."""
        return Task(self.source, self.dequantize)

    @property
    def split(self) -> tuple[str, str, int, int]:
        """Data set, fold and seed: the baselines with the same ones run in one process."""
        return self.source, self.dequantize, self.fold, self.seed

    @property
    def folder(self) -> str:
        """Name of its run folder, unique among jobs."""
        path = Path(self.source)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-.") or "data"
        if len(path.parts) > 1:  # files in different folders may have the same name
            name += "-" + hashlib.sha256(self.source.encode()).hexdigest()[:6]
        suffix = "" if self.dequantize == "off" else "-dequantized"
        return f"{name}{suffix}-f{self.fold}-s{self.seed}-{parse_method(self.method).slug}"

    def data_overrides(self, suite: Suite) -> list[str]:
        """Return the configuration keys that determine its rows."""
        keys = [f"data.dequantize={self.dequantize}"]
        chosen = (("columns", suite.columns), ("drop", suite.drop))
        keys += [f"data.{key}={as_argument(names)}" for key, names in chosen if names]
        if suite.protocol != "none":
            return [*keys, f"data.protocol={suite.protocol}", f"data.fold={self.fold}"]
        # Fixed parts take no seed; without a protocol every value of data.seed is a division.
        return keys if suite.most_folds == 1 else [*keys, f"data.seed={self.fold}"]


@dataclass(frozen=True)
class Budget:
    """The training budget of each fit, in seconds or in steps, and its hardware.

    Attributes:
        seconds: Training time; None if the budget is in steps.
        steps: Training steps; None if the budget is in seconds.
        threads: Threads of a fit.
        device: Device of a fit.
    """

    seconds: float | None = 60.0
    steps: int | None = None
    threads: int = 1
    device: str = "auto"

    def overrides(self, method: Method) -> list[str]:
        """Return the configuration keys of the budget; none if the method has its own."""
        if method.has_own_budget:
            return []
        return [f"train.seconds={self.seconds:g}" if self.seconds is not None else f"train.steps={self.steps}"]

    def __str__(self) -> str:
        """As in ``60 s on 1 thread``."""
        amount = f"{self.seconds:g} s" if self.seconds is not None else f"{self.steps:,} steps"
        return f"{amount} on {self.threads} thread{'s' if self.threads != 1 else ''}"


@dataclass(frozen=True)
class BenchmarkPlan:
    """The jobs of a benchmark: every method on every division of every data set.

    Attributes:
        suite: The suite.
        tasks: The data sets.
        folds: Divisions of each data set.
        seeds: Seeds of the fits on each division.
        methods: The methods.
        budget: The budget of each fit.
    """

    suite: Suite
    tasks: tuple[Task, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    budget: Budget

    @property
    def jobs(self) -> list[Job]:
        """All jobs, fold by fold: if a benchmark ends early, all methods have the same folds except the last one."""
        return [
            Job(task.source, task.dequantize, fold, seed, method.spec)
            for fold in self.folds
            for seed in self.seeds
            for task in self.tasks
            for method in self.methods
        ]


@dataclass(frozen=True)
class JobResult:
    """The result of a job: a line of ``jobs.jsonl``.

    Log-densities are in nats and in the units of the data; ``log_scale`` added to them gives those of columns
    standardised on the training part.

    Attributes:
        source: See :class:`Job`.
        dequantize: See :class:`Job`.
        fold: See :class:`Job`.
        seed: See :class:`Job`.
        method: See :class:`Job`.
        status: ``finished`` or ``failed``.
        reason: Why it failed.
        log_prob: Mean log-density of the test rows.
        log_prob_se: Its standard error over the rows.
        log_scale: Sum of the logarithms of the columns' standard deviations on the training part.
        rows: Number of rows in each part.
        features: Number of modelled columns.
        flow: The fitted model.
        parameters: Number of its parameters.
        steps: Training steps; None for a method without steps.
        seconds: Training time.
        wall_seconds: Time of the whole process, which the baselines of one split share.
        threads: Threads of the process.
        stop_reason: Why training ended.
        detail: The settings that the method chose, in words.
        scores: File with the log-density of every test row, relative to the folder of the benchmark.
        fingerprint: Hash of the test rows.
        is_drawn: Whether each fold has rows that are drawn anew, as of a toy.
        sha256: Checksum of the data file; empty if there is none.
        notes: Notes on the data from reading them.
        command: The command of the job.
        version: Version of the program, with the commit if known.
        ended: When it ended.
    """

    source: str
    dequantize: Dequantize
    fold: int
    seed: int
    method: str
    status: Status
    reason: str = ""
    log_prob: float | None = None
    log_prob_se: float | None = None
    log_scale: float = 0.0
    rows: Mapping[str, int] = field(default_factory=dict)
    features: int | None = None
    flow: str = ""
    parameters: int | None = None
    steps: int | None = None
    seconds: float | None = None
    wall_seconds: float | None = None
    threads: int | None = None
    stop_reason: str = ""
    detail: str = ""
    scores: str = ""
    fingerprint: str = ""
    is_drawn: bool = False
    sha256: str = ""
    notes: tuple[str, ...] = ()
    command: str = ""
    version: str = ""
    ended: str = ""

    @property
    def test_share(self) -> float:
        """Number of test rows divided by the number of all other rows."""
        test = self.rows.get("test", 0)
        others = sum(self.rows.values()) - test
        return test / others if others else 0.0

    @property
    def job(self) -> Job:
        """Its job."""
        return Job(self.source, self.dequantize, self.fold, self.seed, self.method)

    def to_line(self) -> str:
        """Return the result as a line of JSON."""
        from pushforward.common.files import json_safe

        return json.dumps(json_safe(asdict(self)), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "JobResult":
        """Make a result from the values of a line; keys that this version does not know are left out.

        Raises:
            TypeError: If a value is missing.
        """
        known = {field.name for field in fields(cls)}
        kept: dict[str, Any] = {key: value for key, value in values.items() if key in known}
        kept["notes"] = tuple(kept.get("notes", ()))
        return cls(**kept)


def fit_command(job: Job, suite: Suite, budget: Budget, out: Path) -> list[str]:
    """Return the arguments of ``pushforward`` for a job of the kind ``fit``."""
    method = parse_method(job.method)
    files = [part for file in method.files_for(set_name(job.source)) for part in ("-c", file)]
    common = [*job.data_overrides(suite), *budget.overrides(method), "train.evaluate=false"]
    # The keys of the method come last, so that its own budget counts.
    keys = [*common, *method.overrides, "--seed", str(job.seed), "--device", budget.device, "--wandb", "off"]
    return ["fit", job.source, *files, *keys, "--out", str(out)]


def worker_argument(jobs: Sequence[Job], suite: Suite, budget: Budget, folders: Sequence[Path]) -> str:
    """Return the argument of :mod:`pushforward.benchmark.worker` for jobs of one split, of other kinds than ``fit``."""
    first = jobs[0]
    return json.dumps(
        {
            "source": first.source,
            "overrides": first.data_overrides(suite),
            "seed": first.seed,
            "methods": [job.method for job in jobs],
            "folders": [str(folder) for folder in folders],
            "seconds": budget.seconds,
            "steps": budget.steps,
            "device": budget.device,
        }
    )


def shell_command(arguments: Sequence[str], budget: Budget) -> str:
    """Return a command as a line of the shell, with the number of threads and the plugins."""
    plugins = [f"{VARIABLE}={os.environ[VARIABLE]}"] if os.environ.get(VARIABLE) else []
    return shlex.join(["env", f"OMP_NUM_THREADS={budget.threads}", *plugins, *arguments])


def python() -> str:
    """Return the path of the Python interpreter that runs the jobs."""
    return sys.executable or "python"
