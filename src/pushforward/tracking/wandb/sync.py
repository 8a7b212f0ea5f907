"""Upload the W&B records of a run with ``wandb sync``, and check on the server that everything has arrived.

``wandb sync`` skips files that have been moved since they were logged, and exits with code 0 even then, and if it could
not read the record. So all files are located before the upload, and checked on the server after it.
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

from pushforward.common.errors import ConfigError, RunError
from pushforward.runs.folder import RunFolder
from pushforward.tracking.wandb import check as wandb_check
from pushforward.tracking.wandb.check import has_model, missing_on_server, settled
from pushforward.tracking.wandb.client_records import ClientRecord, find_client_records, locate, record_model
from pushforward.tracking.wandb.log_file import LogReader, write_log
from pushforward.tracking.wandb.record import read_messages
from pushforward.tracking.wandb.remote import (
    RemoteRun,
    WandbServerError,
    client_environment,
    default_entity,
    remote_run,
)
from pushforward.tracking.wandb.tracker import turned_off

UPLOAD_SECONDS = 60.0
"""Time limit of an upload, besides the time that a slow network needs."""

_SLOW_BYTES_PER_SECOND = 100_000


@dataclass
class SyncReport:
    """What was uploaded, and what the server has; the numbers are those of the server."""

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
        """Return all fields as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the lines to print."""
        done = "uploaded" if self.uploaded else "uploaded before"
        artifacts = [f"{a['name']}:{a['version']} ({a['type']}, {a['files']} files)" for a in self.artifacts]
        kept = f"{self.rows:,} rows, {self.files:,} files, {len(artifacts)} artifacts"
        return [f"{done} and checked: {self.url}", f"the server has {kept}", *artifacts, *self.notes]


def sync_run(
    run: RunFolder,
    *,
    notify: Callable[[str], None],
    entity: str | None = None,
    project: str | None = None,
    force: bool = False,
    timeout: float = 20.0,
) -> SyncReport:
    """Upload all W&B records of a run, and check that the server has everything.

    The run folder may have been moved, also to another machine. Records that were uploaded before are only checked.
    Nothing in the run folder is lost, even after an error.

    A client that loses its network while it is online records everything except artifacts. So if the server has no
    model after the upload, and the run folder has one, the model is added as one more record and uploaded too.

    Args:
        run: The run.
        notify: Called with a line of text about each upload.
        entity: User or team of the W&B run; by default the recorded one, or that of the API key.
        project: Project of the W&B run; by default the recorded one.
        force: Upload records again; the server replaces the rows.
        timeout: Seconds to wait for an answer of the server.

    Raises:
        WandbLoginError: If there is no valid API key.
        WandbServerError: If the server does not answer in time, or something is missing after the upload.
        RunError: If there is no record, it is damaged, the fit is still running, or files are missing.
        ConfigError: If an environment variable turns Weights & Biases off.
    """
    if variable := turned_off():
        raise ConfigError(
            f"{variable}: W&B is off, so that nothing is uploaded; unset the variable to upload {run.path}"
        )
    with _claimed(run):
        records = find_client_records(run)
        for record in records:
            missing = locate(record, run.path)
            if missing and (force or not record.marker.exists()):
                raise RunError(f"{run.path}: {missing}")
        first = records[0].content
        entity = entity or first.entity or default_entity(timeout)
        report = SyncReport(str(run.path), first.id, entity, project or first.project or "uncategorized")
        waiting, remote = (records, None) if force else _waiting(records, report, timeout)
        report.already = [record.folder.name for record in records if record not in waiting]
        if report.already:
            notify(f"uploaded before: {', '.join(report.already)}")
        if waiting:
            rows = sum(len(record.content.history) for record in waiting)
            notify(f"uploading {rows:,} rows to {report.entity}/{report.project}/{report.id}")
            report.uploaded = [record.folder.name for record in waiting]
            _upload(waiting, report)
            remote = None
        remote = _check(records, waiting, report, remote, timeout)
        if not has_model(remote):
            remote = _add_model(run, records, report, notify, timeout) or remote
        _describe(remote, report)
    return report


def _add_model(
    run: RunFolder, records: Sequence[ClientRecord], report: SyncReport, notify: Callable[[str], None], timeout: float
) -> RemoteRun | None:
    """Upload the model, which no record contains; return the run on the server, ``None`` if nothing was uploaded."""
    try:
        results = json.loads(run.results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = None
    if not results or not all((run.model / name).is_file() for name in ("model.safetensors", "config.json")):
        if any(record.online for record in records):
            lost = "the record of an interrupted online run does not contain its artifacts"
            report.notes.append(f"no model: {lost}, and the run folder has no finished model")
        return None
    notify("uploading the model, which no record of the run contains")
    try:
        added = record_model(run, records, results)
    except RunError as error:
        report.notes.append(f"no model: {error}")
        return None
    report.uploaded.append(added.folder.name)
    _upload([added], report)
    remote = _check([*records, added], [added], report, None, timeout)
    report.notes.append(f"the model was added from {run.model}: no record of the run contained it")
    return remote


@contextlib.contextmanager
def _claimed(run: RunFolder) -> Iterator[None]:
    """Lock the run during the upload: rows that a fit records meanwhile would be marked as uploaded."""
    try:
        run.claim()
    except OSError:  # no fit can run in a read-only folder
        pass
    except RunError:
        raise RunError(f"{run.path}: in use by another process; upload it when its fit has ended") from None
    try:
        yield
    finally:
        run.release()


def _waiting(
    records: Sequence[ClientRecord], report: SyncReport, timeout: float
) -> tuple[list[ClientRecord], RemoteRun | None]:
    """Return the records to upload, and the run on the server if it was asked for.

    Offline records are uploaded if they have no marker of the client. Online records never have one; they are uploaded
    if something of them is missing on the server.
    """
    waiting = [record for record in records if not record.marker.exists()]
    if not any(record.online for record in waiting):
        return waiting, None
    expected = [record for record in records if record.online or record not in waiting]
    remote = remote_run(report.entity, report.project, report.id, timeout)
    if not missing_on_server(expected, remote):
        waiting = [record for record in waiting if not record.online]
    return waiting, remote


def _upload(records: Sequence[ClientRecord], report: SyncReport) -> None:
    """Run ``wandb sync`` on copies of the records."""
    with tempfile.TemporaryDirectory(prefix="pushforward-sync-") as scratch:
        folders = [_copy(record, report, Path(scratch)) for record in records]
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, folders)]
        try:
            output = _run(command, Path(scratch), UPLOAD_SECONDS + _size(records) / _SLOW_BYTES_PER_SECOND)
        finally:
            # Keep the client's state also after an interrupted upload: the next one continues from it.
            for record, folder in zip(records, folders, strict=True):
                for path in folder.glob("*.sync*"):
                    with contextlib.suppress(OSError):
                        shutil.copyfile(path, record.folder / path.name)
        done = [(folder / record.marker.name).exists() for record, folder in zip(records, folders, strict=True)]
    if not all(done):
        reasons = [line for line in output if "ERROR" in line] or output[-1:] or ["no output"]
        reason = reasons[-1].removeprefix("wandb: ").removeprefix("ERROR ").strip()
        raise WandbServerError(f"{report.run}: the upload failed, nothing local is lost: {reason}")


def _copy(record: ClientRecord, report: SyncReport, scratch: Path) -> Path:
    """Return a folder with a copy of the record that the client uploads completely.

    With the original, the client would skip moved files, send the artifacts of a run without an entity to another
    entity, and never finish a record that ends within a message, like that of a killed fit.
    """
    source = record.content.path
    folder = scratch / record.folder.name
    folder.mkdir()
    (folder / "files").symlink_to((record.folder / "files").resolve())
    for state in source.parent.glob("*.syncstate"):
        shutil.copyfile(state, folder / state.name)

    def contents() -> Iterator[bytes]:
        for message in read_messages(LogReader(source)):
            kind = message.WhichOneof("record_type")
            if kind in ("run", "artifact"):
                part = getattr(message, kind)
                part.entity, part.project = report.entity, report.project
            for entry in message.artifact.manifest.contents if kind == "artifact" else ():
                entry.local_path = record.moved.get(entry.local_path, entry.local_path)
            yield message.SerializeToString()

    write_log(folder / source.name, contents())
    return folder


def _run(command: Sequence[str], scratch: Path, seconds: float) -> list[str]:
    """Run the client with a time limit; return the lines of its output."""
    process = subprocess.Popen(
        command,
        env=client_environment(scratch),
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its service is killed with it
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise WandbServerError(
            f"the upload was stopped after {seconds:.0f} s: check the network; nothing local is lost"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return output.splitlines()


def _size(records: Sequence[ClientRecord]) -> int:
    """Return the approximate number of bytes to upload."""
    files = sum(file.size for record in records for artifact in record.content.artifacts for file in artifact.files)
    return files + sum(path.stat().st_size for record in records for path in record.folder.rglob("*") if path.is_file())


def _check(
    records: Sequence[ClientRecord],
    uploaded: Sequence[ClientRecord],
    report: SyncReport,
    remote: RemoteRun | None,
    timeout: float,
) -> RemoteRun:
    """Return the run on the server; raise an error if something is missing there."""
    remote, missing = settled(
        records,
        remote,
        lambda: remote_run(report.entity, report.project, report.id, timeout),
        wandb_check.SETTLE_SECONDS if uploaded else 0,
    )
    if remote is None or missing:
        for record in uploaded:
            with contextlib.suppress(OSError):
                record.marker.unlink(missing_ok=True)
        again = "upload it again" if uploaded else "upload it again with --force"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WandbServerError(f"{report.run}: the W&B server lacks {missing[0]}{more}; nothing local is lost, {again}")
    return remote


def _describe(remote: RemoteRun, report: SyncReport) -> None:
    """Fill the report with what the server has."""
    report.url, report.state, report.rows, report.files = remote.url, remote.state, remote.rows, len(remote.files)
    for artifact in remote.artifacts:
        facts = {"name": artifact.name, "version": artifact.version, "type": artifact.type, "state": artifact.state}
        report.artifacts.append(facts | {"aliases": list(artifact.aliases), "files": len(artifact.files)})
