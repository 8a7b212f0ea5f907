"""A network whose weights are one vector, and laws of that vector as flows: what a Bayesian network is made of."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pushforward.flows import ActNorm, Affine, Bijection, Chain, Coupling, Flow, Gaussian, ResidualNet

Gradient = Literal["total", "path"]


class LowRankLinear(Bijection):
    r"""Linear map whose inverse adds a low rank: :math:`x = z + U V^\top z`, both ways in :math:`O(D r)`.

    With a standard-normal :math:`z` and a diagonal scale after it, the points have every covariance that is a diagonal
    matrix plus one of rank :math:`r`, and more. Starts as the identity, because :math:`U` starts at zero.

    Args:
        features: Number of features :math:`D`.
        rank: Rank :math:`r` of what is added.

    References:
        - Rezende & Mohamed (2015), https://arxiv.org/abs/1505.05770, section 4.1: the planar flow, whose determinant
          is by the same lemma; this is its linear case with :math:`r` terms.
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
        inner = self._inner()
        # Woodbury: (I + U V')^-1 = I - U (I + V'U)^-1 V'
        shared = torch.linalg.solve(inner, (x @ self.right).unsqueeze(-1)).squeeze(-1)
        return x - shared @ self.left.T, -self._log_det(inner).expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        return z + (z @ self.right) @ self.left.T, self._log_det(self._inner()).expand(z.shape[:-1])

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "rank": self.rank}

    def _inner(self) -> Tensor:
        return self.right.T @ self.left + torch.eye(self.rank, dtype=self.left.dtype, device=self.left.device)

    def _log_det(self, inner: Tensor) -> Tensor:
        # det(I + U V') = det(I + V'U), of r x r
        log_det: Tensor = torch.linalg.slogdet(inner).logabsdet
        return log_det


def mean_field(location: Tensor, scale: Tensor) -> Flow:
    """A factorised Gaussian with given means and standard deviations ``(D,)`` to start from."""
    flow = Flow(Gaussian(len(location)), Chain([], features=len(location)))
    flow.base.initialize(location, scale.square().diag())
    return flow


def coupled(location: Tensor, scale: Tensor, *, rank: int = 16, couplings: int = 2, hidden: int = 32) -> Flow:
    """A flow that starts as the factorised Gaussian of ``mean_field`` and can bend away from it.

    From the base: standard-normal noise, affine couplings of alternating halves, a low rank that correlates all
    weights, and a shift and scale of each weight. The couplings see noise of unit size, whatever the scales.

    Args:
        location: Means ``(D,)`` to start from.
        scale: Standard deviations ``(D,)`` to start from.
        rank: Rank of the linear layer; 0 for none.
        couplings: Number of coupling layers.
        hidden: Width of their conditioners, which have one hidden layer: the rank of what a half tells the other.

    Cost:
        A sample takes about ``2 rank + 1.5 couplings hidden`` multiplications per weight.
    """
    features = len(location)
    norm = ActNorm(features)
    with torch.no_grad():  # two points with exactly this mean and standard deviation
        norm.initialize(torch.stack([location - scale / math.sqrt(2.0), location + scale / math.sqrt(2.0)]))
    members: list[Bijection] = [norm]
    if rank:
        members.append(LowRankLinear(features, min(rank, features)))
    for layer in range(couplings if features > 1 else 0):
        transformed = [(i + layer) % 2 == 1 for i in range(features)]
        moving = sum(transformed)
        net = ResidualNet(features - moving, 2 * moving, hidden=hidden, blocks=0)
        members.append(Coupling(net, Affine(log_scale_bound=2.0), transformed=transformed))
    return Flow(Gaussian(features, trainable=False), Chain(members, features=features))


POSTERIORS: dict[str, Callable[[Tensor, Tensor], Flow]] = {"mean-field": mean_field, "flow": coupled}


def sample_with_log_density(posterior: Flow, n: int, gradient: Gradient) -> tuple[Tensor, Tensor]:
    r"""Draw weights with their log-densities, so that the gradient of their difference to a target is unbiased.

    ``"total"`` differentiates :math:`\log q_\theta(w(\theta))` wherever :math:`\theta` stands. ``"path"`` holds the
    parameters of the density fixed and follows the sample alone: the term that is dropped, the score, is zero on
    average, and without it the gradient has no noise left where the posterior is exact.

    Args:
        posterior: The law of the weights.
        n: Number of samples.
        gradient: Which of the two.

    Returns:
        Weights ``(n, D)`` and log-densities ``(n,)`` in nats; the values are the same for both gradients.

    References:
        - Roeder et al. (2017), Sticking the Landing, https://arxiv.org/abs/1703.09194, eq. 8.
    """
    return posterior.rsample_and_log_prob(n, path=gradient == "path")
