"""The folder of a benchmark: under which conditions it runs, and what came of every cell so far.

``benchmark.json`` has the conditions, ``environment.json`` where it began, ``cells.jsonl`` a line for each cell that
has ended, written at once, ``runs/`` the folder of each, ``logs/`` what their processes said. Cells that are there are
not run again, so that the same command goes on; more methods, data sets, folds or seeds can be added, other conditions
cannot.
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

import pushforward
from pushforward.benchmark.jobs import Budget, Cell, Column, Result
from pushforward.benchmark.methods import PEERS
from pushforward.benchmark.suites import Suite, names_in_text
from pushforward.common.errors import RunError, RunUsageError, reason
from pushforward.common.git import git
from pushforward.runs.folder import RunFolder, making_folder

_RECORD = "benchmark.json"
_WORDS = {"seconds": "--seconds", "steps": "--steps", "protocol": "--protocol", "threads": "threads of a fit"}
_WORDS |= {"columns": "--columns", "drop": "--drop"}


class BenchmarkFolder:
    """A benchmark's folder, which this process alone may write to; close it, or use it as a context manager.

    Make one with :meth:`open`.

    Attributes:
        path: The folder.
        results: What came of the cells, by cell; of a cell that was tried again, the last. Without those of other data.
        set_aside: How many cells are left out because they are of other data, by source.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[Cell, Result] = {}
        self.set_aside: dict[str, int] = {}
        self._record: list[Result] = []
        self._lock = RunFolder(path)

    @classmethod
    def open(cls, path: Path, suite: Suite, budget: Budget) -> "BenchmarkFolder":
        """Make the folder, or go on with one of the same conditions.

        Raises:
            RunUsageError: If it holds something else, or a benchmark under other conditions.
            RunError: If it cannot be read or written, or another process works in it.
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
        folder._check(conditions)
        folder._lock.claim()
        try:
            folder._read()
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def cells_file(self) -> Path:
        """The record of cells, one JSON object a line."""
        return self.path / "cells.jsonl"

    @property
    def facts(self) -> Mapping[str, Any]:
        """The content of ``benchmark.json``."""
        found: dict[str, Any] = _json(self.path / _RECORD)
        return found

    def add(self, result: Result) -> None:
        """Record what came of a cell; it survives whatever happens afterwards.

        Raises:
            RunError: If it cannot be written.
        """
        try:
            with open(self.cells_file, "ab", buffering=0) as file:
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
        except OSError as error:
            raise RunError(f"{self.cells_file}: cannot write: {reason(error)}") from None
        self._record.append(result)
        self.results[result.cell] = result

    def keep_one_data(self, checksums: Mapping[str, str]) -> None:
        """Leave out what is of other data: scores of other rows cannot stand in one table.

        Data of a source are those of a file with one checksum, and of a fold and seed those of the same test rows. The
        record keeps everything: where the file is again what it was, its cells are there again.

        Args:
            checksums: SHA-256 of the file of a source, as it is today; else that of its last cell counts.
        """
        of_last = {result.source: result.sha256 for result in self._record if result.sha256}
        wanted = of_last | dict(checksums)
        same = [r for r in self._record if not r.sha256 or r.sha256 == wanted[r.source]]
        # Cells from before checksums were recorded, and data without a file, are known by their test rows.
        rows = {_division(result): result.fingerprint for result in same if result.status == "finished"}
        same = [r for r in same if r.status != "finished" or r.fingerprint == rows[_division(r)]]
        self.results = {result.cell: result for result in same}
        lost = {result.cell for result in self._record} - self.results.keys()
        self.set_aside = dict(Counter(cell.source for cell in sorted(lost)))

    def free_run(self, cell: Cell) -> Path:
        """A folder for a cell that is not there yet: what an earlier attempt left stays."""
        first = self.path / "runs" / cell.folder
        path, attempt = first, 1
        while path.exists():
            attempt += 1
            path = first.with_name(f"{first.name}-{attempt}")
        return path

    def log(self, cell: Cell) -> Path:
        """Where the process of a cell writes what it says."""
        return self.path / "logs" / f"{cell.folder}.txt"

    def write(self, name: str, text: str) -> Path:
        """Write a file whole, in place of an earlier one.

        Raises:
            RunError: If it cannot be written.
        """
        from pushforward.common.files import atomic_write

        path = self.path / name
        try:
            with atomic_write(path, sync=True) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RunError(f"{path}: cannot write: {reason(error)}") from None
        return path

    def close(self) -> None:
        """Let others work in the folder."""
        self._lock.release()

    def __enter__(self) -> "BenchmarkFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self, conditions: Mapping[str, Any]) -> None:
        try:
            found = _json(self.path / _RECORD)["conditions"]
            differing = [key for key in conditions if found.get(key) != conditions[key]]
        except (KeyError, AttributeError, TypeError):
            raise RunError(f"{self.path / _RECORD}: expected the conditions of a benchmark; it is damaged") from None
        if differing:
            said = "; ".join(f"{_WORDS.get(k, k)} {_said(found.get(k))}, not {_said(conditions[k])}" for k in differing)
            raise RunUsageError(f"{self.path}: holds a benchmark under other conditions: {said}; name another --out")

    def _read(self) -> None:
        """Read the record; a torn last line, of a process that was killed while it wrote, goes."""
        try:
            content = self.cells_file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"{self.cells_file}: cannot read: {reason(error)}") from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                result = Result.from_dict(json.loads(line))
            except (ValueError, TypeError, AttributeError):
                raise RunError(f"{self.cells_file} line {number}: expected a cell; got {line[:40]!r}") from None
            self._record.append(result)
        self.keep_one_data({})
        if len(whole) < len(content):
            try:
                os.truncate(self.cells_file, len(whole))
            except OSError as error:
                raise RunError(f"{self.cells_file}: cannot write: {reason(error)}") from None


def _conditions(suite: Suite, budget: Budget) -> dict[str, Any]:
    """What must be the same for all cells; threads matter where time is the budget."""
    found = {"suite": suite.name, "protocol": suite.protocol, "seconds": budget.seconds, "steps": budget.steps}
    found |= {"device": budget.device}
    # As they are in a folder from before they could be chosen: not there.
    found |= {"columns": names_in_text(suite.columns) or None, "drop": names_in_text(suite.drop) or None}
    return found | ({"threads": budget.threads} if budget.seconds is not None else {})


def _division(result: Result) -> tuple[Column, int, int]:
    return result.cell.column, result.fold, result.seed


def _machine() -> dict[str, Any]:
    """What ``environment.json`` leaves out: the processor, and the versions of the peers."""
    versions = {}
    for name in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"processor": _processor(), "peers": versions}


def program_version() -> str:
    """The version of the program, with the commit it is at where it runs from a checkout."""
    here = Path(pushforward.__file__).resolve().parent
    # An installed copy may lie within somebody else's checkout, which does not know its files.
    is_known = git("log", "-1", "--format=%h", "--", "__init__.py", folder=here)
    commit = git("describe", "--always", "--dirty", folder=here) if is_known else ""
    return f"{pushforward.__version__} ({commit})" if commit else pushforward.__version__


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = reason(error) if isinstance(error, OSError) else "it is damaged"
        raise RunError(f"{path}: cannot read: {what}") from None


def _said(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
