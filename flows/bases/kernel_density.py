r"""A Gaussian kernel density estimate as a base: a member of mixtures for small tables."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bases.base import Base
from pushforward.flows.bases.normal import normal_cdf, normal_from_tails


class KernelDensity(Base):
    r"""Mixture of equal Gaussians on given points, :math:`p(z) = \frac1n \sum_i N(z; z_i, h^2 I)`.

    It has no trainable parameters, so its samples carry no gradients.

    Args:
        points: The points ``(n, D)``; or their shape ``(n, D)``, if a state dict with the points is loaded later.
        bandwidth: Standard deviation :math:`h` of the kernel.

    Cost:
        :math:`O(n D)` a point.
    """

    points: Tensor
    log_bandwidth: Tensor

    def __init__(self, points: Tensor | Sequence[int], bandwidth: float = 1.0) -> None:
        values = points if isinstance(points, Tensor) else torch.zeros(*points)
        if values.dim() != 2 or not len(values):
            raise ValueError(f"KernelDensity: expected points of shape (n, features); got {tuple(values.shape)}")
        if isinstance(points, Tensor) and not bool(points.isfinite().all()):
            raise ValueError("KernelDensity: expected finite points; got others")
        if not 0.0 < bandwidth < math.inf:
            raise ValueError(f"KernelDensity: expected a bandwidth above 0; got {bandwidth}")
        super().__init__(values.shape[1])
        self.register_buffer("points", values.detach().clone())
        self.register_buffer("log_bandwidth", torch.tensor(math.log(bandwidth), dtype=values.dtype))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        constant = math.log(len(self.points)) + self.features * (0.5 * math.log(2.0 * math.pi) + self.log_bandwidth)
        if z.dim() == 2 and len(z) > self.chunk_rows:
            sums = torch.cat([self._exponents(part).logsumexp(-1) for part in z.split(self.chunk_rows)])
        else:
            sums = self._exponents(z).logsumexp(-1)
        return sums - constant

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        lead = self.lead(n, None)
        chosen = torch.randint(len(self.points), lead, device=self.device)
        noise = torch.randn(*lead, self.features, dtype=self.dtype, device=self.device)
        drawn: Tensor = self.points[chosen] + noise * self.log_bandwidth.exp()
        return drawn

    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        if z.dim() == 2 and len(z) > self.chunk_rows:
            return torch.cat([self.latents(part) for part in z.split(self.chunk_rows)])
        log_weights = z.new_zeros(*z.shape[:-1], len(self.points))
        latents = []
        for d in range(self.features):  # given the features before it, each feature is again a mixture
            scaled = (z[..., d, None] - self.points[:, d]) * (-self.log_bandwidth).exp()
            weights = log_weights.softmax(-1)
            below, above = (weights * normal_cdf(scaled)).sum(-1), (weights * normal_cdf(-scaled)).sum(-1)
            latents.append(normal_from_tails(below, above))
            log_weights = log_weights - 0.5 * scaled.square()
        return torch.stack(latents, -1)

    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Do nothing: mean and covariance are those of the points and the kernel."""

    def config(self) -> dict[str, Any]:
        return {"points": list(self.points.shape)}

    @property
    def chunk_rows(self) -> int:
        """Number of rows compared with all points at a time: at most 4 Mi pairs, or 32 MB."""
        return max(1, 2**22 // len(self.points))

    def _exponents(self, z: Tensor) -> Tensor:
        """Minus half the squared distances ``(..., n)``, in units of the bandwidth."""
        # In float32 the difference of two large norms would be wrong by whole nats for a small bandwidth.
        exact = z.dtype if z.device.type == "mps" else torch.float64
        points = self.points.to(exact)
        centre = points.mean(0)  # small norms make small errors of the distances
        x, y = points - centre, z.to(exact) - centre
        squares = y.square().sum(-1, keepdim=True) - 2.0 * (y @ x.T) + x.square().sum(-1)
        return (squares.clamp_min(0.0) * (-0.5 * (-2.0 * self.log_bandwidth.to(exact)).exp())).to(z.dtype)
