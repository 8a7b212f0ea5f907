"""A Weights & Biases tracker that never stops or delays a fit: W&B may be missing, slow, offline or crash.

The client runs in its own process, see :mod:`pushforward.tracking.wandb.process`. Starting it (a second, or a timeout
without network) and calls that hang cost the fit nothing; if the fit is killed, that process still finishes the record.
``metrics.jsonl`` has all metrics in any case.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pushforward.tracking.base import Tracker
from pushforward.tracking.wandb.client import seconds_from
from pushforward.tracking.wandb.process import WandbProcess

GRACE_SECONDS = 45.0
"""Time for :meth:`WandbTracker.finish` beyond the client's own timeouts: start of Python, a model without network."""

_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
_MODES |= {"disabled": "off"}
_TRUE = ("1", "on", "t", "true", "y", "yes")


def wandb_mode(asked: str) -> str:
    """Return the mode of Weights & Biases: off if a variable turns it off, else that of ``WANDB_MODE`` for ``auto``.

    An option takes precedence over ``WANDB_MODE``, but not over ``WANDB_DISABLED``, which is there to make sure that
    nothing is recorded.
    """
    if turned_off(asked):
        return "off"
    return _MODES.get(os.environ.get("WANDB_MODE", ""), "auto") if asked == "auto" else asked


def turned_off(asked: str = "auto") -> str:
    """Return what turns Weights & Biases off, as in ``WANDB_DISABLED=true``; empty if no environment variable does.

    Args:
        asked: The mode that was asked for; nothing turns ``off`` off.
    """
    disabled, mode = os.environ.get("WANDB_DISABLED", ""), os.environ.get("WANDB_MODE", "")
    if asked != "off" and disabled.strip().lower() in _TRUE:
        return f"WANDB_DISABLED={disabled}"
    return f"WANDB_MODE={mode}" if asked == "auto" and _MODES.get(mode) == "off" else ""


class WandbTracker(Tracker):
    """A tracker that records a Weights & Biases run inside the run folder.

    The step is a metric named ``global_step``, the axis of all other metrics: W&B's own step cannot go back, which it
    must if a fit resumes from a checkpoint. No method raises, and only :meth:`finish` waits. Cost: about 50
    microseconds per row.

    Args:
        folder: The run folder; the client writes below ``folder/wandb``, also the id of the W&B run.
        config: The configuration, with flat dotted keys as a sweep sets them.
        mode: ``auto`` means ``WANDB_MODE``, else online if there is an API key, else offline; ``WANDB_DISABLED=true``
            turns it off.
        project: Project; ``WANDB_PROJECT`` replaces the default.
        name: Name of the run.
        group: Group of the run.
        tags: Tags, cut to 64 characters, the limit of the server.
        job_type: Job type of the run.
        warn: Called with a line of text for each warning, in the thread that calls this tracker.
        process: A process that was already started; by default one is started here.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        mode: str = "auto",
        project: str = "pushforward",
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str = "fit",
        warn: Callable[[str], None] = lambda text: None,
        process: WandbProcess | None = None,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.mode = wandb_mode(mode)
        self._location: str | None = None
        self._warn = warn
        if variable := turned_off(mode):
            warn(f"W&B is off: {variable}")
        asked = os.environ.get("WANDB_MODE", "")
        if mode == "auto" and asked and asked not in _MODES:
            warn(f"WANDB_MODE={asked}: expected one of {', '.join(_MODES)}; ignored")
        if self.mode == "off":
            process = WandbProcess(start=False)
        self._process = process or WandbProcess()
        if self._process.failure:
            self._give_up()
        options = {
            "config": dict(config),
            "project": project if project != "pushforward" or not os.environ.get("WANDB_PROJECT") else None,
            "name": name,
            "group": group,
            "tags": list(dict.fromkeys(tag[:64] for tag in tags if tag)),
            "job_type": job_type,
        }
        self._send("open", {"folder": str(self.folder), "mode": self.mode, "options": options, "fit": os.getpid()})

    @property
    def location(self) -> str | None:
        """URL or folder of the W&B run; None until the client has started it."""
        self._exchange()
        return self._location

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Log a row of numbers."""
        self._send("log", {**metrics, "global_step": step, "seconds": seconds})

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Log an image; the client reads the file later."""
        self._send("image", {"key": key, "path": str(Path(path).resolve()), "caption": caption, "step": step})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Log a table of at most about a thousand rows, which take the client 0.1 s."""
        self._send("table", {"key": key, "columns": list(columns), "rows": [list(row) for row in rows], "step": step})

    def reference_lines(self, values: Mapping[str, float], last_step: int, seconds: float = 0.0) -> None:
        """Log constants at the first and the last step, so that charts draw lines."""
        for step, time_of_step in ((0, 0.0), (last_step, seconds)):
            self._send("log", {**values, "global_step": step, "seconds": time_of_step})

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Log the files of a folder, in place, as an artifact of type ``model`` with the alias ``best``."""
        self._send("model", {"folder": str(Path(folder).resolve()), "facts": dict(facts)})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Log final numbers."""
        self._send("summary", dict(values))

    def alert(self, title: str, text: str) -> None:
        """Send a message to the owner of the run."""
        self._send("alert", {"title": title, "text": text})

    def finish(self, exit_code: int = 0) -> None:
        """Wait until everything is recorded, at most for the client's own timeouts and :data:`GRACE_SECONDS`."""
        self._send("finish", exit_code)
        limit = seconds_from("WANDB_INIT_TIMEOUT", 30) + seconds_from("WANDB_FINISH_TIMEOUT", 60) + GRACE_SECONDS
        until = time.monotonic() + limit
        while self._process.alive and time.monotonic() < until:
            self._process.wait(1.0)
            self._exchange()
        if self._process.alive:
            self._process.end("late")
            self._warn(f"W&B did not finish within {limit:.0f} s; the run is in {self.folder / 'wandb'}")

    def _send(self, what: str, value: Any) -> None:
        self._exchange({what: value})

    def _exchange(self, line: Mapping[str, Any] | None = None) -> None:
        """Send a line and those that wait, and handle the answers."""
        if not self._process.alive:
            return
        if line is not None:
            self._process.send(line)
        for answer in self._process.answers():
            if "location" in answer:
                self._location = answer["location"]
            elif "warning" in answer:
                self._warn(answer["warning"])
            elif "gave_up" in answer:
                self._process.end(answer["gave_up"])
            elif "done" in answer:
                self._process.end()
        if self._process.failure:
            self._give_up()

    def _give_up(self) -> None:
        self._warn(f"{self._process.failure}; it is off for the rest of this fit, metrics.jsonl goes on")
