"""A distribution pushed forward through a bijection, as a base."""

import math
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bases.base import Base, LocationScale
from pushforward.flows.bijections.base import Bijection
from pushforward.flows.random_state import seeded

_DRAWS = 2**14
"""Number of samples for estimates of mean and standard deviation, accurate to about one percent."""


class TransformedDistribution(LocationScale):
    r"""A distribution pushed forward through a bijection, then scaled: :math:`z = m(c) + e^{s(c)} \odot b(x)`.

    With ``Logit`` and ``Log``, a Beta, uniform or Gamma distribution becomes a base on all of :math:`R^D`. For Beta or
    uniform with ``Logit``, and Gamma with ``Log``, densities and samples are computed on the real line; they stay exact
    far beyond the points where :math:`x` would round to an end of its support.

    Args:
        distribution: The distribution of :math:`x`, without context.
        bijection: The bijection :math:`b`, without context, from the support of the distribution to all of space.
        context: Number of context features, which move location and scale.
        trainable: Whether :math:`m` and :math:`s` are parameters; distribution and bijection keep theirs.
    """

    def __init__(self, distribution: Base, bijection: Bijection, context: int = 0, trainable: bool = True) -> None:
        super().__init__(distribution.features, context, trainable)
        if bijection.features != distribution.features or bijection.context:
            raise ValueError(
                f"TransformedDistribution: expected a bijection of {distribution.features} features without context; "
                f"got {bijection.features}, context {bijection.context}"
            )
        domain = getattr(bijection, "domain", [(-math.inf, math.inf)] * distribution.features)
        if distribution.support != domain:
            support = "a support that its parameters change" if distribution.support is None else distribution.support
            raise ValueError(
                f"TransformedDistribution: expected a distribution on the bijection's domain {domain}; got {support}"
            )
        if distribution.context:
            raise ValueError(
                f"TransformedDistribution: expected a distribution without context; got context {distribution.context}"
            )
        self.distribution, self.bijection = distribution, bijection

    def standard_log_prob(self, y: Tensor) -> Tensor:
        return self.distribution.transformed_log_prob(self.bijection, y)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        return self.distribution.transformed_rsample(self.bijection, lead)

    def standard_latents(self, y: Tensor) -> Tensor:
        return self.distribution.latents(self.bijection.inverse(y)[0])

    @torch.no_grad()
    def standard_moments(self) -> tuple[Tensor, Tensor]:
        with seeded(0, self.device):
            y = self.distribution.transformed_rsample(self.bijection, _DRAWS).double()
        return y.mean(0), y.std(0)

    def config(self) -> dict[str, Any]:
        return {
            "distribution": self.distribution,
            "bijection": self.bijection,
            "context": self.context,
            "trainable": self.trainable,
        }
