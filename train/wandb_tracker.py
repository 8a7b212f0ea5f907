"""Weights & Biases, at arm's length: it may be missing, slow, offline or dead, and the fit goes on.

The client lives in a process of its own (:mod:`pushforward.train.wandb_client`), which gets JSON lines through a pipe
that never blocks the fit. So starting the client (a second, or a timeout without network) costs the fit nothing, nor
does a call that hangs; and when the fit is killed, that process still ends the record in order. ``metrics.jsonl`` has
everything regardless.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pushforward
from pushforward.train.wandb_client import seconds_from

# Lines that may wait for the client; at one every millisecond this is a start of ten seconds.
_WAITING_LINES = 10_000
# What its process may need beside the client's own timeouts: the start of Python, a model without network.
_GRACE_SECONDS = 45.0
_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
_MODES |= {"disabled": "off"}


class WandbTracker:
    """A tracker that records a Weights & Biases run inside the run folder.

    Steps are a metric named ``global_step`` and the axis of all others: the client's own step may not go back, as
    it must when a fit resumes from a checkpoint. No method raises, and none waits but :meth:`finish`. Cost: a few
    milliseconds to start the process, some 50 microseconds a row.

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
    ) -> None:
        self.folder = Path(folder).resolve()
        asked = os.environ.get("WANDB_MODE", "")
        self.mode = _MODES.get(asked, "auto") if mode == "auto" else mode
        self._location: str | None = None
        self._options: dict[str, Any] = {
            "config": dict(config),
            "project": project if project != "pushforward" or not os.environ.get("WANDB_PROJECT") else None,
            "name": name,
            "group": group,
            "tags": list(dict.fromkeys(tag[:64] for tag in tags if tag)),
            "job_type": job_type,
        }
        self._warn = warn
        if mode == "auto" and asked and asked not in _MODES:
            warn(f"WANDB_MODE={asked}: expected one of {', '.join(_MODES)}; taken as if it were not set")
        self._waiting: deque[bytes] = deque()
        self._heard = b""
        self._process: subprocess.Popen[bytes] | None = None
        if self.mode != "off":
            self._start()

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
        while self._process is not None and time.monotonic() < until:
            ears: list[Any] = [self._process.stdout]
            mouths: list[Any] = [self._process.stdin] if self._waiting else []
            select.select(ears, mouths, [], 1.0)
            self._exchange()
        if self._process is not None:
            self._end(f"W&B did not finish within {limit:.0f} s; the run is in {self.folder / 'wandb'}")

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        # The client stages tables and artifacts in the home folder, where a moved run loses them.
        environment.setdefault("WANDB_DATA_DIR", str(self.folder / "wandb" / "data"))
        # Found as here, and nothing else besides: the folder the fit was started in may hold anything.
        home = str(Path(pushforward.__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [environment.get("PYTHONPATH")])])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pushforward.train.wandb_client"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the fit; a session of its own would also share cores equally with it
            )
        except OSError as error:
            self._warn(f"W&B could not be started ({error}); it is off for this fit, metrics.jsonl goes on")
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # asked for above
            os.set_blocking(pipe.fileno(), False)
        opening = {"folder": str(self.folder), "mode": self.mode, "options": self._options, "fit": os.getpid()}
        self._send("open", opening)

    def _send(self, what: str, value: Any) -> None:
        if self._process is None:
            return
        self._waiting.append(json.dumps({what: value}).encode() + b"\n")
        if len(self._waiting) > _WAITING_LINES:
            self._end(f"W&B takes no more rows ({_WAITING_LINES:,} wait); {_OFF}")
            return
        self._exchange()

    def _exchange(self) -> None:
        """Write what the pipe takes, and read what there is."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # of a broken pipe the other one knows why
            while self._waiting:
                written = os.write(process.stdin.fileno(), self._waiting[0])
                self._waiting[0] = self._waiting[0][written:]
                if not self._waiting[0]:
                    self._waiting.popleft()
        while True:
            try:
                part = os.read(process.stdout.fileno(), 65_536)
            except BlockingIOError:
                break
            if not part:
                self._end(f"W&B failed (its process has gone); {_OFF}")
                return
            self._heard += part
            *lines, self._heard = self._heard.split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
                if self._process is None:  # that was its last word
                    return

    def _hear(self, answer: Mapping[str, str]) -> None:
        if "location" in answer:
            self._location = answer["location"]
        elif "warning" in answer:
            self._warn(answer["warning"])
        elif "gave_up" in answer:
            self._end(f"{answer['gave_up']}; {_OFF}")
        elif "done" in answer:
            self._end("")

    def _end(self, reason: str) -> None:
        """Let the process go, by force where it does not by itself, and say why."""
        process, self._process = self._process, None
        self._waiting.clear()
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.0 if reason else 5.0)
        if process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if reason:
            self._warn(reason)


_OFF = "it is off for the rest of this fit, metrics.jsonl goes on"
