"""Draw samples and compute latents in batches, without changing torch's random state."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pushforward.evaluate.likelihood import BATCH_SIZE, Array, Density, as_tensor, device_of, evaluation_mode


class LatentDensity(Density, Protocol):
    """A density with latents, such as a flow or a mixture of flows."""

    def latents(self, x: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Latents of rows, ``(..., D) -> (..., D)``, standard normal under a perfect fit."""
        ...


def draw_samples(
    flow: Density, n: int, context: Tensor | Array | None = None, *, seed: int, batch_size: int = BATCH_SIZE
) -> Array:
    """Draw samples in batches; torch's random state stays unchanged.

    Args:
        flow: The density.
        n: Number of samples; with context, the number of its rows.
        context: Context rows ``(n, C)``; one sample is drawn for each.
        seed: Seed; the samples also depend on the batch size and the device.
        batch_size: Samples a batch.

    Returns:
        Samples ``(n, D)`` in float64.
    """
    device = device_of(flow) or torch.device("cpu")
    out = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluation_mode(flow):
        torch.manual_seed(seed)
        for start in range(0, n, batch_size):
            if context is None:
                samples = flow.sample(min(batch_size, n - start))
            else:
                samples = flow.sample((), as_tensor(context[start : start + batch_size]).to(device))
            out.append(samples.double().cpu().numpy())
    return np.concatenate(out)


def latents(flow: LatentDensity, x: Tensor | Array, context: Tensor | Array | None = None) -> Array:
    """Compute the latents of rows in batches, ``(n, D) -> (n, D)``; they are standard normal under a perfect fit."""
    device = device_of(flow) or torch.device("cpu")
    out = []
    # A mixture draws the member that each row is attributed to.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluation_mode(flow):
        torch.manual_seed(0)
        for start in range(0, len(x), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            context_batch = None if context is None else as_tensor(context[batch]).to(device)
            out.append(flow.latents(as_tensor(x[batch]).to(device), context_batch).double().cpu().numpy())
    return np.concatenate(out)
