"""Score tables larger than memory; their log-densities are tables with one column ``log_prob``."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, Nll, RunningNll
from pushforward.evaluate.read_ahead import read_ahead

if TYPE_CHECKING:
    import pyarrow as pa

_BUSY_SHARE = 0.25


def score_parts(
    density: FittedDensity,
    parts: Iterable[tuple[Array, Array]],
    write: Callable[[Array], None],
    *,
    draws: int = 1,
) -> Nll:
    """Score rows chunk by chunk while another thread reads the next chunks.

    Memory holds a few chunks. If reading keeps a core busy, torch uses one thread less. Log-densities equal those of
    scoring all rows at once, to the last bit if all chunks but the last have a multiple of ``BATCH_SIZE`` rows.

    Args:
        density: The density.
        parts: Chunks: features ``(n, D)`` and context ``(n, C)``; read in the other thread.
        write: Called with log-densities in nats, ``BATCH_SIZE`` at a time, in order.
        draws: As for :meth:`FittedDensity.log_prob`.

    Returns:
        The mean NLL, as from :func:`pushforward.evaluate.likelihood.nll_from`.

    Raises:
        ValueError: Without any row.
        UndefinedDensityError: If a row of finite values has no log-density.
    """
    total, scored = RunningNll(), 0
    timed_parts = _TimedIterable(parts)
    threads = torch.get_num_threads()
    start_time = 0.0
    with read_ahead(timed_parts) as prefetched, contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        for number, (rows, given) in enumerate(prefetched):
            if number == 1:  # the first chunk includes warm-up
                start_time = time.perf_counter()
            elif number == 2 and timed_parts.seconds > _BUSY_SHARE * (time.perf_counter() - start_time):
                # A thread on the core that reads would delay every parallel loop.
                torch.set_num_threads(max(1, threads - 1))
            context = given if density.schema.context else None
            for start in range(0, len(rows), BATCH_SIZE):
                batch = slice(start, start + BATCH_SIZE)
                given_batch = None if context is None else context[batch]
                log_probs = density.log_prob(rows[batch], given_batch, draws=draws, first_row=scored)
                scored += len(log_probs)
                total.add(log_probs)
                write(log_probs)
    return total.nll()


class _TimedIterable:
    """Iterate over items; ``seconds`` is the time the source took for the last one."""

    def __init__(self, items: Iterable[tuple[Array, Array]]) -> None:
        self._items = items
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        start_time = time.perf_counter()
        for item in self._items:
            self.seconds = time.perf_counter() - start_time
            yield item
            start_time = time.perf_counter()


def score_table(log_probs: Array = np.empty(0)) -> "pa.Table":  # noqa: B008 - never changed
    """Return log-densities ``(n,)`` as a table with one column ``log_prob``."""
    import pyarrow as pa

    return pa.table({"log_prob": pa.array(log_probs, pa.float64())})
