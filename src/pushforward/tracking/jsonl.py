"""metrics.jsonl, the record of truth of a fit."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunError, reason


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
