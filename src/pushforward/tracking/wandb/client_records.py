"""The W&B records in a run folder, one for every start of the W&B client, and the current paths of their files.

A run folder may have been moved, also to another machine, since the files were logged.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunError, reason
from pushforward.runs.folder import RunFolder
from pushforward.tracking.wandb.log_file import LogReader, write_log
from pushforward.tracking.wandb.record import ArtifactFile, WandbRecord, find_log, read_messages, read_record
from pushforward.tracking.wandb.tracker import WandbTracker

# Kinds of messages about the process that wrote the record.
_ABOUT_PROCESS = ("environment", "stats", "files", "output", "output_raw", "summary")


@dataclass
class ClientRecord:
    """The record of one start of the W&B client: a folder with a ``.wandb`` file."""

    folder: Path
    content: WandbRecord
    moved: dict[str, str] = field(default_factory=dict)
    """Current paths of moved files, by their paths when they were logged."""

    @property
    def online(self) -> bool:
        """Whether the client started online; then the record does not contain the artifacts."""
        return self.folder.name.startswith("run-")

    @property
    def marker(self) -> Path:
        """File that the client creates when it has uploaded the record."""
        return self.content.path.with_name(f"{self.content.path.name}.synced")

    @property
    def media(self) -> list[str]:
        """Names of images and tables on the server."""
        return [name for name in self.content.saved if name.startswith("media/")]


def find_client_records(run: RunFolder) -> list[ClientRecord]:
    """Read the records of a run, oldest first, except those of fits that were killed before their W&B run started.

    Raises:
        RunError: If there are none, or they belong to several W&B runs.
    """
    folders = [path for path in run.wandb.glob("*run-*-*") if path.is_dir() and not path.is_symlink()]
    folders.sort(key=lambda path: path.name.removeprefix("offline-"))
    records = [ClientRecord(folder, read_record(find_log(folder))) for folder in folders]
    records = [record for record in records if record.content.id]
    if not records:
        raise RunError(f"{run.path}: expected W&B records in {run.wandb}; got none (was it fitted with wandb=off?)")
    ids = list(dict.fromkeys(record.content.id for record in records))
    if len(ids) > 1:
        raise RunError(f"{run.wandb}: expected the records of one W&B run; got those of {', '.join(ids)}")
    return records


def locate(record: ClientRecord, run: Path) -> str:
    """Find the files of a record at their logged paths, or at the corresponding paths in the run folder.

    Paths that changed are added to ``record.moved``.

    Returns:
        A message about missing files; empty if all were found.
    """
    missing = [(name, record.folder / "files" / name) for name in record.media]
    missing = [(name, path) for name, path in missing if not path.exists()]
    for artifact in record.content.artifacts:
        for file in artifact.files:
            found = _current_path(file, run)
            if found is None:
                missing.append((f"{file.path} of the artifact {artifact.name}", file.local))
            elif found != file.local:
                record.moved[str(file.local)] = str(found)
    if not missing:
        return ""
    name, path = missing[0]
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    return (
        f"{name}{more} missing or changed since it was recorded ({path}); restore it, or upload the rest with: "
        f"wandb sync --include-online {record.folder}"
    )


def _current_path(file: ArtifactFile, run: Path) -> Path | None:
    """Return the path of a file: the logged one, or one below the run folder, which may have been moved."""
    if file.local.is_absolute() and _has_content(path=file.local, of=file):
        return file.local
    parts = file.local.parts[1:] if file.local.is_absolute() else file.local.parts
    below = (run.resolve().joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in below if _has_content(path=path, of=file)), None)


def _has_content(path: Path, of: ArtifactFile) -> bool:
    """Return whether a path has the size and digest of a logged file."""
    try:
        if path.stat().st_size != of.size:
            return False
        if of.digest is None:
            return True
        with open(path, "rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).digest()
    except OSError:
        return False
    return base64.b64encode(digest).decode() == of.digest


def record_model(run: RunFolder, records: Sequence[ClientRecord], facts: Mapping[str, Any]) -> ClientRecord:
    """Write one more record of a run, which contains its model, with the W&B client offline.

    The server keeps the last values that it receives for a run. So the configuration, name, group, tags, job type,
    summary, duration and end of the earlier records are written again, and nothing about this process.

    Args:
        run: The run, with a model.
        records: All earlier records of the run.
        facts: Metadata of the model.

    Raises:
        RunError: If the model could not be recorded.
    """
    first = records[0].content
    config, summary = dict[str, Any](), dict[str, Any]()
    for record in records:
        config |= {key: value for key, value in record.content.config.items() if key != "_wandb"}
        for row in record.content.history:
            summary |= row
        summary |= record.content.summary
    warnings: list[str] = []
    try:
        # In a temporary folder until it is complete: an incomplete record would be uploaded, and delete the summary.
        with tempfile.TemporaryDirectory(prefix=".model-", dir=run.wandb) as scratch:
            (Path(scratch) / "wandb").mkdir()
            (Path(scratch) / "wandb" / "id").write_text(f"{first.id}\n", encoding="utf-8")
            tracker = WandbTracker(
                Path(scratch),
                config,
                mode="offline",
                project=first.project or "uncategorized",
                name=first.name,
                group=first.group,
                tags=first.tags,
                job_type=first.job_type or "fit",
                warn=warnings.append,
            )
            tracker.model(run.model, facts)
            tracker.finish(records[-1].content.exit_code or 0)
            new = [folder for folder in Path(scratch).glob("wandb/offline-run-*") if folder.is_dir()]
            if len(new) != 1 or not read_record(new[0]).artifacts:
                raise RunError(warnings[0] if warnings else "the client did not record it")
            _restore_run_facts(find_log(new[0]), first.path, summary)
            folder = new[0].rename(run.wandb / new[0].name)
    except OSError as error:
        raise RunError(f"{run.wandb}: cannot write: {reason(error)}") from None
    return ClientRecord(folder, read_record(folder))


def _restore_run_facts(path: Path, first: Path, summary: Mapping[str, Any]) -> None:
    """Rewrite a log with the run's facts of the first log, the summary, and nothing about the process that wrote it."""
    original = next(m.run for m in read_messages(LogReader(first)) if m.WhichOneof("record_type") == "run")

    def contents() -> Iterator[bytes]:
        for message in read_messages(LogReader(path)):
            kind = message.WhichOneof("record_type")
            if kind == "run":
                config = type(message.run.config)()
                config.CopyFrom(message.run.config)
                message.run.CopyFrom(original)
                message.run.config.CopyFrom(config)
            if kind == "exit":
                final = type(message)()
                for key, value in summary.items():
                    final.summary.update.add(key=key, value_json=json.dumps(value))
                yield final.SerializeToString()
            if kind not in _ABOUT_PROCESS:
                yield message.SerializeToString()

    rewritten = path.with_name(f"{path.name}.new")
    write_log(rewritten, contents())
    rewritten.replace(path)
