r"""A mixture of Gaussians as a base, with implicit gradients of its samples."""

from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bases.base import LocationScale
from pushforward.flows.bases.normal import noise_between, normal_cdf

_LOG_ROOT_2PI = 0.9189385332046727
_SPREAD = 0.5
"""Share of the variance that lies between the components at first; the rest is within them."""


class GaussianMixture(LocationScale):
    r"""Mixture of diagonal Gaussians with trainable weights, locations and scales.

    The components live in units of a location and a scale of all of them, which ``initialize`` brings to the data and
    which a context moves. It starts with equal weights, mean 0 and variances 1, components spread at random.

    A sample's gradient is that of the implicit function. With :math:`F_d(z_d \mid z_{<d}; \theta)` the distribution
    function of a feature given the ones before it and :math:`p_d` its density, all of these stay what they are when
    :math:`\theta` moves, so that

    .. math:: dz_d = -\frac{1}{p_d} \Big( \frac{\partial F_d}{\partial \theta} d\theta
                     + \frac{\partial F_d}{\partial z_{<d}} dz_{<d} \Big) ,

    also for the weights, which no path through a chosen component would reach. It is a first derivative: derivatives
    of derivatives of samples are not those of the law.

    Args:
        features: Number of features :math:`D`.
        components: Number of components :math:`K`.
        context: Number of context features, which move the location and the scale of the whole mixture.
        trainable: Whether its numbers are parameters.

    Cost:
        :math:`O(K D)` a point; ``rsample`` in :math:`D` steps one after the other.

    References:
        - Graves (2016), Stochastic Backpropagation through Mixture Density Distributions,
          https://arxiv.org/abs/1607.05690.
        - Figurnov et al. (2018), Implicit Reparameterization Gradients, https://arxiv.org/abs/1805.08498.
    """

    logits: Tensor
    locations: Tensor
    log_scales: Tensor

    def __init__(self, features: int, components: int = 8, context: int = 0, trainable: bool = True) -> None:
        super().__init__(features, context, trainable)
        if components < 1:
            raise ValueError(f"GaussianMixture: expected components of at least 1; got {components}")
        self.components = components
        within = 1.0 - _SPREAD if components > 1 else 1.0
        self.keep("logits", torch.zeros(components), trainable)
        self.keep("locations", _spread(torch.randn(components, features)), trainable)
        self.keep("log_scales", torch.full((components, features), within).log() * 0.5, trainable)

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Spread a fresh mixture over a mean ``(D,)`` and covariance ``(D, D)``: components lie along it."""
        deviation = covariance.diagonal().sqrt()
        factor = torch.linalg.cholesky(covariance) / deviation[:, None]
        self.locations.copy_(_spread(self.locations.to(factor) @ factor.T))
        super().initialize(mean, covariance)

    def standard_log_prob(self, y: Tensor) -> Tensor:
        scaled = (y[..., None, :] - self.locations) * (-self.log_scales).exp()
        joint = -(0.5 * scaled.square() + _LOG_ROOT_2PI + self.log_scales).sum(-1)
        return torch.logsumexp(joint + self.logits.log_softmax(-1), -1)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            y = self._draw(lead)
        own = (self.logits, self.locations, self.log_scales)
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in own):
            return y
        moved: list[Tensor] = []
        log_weights = self.logits.log_softmax(-1).expand(*lead, self.components)
        for d in range(self.features):
            value = y[..., d]
            weights = log_weights.softmax(-1)
            scaled = (value[..., None] - self.locations[:, d]) * (-self.log_scales[:, d]).exp()
            log_density = -0.5 * scaled.square() - _LOG_ROOT_2PI - self.log_scales[:, d]
            density = (weights * log_density.exp()).sum(-1).detach()
            # Minus what lies above has the same derivatives as what lies below, and keeps the digits in the upper tail.
            upper = (weights * normal_cdf(scaled)).sum(-1, keepdim=True).detach() > 0.5
            below = (weights * torch.where(upper, -normal_cdf(-scaled), normal_cdf(scaled))).sum(-1)
            value = value - (below - below.detach()) / density
            moved.append(value)
            # The next features are conditioned on the value that moves.
            scaled = (value[..., None] - self.locations[:, d]) * (-self.log_scales[:, d]).exp()
            log_weights = log_weights - 0.5 * scaled.square() - self.log_scales[:, d]
        return torch.stack(moved, -1)

    def standard_noise(self, y: Tensor) -> Tensor:
        noise = []
        log_weights = self.logits.log_softmax(-1)
        for d in range(self.features):
            scaled = (y[..., d, None] - self.locations[:, d]) * (-self.log_scales[:, d]).exp()
            weights = log_weights.softmax(-1)
            below, above = (weights * normal_cdf(scaled)).sum(-1), (weights * normal_cdf(-scaled)).sum(-1)
            noise.append(noise_between(below, above))
            log_weights = log_weights - 0.5 * scaled.square() - self.log_scales[:, d]
        return torch.stack(noise, -1)

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        weights = self.logits.softmax(-1)
        mean = weights @ self.locations
        centred = self.locations - mean
        return mean, (weights @ (centred.square() + (2.0 * self.log_scales).exp())).sqrt()

    def config(self) -> dict[str, Any]:
        return super().config() | {"components": self.components}

    def _draw(self, lead: tuple[int, ...]) -> Tensor:
        # Inverting a few weights costs less than the general sampler, and takes any shape.
        ends = self.logits.softmax(-1).cumsum(-1)
        share = torch.rand(lead, dtype=self.dtype, device=self.device)
        chosen = torch.bucketize(share, ends[:-1], right=True)
        noise = torch.randn(*lead, self.features, dtype=self.dtype, device=self.device)
        drawn: Tensor = self.locations[chosen] + noise * self.log_scales[chosen].exp()
        return drawn


def _spread(points: Tensor) -> Tensor:
    """Component locations ``(K, D)`` moved and scaled to mean 0 and the variances between components at first."""
    if len(points) == 1:
        return torch.zeros_like(points)
    centred = points - points.mean(0)
    spread: Tensor = centred * (_SPREAD**0.5 / centred.std(0, correction=0))
    return spread
