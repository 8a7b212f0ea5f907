"""Variational posteriors over the weights of a network, as flows: ``mean_field`` and ``coupled``."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pushforward.flows import ActNorm, Affine, Bijection, Chain, Coupling, Flow, Gaussian, ResidualNet

Gradient = Literal["total", "path"]


class LowRankLinear(Bijection):
    r"""Linear map with a low-rank inverse update: :math:`x = z + U V^\top z`, in :math:`O(D r)` both ways.

    With a standard-normal :math:`z` and a diagonal scale after it, :math:`x` can have every covariance that is a
    diagonal matrix plus one of rank :math:`r`, and more. It starts as the identity, because :math:`U` starts at zero.

    Args:
        features: Number of features :math:`D`.
        rank: Rank :math:`r` of the update.

    References:
        - Rezende & Mohamed (2015), https://arxiv.org/abs/1505.05770, section 4.1: the planar flow, whose determinant
          uses the same lemma; this is its linear case with :math:`r` terms.
    """

    def __init__(self, features: int, rank: int) -> None:
        super().__init__(features)
        if not 1 <= rank <= features:
            raise ValueError(f"LowRankLinear: expected a rank from 1 to {features}; got {rank}")
        self.rank = rank
        self.left = nn.Parameter(torch.zeros(features, rank))
        self.right = nn.Parameter(torch.randn(features, rank) / math.sqrt(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        core = self._core()
        # The Woodbury identity: (I + U V')^-1 = I - U (I + V'U)^-1 V'
        shared = torch.linalg.solve(core, (x @ self.right).unsqueeze(-1)).squeeze(-1)
        return x - shared @ self.left.T, -self._log_det(core).expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        return z + (z @ self.right) @ self.left.T, self._log_det(self._core()).expand(z.shape[:-1])

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "rank": self.rank}

    def _core(self) -> Tensor:
        """The matrix ``I + V'U``, of shape ``(rank, rank)``."""
        return self.right.T @ self.left + torch.eye(self.rank, dtype=self.left.dtype, device=self.left.device)

    def _log_det(self, core: Tensor) -> Tensor:
        # The determinant lemma: det(I + U V') = det(I + V'U).
        log_det: Tensor = torch.linalg.slogdet(core).logabsdet
        return log_det


def mean_field(location: Tensor, scale: Tensor) -> Flow:
    """A mean-field posterior: a factorised Gaussian with initial means and standard deviations ``(D,)``."""
    flow = Flow(Gaussian(len(location)), Chain([], features=len(location)))
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
    with torch.no_grad():  # from two points with exactly this mean and standard deviation
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


def sample_with_log_density(posterior: Flow, n: int, gradient: Gradient) -> tuple[Tensor, Tensor]:
    r"""Draw weights and their log-densities, for unbiased gradients of the divergence from a target.

    ``"total"`` differentiates :math:`\log q_\theta(w(\theta))` by every :math:`\theta`. ``"path"`` holds the parameters
    of the density constant and differentiates through the sample only. It drops the gradient of :math:`\log q_\theta`
    at a fixed sample, which is zero on average; without it, the gradient has no variance where the posterior is exact.

    Args:
        posterior: The distribution of the weights.
        n: Number of samples.
        gradient: The gradient estimator.

    Returns:
        Weights ``(n, D)`` and log-densities ``(n,)`` in nats; both estimators return the same values.

    References:
        - Roeder et al. (2017), Sticking the Landing, https://arxiv.org/abs/1703.09194, eq. 8.
    """
    return posterior.rsample_and_log_prob(n, path=gradient == "path")
