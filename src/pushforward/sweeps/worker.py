"""The worker process that fits the trials of a sweep, and :class:`Worker`, its handle in the process of the sweep.

Several workers fit trials in parallel, and the system can kill one without ending the sweep. The two processes exchange
lines of JSON: the sweep sends a trial, the worker sends each validation, the sweep answers each, the worker sends the
result. If the sweep dies, in whatever way, the worker reads the end of its input and stops its fit as after a signal.

The sweep starts the process as ``python -m pushforward.sweeps.worker``; it is not a command for users.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, NamedTuple

from pushforward.common.files import json_safe
from pushforward.common.processes import ended_by, last_line
from pushforward.tracking.wandb.remote import RUN_VARIABLES


class Message(NamedTuple):
    """A message from a worker; ``body`` is None if its process has ended."""

    worker: "Worker"
    body: dict[str, Any] | None


class Worker:
    """Starts a worker process, which fits one trial after the other.

    Args:
        threads: Threads that its fits may use.
        log: File to which the stderr of the process is appended; no other running worker has it.
        messages: Queue for its messages; a thread of this object fills it.

    Attributes:
        trial: Number of the trial that it fits; None if idle.
    """

    def __init__(self, threads: int, log: Path, messages: "queue.SimpleQueue[Message]") -> None:
        self.trial: int | None = None
        self.log = log
        # Inside an agent of Weights & Biases these variables describe one run, and would apply to every trial.
        environment = {key: value for key, value in os.environ.items() if key not in RUN_VARIABLES}
        with contextlib.suppress(KeyError, ValueError):
            threads = min(threads, int(environment["OMP_NUM_THREADS"]))
        environment["OMP_NUM_THREADS"] = str(max(1, threads))
        # A process group of its own: Ctrl-C in the terminal reaches the sweep only, which stops its workers once.
        own_group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
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
                **own_group,
            )
        self._thread = threading.Thread(target=self._read_messages, args=(messages,), daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def start_trial(self, trial: int, out: Path, overrides: list[str]) -> None:
        """Start a trial.

        Args:
            trial: Its number.
            out: Its run folder.
            overrides: Its configuration, as ``key=value``.
        """
        self.trial = trial
        self.send({"out": str(out), "overrides": overrides})

    def send(self, body: dict[str, Any]) -> None:
        """Send a trial, or the answer to a validation; if the process has ended, a message says so."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(body) + "\n")
            self._process.stdin.flush()

    def terminate(self) -> None:
        """Ask the process to stop its fit, which keeps its best weights."""
        self._process.terminate()

    def close(self, seconds: float) -> None:
        """End the process; kill it if it has not ended after so many seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(5.0)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def last_output(self) -> str:
        """Wait for the end of the process; return how it ended, and the last line it wrote."""
        code = self._process.wait()
        written = b""
        if code > 0:
            with contextlib.suppress(OSError):
                written = self.log.read_bytes()[self._log_start :]
        line = last_line(written.decode("utf-8", errors="replace"))
        return ended_by(code) + (f": {line}" if line else "")

    def _read_messages(self, messages: "queue.SimpleQueue[Message]") -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                messages.put(Message(self, json.loads(line)))
        messages.put(Message(self, None))


def main() -> None:
    """Fit the trials that arrive on stdin, until it ends."""
    # Only messages go to stdout; what libraries print goes to stderr.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if os.name == "posix":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in iter(sys.stdin.readline, ""):
        trial = json.loads(line)
        result = _fit(Path(trial["out"]), trial["overrides"], output)
        try:
            _send(output, result)
        except OSError:  # the sweep has ended
            return


def _fit(out: Path, overrides: list[str], output: IO[str]) -> dict[str, Any]:
    from pushforward.config.read import load_config
    from pushforward.experiment.run import fit
    from pushforward.sweeps.summary import validation_value
    from pushforward.train.callbacks import Watch

    def watch(fraction: float, nll: float) -> str:
        try:
            _send(output, {"fraction": fraction, "nll": json_safe(nll)})
            answer = sys.stdin.readline()
        except OSError:
            answer = ""
        if not answer:  # the sweep has ended: stop by a signal, so that the status of the run is "stopped"
            os.kill(os.getpid(), signal.SIGTERM)
            return ""
        return str(json.loads(answer)["stop"])

    try:
        done = fit(
            load_config(overrides=overrides),
            out=out,
            quiet=True,
            callbacks=[Watch(watch)],
            job_type="sweep",
            strict=False,
        )
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        # The sweep maps the names of the class and its bases to an exit code.
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"failed": text or kinds[0], "kinds": kinds}
    keys = ("steps", "seconds", "stop_reason", "flow", "parameters")
    results = json_safe({"val_nll": validation_value(done.results)} | {key: done.results[key] for key in keys})
    return {"done": results, "signum": done.signum, "note": done.note}


def _send(output: IO[str], body: dict[str, Any]) -> None:
    output.write(json.dumps(body) + "\n")
    output.flush()


if __name__ == "__main__":
    main()
