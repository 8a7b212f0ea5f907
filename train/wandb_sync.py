"""Uploads what Weights & Biases recorded of a run, and says that it is there only when the server says so too.

The upload is the client's own, ``wandb sync``. It passes over files that are not where they were when they were logged,
and ends with code 0 then, and also when it could not read the record. So every file is looked for before, and asked
for after.
"""

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pushforward.train.runs import RunError, RunFolder
from pushforward.train.wandb_log import LogReader, write_log
from pushforward.train.wandb_record import Artifact, ArtifactFile, WandbRecord, find_log, read_messages, read_record
from pushforward.train.wandb_remote import (
    RemoteArtifact,
    RemoteRun,
    WandbServerError,
    client_environment,
    default_entity,
    remote_run,
)

# An upload may take this long, and what a slow network (bytes a second) needs besides.
_UPLOAD_SECONDS = 60.0
_SLOW = 100_000
# How long the server may take to show what it was sent.
_SETTLE_SECONDS = 30.0


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


@dataclass
class _Segment:
    """One start of the client: a folder with a record."""

    folder: Path
    record: WandbRecord
    moved: dict[str, str] = field(default_factory=dict)
    """Where files are now, by where they were when they were logged."""

    @property
    def online(self) -> bool:
        return self.folder.name.startswith("run-")

    @property
    def marker(self) -> Path:
        """The file with which the client marks a record that it has uploaded."""
        return self.record.path.with_name(f"{self.record.path.name}.synced")

    @property
    def media(self) -> list[str]:
        return [name for name in self.record.saved if name.startswith("media/")]


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
        segments = _segments(run)
        for segment in segments:
            missing = _locate(segment, run.path)
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
        _check(segments, waiting, report, remote, timeout)
    return report


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


def _segments(run: RunFolder) -> list[_Segment]:
    """Read the records of the run, oldest first; one without a run, of a fit killed at its start, is left out."""
    folders = [path for path in run.wandb.glob("*run-*-*") if path.is_dir() and not path.is_symlink()]
    folders.sort(key=lambda path: path.name.removeprefix("offline-"))
    segments = [_Segment(folder, read_record(find_log(folder))) for folder in folders]
    segments = [segment for segment in segments if segment.record.id]
    if not segments:
        raise RunError(f"{run.path}: expected W&B records in {run.wandb}; got none (was it fitted with wandb=off?)")
    ids = list(dict.fromkeys(segment.record.id for segment in segments))
    if len(ids) > 1:
        raise RunError(f"{run.wandb}: expected the records of one W&B run; got those of {', '.join(ids)}")
    return segments


def _locate(segment: _Segment, run: Path) -> str:
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


def _waiting(
    segments: Sequence[_Segment], report: SyncReport, timeout: float
) -> tuple[list[_Segment], RemoteRun | None]:
    """Return the segments to upload, and what the server has if it was asked for that.

    They are those without the client's mark; online ones, which never have it, if the server lacks something of them.
    """
    waiting = [segment for segment in segments if not segment.marker.exists()]
    if not any(segment.online for segment in waiting):
        return waiting, None
    there = [segment for segment in segments if segment.online or segment not in waiting]
    remote = remote_run(report.entity, report.project, report.id, timeout)
    if not _lacking(there, remote):
        waiting = [segment for segment in waiting if not segment.online]
    return waiting, remote


def _upload(segments: Sequence[_Segment], report: SyncReport) -> None:
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


def _copied(segment: _Segment, report: SyncReport, scratch: Path) -> Path:
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


def _size(segments: Sequence[_Segment]) -> int:
    """Bytes to upload, about."""
    files = sum(file.size for s in segments for artifact in s.record.artifacts for file in artifact.files)
    return files + sum(path.stat().st_size for s in segments for path in s.folder.rglob("*") if path.is_file())


def _check(
    segments: Sequence[_Segment],
    uploaded: Sequence[_Segment],
    report: SyncReport,
    remote: RemoteRun | None,
    timeout: float,
) -> None:
    """Ask the server for everything, again and again for a while: it may need time for what it has just been sent."""
    until = time.monotonic() + (_SETTLE_SECONDS if uploaded else 0)
    while True:
        remote = remote or remote_run(report.entity, report.project, report.id, timeout)
        lacking = _lacking(segments, remote)
        if not lacking or time.monotonic() >= until:
            break
        time.sleep(1)
        remote = None
    if remote is None or lacking:
        for segment in uploaded:
            with contextlib.suppress(OSError):
                segment.marker.unlink(missing_ok=True)
        again = "upload it again" if uploaded else "upload it again with --force"
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise WandbServerError(f"{report.run}: the W&B server lacks {lacking[0]}{more}; nothing local is lost, {again}")
    report.url, report.state, report.rows, report.files = remote.url, remote.state, remote.rows, len(remote.files)
    for artifact in remote.artifacts:
        facts = {"name": artifact.name, "version": artifact.version, "type": artifact.type, "state": artifact.state}
        report.artifacts.append(facts | {"aliases": list(artifact.aliases), "files": len(artifact.files)})
    if any(segment.online for segment in segments) and not any(a.type == "model" for a in remote.artifacts):
        # The client does not write them down when it is online.
        report.notes.append("no model: a record of an online run that was cut off does not hold its artifacts")


def _lacking(segments: Sequence[_Segment], remote: RemoteRun | None) -> list[str]:
    """Name what the records hold and the server does not."""
    if remote is None:
        return ["the run"]
    found = []
    rows = sum(len(segment.record.history) for segment in segments)
    if remote.rows < rows:
        found.append(f"{rows - remote.rows:,} of {rows:,} rows")
    if segments[-1].record.exit_code is not None and remote.state == "running":
        found.append("the end of the run")
    found += [name for segment in segments for name in segment.media if name not in remote.files]
    for artifact in dict.fromkeys(artifact for segment in segments for artifact in segment.record.artifacts):
        same = [a for a in remote.artifacts if (a.name, a.type, a.state) == (artifact.name, artifact.type, "COMMITTED")]
        if not same:
            found.append(f"the artifact {artifact.name}")
        else:
            least: list[str] = min((_lacking_files(artifact, candidate) for candidate in same), key=len)
            found += least
    return found


def _lacking_files(artifact: Artifact, remote: RemoteArtifact) -> list[str]:
    """Name the files of an artifact that the server does not have, or has in another form."""
    found = []
    for file in artifact.files:
        size, digest = remote.files.get(file.path, (None, None))
        if size != file.size or (digest and file.digest and digest != file.digest):
            found.append(f"{file.path} of the artifact {artifact.name}")
    return found
