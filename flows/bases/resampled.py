r"""Learned accept/reject sampling on top of a Gaussian base."""

import functools
import itertools
import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu
from torch.special import ndtri

from pushforward.flows.bases.base import Base
from pushforward.flows.bases.gaussian import Gaussian

_EXACT_FEATURES = 2
"""Up to so many features, integrals over the noise are sums over the nodes of a quadrature."""

_HERMITE_NODES = {1: 96, 2: 40}
"""Nodes in each feature of an integral over all noise."""

_PANEL_NODES = 6
"""Nodes in each standard deviation of an integral up to a point."""

_FAR = 10
"""Standard deviations beyond which there is nothing left to integrate."""

_ROWS = 1024
"""Points whose integrals are computed at a time."""

_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)

_TRAINING_DRAWS = 1024
"""Draws of the noise in each estimate of the acceptance rate while training."""

_EVALUATION_DRAWS = 2**16
"""Points of the estimate that stands in evaluation."""

_DECAY = 0.95
"""What the running acceptance rate keeps at every estimate."""


class Acceptance(nn.Module):
    r"""A smooth network for the logit of an acceptance probability; it starts at zero, one half everywhere.

    Args:
        features: Number of features of the noise.
        hidden: Width.
        layers: Hidden layers.

    Shape:
        noise ``(..., D)``, logit ``(..., 1)``.
    """

    def __init__(self, features: int, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        if min(features, hidden, layers) < 1:
            raise ValueError(
                f"Acceptance: expected features, hidden and layers of at least 1; got {features}, {hidden}, {layers}"
            )
        self.features, self.hidden, self.layers = features, hidden, layers
        widths = [features] + [hidden] * layers
        self.body = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, noise: Tensor) -> Tensor:
        for layer in self.body:
            noise = silu(layer(noise))
        logit: Tensor = self.last(noise)
        return logit

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this network (without its weights)."""
        return {"features": self.features, "hidden": self.hidden, "layers": self.layers}


class Resampled(Base):
    r"""A Gaussian whose noise is drawn again until a network accepts it, at most :math:`T` times.

    With :math:`u` the noise of the Gaussian, :math:`a(u)` the probability to accept it and :math:`Z = E[a(u)]`,

    .. math:: p(u) = N(u) \Big( (1 - \alpha) \frac{a(u)}{Z} + \alpha \Big), \quad \alpha = (1 - Z)^{T-1},

    because the last draw is taken as it is. The network reads the noise and not the point, so that location and scale
    of the Gaussian, its context too, move the law as a whole. It starts as the Gaussian itself.

    **The acceptance rate Z.** Of one or two features it is a quadrature at every call, exact for a network that is
    smooth from node to node (up to 0.35 standard deviations apart), and off by some :math:`10^{-3}` for one that jumps
    in between. Of more it is an estimate: while training, a running
    mean over the calls of ``log_prob`` with the gradient of the call's own 1,024 draws, which lags behind the weights
    and is biased by as much; in evaluation, a fixed number from 65,536 quasi-random points, found when the law leaves
    the training mode. Densities in evaluation are deterministic; they integrate to the true rate over its estimate,
    which differ by about :math:`10^{-3}`. Weights that change in evaluation mode need a ``refresh``.

    **Gradients of samples.** To location and scale they are those of the path, whatever the number of features.
    To the network there is no path through an acceptance, and leaving it out would be a biased gradient; the exact one
    is that of the implicit function of each feature's distribution function given those before it, whose integrals a
    quadrature finds for one or two features. For more features ``rsample`` refuses as long as the network wants
    gradients: freeze it by ``requires_grad_(False)``, and all other gradients are exact; ``sample`` works always, and
    likelihood trains everything.

    Args:
        base: The Gaussian, diagonal or full; its context is that of the law.
        acceptance: A network from noise ``(..., D)`` to logits ``(..., 1)``, smooth; by default ``Acceptance``.
        truncation: Draws :math:`T` after which the last one is taken.

    Cost:
        ``log_prob``: the network at the points and at 96 (one feature), 1,600 (two) or 1,024 (more, while training)
        others. ``sample``: about :math:`1/Z` evaluations a point. ``rsample`` with gradients to the network:
        7 more evaluations a point, of two features 446.

    References:
        - Bauer & Mnih (2019), Resampled Priors for Variational Autoencoders, https://arxiv.org/abs/1810.11428.
        - Stimper, Schölkopf & Hernández-Lobato (2022), Resampling Base Distributions of Normalizing Flows,
          https://arxiv.org/abs/2110.15828.
    """

    rate: Tensor

    def __init__(self, base: Gaussian, acceptance: nn.Module | None = None, truncation: int = 100) -> None:
        super().__init__(base.features, base.context)
        if base.covariance == "low-rank":
            raise ValueError("Resampled: expected a diagonal or full Gaussian; got a low-rank one, with other noise")
        if truncation < 1:
            raise ValueError(f"Resampled: expected a truncation of at least 1; got {truncation}")
        self.base, self.truncation = base, truncation
        self.acceptance = Acceptance(base.features) if acceptance is None else acceptance
        self.register_buffer("rate", torch.full((), 0.5))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Estimate the acceptance rate for evaluation, with the weights as they are; leaving training calls it."""
        if self.features <= _EXACT_FEATURES:
            return  # a quadrature at every call
        sobol = torch.quasirandom.SobolEngine(self.features, scramble=True, seed=0)
        noise = ndtri(sobol.draw(_EVALUATION_DRAWS, dtype=torch.float64).clamp(1e-12, 1.0 - 1e-12)).to(self.rate)
        self.rate.copy_(torch.cat([self._log_acceptance(part).exp() for part in noise.split(8192)]).mean())

    def train(self, mode: bool = True) -> Self:
        leaves = self.training and not mode
        super().train(mode)
        if leaves:
            self.refresh()
        return self

    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Bring the Gaussian to a mean and covariance: those of the law as long as the network is fresh."""
        self.base.initialize(mean, covariance)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        return self.base.log_prob(z, context) + self._log_weight(self.base.standardize(z, context), self._rate())

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in self.acceptance.parameters())
        if wanted and self.features > _EXACT_FEATURES:
            raise ValueError(
                f"Resampled: expected at most {_EXACT_FEATURES} features, or an acceptance network with "
                f"requires_grad_(False), for gradients of samples; got {self.features} features"
            )
        noise = self._draw(self.lead(n, context))
        return self.base.push(self._moved(noise) if wanted else noise, context)

    @torch.no_grad()
    def standardize(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map base points to standard normals.

        Of more than two features, that would need integrals nobody has: there it is the noise before it was accepted.
        """
        self.check_points(z)
        noise = self.base.standardize(z, context)
        if self.features > _EXACT_FEATURES or not noise.numel():
            return noise
        out = []
        for rows in noise.reshape(-1, self.features).split(_ROWS):
            tails = [self._tail(rows[:, :d], rows[:, d]) for d in range(self.features)]
            out.append(torch.stack([torch.where(is_upper, -ndtri(-part), ndtri(part)) for part, is_upper in tails], -1))
        return torch.cat(out).reshape(noise.shape)

    def config(self) -> dict[str, Any]:
        return {"base": self.base, "acceptance": self.acceptance, "truncation": self.truncation}

    def _log_acceptance(self, noise: Tensor) -> Tensor:
        logit: Tensor = self.acceptance(noise)
        return logsigmoid(logit.squeeze(-1))

    def _log_weight(self, noise: Tensor, rate: Tensor) -> Tensor:
        """Logarithm of the density over that of the Gaussian."""
        if self.truncation == 1:  # the only draw is taken, and the formula below would be a logarithm of zero
            return noise.new_zeros(noise.shape[:-1])
        rate = rate.clamp(torch.finfo(rate.dtype).tiny, 1.0 - torch.finfo(rate.dtype).eps)
        log_last = (self.truncation - 1) * torch.log1p(-rate)
        accepted = torch.log(-torch.expm1(log_last)) - rate.log()
        return torch.logaddexp(self._log_acceptance(noise) + accepted, log_last)

    def _rate(self) -> Tensor:
        if self.features <= _EXACT_FEATURES:
            nodes, weights = self._hermite(self.features)
            return (weights * self._log_acceptance(nodes).exp()).sum()
        if not self.training:
            return self.rate
        noise = torch.randn(_TRAINING_DRAWS, self.features, dtype=self.rate.dtype, device=self.rate.device)
        found = self._log_acceptance(noise).exp().mean()
        with torch.no_grad():
            self.rate.lerp_(found, 1.0 - _DECAY)
        return self.rate.clone() + (found - found.detach())

    @torch.no_grad()
    def _draw(self, lead: tuple[int, ...]) -> Tensor:
        """Accepted noise ``(*lead, D)``."""
        accepted = torch.randn(*lead, self.features, dtype=self.dtype, device=self.device).reshape(-1, self.features)
        left = torch.arange(len(accepted), device=accepted.device)
        for _ in range(self.truncation - 1):
            probability = self._log_acceptance(accepted[left]).exp()
            left = left[torch.rand_like(probability) >= probability]
            if not len(left):
                break
            accepted[left] = torch.randn(len(left), self.features, dtype=accepted.dtype, device=accepted.device)
        return accepted.reshape(*lead, self.features)

    def _moved(self, noise: Tensor) -> Tensor:
        """The same noise with the gradient of the implicit function, feature by feature."""
        rows = noise.reshape(-1, self.features)
        moved = rows[:, :0]
        for d in range(self.features):
            value = rows[:, d]
            part, _ = self._tail(moved, value)
            with torch.no_grad():  # of the density given the features before, only the value is needed
                density = self._density(moved, value[:, None])[:, 0] * (-self._log_marginal(moved)).exp()
            value = value - (part - part.detach()) / density
            moved = torch.cat([moved, value[:, None]], -1)
        return moved.reshape(noise.shape)

    def _tail(self, earlier: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Probability ``(n,)`` that a feature is below its value ``(n,)``, the features before it ``(n, d)`` given.

        Above zero it is minus the probability of being above, which has the same derivatives and keeps its digits;
        the second result says where that is. The integral is one over whole panels, which of the first feature are
        the same for all points, and one over a part of the panel in which the value lies.
        """
        nodes, weights = (torch.from_numpy(a).to(value) for a in _legendre(_PANEL_NODES))
        starts = torch.arange(-_FAR, _FAR, dtype=value.dtype, device=value.device)
        panels = (
            self._density(earlier, (starts[:, None] + nodes).reshape(1, -1)).unflatten(-1, (len(starts), -1)) @ weights
        )
        own = value.floor().clamp(-_FAR, _FAR - 1)
        is_upper = value > 0
        low, high = torch.where(is_upper, value, own), torch.where(is_upper, own + 1, value)
        width = (high - low).clamp(min=0.0)
        part = width * (self._density(earlier, low[:, None] + width[:, None] * nodes) @ weights)
        whole = torch.where(is_upper[:, None], starts > own[:, None], starts < own[:, None])
        part = (part + (panels * whole).sum(-1)) * (-self._log_marginal(earlier)).exp()
        return torch.where(is_upper, -part, part), is_upper

    def _density(self, earlier: Tensor, at: Tensor) -> Tensor:
        """Joint density ``(n, m)`` at values ``(n or 1, m)``, over the Gaussian's of earlier features ``(n, d)``."""
        at = at[..., None]
        if earlier.shape[-1]:
            lead = len(earlier), at.shape[1]
            at = torch.cat([earlier[:, None].expand(*lead, -1), at.expand(*lead, 1)], -1)
        return (self._log_marginal(at) - 0.5 * at[..., -1].square() - _LOG_ROOT_2PI).exp()

    def _log_marginal(self, noise: Tensor) -> Tensor:
        """Log-density over the Gaussian's of the first features ``(..., d)``, the others integrated out."""
        rate = self._rate()
        missing = self.features - noise.shape[-1]
        if missing == self.features:
            return noise.new_zeros(noise.shape[:-1])
        if not missing:
            return self._log_weight(noise, rate)
        nodes, weights = self._hermite(missing)
        lead = noise.shape[:-1]
        first = noise[..., None, :].expand(*lead, len(nodes), noise.shape[-1])
        points = torch.cat([first, nodes.expand(*lead, *nodes.shape)], -1)
        return torch.logsumexp(self._log_weight(points, rate) + weights.log(), -1)

    def _hermite(self, features: int) -> tuple[Tensor, Tensor]:
        """Nodes ``(n, features)`` and weights ``(n,)`` of an expectation over standard normals."""
        nodes, weights = (torch.from_numpy(a).to(self.rate) for a in _hermite(_HERMITE_NODES[self.features]))
        if features == 1:
            return nodes[:, None], weights
        return torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).reshape(-1)


@functools.cache
def _hermite(count: int) -> tuple[Any, Any]:
    """Nodes and weights of an expectation over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


@functools.cache
def _legendre(count: int) -> tuple[Any, Any]:
    """Nodes and weights of an integral from 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1.0), 0.5 * weights
