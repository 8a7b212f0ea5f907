"""Uploads what Weights & Biases recorded of a run, and says that it is there only when the server says so too.

The upload is the client's own, ``wandb sync``. It passes over files that are not where they were when they were logged,
and ends with code 0 then, and also when it could not read the record. So every file is looked for before, and asked
for after.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunError
from pushforward.runs.folder import RunFolder
from pushforward.tracking.wandb import check as wandb_check
from pushforward.tracking.wandb.check import has_model, lacking, settled
from pushforward.tracking.wandb.client_records import Segment, find_segments, locate, record_model
from pushforward.tracking.wandb.log_file import LogReader, write_log
from pushforward.tracking.wandb.record import read_messages
from pushforward.tracking.wandb.remote import (
    RemoteRun,
    WandbServerError,
    client_environment,
    default_entity,
    remote_run,
)

# An upload may take this long, and what a slow network (bytes a second) needs besides.
_UPLOAD_SECONDS = 60.0
_SLOW = 100_000


@dataclass
class SyncReport:
    """What was uploaded, and what the server has now; the numbers are the server's."""

    run: str
    id: str
    entity: str
    project: str
    url: str = ""
    state: str = ""
    uploaded: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    rows: int = 0
    files: int = 0
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a reader wants to know."""
        done = "uploaded" if self.uploaded else "uploaded before"
        artifacts = [f"{a['name']}:{a['version']} ({a['type']}, {a['files']} files)" for a in self.artifacts]
        kept = f"{self.rows:,} rows, {self.files:,} files, {len(artifacts)} artifacts"
        return [f"{done} and checked: {self.url}", f"the server has {kept}", *artifacts, *self.notes]


def sync_run(
    run: RunFolder,
    *,
    tell: Callable[[str], None],
    entity: str | None = None,
    project: str | None = None,
    force: bool = False,
    timeout: float = 20.0,
) -> SyncReport:
    """Upload the Weights & Biases records of a run, all its segments, and check what the server has then.

    A run folder that was moved, also to another machine, is uploaded from where it is now. What was uploaded before is
    only checked. Nothing in the run folder is lost, whatever happens.

    A client that loses its network while it is online writes down everything but its artifacts. So where the server has
    no model afterwards and the run folder has one, it is recorded there as one more segment, and uploaded too.

    Args:
        run: The run.
        tell: Called with a line when something begins.
        entity: Whose run it shall be; the recorded one, or the user's own.
        project: Project; the recorded one.
        force: Upload again what was uploaded before; the server replaces row by row.
        timeout: Seconds the server may take for an answer.

    Raises:
        WandbLoginError: Without a key that the server takes.
        WandbServerError: Without a server that answers in time, or that has everything afterwards.
        RunError: If there is no record, it is damaged, the fit goes on, or files of it are missing.
    """
    with _claimed(run):
        segments = find_segments(run)
        for segment in segments:
            missing = locate(segment, run.path)
            if missing and (force or not segment.marker.exists()):
                raise RunError(f"{run.path}: {missing}")
        first = segments[0].record
        entity = entity or first.entity or default_entity(timeout)
        report = SyncReport(str(run.path), first.id, entity, project or first.project or "uncategorized")
        waiting, remote = (segments, None) if force else _waiting(segments, report, timeout)
        report.already = [segment.folder.name for segment in segments if segment not in waiting]
        if report.already:
            tell(f"uploaded before: {', '.join(report.already)}")
        if waiting:
            rows = sum(len(segment.record.history) for segment in waiting)
            tell(f"uploading {rows:,} rows to {report.entity}/{report.project}/{report.id}")
            report.uploaded = [segment.folder.name for segment in waiting]
            _upload(waiting, report)
            remote = None
        remote = _check(segments, waiting, report, remote, timeout)
        if not has_model(remote):
            remote = _add_model(run, segments, report, tell, timeout) or remote
        _describe(remote, report)
    return report


def _add_model(
    run: RunFolder, segments: Sequence[Segment], report: SyncReport, tell: Callable[[str], None], timeout: float
) -> RemoteRun | None:
    """Bring the server the model that no record holds; returns what it has then, ``None`` if nothing was brought."""
    try:
        results = json.loads(run.results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = None
    if not results or not all((run.model / name).is_file() for name in ("model.safetensors", "config.json")):
        if any(segment.online for segment in segments):
            lost = "the record of an online run that was cut off does not hold its artifacts"
            report.notes.append(f"no model: {lost}, and the run folder has no finished model")
        return None
    tell("uploading the model, which no record of the run holds")
    try:
        added = record_model(run, segments, results)
    except RunError as error:
        report.notes.append(f"no model: {error}")
        return None
    report.uploaded.append(added.folder.name)
    _upload([added], report)
    remote = _check([*segments, added], [added], report, None, timeout)
    report.notes.append(f"the model was added from {run.model}: no record of the run held it")
    return remote


@contextlib.contextmanager
def _claimed(run: RunFolder) -> Iterator[None]:
    """Keep the run from being fitted meanwhile: what is recorded after the upload would be marked as uploaded."""
    try:
        run.claim()
    except OSError:  # a folder that can not be written is not fitted either
        pass
    except RunError:
        raise RunError(f"{run.path}: in use by another process; upload it when its fit has ended") from None
    try:
        yield
    finally:
        run.release()


def _waiting(segments: Sequence[Segment], report: SyncReport, timeout: float) -> tuple[list[Segment], RemoteRun | None]:
    """Return the segments to upload, and what the server has if it was asked for that.

    They are those without the client's mark; online ones, which never have it, if the server lacks something of them.
    """
    waiting = [segment for segment in segments if not segment.marker.exists()]
    if not any(segment.online for segment in waiting):
        return waiting, None
    there = [segment for segment in segments if segment.online or segment not in waiting]
    remote = remote_run(report.entity, report.project, report.id, timeout)
    if not lacking(there, remote):
        waiting = [segment for segment in waiting if not segment.online]
    return waiting, remote


def _upload(segments: Sequence[Segment], report: SyncReport) -> None:
    """Run ``wandb sync`` on copies of the records."""
    with tempfile.TemporaryDirectory(prefix="pushforward-sync-") as scratch:
        folders = [_copied(segment, report, Path(scratch)) for segment in segments]
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, folders)]
        try:
            said = _run(command, Path(scratch), _UPLOAD_SECONDS + _size(segments) / _SLOW)
        finally:
            # Also what it keeps about an upload that was cut off: from it the next one knows where the run began.
            for segment, folder in zip(segments, folders, strict=True):
                for path in folder.glob("*.sync*"):
                    with contextlib.suppress(OSError):
                        shutil.copyfile(path, segment.folder / path.name)
        done = [(folder / segment.marker.name).exists() for segment, folder in zip(segments, folders, strict=True)]
    if not all(done):
        reasons = [line for line in said if "ERROR" in line] or said[-1:] or ["it said nothing"]
        reason = reasons[-1].removeprefix("wandb: ").removeprefix("ERROR ").strip()
        raise WandbServerError(f"{report.run}: the upload failed, nothing local is lost: {reason}")


def _copied(segment: Segment, report: SyncReport, scratch: Path) -> Path:
    """Return a folder with a copy of the record that the client uploads whole.

    As it is, the client would pass over files that are not where they were when they were recorded, send the artifacts
    of a run without an entity to another place than the run, and never call a record finished that ends in the middle,
    as that of a killed fit does.
    """
    source = segment.record.path
    folder = scratch / segment.folder.name
    folder.mkdir()
    (folder / "files").symlink_to((segment.folder / "files").resolve())
    for state in source.parent.glob("*.syncstate"):
        shutil.copyfile(state, folder / state.name)

    def contents() -> Iterator[bytes]:
        for message in read_messages(LogReader(source)):
            kind = message.WhichOneof("record_type")
            if kind in ("run", "artifact"):
                part = getattr(message, kind)
                part.entity, part.project = report.entity, report.project
            for entry in message.artifact.manifest.contents if kind == "artifact" else ():
                entry.local_path = segment.moved.get(entry.local_path, entry.local_path)
            yield message.SerializeToString()

    write_log(folder / source.name, contents())
    return folder


def _run(command: Sequence[str], scratch: Path, seconds: float) -> list[str]:
    """Run the client for at most so long; return what it said."""
    process = subprocess.Popen(
        command,
        env=client_environment(scratch),
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its service goes with it
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise WandbServerError(
            f"the upload was given up after {seconds:.0f} s: is the network there? Nothing local is lost"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return output.splitlines()


def _size(segments: Sequence[Segment]) -> int:
    """Bytes to upload, about."""
    files = sum(file.size for s in segments for artifact in s.record.artifacts for file in artifact.files)
    return files + sum(path.stat().st_size for s in segments for path in s.folder.rglob("*") if path.is_file())


def _check(
    segments: Sequence[Segment],
    uploaded: Sequence[Segment],
    report: SyncReport,
    remote: RemoteRun | None,
    timeout: float,
) -> RemoteRun:
    """Return what the server has, if that is everything."""
    remote, missing = settled(
        segments,
        remote,
        lambda: remote_run(report.entity, report.project, report.id, timeout),
        wandb_check.SETTLE_SECONDS if uploaded else 0,
    )
    if remote is None or missing:
        for segment in uploaded:
            with contextlib.suppress(OSError):
                segment.marker.unlink(missing_ok=True)
        again = "upload it again" if uploaded else "upload it again with --force"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WandbServerError(f"{report.run}: the W&B server lacks {missing[0]}{more}; nothing local is lost, {again}")
    return remote


def _describe(remote: RemoteRun, report: SyncReport) -> None:
    """Note what the server has."""
    report.url, report.state, report.rows, report.files = remote.url, remote.state, remote.rows, len(remote.files)
    for artifact in remote.artifacts:
        facts = {"name": artifact.name, "version": artifact.version, "type": artifact.type, "state": artifact.state}
        report.artifacts.append(facts | {"aliases": list(artifact.aliases), "files": len(artifact.files)})
