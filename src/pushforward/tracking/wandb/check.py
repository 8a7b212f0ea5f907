"""What the records of a run hold and the Weights & Biases server lacks.

The client's upload ends well also where it has passed over something, so the server is asked for every row, picture,
artifact and file of one.
"""

import time
from collections.abc import Callable, Sequence

from pushforward.tracking.wandb.client_records import Segment
from pushforward.tracking.wandb.record import Artifact
from pushforward.tracking.wandb.remote import RemoteArtifact, RemoteRun

# How long the server may take to show what it was sent.
SETTLE_SECONDS = 30.0


def settled(
    segments: Sequence[Segment], remote: RemoteRun | None, ask: Callable[[], RemoteRun | None], seconds: float
) -> tuple[RemoteRun | None, list[str]]:
    """Ask the server for everything, again and again for a while: it may need time for what it has just been sent.

    Args:
        segments: What it should have.
        remote: What it has, if it was asked already.
        ask: Asks it.
        seconds: How long to go on while something is lacking.

    Returns:
        What it has, and the names of what it lacks.
    """
    until = time.monotonic() + seconds
    while True:
        remote = remote or ask()
        found = lacking(segments, remote)
        if not found or time.monotonic() >= until:
            return remote, found
        time.sleep(1)
        remote = None


def has_model(remote: RemoteRun | None) -> bool:
    """Tell whether the server has a whole model of the run."""
    return remote is not None and any(a.type == "model" and a.state == "COMMITTED" for a in remote.artifacts)


def lacking(segments: Sequence[Segment], remote: RemoteRun | None) -> list[str]:
    """Name what the records hold and the server does not.

    Rows are counted over all segments, as the server counts them. An artifact that was recorded twice is one; where the
    server has several versions of it, the nearest one counts.
    """
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
