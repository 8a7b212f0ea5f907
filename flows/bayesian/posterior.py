"""Variational posteriors over the weights of a network, as flows: ``mean_field`` and ``coupled``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pushforward.flows import ActNorm, Affine, Bijection, Chain, Coupling, Flow, Gaussian, LowRankLinear, ResidualNet


def mean_field(location: Tensor, scale: Tensor) -> Flow:
    """A mean-field posterior: a factorised Gaussian with initial means and standard deviations ``(D,)``."""
    flow = Flow(Gaussian(len(location)), Chain([], features=len(location)))
    if not location.is_meta:
        flow.base.initialize(location, scale.square().diag())
    return flow


def coupled(location: Tensor, scale: Tensor, *, rank: int = 16, couplings: int = 2, hidden: int = 32) -> Flow:
    """A flow posterior that starts as the factorised Gaussian of ``mean_field`` and can learn dependent weights.

    From base to weights: standard-normal latents, affine couplings of alternating halves, a ``LowRankLinear`` that
    correlates all weights, and a shift and scale of each weight. So the couplings work at unit scale, whatever the
    scales of the weights.

    Args:
        location: Initial means ``(D,)``.
        scale: Initial standard deviations ``(D,)``.
        rank: Rank of the linear layer; 0 for none.
        couplings: Number of coupling layers.
        hidden: Width of the one hidden layer of their conditioners, through which one half depends on the other.

    Cost:
        A sample takes about ``2 rank + 1.5 couplings hidden`` multiplications per weight.
    """
    features = len(location)
    norm = ActNorm(features)
    if not location.is_meta:  # from two points with exactly this mean and standard deviation
        norm.initialize(torch.stack([location - scale / math.sqrt(2.0), location + scale / math.sqrt(2.0)]))
    members: list[Bijection] = [norm]
    if rank:
        members.append(LowRankLinear(features, min(rank, features)))
    for layer in range(couplings if features > 1 else 0):
        transformed = [(i + layer) % 2 == 1 for i in range(features)]
        count = sum(transformed)
        net = ResidualNet(features - count, 2 * count, hidden=hidden, blocks=0)
        members.append(Coupling(net, Affine(log_scale_bound=2.0), transformed=transformed))
    return Flow(Gaussian(features, trainable=False), Chain(members, features=features))


POSTERIORS: dict[str, Callable[[Tensor, Tensor], Flow]] = {"mean-field": mean_field, "flow": coupled}
