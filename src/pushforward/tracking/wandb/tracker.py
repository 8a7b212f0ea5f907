"""Weights & Biases, at arm's length: it may be missing, slow, offline or dead, and the fit goes on.

The client lives in a process of its own, see ``process``. So starting the client (a second, or
a timeout without network) costs the fit nothing, nor does a call that hangs; and when the fit is killed, that process
still ends the record in order. ``metrics.jsonl`` has everything regardless.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pushforward.tracking.wandb.client import seconds_from
from pushforward.tracking.wandb.process import WandbProcess

# What its process may need beside the client's own timeouts: the start of Python, a model without network.
_GRACE_SECONDS = 45.0
_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
_MODES |= {"disabled": "off"}


def wandb_mode(asked: str) -> str:
    """Whether and where Weights & Biases records: ``auto`` takes ``WANDB_MODE`` where that has a meaning."""
    return _MODES.get(os.environ.get("WANDB_MODE", ""), "auto") if asked == "auto" else asked


class WandbTracker:
    """A tracker that records a Weights & Biases run inside the run folder.

    Steps are a metric named ``global_step`` and the axis of all others: the client's own step may not go back, as
    it must when a fit resumes from a checkpoint. No method raises, and none waits but :meth:`finish`. Cost: some 50
    microseconds a row.

    Args:
        folder: The run folder; the client writes below ``folder/wandb`` and keeps the run's id there.
        config: Flat dotted keys, as a sweep sets them.
        mode: ``auto`` takes ``WANDB_MODE``, else online if an API key is found, else offline.
        project: Project; ``WANDB_PROJECT`` replaces the default one.
        name: Name of the run.
        group: Group of runs that belong together.
        tags: Tags, cut to the 64 characters the server takes.
        job_type: What the process does.
        warn: Called with at most a few single lines, always in the thread that calls this tracker.
        process: One that was started ahead; otherwise one is started here.
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
        asked = os.environ.get("WANDB_MODE", "")
        if mode == "auto" and asked and asked not in _MODES:
            warn(f"WANDB_MODE={asked}: expected one of {', '.join(_MODES)}; taken as if it were not set")
        if self.mode == "off":
            process = WandbProcess(start=False)
        self._process = process or WandbProcess()
        if self._process.trouble:
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
        """Where the run is: a URL or a folder; None until the client has said so."""
        self._exchange()
        return self._location

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Pass on a row of numbers."""
        self._send("log", {**metrics, "global_step": step, "seconds": seconds})

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Pass on a picture; the file is read when its turn comes."""
        self._send("image", {"key": key, "path": str(Path(path).resolve()), "caption": caption, "step": step})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Pass on a table; keep it to a thousand rows, which take the client a tenth of a second."""
        self._send("table", {"key": key, "columns": list(columns), "rows": [list(row) for row in rows], "step": step})

    def reference_lines(self, values: Mapping[str, float], last_step: int, seconds: float = 0.0) -> None:
        """Pass on numbers at the first and at the last step, between which a chart draws a line."""
        for step, at in ((0, 0.0), (last_step, seconds)):
            self._send("log", {**values, "global_step": step, "seconds": at})

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Pass on the files of a folder as an artifact of type ``model`` with the alias ``best``; they stay there."""
        self._send("model", {"folder": str(Path(folder).resolve()), "facts": dict(facts)})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Pass on final numbers."""
        self._send("summary", dict(values))

    def alert(self, title: str, text: str) -> None:
        """Pass on a message to the owner of the run."""
        self._send("alert", {"title": title, "text": text})

    def finish(self, exit_code: int = 0) -> None:
        """Wait until everything is recorded, at most about as long as the client's own timeouts."""
        self._send("finish", exit_code)
        limit = seconds_from("WANDB_INIT_TIMEOUT", 30) + seconds_from("WANDB_FINISH_TIMEOUT", 60) + _GRACE_SECONDS
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
        """Pass on what waits, and hear what there is."""
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
        if self._process.trouble:
            self._give_up()

    def _give_up(self) -> None:
        self._warn(f"{self._process.trouble}; it is off for the rest of this fit, metrics.jsonl goes on")
