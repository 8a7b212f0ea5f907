"""The list of the runs below a folder, from their JSON files alone."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunUsageError
from pushforward.common.lock import is_locked
from pushforward.common.mappings import flatten

LOCK = ".lock"
"""Name of the lock file in a run folder, which the process of the run holds."""


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs; ``None`` for values that are not recorded (yet).

    ``status`` is a :data:`pushforward.runs.folder.Status`, ``killed`` if the status is running but no process holds
    the lock, or ``unreadable`` if the JSON is damaged. ``name`` is the path relative to the folder that was listed.
    """

    name: str
    path: Path
    status: str
    dataset: str | None = None
    flow: str | None = None
    started: str | None = None
    steps: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    val_nll: float | None = None
    test_nll: float | None = None
    facts: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Everything in ``state.json`` and ``results.json``."""

    @property
    def headline(self) -> str | None:
        """The first of the numbers that sum up the fit, in words; None if it has none (yet)."""
        found = self.facts.get("headline")
        first = found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}
        value, se = first.get("value"), first.get("se")
        if not isinstance(value, int | float):
            return None
        text = f"{value:.4f}" + (f" ± {se:.4f}" if isinstance(se, int | float) else "")
        return f"{first.get('name', '')} {text}".strip()

    @cached_property
    def configuration(self) -> dict[str, str]:
        """Configuration with dotted keys, every value as text; empty if it cannot be read."""
        import yaml

        # The compiled loader, without types: it is fast enough for lists of a thousand runs.
        loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
        try:
            sections = yaml.load((self.path / "config.yaml").read_bytes(), Loader=loader)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        flat = flatten(sections) if isinstance(sections, dict) else {}
        return {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in flat.items()}


def has_source(configuration: Mapping[str, Any]) -> bool:
    """Whether the data of a run can be read again; rows of objects in memory are not kept.

    Args:
        configuration: Its configuration by dotted key.
    """
    from pushforward.datasets.dataset import MEMORY

    return configuration.get("data.source") != MEMORY


def check_folder_of_runs(path: Path) -> Path:
    """Return the path of a folder in which runs can be.

    Raises:
        RunUsageError: If there is none, or it is a run itself.
    """
    if not path.is_dir():
        raise RunUsageError(f"{path}: expected a folder with runs; got {'a file' if path.exists() else 'nothing'}")
    if _is_run(path):
        raise RunUsageError(
            f"{path}: expected a folder with runs; got a run (pushforward report {path} shows it, pushforward runs "
            f"{path.resolve().parent} lists those beside it)"
        )
    return path


def list_runs(root: Path = Path("runs")) -> list[RunSummary]:
    """List the runs below a folder, oldest first, from their JSON files alone.

    Nested folders are searched, such as the trials of a sweep; run folders are not. Cost: about 0.1 ms per run.
    """
    summaries = [read_summary(path, path.relative_to(root).as_posix()) for path in _run_paths(root)]
    return sorted(summaries, key=lambda summary: (summary.started or "", summary.name))


def _run_paths(root: Path, depth: int = 4) -> list[Path]:
    """Find the run folders below a folder; a symbolic link to one that was found is left out."""
    found: list[Path] = []
    links: list[Path] = []

    def search(folder: str, depth: int) -> None:
        try:
            with os.scandir(folder) as entries:
                below = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        except OSError:
            return
        for name in below:
            path = f"{folder}/{name}"
            if _is_run(path):
                (links if os.path.islink(path) else found).append(Path(path))
            elif depth > 1 and not os.path.islink(path):
                search(path, depth - 1)

    search(str(root), depth)
    real = {os.path.realpath(path) for path in found} if links else set()
    return found + [path for path in links if os.path.realpath(path) not in real]


def run_names(root: Path) -> list[str]:
    """Return the names of the run folders directly in a folder, in alphabetical order."""
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
    return sorted(folder.name for folder in folders if _is_run(folder))


def _is_run(folder: str | Path) -> bool:
    return os.path.exists(f"{folder}/config.yaml") or os.path.exists(f"{folder}/state.json")


def read_summary(path: Path, name: str = "") -> RunSummary:
    """Read the summary of a run from its JSON files."""
    try:
        facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
        status = str(facts["status"])
        if (path / "results.json").exists():
            facts |= json.loads((path / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return RunSummary(name, path, "unreadable")
    if status == "running" and not is_locked(path / LOCK):
        status = "killed"
    return RunSummary(
        name,
        path,
        status,
        dataset=facts.get("dataset"),
        flow=facts.get("flow"),
        started=facts.get("started"),
        steps=facts.get("steps"),
        seconds=facts.get("seconds"),
        parameters=facts.get("parameters"),
        val_nll=facts.get("val_nll"),
        test_nll=facts.get("test_nll"),
        facts=facts,
    )
