"""Rejection sampling: exact samples of a density known up to a constant."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

# Most proposals per round: limits the memory, however few are accepted.
_PROPOSALS = 1 << 18


def rejection_sample(
    propose: Callable[[int, Generator], Tensor],
    log_ratio: Callable[[Tensor], Tensor],
    bound: float,
    n: int,
    generator: Generator,
) -> Tensor:
    """Draw ``n`` independent samples of the density q exp(log_ratio), where ``propose`` samples q.

    Args:
        propose: Draws ``k`` samples of q, ``(k, ...)`` in float64, with the generator.
        log_ratio: Log-density of the target minus that of q, both up to constants, ``(k, ...) -> (k,)``.
        bound: Upper bound of ``log_ratio``.
        n: Number of samples.
        generator: Random generator.

    Returns:
        Samples ``(n, ...)``. Expected cost: ``n exp(bound) / E[exp(log_ratio)]`` proposals.

    Raises:
        RuntimeError: If a proposal exceeds the bound, so that the samples would follow another distribution.
    """
    accepted: list[Tensor] = []
    count, tried = 0, 0
    while count < n or not accepted:
        # As many proposals as the acceptance rate so far requires, plus some.
        wanted = 64 + int(1.2 * (n - count) * (tried + 1) / (count + 1))
        x = propose(min(wanted, _PROPOSALS), generator)
        excess = log_ratio(x) - bound
        if bool((excess > 0).any()):
            raise RuntimeError(f"rejection_sample: expected a log-ratio of at most {bound}; got {excess.max() + bound}")
        uniform = torch.rand(len(x), dtype=torch.float64, generator=generator)
        # log(1 - u) with u in [0, 1) is finite, so a ratio of zero is never accepted.
        kept = x[torch.log1p(-uniform) < excess]
        accepted.append(kept)
        count += len(kept)
        tried += len(x)
    return torch.cat(accepted)[:n]
