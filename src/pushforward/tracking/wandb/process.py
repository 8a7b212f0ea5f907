"""The parent's end of the process that talks to Weights & Biases (:mod:`pushforward.tracking.wandb.client`).

JSON lines go to it and come back through pipes that never block: whatever the client waits for, the fit does not.
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
from pathlib import Path
from types import TracebackType
from typing import Any

import pushforward

# Lines that may wait for the client; at one every millisecond this is a start of ten seconds.
_WAITING_LINES = 10_000


class WandbProcess:
    """The process that talks to Weights & Biases, and the lines to and from it.

    It imports the client as soon as it starts and then waits for its first line, so it is started while the fit still
    loads its data: the second of a core that this takes would slow down a training on all cores. As a context manager
    it is gone at the end of the block; without a first line it leaves no trace.

    Args:
        start: Whether to start one at all; where not, this object only says that nothing is there.

    Attributes:
        trouble: Why there is no process any more, or never was; empty where it ended in order.
    """

    def __init__(self, start: bool = True) -> None:
        self.trouble = ""
        self._waiting: deque[bytes] = deque()
        self._heard = b""
        self._process: subprocess.Popen[bytes] | None = None
        if start:
            self._start()

    @property
    def alive(self) -> bool:
        """Whether lines still go anywhere."""
        return self._process is not None

    def send(self, line: Mapping[str, Any]) -> None:
        """Put a line into the queue; :meth:`answers` writes it."""
        if self._process is None:
            return
        self._waiting.append(json.dumps(line).encode() + b"\n")
        if len(self._waiting) > _WAITING_LINES:
            self.end(f"W&B takes no more rows ({_WAITING_LINES:,} wait)")

    def answers(self) -> Iterator[dict[str, str]]:
        """Write what the pipe takes, and read what there is."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # of a broken pipe the other one knows why
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
            self._heard += part
            *lines, self._heard = self._heard.split(b"\n")
            for line in lines:
                yield json.loads(line)

    def wait(self, seconds: float) -> None:
        """Wait until something can be written or read."""
        if self._process is not None:
            ears: list[Any] = [self._process.stdout]
            mouths: list[Any] = [self._process.stdin] if self._waiting else []
            select.select(ears, mouths, [], seconds)

    def end(self, trouble: str = "") -> None:
        """Let the process go; by force where there is trouble, or where it does not go by itself."""
        process, self._process = self._process, None
        self._waiting.clear()
        if process is None:
            return
        self.trouble = trouble
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.0 if trouble else 5.0)
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
        # Found as here, and nothing else besides: the folder the fit was started in may hold anything.
        home = str(Path(pushforward.__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [environment.get("PYTHONPATH")])])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pushforward.tracking.wandb.client"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the fit; a session of its own would also share cores equally with it
            )
        except OSError as error:
            self.trouble = f"W&B could not be started ({error})"
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # asked for above
            os.set_blocking(pipe.fileno(), False)
