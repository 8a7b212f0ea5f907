"""What a fit records: ``metrics.jsonl``, the record of truth, and everything that follows it.

A row is written with one unbuffered write before the call returns, so that a killed process loses nothing and a
full disk is an error at once, not at the end. Weights & Biases promises neither, and so comes second.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pushforward.config.schema import Config
from pushforward.runs.folder import RunError, RunFolder, reason
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.tracking.wandb.tracker import WandbTracker


class Tracker(Protocol):
    """Something that is told how a fit goes."""

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step, after so many seconds of fitting; ``kind`` says from where they are."""

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record a picture, which stays where it is."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table."""

    def reference_lines(self, values: Mapping[str, float], last_step: int, seconds: float = 0.0) -> None:
        """Record numbers that hold for all steps up to the last one, which was so many seconds after the first."""

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record a model, which stays in its folder."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""

    def alert(self, title: str, text: str) -> None:
        """Tell someone who is not watching."""

    def finish(self, exit_code: int = 0) -> None:
        """End the record; nothing is recorded afterwards."""


class MetricsFile:
    """A tracker that appends one JSON object a line: ``step``, ``seconds``, ``kind``, and the numbers.

    NaN and infinity are written as ``null``. A row that finds no room on the disk is an error at once, and is tried
    again before the next one and at the end. Cost: about 30 microseconds a row of ten numbers.

    Args:
        path: The file; an existing one is continued.
        resume_step: Drop the rows after this step, and a torn last line, so that a resumed fit continues the
            record without repeating itself; ``None`` keeps every whole row.

    Raises:
        RunError: Here and in every method, when the file can not be written.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        self._step = 0
        self.seconds = 0.0
        self._waiting: list[bytes] = []
        try:
            _keep_until(path, resume_step)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in finish
        except OSError as error:
            raise self._error(error) from None

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Append a row of numbers."""
        self._step, self.seconds = int(step), float(seconds)
        self._append(kind, {key: _finite(value) for key, value in metrics.items()})

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Append where a picture lies, relative to the folder of the record."""
        self._step = max(self._step, int(step))
        shown = os.path.relpath(path, self.path.parent)
        self._append("image", {"key": key, "path": shown, "caption": caption})

    def reference_lines(self, values: Mapping[str, float], last_step: int, seconds: float = 0.0) -> None:
        """Append numbers that hold for all steps up to the last one."""
        self._step, self.seconds = max(self._step, int(last_step)), max(self.seconds, float(seconds))
        self._append("reference", {key: _finite(value) for key, value in values.items()})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Append the final numbers."""
        self._append("summary", {key: _finite(value) for key, value in values.items()})

    def alert(self, title: str, text: str) -> None:
        """Append a message."""
        self._append("alert", {"title": title, "text": text})

    def flush(self, *, sync: bool = False) -> None:
        """Make the rows survive a power cut (``sync``); they survive the end of the process without it.

        Rows that found no room before are tried again.
        """
        self._write_waiting()
        if sync and not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise self._error(error) from None

    def finish(self, exit_code: int = 0) -> None:
        """Sync and close."""
        if not self._file.closed:
            with contextlib.suppress(OSError, RunError):
                self.flush(sync=True)
            self._file.close()

    def _append(self, kind: str, values: Mapping[str, Any]) -> None:
        if self._file.closed:
            return
        row = {"step": self._step, "seconds": round(self.seconds, 3), "kind": kind, **values}
        self._waiting.append(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting and not self._file.closed:
            end = os.fstat(self._file.fileno()).st_size
            try:
                rest = memoryview(self._waiting[0])
                while rest:  # a nearly full disk takes part of a line first
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)
                raise self._error(error) from error
            del self._waiting[0]

    def _error(self, error: OSError) -> RunError:
        return RunError(f"{self.path}: cannot write: {reason(error)}")


class Tracking:
    """Sends everything to the metrics file first, then to the other trackers.

    Use it as a context manager: an exception finishes the trackers with exit code 1.

    Args:
        metrics: The record of truth; its errors are raised.
        others: Trackers that never raise.
    """

    def __init__(self, metrics: MetricsFile, others: Sequence[Tracker] = ()) -> None:
        self.metrics = metrics
        self.others = list(others)

    @classmethod
    def open(
        cls,
        run: RunFolder,
        config: Config,
        *,
        dataset: str,
        flow: str,
        facts: Mapping[str, Any],
        warn: Callable[[str], None],
        resume_step: int | None = None,
        job_type: str = "fit",
        process: WandbProcess | None = None,
    ) -> "Tracking":
        """Open the trackers of a run.

        Args:
            run: Where everything is written.
            config: The resolved configuration; its ``wandb`` section says where to.
            dataset: Name of the data, a tag.
            flow: Name of the flow that was chosen, a tag.
            facts: What else dashboards filter and group by, beside the keys of the configuration.
            warn: Called with one line when Weights & Biases is given up, in the thread of the caller.
            resume_step: Step of the checkpoint that is continued.
            job_type: What this process does.
            process: The process that talks to Weights & Biases, where it was started ahead.
        """
        metrics = MetricsFile(run.metrics, resume_step)
        wandb = WandbTracker(
            run.path,
            config.flat() | {"dataset": dataset} | dict(facts),
            mode=config.wandb.mode,
            project=config.wandb.project,
            name=config.wandb.name or run.name,
            group=config.wandb.group,
            tags=(flow, dataset, *config.wandb.tags),
            job_type=job_type,
            warn=warn,
            process=process,
        )
        return cls(metrics, [wandb] if wandb.mode != "off" else [])

    @property
    def location(self) -> str | None:
        """Where Weights & Biases has the run: a URL or a folder; ``None`` while unknown or off."""
        return next((tracker.location for tracker in self.others if isinstance(tracker, WandbTracker)), None)

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step."""
        self._tell(lambda tracker: tracker.log(metrics, step, seconds=seconds, kind=kind))

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record a picture, which must stay as it is until :meth:`finish`."""
        self._tell(lambda tracker: tracker.image(key, path, caption, step))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table where tables are shown; its numbers are in a file of the run already."""
        for tracker in self.others:
            tracker.table(key, columns, rows, step)

    def reference_lines(self, values: Mapping[str, float], last_step: int) -> None:
        """Record numbers that hold for all steps, such as the NLL of a baseline: curves are read against them."""
        if values:
            seconds = self.metrics.seconds
            self._tell(lambda tracker: tracker.reference_lines(values, last_step, seconds))

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record the fitted model, which must stay in its folder."""
        for tracker in self.others:
            tracker.model(folder, facts)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""
        self._tell(lambda tracker: tracker.summary(values))

    def alert(self, title: str, text: str) -> None:
        """Tell someone who is not watching, for instance that the fit diverged."""
        self._tell(lambda tracker: tracker.alert(title, text))

    def _tell(self, call: "Callable[[MetricsFile | Tracker], None]") -> None:
        """Tell the metrics file first, then the others, also where the disk is full."""
        try:
            call(self.metrics)
        finally:
            for tracker in self.others:
                call(tracker)

    def flush(self, *, sync: bool = False) -> None:
        """Make the metrics file survive a power cut (``sync``)."""
        self.metrics.flush(sync=sync)

    def finish(self, exit_code: int = 0) -> None:
        """End every record; a second call does nothing."""
        self.metrics.finish(exit_code)
        for tracker in self.others:
            tracker.finish(exit_code)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(0 if kind is None else 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics file; a torn last line is left out.

    Raises:
        RunError: If the file can not be read, or a line before the last is no JSON object.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise RunError(f"{path}: cannot read: {reason(error)}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise RunError(f"{path} line {number}: expected a JSON object; got {line[:40]!r}")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the object of a whole line, ``None`` for a torn one."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _keep_until(path: Path, step: int | None) -> None:
    """Cut a file off after its last whole row at or before a step.

    Steps never decrease, so the rows to drop are the last ones and the file can be cut in place: unlike writing a
    new file, that can not lose the rows before if the process dies meanwhile.
    """
    if not path.exists():
        return
    with open(path, "r+b") as file:
        keep = 0
        for line in file:
            row = _row(line)
            if row is None or (step is not None and row.get("step", 0) > step):
                break
            keep += len(line)
        if keep < os.fstat(file.fileno()).st_size:
            file.truncate(keep)


def _finite(value: Any) -> Any:
    """Return a number as JSON has it; texts and ``None`` stay."""
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
