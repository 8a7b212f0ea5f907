"""Compare the W&B records of a run with what the server has.

The client reports success even if it skipped something, so the number of rows, and every image, artifact and artifact
file are checked on the server.
"""

import time
from collections.abc import Callable, Sequence

from pushforward.tracking.wandb.client_records import ClientRecord
from pushforward.tracking.wandb.record import Artifact
from pushforward.tracking.wandb.remote import RemoteArtifact, RemoteRun

SETTLE_SECONDS = 30.0
"""Time that the server may need to process an upload."""


def settled(
    records: Sequence[ClientRecord], remote: RemoteRun | None, ask: Callable[[], RemoteRun | None], seconds: float
) -> tuple[RemoteRun | None, list[str]]:
    """Ask the server repeatedly until nothing is missing, or for some time: it may still be processing an upload.

    Args:
        records: The records that it should have.
        remote: The run on the server, if it was asked already.
        ask: Asks the server.
        seconds: How long to ask again while something is missing.

    Returns:
        The run on the server, and the names of what is missing.
    """
    until = time.monotonic() + seconds
    while True:
        remote = remote or ask()
        found = missing_on_server(records, remote)
        if not found or time.monotonic() >= until:
            return remote, found
        time.sleep(1)
        remote = None


def has_model(remote: RemoteRun | None) -> bool:
    """Return whether the server has a complete model of the run."""
    return remote is not None and any(a.type == "model" and a.state == "COMMITTED" for a in remote.artifacts)


def missing_on_server(records: Sequence[ClientRecord], remote: RemoteRun | None) -> list[str]:
    """Return the names of what is in the records and not on the server.

    Rows are counted over all records. An artifact that was recorded twice counts once; of several versions on the
    server, the most complete one counts.
    """
    if remote is None:
        return ["the run"]
    found = []
    rows = sum(len(record.content.history) for record in records)
    if remote.rows < rows:
        found.append(f"{rows - remote.rows:,} of {rows:,} rows")
    if records[-1].content.exit_code is not None and remote.state == "running":
        found.append("the end of the run")
    found += [name for record in records for name in record.media if name not in remote.files]
    for artifact in dict.fromkeys(artifact for record in records for artifact in record.content.artifacts):
        key = (artifact.name, artifact.type, "COMMITTED")
        versions = [a for a in remote.artifacts if (a.name, a.type, a.state) == key]
        if not versions:
            found.append(f"the artifact {artifact.name}")
        else:
            most_complete: list[str] = min((_missing_files(artifact, version) for version in versions), key=len)
            found += most_complete
    return found


def _missing_files(artifact: Artifact, remote: RemoteArtifact) -> list[str]:
    """Return the names of the files of an artifact that are missing or different on the server."""
    found = []
    for file in artifact.files:
        size, digest = remote.files.get(file.path, (None, None))
        if size != file.size or (digest and file.digest and digest != file.digest):
            found.append(f"{file.path} of the artifact {artifact.name}")
    return found
