"""End by a signal in good order: SIGINT (Ctrl-C), SIGTERM, and SIGHUP, which comes when the terminal is closed."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# Windows has no SIGHUP.
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)


class StopOnSignal:
    """Context manager in which SIGINT, SIGTERM and SIGHUP set :attr:`signum` instead of ending the process.

    The loop polls :attr:`signum`, so that it can write a checkpoint. A second SIGINT raises ``KeyboardInterrupt``
    at once. SIGHUP stays ignored if it was, as below ``nohup``. Outside the main thread, where Python allows no
    handlers, :attr:`signum` stays ``None``.

    Example:
        >>> with StopOnSignal() as stop:
        ...     stop.signum is None
        True
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def reason(self) -> str:
        """Name of the signal in lower case, a ``stop_reason``; empty without a signal."""
        return "" if self.signum is None else signal.Signals(self.signum).name.lower()

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_ending_signals()):
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
        if number == _HANGUP:
            _leave_dead_terminal()
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.signum is None:
            self.signum = int(number)


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """Context manager in which SIGTERM and SIGHUP raise ``SystemExit``, so that incomplete files are removed.

    The exit code is 128 and the number of the signal, as in a shell. SIGHUP stays ignored if it was.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if number == _HANGUP:
            _leave_dead_terminal()
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in _ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ending_signals() -> list[signal.Signals]:
    """The signals that ask a process to end, without SIGHUP where it is ignored."""
    is_ignored = _HANGUP is None or signal.getsignal(_HANGUP) == signal.SIG_IGN
    return [signal.SIGTERM, *([] if is_ignored or _HANGUP is None else [_HANGUP])]


def _leave_dead_terminal() -> None:
    """Discard what will be written to a terminal that is gone: every write would be an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
