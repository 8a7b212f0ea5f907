"""The records that Weights & Biases keeps of a run: one for every start of its client, and where their files are today.

A run folder may have been moved, also to another machine, since its files were logged.
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

# What a record says about the process that made it.
_ABOUT_PROCESS = ("environment", "stats", "files", "output", "output_raw", "summary")


@dataclass
class Segment:
    """One start of the client: a folder with a record."""

    folder: Path
    record: WandbRecord
    moved: dict[str, str] = field(default_factory=dict)
    """Where files are now, by where they were when they were logged."""

    @property
    def online(self) -> bool:
        """Whether the client was online when it began; then it does not write artifacts down."""
        return self.folder.name.startswith("run-")

    @property
    def marker(self) -> Path:
        """The file with which the client marks a record that it has uploaded."""
        return self.record.path.with_name(f"{self.record.path.name}.synced")

    @property
    def media(self) -> list[str]:
        """Pictures and tables, by their names on the server."""
        return [name for name in self.record.saved if name.startswith("media/")]


def find_segments(run: RunFolder) -> list[Segment]:
    """Read the records of the run, oldest first; one without a run, of a fit killed at its start, is left out."""
    folders = [path for path in run.wandb.glob("*run-*-*") if path.is_dir() and not path.is_symlink()]
    folders.sort(key=lambda path: path.name.removeprefix("offline-"))
    segments = [Segment(folder, read_record(find_log(folder))) for folder in folders]
    segments = [segment for segment in segments if segment.record.id]
    if not segments:
        raise RunError(f"{run.path}: expected W&B records in {run.wandb}; got none (was it fitted with wandb=off?)")
    ids = list(dict.fromkeys(segment.record.id for segment in segments))
    if len(ids) > 1:
        raise RunError(f"{run.wandb}: expected the records of one W&B run; got those of {', '.join(ids)}")
    return segments


def locate(segment: Segment, run: Path) -> str:
    """Find the files of the record where they were, or at the same place in the run folder of today.

    Returns what to say about those that are not there, nothing if all are.
    """
    missing = [(name, segment.folder / "files" / name) for name in segment.media]
    missing = [(name, path) for name, path in missing if not path.exists()]
    for artifact in segment.record.artifacts:
        for file in artifact.files:
            found = _find(file, run)
            if found is None:
                missing.append((f"{file.path} of the artifact {artifact.name}", file.local))
            elif found != file.local:
                segment.moved[str(file.local)] = str(found)
    if not missing:
        return ""
    name, place = missing[0]
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    return (
        f"{name}{more} missing or changed since it was recorded ({place}); put it back, or upload what is left with: "
        f"wandb sync --include-online {segment.folder}"
    )


def _find(file: ArtifactFile, run: Path) -> Path | None:
    """Return where a file is: where it was logged, or, as the folder may have been moved, below the run."""
    if file.local.is_absolute() and _is(file, file.local):
        return file.local
    parts = file.local.parts[1:] if file.local.is_absolute() else file.local.parts
    below = (run.resolve().joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in below if _is(file, path)), None)


def _is(file: ArtifactFile, path: Path) -> bool:
    """Tell whether a path holds what was logged."""
    try:
        if path.stat().st_size != file.size:
            return False
        if file.digest is None:
            return True
        with open(path, "rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).digest()
    except OSError:
        return False
    return base64.b64encode(digest).decode() == file.digest


def record_model(run: RunFolder, segments: Sequence[Segment], facts: Mapping[str, Any]) -> Segment:
    """Record the model of a run as one more segment, with the real client, offline.

    The server takes what it is told last of a run: its configuration, name, group, tags, job type, summary, duration
    and end are recorded again as the other segments have them, and nothing about this process is.

    Args:
        run: The run; its model is recorded.
        segments: All that was recorded of it before.
        facts: What to say about the model.

    Raises:
        RunError: If it could not be recorded.
    """
    first = segments[0].record
    config, summary = dict[str, Any](), dict[str, Any]()
    for segment in segments:
        config |= {key: value for key, value in segment.record.config.items() if key != "_wandb"}
        for row in segment.record.history:
            summary |= row
        summary |= segment.record.summary
    warnings: list[str] = []
    try:
        # Aside until it is whole: half a segment would be uploaded next time, and take the summary away.
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
            tracker.finish(segments[-1].record.exit_code or 0)
            made = [folder for folder in Path(scratch).glob("wandb/offline-run-*") if folder.is_dir()]
            if len(made) != 1 or not read_record(made[0]).artifacts:
                raise RunError(warnings[0] if warnings else "the client did not record it")
            _speak_for(find_log(made[0]), first.path, summary)
            folder = made[0].rename(run.wandb / made[0].name)
    except OSError as error:
        raise RunError(f"{run.wandb}: cannot write: {reason(error)}") from None
    return Segment(folder, read_record(folder))


def _speak_for(path: Path, first: Path, summary: Mapping[str, Any]) -> None:
    """Rewrite a log such that it changes nothing the run is known by, which was begun in another one."""
    begun = next(m.run for m in read_messages(LogReader(first)) if m.WhichOneof("record_type") == "run")

    def contents() -> Iterator[bytes]:
        for message in read_messages(LogReader(path)):
            kind = message.WhichOneof("record_type")
            if kind == "run":
                config = type(message.run.config)()
                config.CopyFrom(message.run.config)
                message.run.CopyFrom(begun)
                message.run.config.CopyFrom(config)
            if kind == "exit":
                final = type(message)()
                for key, value in summary.items():
                    final.summary.update.add(key=key, value_json=json.dumps(value))
                yield final.SerializeToString()
            if kind not in _ABOUT_PROCESS:
                yield message.SerializeToString()

    whole = path.with_name(f"{path.name}.new")
    write_log(whole, contents())
    whole.replace(path)
