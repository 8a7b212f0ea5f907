"""Start and talk to the process of the W&B client (:mod:`pushforward.tracking.wandb.client`).

JSON lines are sent and received through non-blocking pipes, so that the fit never waits for the client.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from pushforward.common.version import PACKAGE

MAX_WAITING_LINES = 10_000
"""Lines that may wait for the client: enough for a start of ten seconds at a line per millisecond."""


class WandbProcess:
    """The process of the W&B client, and the queue of lines to it.

    It imports the W&B library when it starts, so it is started while the fit loads its data: the import takes a core
    for a second, which would slow down training. If no line is sent, it records nothing. As a context manager it ends
    the process.

    Args:
        start: Whether to start a process; without one, all calls do nothing.

    Attributes:
        failure: Why there is no process any more, or never was; empty after a normal end.
    """

    def __init__(self, start: bool = True) -> None:
        self.failure = ""
        self._waiting: deque[bytes] = deque()
        self._received = b""
        self._process: subprocess.Popen[bytes] | None = None
        if start:
            self._start()

    @property
    def alive(self) -> bool:
        """Whether lines can be sent."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Process id; None if there is no process."""
        return None if self._process is None else self._process.pid

    def send(self, line: Mapping[str, Any]) -> None:
        """Append a line to the queue; :meth:`answers` writes it to the pipe."""
        if self._process is None:
            return
        self._waiting.append(json.dumps(line).encode() + b"\n")
        if len(self._waiting) > MAX_WAITING_LINES:
            self.end(f"W&B takes no more rows ({MAX_WAITING_LINES:,} wait)")

    def answers(self) -> Iterator[dict[str, str]]:
        """Write as many lines as the pipe takes, and yield the answers that have arrived."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # the answers on stdout say why
            while self._waiting:
                written = os.write(self._process.stdin.fileno(), self._waiting[0])
                self._waiting[0] = self._waiting[0][written:]
                if not self._waiting[0]:
                    self._waiting.popleft()
        while self._process is not None:
            try:
                part = os.read(self._process.stdout.fileno(), 65_536)
            except BlockingIOError:
                return
            if not part:
                self.end("W&B failed (its process has gone)")
                return
            self._received += part
            *lines, self._received = self._received.split(b"\n")
            for line in lines:
                yield json.loads(line)

    def wait(self, seconds: float) -> None:
        """Wait at most so many seconds until a line can be written or read."""
        if self._process is not None:
            readable: list[Any] = [self._process.stdout]
            writable: list[Any] = [self._process.stdin] if self._waiting else []
            select.select(readable, writable, [], seconds)

    def end(self, failure: str = "") -> None:
        """Close the pipes and wait for the process to end; kill it after a failure, or after 5 s."""
        process, self._process = self._process, None
        self._waiting.clear()
        if process is None:
            return
        self.failure = failure
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.0 if failure else 5.0)
        if process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> "WandbProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end("the fit has ended")

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        # The package is found as here; with -P, the working directory is not on the path: it may hold any module.
        source = str(PACKAGE.parent)
        environment["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [environment.get("PYTHONPATH")])])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pushforward.tracking.wandb.client"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches the fit only; a new session would get an equal share of the cores
            )
        except OSError as error:
            self.failure = f"W&B could not be started ({error})"
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # PIPE
            os.set_blocking(pipe.fileno(), False)
