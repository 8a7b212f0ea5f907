"""Exact points of a density known up to a constant, by rejection."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

# Each round proposes about this many points: memory stays bounded however few are accepted.
_PROPOSALS = 1 << 18


def rejection_sample(
    propose: Callable[[int, Generator], Tensor],
    log_ratio: Callable[[Tensor], Tensor],
    bound: float,
    n: int,
    generator: Generator,
) -> Tensor:
    """Draw ``n`` independent points of the density q exp(log_ratio), where ``propose`` draws points of q.

    Args:
        propose: Draws that many points of q, ``(k, ...)`` in float64, with the generator.
        log_ratio: Log-density of the target less that of q, both up to constants, ``(k, ...) -> (k,)``.
        bound: No value of ``log_ratio`` exceeds it.
        n: How many points.
        generator: Source of the uniform numbers.

    Returns:
        Points ``(n, ...)``. Expected cost: ``n exp(bound) / E[exp(log_ratio)]`` proposals.

    Raises:
        RuntimeError: A proposal exceeds the bound, so that the points would follow another law.
    """
    accepted: list[Tensor] = []
    have, tried = 0, 0
    while have < n or not accepted:
        # As many proposals as the acceptance so far calls for, and some more.
        wanted = 64 + int(1.2 * (n - have) * (tried + 1) / (have + 1))
        x = propose(min(wanted, _PROPOSALS), generator)
        excess = log_ratio(x) - bound
        if bool((excess > 0).any()):
            raise RuntimeError(f"rejection_sample: expected a log-ratio of at most {bound}; got {excess.max() + bound}")
        uniform = torch.rand(len(x), dtype=torch.float64, generator=generator)
        # log(1 - u) of u in [0, 1) is finite, so a ratio of zero is never accepted.
        kept = x[torch.log1p(-uniform) < excess]
        accepted.append(kept)
        have += len(kept)
        tried += len(x)
    return torch.cat(accepted)[:n]
