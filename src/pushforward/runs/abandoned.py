"""Run folders whose fit was killed before its first step: nothing was fitted yet, so a new fit may start over there."""

import json
import shutil
from pathlib import Path

from pushforward.common.files import remove_partial_files
from pushforward.common.lock import is_locked
from pushforward.runs.listing import LOCK, read_summary

_FOLDERS = {"checkpoints", "model", "samples", "pictures"}
_FILES = {
    LOCK,
    ".reserve",
    "config.yaml",
    "environment.json",
    "log.txt",
    "metrics.jsonl",
    "schema.json",
    "selection.json",
    "state.json",
    "wandb",
}


def is_abandoned(path: Path) -> bool:
    """Whether a folder holds only what a fit writes before its first step, and its process has ended without a word."""
    try:
        found = {entry.name for entry in path.iterdir() if not entry.name.endswith(".partial")}
        has_content = any(any((path / name).iterdir()) for name in _FOLDERS & found)
    except OSError:
        return False
    if LOCK not in found or not found <= _FOLDERS | _FILES or has_content or is_locked(path / LOCK):
        return False
    is_unfinished = "state.json" not in found or read_summary(path).status == "killed"
    return is_unfinished and _has_no_step(path / "metrics.jsonl")


def clear_abandoned(path: Path) -> None:
    """Empty such a folder; any other stays as it is."""
    remove_partial_files(path)
    if not is_abandoned(path):
        return
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _has_no_step(metrics: Path) -> bool:
    """Whether metrics are at most those of the initial weights; measurements of a gradient study are more."""
    try:
        rows = [json.loads(line) for line in metrics.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return all(row["kind"] == "validation" and row["step"] == 0 for row in rows)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError, KeyError):
        return False
