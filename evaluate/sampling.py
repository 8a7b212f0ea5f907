"""Draw samples and compute latents in batches, without changing torch's random state."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pushforward.common.errors import DataError
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, Density, as_tensor, device_of, evaluation_mode
from pushforward.flows.random_state import RandomState, seeded


class LatentDensity(Density, Protocol):
    """A density with latents, such as a flow or a mixture of flows."""

    def latents(self, x: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Latents of rows, ``(..., D) -> (..., D)``, standard normal under a perfect fit."""
        ...


def draw_samples(
    flow: Density, n: int, context: Tensor | Array | None = None, *, seed: int, batch_size: int = BATCH_SIZE
) -> Array:
    """Draw samples in batches, as :func:`sample_batches`, and return all of them, ``(n, D)`` in float64.

    Raises:
        DataError: If they do not fit in memory.
    """
    samples, start = None, 0
    for batch in sample_batches(flow, n, context, seed=seed, batch_size=batch_size):
        if samples is None:
            samples = _room(n, batch.shape[1])
        samples[start : start + len(batch)] = batch
        start += len(batch)
    if samples is None:
        raise ValueError(f"draw_samples: expected at least 1 sample; got {n}")
    return samples


def _room(n: int, features: int) -> Array:
    try:
        return np.empty((n, features))
    except (MemoryError, ValueError):  # ValueError: more than an array can have
        raise DataError(f"n: {n:,} rows do not fit in memory; draw them in parts, each with another seed") from None


def sample_batches(
    flow: Density, n: int, context: Tensor | Array | None = None, *, seed: int, batch_size: int = BATCH_SIZE
) -> Iterator[Array]:
    """Draw samples batch by batch, so that memory does not grow with their number.

    torch's random state is the same before and after each batch. The batches before the last are the same for every
    ``n``: only the last one depends on how many samples it has.

    Args:
        flow: The density.
        n: Number of samples; with a row of context each, the number of rows.
        context: Context rows ``(m, C)``, where ``m`` divides ``n``: each is for the next ``n / m`` samples.
        seed: Seed; the samples also depend on the batch size and the device.
        batch_size: Samples a batch.

    Yields:
        Samples ``(batch, D)`` in float64.
    """
    device = device_of(flow) or torch.device("cpu")
    random_state = RandomState(seed, device)
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        with random_state.active(), evaluation_mode(flow):
            if context is None:
                samples = flow.sample(count)
            else:
                rows = as_tensor(context if len(context) == 1 else context_of(context, n, start, count))
                samples = flow.sample((), rows.expand(count, -1).to(device))
        yield samples.double().cpu().numpy()


def context_of(context: Any, n: int, start: int, count: int) -> Any:
    """The context rows ``(count, C)`` of the samples from ``start`` on, of ``n`` that share ``(m, C)`` in order."""
    return context[np.arange(start, start + count) * len(context) // n]


def latents(flow: LatentDensity, x: Tensor | Array, context: Tensor | Array | None = None) -> Array:
    """Compute the latents of rows in batches, ``(n, D) -> (n, D)``; they are standard normal under a perfect fit."""
    device = device_of(flow) or torch.device("cpu")
    out = []
    # A mixture draws the member that each row is attributed to.
    with seeded(0, device), evaluation_mode(flow):
        for start in range(0, len(x), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            context_batch = None if context is None else as_tensor(context[batch]).to(device)
            out.append(flow.latents(as_tensor(x[batch]).to(device), context_batch).double().cpu().numpy())
    return np.concatenate(out)
