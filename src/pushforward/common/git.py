"""Ask git."""

import contextlib
import subprocess
from pathlib import Path


def git(*arguments: str, folder: Path | None = None) -> str:
    """What git answers in a folder, the working directory by default; empty where it has no answer, or is not there."""
    command = ["git", *(["-C", str(folder)] if folder else []), *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return ""
