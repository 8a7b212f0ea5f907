"""Scoring more rows than memory holds, and writing one column ``log_prob``, one line a row, in order."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from pushforward.common.files import atomic_write
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, Nll, RunningNll
from pushforward.evaluate.read_ahead import read_ahead

_HEADER = b"log_prob\n"
_BUSY_SHARE = 0.25


def score_parts(
    density: FittedDensity,
    parts: Iterable[tuple[Array, Array]],
    write: Callable[[Array], None],
    *,
    draws: int = 1,
) -> Nll:
    """Score rows a part at a time, while another thread reads the next parts.

    Memory holds a few parts, whatever their number. Where reading keeps a core busy, torch leaves it one. Each row
    gets the score that it gets when all are scored at once, to the last bit if all parts but the last have a multiple
    of ``BATCH_SIZE`` rows.

    Args:
        density: The density.
        parts: Features ``(n, D)`` and context ``(n, C)``; iterated in the other thread.
        write: Called with log-densities in nats, ``BATCH_SIZE`` at a time, in order.
        draws: As for :meth:`FittedDensity.log_prob`.

    Returns:
        Their mean, as :func:`pushforward.evaluate.likelihood.nll_from` gives it.

    Raises:
        ValueError: Without any row.
    """
    total = RunningNll()
    reading = _Timed(parts)
    threads = torch.get_num_threads()
    began = 0.0
    with read_ahead(reading) as ahead, contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        for number, (rows, given) in enumerate(ahead):
            if number == 1:  # the first part also warms up
                began = time.perf_counter()
            elif number == 2 and reading.seconds > _BUSY_SHARE * (time.perf_counter() - began):
                # The core that reads is missed by all others at the end of every loop that they share.
                torch.set_num_threads(max(1, threads - 1))
            context = given if density.flow.context else None
            for start in range(0, len(rows), BATCH_SIZE):
                part = slice(start, start + BATCH_SIZE)
                scores = density.log_prob(rows[part], None if context is None else context[part], draws=draws)
                total.add(scores)
                write(scores)
    return total.nll()


class _Timed:
    """Items, and the seconds that the last of them took to come."""

    def __init__(self, items: Iterable[tuple[Array, Array]]) -> None:
        self._items = items
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        began = time.perf_counter()
        for item in self._items:
            self.seconds = time.perf_counter() - began
            yield item
            began = time.perf_counter()


class ScoreFile:
    """Writes log-densities in order, part by part; a file appears under its name only when it is complete.

    Use it as a context manager: any error in the block takes away what was written. What went to stdout has gone.

    Args:
        path: The file; ``.parquet`` decides for Parquet, anything else is CSV. None is stdout, as CSV.

    Raises:
        OSError: Here and in every method, if it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._sink: _Text | _Parquet
        self._end = contextlib.ExitStack()

    def __enter__(self) -> "ScoreFile":
        if self.path is None:
            self._sink = _Text(None)
            return self
        with self._named(), contextlib.ExitStack() as unless_opened:
            temporary = unless_opened.enter_context(atomic_write(self.path))
            self._sink = _Parquet(temporary) if self.path.suffix == ".parquet" else _Text(temporary)
            self._end = unless_opened.pop_all()
        return self

    def write(self, scores: Array) -> None:
        """Append log-densities ``(n,)`` in nats, with all their digits."""
        with self._named():
            self._sink.write(scores)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._named():
            try:
                self._sink.close()
            except OSError as full:
                self._end.__exit__(type(full), full, full.__traceback__)
                raise
            self._end.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.path is None:
                raise
            # pyarrow puts the name of the temporary file into its reason.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(error.errno, f"cannot write: {reason}", str(self.path)) from error


class _Text:
    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else open(path, "wb")  # noqa: SIM115 - closed in close
        self._begun = False
        if self._file is not None:
            self._append(_HEADER)

    def write(self, scores: Array) -> None:
        if not self._begun and self._file is None:
            self._append(_HEADER)
        self._begun = True
        self._append(score_lines(scores))

    def close(self) -> None:
        if self._file is None:
            sys.stdout.flush()  # a full disk behind a redirection is an error here, not a remark at exit
        else:
            self._file.close()

    def _append(self, text: bytes) -> None:
        if self._file is None:
            sys.stdout.write(text.decode("ascii"))
        else:
            self._file.write(text)


class _Parquet:
    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._schema = pa.schema([("log_prob", pa.float64())])
        self._writer: Any = parquet.ParquetWriter(path, self._schema)
        self._waiting: list[Array] = []

    def write(self, scores: Array) -> None:
        self._waiting.append(scores)
        if len(self._waiting) == 64:  # a group of half a million rows
            self._flush()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        column = np.concatenate(self._waiting).astype(np.float64, copy=False)
        self._writer.write_table(pa.table({"log_prob": column}, schema=self._schema))
        self._waiting.clear()


def score_lines(scores: Array) -> bytes:
    r"""Write numbers ``(n,)`` as Python's ``repr`` does, one a line: the fewest digits that give the number back.

    Cost: 0.15 µs a number, a third of what ``repr`` takes; other threads go on meanwhile.

    Example:
        >>> score_lines(np.array([-1.5, 3.0, -np.inf]))
        b'-1.5\n3.0\n-inf\n'
    """
    import pyarrow as pa
    from pyarrow import compute

    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return b""
    text = compute.cast(pa.array(values), pa.string())
    size = np.abs(values)
    # pyarrow and Python find the same digits, but write whole numbers and exponents differently.
    odd = ~((size >= 1e-4) & (size < 1e9) & (values != np.rint(values)))
    if odd.any():
        own = pa.array([repr(value) for value in values[odd].tolist()], pa.string())
        text = compute.replace_with_mask(text, pa.array(odd), own)
    lines = compute.binary_join_element_wise(text, "", "\n")
    _, offsets, characters = lines.buffers()
    first, last = (int(np.frombuffer(offsets, np.int32)[place]) for place in (0, len(values)))
    return bytes(memoryview(characters)[first:last])
