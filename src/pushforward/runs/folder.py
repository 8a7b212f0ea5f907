"""The folder of a run: its files, how it is created, claimed and opened.

The folder is the record of a fit and is never overwritten. Everything that describes the fit is text and JSON, so that
it can be read without this package and listed without importing torch.
"""

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from pushforward.common.errors import RunError, RunUsageError, reason
from pushforward.common.files import json_safe, remove_partial_files, write_text
from pushforward.common.git import git
from pushforward.common.lock import try_lock
from pushforward.common.version import __version__
from pushforward.config.schema import Config
from pushforward.runs.abandoned import clear_abandoned, is_abandoned
from pushforward.runs.listing import LOCK, has_source, read_summary, run_names

Status = Literal["running", "finished", "stopped", "failed", "diverged"]

_RECORDED_VERSIONS = (
    "torch",
    "numpy",
    "nflows",
    "pydantic",
    "pyarrow",
    "scikit-learn",
    "safetensors",
    "wandb",
)


class RunFolder:
    """The folder of one run.

    Use :meth:`create` or :meth:`open`. The process that fits holds a lock (:meth:`claim`), which distinguishes a
    running run from one that was killed, and prevents two processes from resuming the same run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, out: Path | None = None, label: str = "run", root: Path = Path("runs")) -> "RunFolder":
        """Create and claim a new run folder.

        Args:
            out: The folder, which must be new or empty, or of a fit that was killed before its first step; ``None``
                means ``<root>/<label>-<date>-<time>-<id>``.
            label: Start of the name, such as ``power-nsf-ar``.
            root: Parent folder of runs without ``out``.

        Raises:
            RunUsageError: If ``out`` exists and is not an empty folder.
            RunError: If it cannot be written.
        """
        path = root / unique_name(label, "run") if out is None else Path(out)
        advice = "runs are never overwritten"
        if out is not None:
            clear_abandoned(path)
            summary = read_summary(path)
            is_resumable = any((path / "checkpoints").glob("**/*.pt")) and summary.status in ("killed", "stopped")
            if is_resumable and has_source(summary.configuration):
                advice += f"; to go on: pushforward fit --resume {path}"
        with making_folder(path, "the run folder", advice):
            run = cls(path)
            run.claim()
            try:
                for folder in (run.checkpoints, run.model, run.samples, run.pictures):
                    folder.mkdir()
                run.set_status("running", started=datetime.now().astimezone().isoformat(timespec="seconds"))
            except BaseException:
                run.discard()
                raise
        return run

    @classmethod
    def open(cls, path: Path, root: Path = Path("runs")) -> "RunFolder":
        """Open an existing run by its folder, or by its name below ``root``.

        Raises:
            RunUsageError: If it is not a run folder; the message lists runs in the same place, nearest names first.
        """
        path = Path(path)
        for candidate in (path, root / path):
            if (candidate / "config.yaml").is_file():
                return cls(candidate)
            if is_abandoned(candidate):
                again = f"pushforward fit DATA --out {candidate}"
                raise RunUsageError(f"{candidate}: its fit was killed before it began; start it again with: {again}")
        beside = path.parent if run_names(path.parent) else root
        names = run_names(beside)
        near = get_close_matches(path.name, names, n=5, cutoff=0.3)
        shown = (near + [name for name in reversed(names) if name not in near])[:5]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        here = f"runs here: {', '.join(str(beside / name) for name in shown)}{more}" if shown else "no runs here"
        raise RunUsageError(f"{path} is not a run folder (no config.yaml); {here}")

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command line, JSON."""
        return self.path / "environment.json"

    @property
    def schema(self) -> Path:
        """Description of the columns of the data, JSON."""
        return self.path / "schema.json"

    @property
    def metrics(self) -> Path:
        """Metrics of the fit, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Messages to the user during the fit, text."""
        return self.path / "log.txt"

    @property
    def results(self) -> Path:
        """Final numbers, JSON."""
        return self.path / "results.json"

    @property
    def test_scores(self) -> Path:
        """Log-density of every test row, Parquet."""
        return self.path / "test_scores.parquet"

    @property
    def report(self) -> Path:
        """Report of the run, HTML."""
        return self.path / "report.html"

    @property
    def state(self) -> Path:
        """Status and progress, JSON."""
        return self.path / "state.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the fitted flow."""
        return self.path / "model"

    @property
    def samples(self) -> Path:
        """Folder of drawn samples."""
        return self.path / "samples"

    @property
    def pictures(self) -> Path:
        """Folder of figures."""
        return self.path / "pictures"

    @property
    def wandb(self) -> Path:
        """Folder of the Weights & Biases client."""
        return self.path / "wandb"

    def claim(self) -> None:
        """Lock the run for this process, until :meth:`release` or the end of the process.

        Incomplete files of processes that were killed are removed.

        Raises:
            RunError: If another process holds the lock.
        """
        if self._lock is None:
            try:
                self._lock = try_lock(self.path / LOCK)
            except BlockingIOError:
                raise RunError(f"{self.path}: in use by another process") from None
            remove_partial_files(self.path)

    def release(self) -> None:
        """Release the lock of :meth:`claim`."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Remove the folder of a new run that could not be started, for instance because the disk is full."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file atomically; NaN becomes null."""
        text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return write_text(self.path / name, text)

    def write_config(self, config: Config) -> Path:
        """Write the resolved configuration; it makes the folder a run."""
        return write_text(self.config, config.to_yaml())

    def write_environment(self, seed: int, device: str) -> Path:
        """Record versions, machine and command line, without names of the host or the user."""
        facts = {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "argv": ["pushforward", *sys.argv[1:]],
            "seed": seed,
            "device": device,
            "platform": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "git_commit": git("rev-parse", "HEAD") or None,
            "versions": {"python": platform.python_version(), "pushforward": __version__}
            | {name: _version(name) for name in _RECORDED_VERSIONS},
        }
        return self.write_json("environment.json", facts)

    def set_status(self, status: Status, **facts: Any) -> None:
        """Record the status, and values for the list of runs (dataset, flow, steps, val_nll, test_nll).

        Values recorded earlier are kept unless given again.
        """
        if status not in get_args(Status):
            raise ValueError(f"set_status: expected {', '.join(get_args(Status))}; got {status!r}")
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(self.state.read_text(encoding="utf-8")) | facts
        self.write_json("state.json", facts | {"status": status})

    @property
    def status(self) -> str:
        """The recorded status; ``killed`` if a running run has no process, ``unreadable`` if the file is damaged."""
        return read_summary(self.path).status


def check_model(run: RunFolder) -> None:
    """Check that a run has a model, or may have lost it by damage.

    Raises:
        RunError: If it has none yet, or never will.
    """
    if (run.model / "config.json").exists():
        return
    if run.status == "running":
        raise RunError(
            f"{run.path}: is still being fitted and has no model yet; `pushforward report {run.path}` shows its "
            "progress"
        )
    if not run.schema.exists():  # of a study, which fits no density to keep
        raise RunError(f"{run.path}: has no model: it is a study; `pushforward report {run.path}` shows it")
    if run.status != "finished" and not any(run.model.glob("*")):
        raise RunError(f"{run.path}: has no model, its status is {run.status}; {run.path / 'log.txt'} says why")


def unique_name(label: str, otherwise: str) -> str:
    """Return a folder name, ``<label>-<date>-<time>-<id>``; ``otherwise`` replaces a label that leaves nothing."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or otherwise
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@contextlib.contextmanager
def making_folder(path: Path, what: str, advice: str) -> Iterator[None]:
    """Create a folder and its parents, and report errors of the block, which fills it, as :class:`RunError`.

    Args:
        path: The folder, which must be new or empty.
        what: Name of the folder in error messages.
        advice: Added to the message if it is not empty.

    Raises:
        RunUsageError: If it is a file, or not empty.
        RunError: If the folder, or a file in the block, cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunUsageError(f"{path}: expected a new or empty folder; it is not empty ({advice})")
        yield
    except (FileExistsError, NotADirectoryError):
        raise RunUsageError(f"{path}: expected a new or empty folder; got a file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot make {what}: {reason(error)}") from None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
