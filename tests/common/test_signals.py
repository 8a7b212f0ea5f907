"""Signals that stop a fit."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from pushforward.common.signals import StopOnSignal, exit_on_signal

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP as in a terminal, also if the tests run below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
def test_signals_set_a_flag_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    for number in NUMBERS:
        with StopOnSignal() as stop:
            assert (stop.signum, stop.reason) == (None, "")
            os.kill(os.getpid(), number)
            assert (stop.signum, stop.reason) == (number, number.name.lower())
        assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.usefixtures("hangup")
def test_a_command_ends_with_the_code_of_the_signal_and_cleans_up() -> None:
    before, cleaned = [signal.getsignal(number) for number in NUMBERS], list[int]()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        with pytest.raises(SystemExit) as end, exit_on_signal(), contextlib.ExitStack() as cleanup:  # noqa: PT012
            cleanup.callback(cleaned.append, number)
            os.kill(os.getpid(), number)
        assert (end.value.code, cleaned.pop()) == (code, number)
        assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.usefixtures("hangup")
def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """As below nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with exit_on_signal(), StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signum is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGTERM, "the first signal is the reason"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopOnSignal() as stop:
            seen.append(signal.getsignal(signal.SIGINT))
            seen.append(stop.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]
