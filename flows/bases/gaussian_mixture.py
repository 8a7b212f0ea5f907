r"""A mixture of Gaussians as a base, with implicit reparameterization gradients."""

from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bases.base import LocationScale
from pushforward.flows.bases.normal import normal_cdf, normal_from_tails

_LOG_ROOT_2PI = 0.9189385332046727
_BETWEEN = 0.5
"""Fraction of the initial variance that lies between the components; the rest is within them."""


class GaussianMixture(LocationScale):
    r"""Mixture of diagonal Gaussians with trainable weights, locations and scales.

    The mixture as a whole has a location and a scale, which ``initialize`` matches to the data and which a context
    changes; the components are in units of them. It starts with equal weights, mean 0 and variances 1, and components
    at random places.

    Samples have implicit reparameterization gradients. Let :math:`F_d(z_d \mid z_{<d}; \theta)` be the distribution
    function of a feature given the ones before it, and :math:`p_d` its density. A sample moves with :math:`\theta` so
    that the values of all :math:`F_d` stay constant:

    .. math:: dz_d = -\frac{1}{p_d} \Big( \frac{\partial F_d}{\partial \theta} d\theta
                     + \frac{\partial F_d}{\partial z_{<d}} dz_{<d} \Big) .

    This holds also for the weights, which get no gradient through the component that a sample is drawn from. Only first
    derivatives are right: second derivatives of samples are not those of the distribution.

    Args:
        features: Number of features :math:`D`.
        components: Number of components :math:`K`.
        context: Number of context features, which change the location and the scale of the whole mixture.
        trainable: Whether weights, locations and scales are parameters.

    Cost:
        :math:`O(K D)` a point; ``rsample`` takes :math:`D` sequential steps.

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
        within = 1.0 - _BETWEEN if components > 1 else 1.0
        self.add_tensor("logits", torch.zeros(components), trainable)
        self.add_tensor("locations", _standardized(torch.randn(components, features)), trainable)
        self.add_tensor("log_scales", torch.full((components, features), within).log() * 0.5, trainable)

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Match a mean ``(D,)`` and a covariance ``(D, D)`` before training: the components spread along it."""
        self.check_moments(mean, covariance)
        deviation = covariance.diagonal().sqrt()
        factor = torch.linalg.cholesky(covariance) / deviation[:, None]
        self.locations.copy_(_standardized(self.locations.to(factor) @ factor.T))
        super().initialize(mean, covariance)

    def standard_log_prob(self, y: Tensor) -> Tensor:
        scaled = (y[..., None, :] - self.locations) * (-self.log_scales).exp()
        joint = -(0.5 * scaled.square() + _LOG_ROOT_2PI + self.log_scales).sum(-1)
        return torch.logsumexp(joint + self.logits.log_softmax(-1), -1)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            y = self._draw(lead)
        parameters = (self.logits, self.locations, self.log_scales)
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in parameters):
            return y
        values: list[Tensor] = []
        log_weights = self.logits.log_softmax(-1).expand(*lead, self.components)
        for d in range(self.features):
            value = y[..., d]
            weights = log_weights.softmax(-1)
            scaled = (value[..., None] - self.locations[:, d]) * (-self.log_scales[:, d]).exp()
            log_density = -0.5 * scaled.square() - _LOG_ROOT_2PI - self.log_scales[:, d]
            density = (weights * log_density.exp()).sum(-1).detach()
            # In the upper half use minus the survival function: same derivatives, but accurate in the upper tail.
            upper = (weights * normal_cdf(scaled)).sum(-1, keepdim=True).detach() > 0.5
            below = (weights * torch.where(upper, -normal_cdf(-scaled), normal_cdf(scaled))).sum(-1)
            value = value - (below - below.detach()) / density
            values.append(value)
            # The next features are conditioned on the value with its gradient.
            scaled = (value[..., None] - self.locations[:, d]) * (-self.log_scales[:, d]).exp()
            log_weights = log_weights - 0.5 * scaled.square() - self.log_scales[:, d]
        return torch.stack(values, -1)

    def standard_latents(self, y: Tensor) -> Tensor:
        latents = []
        log_weights = self.logits.log_softmax(-1)
        for d in range(self.features):
            scaled = (y[..., d, None] - self.locations[:, d]) * (-self.log_scales[:, d]).exp()
            weights = log_weights.softmax(-1)
            below, above = (weights * normal_cdf(scaled)).sum(-1), (weights * normal_cdf(-scaled)).sum(-1)
            latents.append(normal_from_tails(below, above))
            log_weights = log_weights - 0.5 * scaled.square() - self.log_scales[:, d]
        return torch.stack(latents, -1)

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        weights = self.logits.softmax(-1)
        mean = weights @ self.locations
        centred = self.locations - mean
        return mean, (weights @ (centred.square() + (2.0 * self.log_scales).exp())).sqrt()

    def config(self) -> dict[str, Any]:
        return super().config() | {"components": self.components}

    def _draw(self, lead: tuple[int, ...]) -> Tensor:
        # Cheaper for few components than torch.multinomial, and works for any shape.
        cumulative = self.logits.softmax(-1).cumsum(-1)
        uniform = torch.rand(lead, dtype=self.dtype, device=self.device)
        chosen = torch.bucketize(uniform, cumulative[:-1], right=True)
        noise = torch.randn(*lead, self.features, dtype=self.dtype, device=self.device)
        drawn: Tensor = self.locations[chosen] + noise * self.log_scales[chosen].exp()
        return drawn


def _standardized(locations: Tensor) -> Tensor:
    """Shift and scale component locations ``(K, D)`` to mean 0 and variances ``_BETWEEN``."""
    if len(locations) == 1:
        return torch.zeros_like(locations)
    centred = locations - locations.mean(0)
    scaled: Tensor = centred * (_BETWEEN**0.5 / centred.std(0, correction=0))
    return scaled
