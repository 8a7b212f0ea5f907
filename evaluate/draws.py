"""Draws of a conditional density for each row of a context, and quantiles of draws.

For a single response ``evaluate.conditional`` has exact quantiles; draws serve any number of responses.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pushforward.evaluate.likelihood import Array, Density, as_tensor, device_of, evaluation_mode
from pushforward.flows.random_state import RandomState

DRAWS = 1_000
"""Draws for each row."""

_NUMBERS_A_BATCH = 2**20


def draw_each(density: Density, context: Array | Tensor, draws: int = DRAWS, *, seed: int = 0) -> Iterator[Array]:
    """Draw for each row of a context, batch by batch, so that memory does not grow with the number of rows.

    Torch's random state does not change.

    Args:
        density: The density.
        context: Context rows ``(n, C)``.
        draws: Draws for each row.
        seed: Seed; the draws also depend on the device.

    Yields:
        Draws ``(rows, draws, D)`` in float64, of consecutive rows.
    """
    given, device = as_tensor(context), device_of(density) or torch.device("cpu")
    random_state = RandomState(seed, device)
    for batch in given.split(max(1, _NUMBERS_A_BATCH // draws)):
        with random_state.active(), evaluation_mode(density):
            drawn = density.sample(draws, batch.to(device))
        yield drawn.transpose(0, 1).double().cpu().numpy()


def sample_quantiles(samples: Array, levels: Sequence[float]) -> Array:
    """Quantiles ``(n, k, ...)`` of draws ``(n, s, ...)``: another draw is below with the probability of the level.

    Raises:
        ValueError: If there are too few draws for a level.
    """
    p, s = np.asarray(levels, dtype=np.float64), samples.shape[1]
    if not bool((np.minimum(p, 1.0 - p) * (s + 1) >= 1.0 - 1e-9).all()):
        raise ValueError(
            f"sample_quantiles: expected levels between 1 / {s + 1} and 1 less that, for {s} draws; got {levels}"
        )
    found: Array = np.moveaxis(np.quantile(samples, p, axis=1, method="weibull"), 0, 1)
    return found
