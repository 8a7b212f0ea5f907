"""Standard streams that are closed, full, or read by a program that has ended."""

import io
import os
import sys
from typing import Any, TextIO

STDOUT = "stdout"
"""Name of the standard output in the ``filename`` of its errors."""


def prepare_streams() -> None:
    """Make the standard streams of this process safe to use; called once, before anything is opened.

    - A closed stream is opened on the null device. The next file that is opened would get its number otherwise, and
      with it what libraries and child processes print.
    - An error of stdout has the name ``stdout``, and is raised once: what is still in the buffer would raise it again
      when the interpreter exits.
    - Text that stderr cannot take is lost. No command fails because a message cannot be shown.

    Streams that were replaced, as tests do, stay as they are.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open until the process ends
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _text_stream(_Stdout(1, "w", closefd=False), sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(_Stderr(2, "w", closefd=False), sys.stderr)


def _text_stream(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    """Return a text stream that writes into ``raw`` as ``before`` did."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if before is None else before.encoding,
        errors="replace" if before is None else before.errors,
        line_buffering=isinstance(raw, _Stderr) or raw.isatty(),
    )


class _Stdout(io.FileIO):
    _has_failed = False

    def write(self, data: Any, /) -> int:
        if self._has_failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._has_failed = True
            raise OSError(error.errno, error.strerror, STDOUT) from None


class _Stderr(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes
