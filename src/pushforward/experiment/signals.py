"""Stop a fit by a signal: SIGINT and SIGTERM set a flag that the training loop polls."""

import contextlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopOnSignal:
    """Context manager in which SIGINT and SIGTERM set :attr:`signum` instead of ending the process.

    The loop polls :attr:`signum`, so that it can write a checkpoint. A second SIGINT raises ``KeyboardInterrupt``
    at once. Outside the main thread, where Python allows no handlers, :attr:`signum` stays ``None``.

    Example:
        >>> with StopOnSignal() as stop:
        ...     stop.signum is None
        True
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None is a handler that was not installed from Python and could not be restored.
                if signal.getsignal(number) is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            with contextlib.suppress(ValueError):  # left in another thread than entered
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.signum is None:
            self.signum = int(number)
