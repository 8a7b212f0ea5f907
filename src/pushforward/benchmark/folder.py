"""The folder of a benchmark: its conditions, and the results of its jobs so far.

``benchmark.json`` contains the conditions, ``environment.json`` the environment of the first command, ``jobs.jsonl`` a
line for each job that has ended, written at once, ``runs/`` the run folders of the jobs, ``logs/`` the output of their
processes. Jobs with a result are not run again, so the same command resumes the benchmark. Methods, data sets, folds
and seeds can be added later; the conditions cannot change.
"""

import contextlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pushforward.benchmark.jobs import Budget, Job, JobResult, Task
from pushforward.benchmark.methods import PEERS
from pushforward.benchmark.suites import Suite
from pushforward.common.errors import RunError, RunUsageError, reason
from pushforward.common.files import report_write_errors, write_text
from pushforward.common.git import git
from pushforward.common.text import as_argument
from pushforward.common.version import PACKAGE, __version__
from pushforward.runs.folder import RunFolder, making_folder

_RECORD = "benchmark.json"
_CONDITION_NAMES = {"seconds": "--seconds", "steps": "--steps", "protocol": "--protocol", "threads": "threads of a fit"}
_CONDITION_NAMES |= {"columns": "--columns", "drop": "--drop"}


class BenchmarkFolder:
    """The folder of a benchmark, locked by this process; close it, or use it as a context manager.

    Make one with :meth:`open`.

    Attributes:
        path: The folder.
        results: The last result of each job, without results from other versions of the data.
        set_aside: Number of results that are left out because their data have changed, by source.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[Job, JobResult] = {}
        self.set_aside: dict[str, int] = {}
        self._record: list[JobResult] = []
        self._lock = RunFolder(path)

    @classmethod
    def open(cls, path: Path, suite: Suite, budget: Budget) -> "BenchmarkFolder":
        """Make the folder, or open one with the same conditions.

        Raises:
            RunUsageError: If it contains something else, or a benchmark with other conditions.
            RunError: If it cannot be read or written, or another process uses it.
        """
        folder = cls(Path(path))
        is_new = not (folder.path / _RECORD).exists()
        conditions = _conditions(suite, budget)
        if is_new:
            with making_folder(folder.path, "the folder", "and it holds no benchmark; name another one with --out"):
                folder._lock.claim()
            try:
                for name in ("runs", "logs"):
                    (folder.path / name).mkdir()
                folder._lock.write_environment(0, budget.device)
                started = datetime.now().astimezone().isoformat(timespec="seconds")
                folder._lock.write_json(_RECORD, {"conditions": conditions, "started": started} | _machine())
            except OSError as error:
                folder.close()
                raise RunError(f"{folder.path}: cannot make the folder: {reason(error)}") from None
            return folder
        folder._check_conditions(conditions)
        folder._lock.claim()
        try:
            folder._read_results()
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def results_file(self) -> Path:
        """The file of results, one JSON object a line."""
        return self.path / "jobs.jsonl"

    @property
    def facts(self) -> Mapping[str, Any]:
        """The content of ``benchmark.json``."""
        facts: dict[str, Any] = _read_json(self.path / _RECORD)
        return facts

    def add(self, result: JobResult) -> None:
        """Record a result; it is on the disk when this returns.

        Raises:
            RunError: If it cannot be written.
        """
        with report_write_errors(self.results_file), open(self.results_file, "ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            line = result.to_line().encode()
            try:
                if file.write(line) != len(line):
                    raise OSError(28, "no space left on device")
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
        self._record.append(result)
        self.results[result.job] = result

    def select_current_data(self, checksums: Mapping[str, str]) -> None:
        """Keep only the results on the current data in ``results``: scores of other rows cannot be compared.

        Results belong to the same data if the checksum of the file is the same, and for each fold and seed the test
        rows. The record itself keeps all results: if a file is restored, they count again.

        Args:
            checksums: Current SHA-256 of the file by source; for other sources that of the last result counts.
        """
        last = {result.source: result.sha256 for result in self._record if result.sha256}
        current = last | dict(checksums)
        same = [r for r in self._record if not r.sha256 or r.sha256 == current[r.source]]
        # Data without a file, and results from before checksums were recorded, are identified by their test rows.
        rows = {_division(result): result.fingerprint for result in same if result.status == "finished"}
        same = [r for r in same if r.status != "finished" or r.fingerprint == rows[_division(r)]]
        self.results = {result.job: result for result in same}
        left_out = {result.job for result in self._record} - self.results.keys()
        self.set_aside = dict(Counter(job.source for job in sorted(left_out)))

    def new_run_folder(self, job: Job) -> Path:
        """Return a path for the run folder of a job that does not exist yet; earlier attempts keep theirs."""
        first = self.path / "runs" / job.folder
        path, attempt = first, 1
        while path.exists():
            attempt += 1
            path = first.with_name(f"{first.name}-{attempt}")
        return path

    def log(self, job: Job) -> Path:
        """Return the log file of the process of a job."""
        return self.path / "logs" / f"{job.folder}.txt"

    def write(self, name: str, text: str) -> Path:
        """Write a file atomically, in place of an earlier one.

        Raises:
            RunError: If it cannot be written.
        """
        return write_text(self.path / name, text)

    def close(self) -> None:
        """Release the lock of the folder."""
        self._lock.release()

    def __enter__(self) -> "BenchmarkFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_conditions(self, conditions: Mapping[str, Any]) -> None:
        try:
            found = _read_json(self.path / _RECORD)["conditions"]
            differing = [key for key in conditions if found.get(key) != conditions[key]]
        except (KeyError, AttributeError, TypeError):
            raise RunError(f"{self.path / _RECORD}: expected the conditions of a benchmark; it is damaged") from None
        if differing:
            differences = "; ".join(
                f"{_CONDITION_NAMES.get(k, k)} {_format(found.get(k))}, not {_format(conditions[k])}" for k in differing
            )
            raise RunUsageError(
                f"{self.path}: holds a benchmark under other conditions: {differences}; name another --out"
            )

    def _read_results(self) -> None:
        """Read the record; remove an incomplete last line, left by a process that was killed while writing."""
        try:
            content = self.results_file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"{self.results_file}: cannot read: {reason(error)}") from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                result = JobResult.from_dict(json.loads(line))
            except (ValueError, TypeError, AttributeError):
                raise RunError(f"{self.results_file} line {number}: expected a job; got {line[:40]!r}") from None
            self._record.append(result)
        self.select_current_data({})
        if len(whole) < len(content):
            with report_write_errors(self.results_file):
                os.truncate(self.results_file, len(whole))


def _conditions(suite: Suite, budget: Budget) -> dict[str, Any]:
    """Return the conditions that are the same for all jobs; threads count only if the budget is in seconds."""
    conditions = {"suite": suite.name, "protocol": suite.protocol, "seconds": budget.seconds, "steps": budget.steps}
    conditions |= {"device": budget.device}
    # None without a choice, as in older folders, which do not have these keys.
    conditions |= {"columns": as_argument(suite.columns) or None, "drop": as_argument(suite.drop) or None}
    return conditions | ({"threads": budget.threads} if budget.seconds is not None else {})


def _division(result: JobResult) -> tuple[Task, int, int]:
    return result.job.task, result.fold, result.seed


def _machine() -> dict[str, Any]:
    """Return facts that ``environment.json`` does not have: the processor, and the versions of the peers."""
    versions = {}
    for name in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"processor": _processor(), "peers": versions}


def program_version() -> str:
    """Return the version of the program, with its commit if it runs from a checkout."""
    here = PACKAGE
    # An installed copy may lie inside the checkout of another project, which does not track its files.
    is_tracked = git("log", "-1", "--format=%h", "--", "__init__.py", folder=here)
    commit = git("describe", "--always", "--dirty", folder=here) if is_tracked else ""
    return f"{__version__} ({commit})" if commit else __version__


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = reason(error) if isinstance(error, OSError) else "it is damaged"
        raise RunError(f"{path}: cannot read: {what}") from None


def _format(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
