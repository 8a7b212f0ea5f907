"""The process that fits the trials of a sweep, and the handle by which the sweep talks to it.

A fit of its own process can be killed by the system without taking the sweep along, and several fit side by side. The
two talk in lines of JSON: an order down, reports of validation up, an answer to each down, an outcome up. When the
sweep dies, however it dies, the worker reads the end of its input and ends its fit like one that is told to.

``python -m pushforward.sweeps.worker`` is the process; nobody types that.
"""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, NamedTuple

from pushforward.tracking.wandb.remote import RUN_VARIABLES


class Message(NamedTuple):
    """What came from a worker; ``body`` is None when it has ended."""

    worker: "Worker"
    body: dict[str, Any] | None


class Worker:
    """A process that fits one trial after the other.

    Args:
        threads: Threads that its fits may use.
        log: Takes what the process writes on stderr; appended to, and its own while it is there.
        inbox: Where its messages go, from a thread of its own.
    """

    def __init__(self, threads: int, log: Path, inbox: "queue.SimpleQueue[Message]") -> None:
        self.trial: int | None = None
        self.log = log
        # What an agent of Weights & Biases says about one run would otherwise hold for all trials.
        environment = {key: value for key, value in os.environ.items() if key not in RUN_VARIABLES}
        with contextlib.suppress(KeyError, ValueError):
            threads = min(threads, int(environment["OMP_NUM_THREADS"]))
        environment["OMP_NUM_THREADS"] = str(max(1, threads))
        # A process group of its own: Ctrl-C in the terminal reaches the sweep, which tells its workers once.
        alone: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        with open(log, "ab") as stderr:
            self._log_start = stderr.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pushforward.sweeps.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
                encoding="utf-8",
                **alone,
            )
        self._thread = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def order(self, trial: int, out: Path, overrides: list[str]) -> None:
        """Have a trial fitted."""
        self.trial = trial
        self.tell({"out": str(out), "overrides": overrides})

    def tell(self, body: dict[str, Any]) -> None:
        """Send an order, or the answer to a report; a process that has gone says so in the inbox."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(body) + "\n")
            self._process.stdin.flush()

    def terminate(self) -> None:
        """Ask for the end of the fit; what it has is kept."""
        self._process.terminate()

    def close(self, patience: float) -> None:
        """End the process, by force if it does not end by itself within some seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(5.0)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def last_words(self) -> str:
        """How it ended, and the last line it wrote."""
        code = self._process.wait()
        if code < 0:
            killed = " (often: out of memory)" if code == -9 else ""
            return f"its process was ended by {signal.Signals(-code).name}{killed}"
        try:
            written = self.log.read_bytes()[self._log_start :]
        except OSError:
            written = b""
        lines = written.decode("utf-8", errors="replace").strip().splitlines()
        return f"its process ended with code {code}" + (f": {lines[-1].strip()}" if code and lines else "")

    def _listen(self, inbox: "queue.SimpleQueue[Message]") -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                inbox.put(Message(self, json.loads(line)))
        inbox.put(Message(self, None))


def main() -> None:
    """Fit what is ordered on stdin until it ends."""
    # Lines of JSON have stdout for themselves; whatever a library prints goes where errors go.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if os.name == "posix":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        outcome = _fitted(Path(order["out"]), order["overrides"], replies)
        try:
            _send(replies, outcome)
        except OSError:  # the sweep has gone
            return


def _fitted(out: Path, overrides: list[str], replies: IO[str]) -> dict[str, Any]:
    from pushforward.config.read import load_config
    from pushforward.experiment.rows import fit

    def watch(fraction: float, nll: float) -> str:
        try:
            _send(replies, {"fraction": fraction, "nll": nll if math.isfinite(nll) else None})
            answer = sys.stdin.readline()
        except OSError:
            answer = ""
        if not answer:  # the sweep has gone: end as if told to, so that the run says stopped
            os.kill(os.getpid(), signal.SIGTERM)
            return ""
        return str(json.loads(answer)["stop"])

    try:
        done = fit(load_config(overrides=overrides), out=out, quiet=True, watch=watch, job_type="sweep")
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        # By name: exit codes go by the names of the class and those it derives from.
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"failed": text or kinds[0], "kinds": kinds}
    keys = ("val_nll", "steps", "seconds", "stop_reason", "flow", "parameters")
    results = {key: done.results[key] for key in keys}
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    return {"done": finite, "signum": done.signum, "note": done.note}


def _send(replies: IO[str], body: dict[str, Any]) -> None:
    replies.write(json.dumps(body) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
