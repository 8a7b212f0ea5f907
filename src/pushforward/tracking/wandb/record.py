"""Read the contents of a ``.wandb`` file, the local record of a W&B run, without network, account or client.

The W&B library has no public reader for these files. Their low-level format is in
:mod:`pushforward.tracking.wandb.log_file`.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pushforward.tracking.wandb.log_file import LogReader, WandbRecordError


@dataclass(frozen=True)
class ArtifactFile:
    """A file of an artifact.

    ``path`` is its name in the artifact, ``local`` its path when it was logged, ``size`` its bytes, ``digest`` the
    base64 MD5 of its content (``None`` if it is another kind of digest).
    """

    path: str
    local: Path
    size: int
    digest: str | None


@dataclass(frozen=True)
class Artifact:
    """An artifact that the run logged; ``references`` are URLs of entries without a file, by name in the artifact."""

    name: str
    type: str
    aliases: tuple[str, ...]
    digest: str
    files: tuple[ArtifactFile, ...]
    references: dict[str, str] = field(hash=False)
    metadata: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Metric:
    """Definition of a metric: its x axis, and which summary it has (``min``, ``max``, ...)."""

    step_metric: str | None
    hidden: bool
    summary: tuple[str, ...]
    goal: str | None


@dataclass
class WandbRecord:
    """The contents of one ``.wandb`` file; a resumed run has several files.

    ``exit_code`` is ``None`` if the record has no end: the run is still running, or its process was killed. ``torn``:
    the file ends within a record.
    """

    path: Path
    id: str = ""
    project: str | None = None
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    notes: str | None = None
    tags: tuple[str, ...] = ()
    started: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    alerts: list[tuple[str, str, str]] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    exit_code: int | None = None
    torn: bool = False


def find_log(folder: Path) -> Path:
    """Return the ``.wandb`` file in a folder such as ``wandb/offline-run-20260101_120000-abc``."""
    found = sorted(folder.glob("run-*.wandb"))
    if len(found) != 1:
        raise WandbRecordError(f"{folder}: expected one file run-*.wandb; got {len(found) or 'none'}")
    return found[0]


def read_messages(log: LogReader) -> Iterator[Any]:
    """Yield the records of a log as protobuf messages of the W&B library.

    Raises:
        WandbRecordError: If W&B is not installed, or the log is damaged.
    """
    new_record = _message_class()
    for number, content in enumerate(log, start=1):
        message = new_record()
        try:
            message.ParseFromString(content)
        except Exception:  # the class of the error depends on the release of protobuf
            raise WandbRecordError(f"{log.path}: record {number} is not a W&B record") from None
        yield message


def read_record(path: Path) -> WandbRecord:
    """Read a ``.wandb`` file, or the one in a folder.

    Values are as they were logged: NaN and infinity are floats, nested keys are dictionaries. Cost: about a second for
    20,000 rows of 20 numbers.

    Raises:
        WandbRecordError: If there is no such file, or it is damaged.
    """
    path = find_log(path) if path.is_dir() else path
    log = LogReader(path)
    record = WandbRecord(path)
    for message in read_messages(log):
        _add(record, message)
    record.torn = log.torn
    return record


def _add(record: WandbRecord, message: Any) -> None:
    """Add one message to the record."""
    kind = message.WhichOneof("record_type")
    content: Any = getattr(message, kind) if kind else None
    if kind == "history":
        row: dict[str, Any] = {}
        _update(row, content.item)
        record.history.append(row)
    elif kind == "summary":
        _update(record.summary, content.update, content.remove)
    elif kind == "config":
        _update(record.config, content.update, content.remove)
    elif kind == "run":
        _add_run(record, content)
    elif kind == "metric":
        summary = tuple(f.name for f, value in content.summary.ListFields() if value is True)
        goal = {1: "minimize", 2: "maximize"}.get(content.goal)
        metric = Metric(content.step_metric or None, content.options.hidden, summary, goal)
        record.metrics[content.glob_name or content.name] = metric
    elif kind == "artifact":
        record.artifacts.append(_artifact(content))
    elif kind == "files":
        record.saved += [item.path for item in content.files]
    elif kind == "alert":
        record.alerts.append((content.title, content.text, content.level))
    elif kind in ("output", "output_raw"):
        record.output.append(content.line)
    elif kind == "exit":
        record.exit_code = content.exit_code


def _add_run(record: WandbRecord, run: Any) -> None:
    record.id = run.run_id
    record.project, record.entity = run.project or None, run.entity or None
    record.name, record.group, record.job_type = run.display_name or None, run.run_group or None, run.job_type or None
    record.sweep, record.notes, record.tags = run.sweep_id or None, run.notes or None, tuple(run.tags)
    record.started = run.start_time.seconds + run.start_time.nanos / 1e9
    _update(record.config, run.config.update)
    _update(record.summary, run.summary.update)


def _artifact(content: Any) -> Artifact:
    files, references = [], {}
    for entry in _entries(content.manifest):
        if entry["ref"]:
            references[entry["path"]] = entry["ref"]
        else:
            file = ArtifactFile(entry["path"], Path(entry["local"]), entry["size"], entry["digest"])
            files.append(file)
    return Artifact(
        name=content.name,
        type=content.type,
        aliases=tuple(sorted(content.aliases)),
        digest=content.digest,
        files=tuple(files),
        references=references,
        metadata=json.loads(content.metadata or "null") or {},
    )


def _entries(manifest: Any) -> Iterator[dict[str, Any]]:
    """Yield the entries of a manifest, which are in a separate file if there are very many."""
    for entry in manifest.contents:
        extra = {item.key: json.loads(item.value_json) for item in entry.extra}
        digest = None if extra else entry.digest  # an MD5, unless the entry says otherwise
        yield {
            "path": entry.path,
            "local": entry.local_path,
            "ref": entry.ref,
            "size": entry.size,
            "digest": digest,
        }
    if manifest.manifest_file_path:
        try:
            with gzip.open(manifest.manifest_file_path, "rt", encoding="utf-8") as lines:
                for entry in map(json.loads, lines):
                    yield {
                        "path": entry["path"],
                        "local": entry.get("local_path") or "",
                        "ref": entry.get("ref") or "",
                        "size": entry.get("size") or 0,
                        "digest": None if entry.get("extra") else entry["digest"],
                    }
        except (OSError, EOFError, ValueError, KeyError):
            # An unreadable list counts as one missing file.
            missing = {"path": Path(manifest.manifest_file_path).name, "local": manifest.manifest_file_path}
            yield missing | {"ref": "", "size": 0, "digest": None}


def _update(values: dict[str, Any], items: Iterable[Any], removed: Iterable[Any] = ()) -> None:
    """Set items, whose keys may be nested, and remove others."""
    for item in items:
        keys = list(item.nested_key) or [item.key]
        inner = values
        for key in keys[:-1]:
            below = inner.get(key)
            inner[key] = inner = below if isinstance(below, dict) else {}
        inner[keys[-1]] = _value(item)
    for item in removed:
        keys = list(item.nested_key) or [item.key]
        inner = values
        for key in keys[:-1]:
            below = inner.get(key)
            inner = below if isinstance(below, dict) else {}
        inner.pop(keys[-1], None)


def _value(item: Any) -> Any:
    """Return the value of an item: JSON with NaN and infinity, or a typed field in newer files."""
    if item.value_json or "value" not in item.DESCRIPTOR.oneofs_by_name:
        return json.loads(item.value_json)
    kind = item.WhichOneof("value")
    if kind is None or kind == "none":
        return None
    value = getattr(item, kind)
    return json.loads(value) if kind == "json" else value


def _message_class() -> Any:
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError:
        raise WandbRecordError("W&B is not installed (pip install wandb)") from None
    return wandb_internal_pb2.Record  # type: ignore[attr-defined]  # defined at import time
