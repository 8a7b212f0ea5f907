"""The line for the user about where a Weights & Biases run is."""

import shlex
from pathlib import Path


def location_line(location: str, folder: Path) -> str:
    """Return one line: the address of the run, or how to upload a run that was recorded offline.

    Args:
        location: URL of the W&B run, or the folder of one that was recorded offline.
        folder: The run folder.

    Example:
        >>> location_line("https://wandb.ai/me/pushforward/runs/1", Path("runs/a"))
        'W&B       https://wandb.ai/me/pushforward/runs/1'
        >>> location_line("runs/a/wandb/offline-run-1", Path("runs/a"))
        'W&B       recorded in runs/a/wandb, not uploaded; to upload it: pushforward wandb sync runs/a'
    """
    if "://" in location:
        return f"W&B       {location}"
    sync = shlex.join(["pushforward", "wandb", "sync", str(folder)])
    return f"W&B       recorded in {folder / 'wandb'}, not uploaded; to upload it: {sync}"
