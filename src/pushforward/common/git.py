"""Run git."""

import contextlib
import subprocess
from pathlib import Path


def git(*arguments: str, folder: Path | None = None) -> str:
    """Return the output of a git command in a folder (default: the working directory); empty if it fails."""
    command = ["git", *(["-C", str(folder)] if folder else []), *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return ""
