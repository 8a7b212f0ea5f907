r"""Laplace and logistic distributions as bases.

Their samples are the inverse distribution function at uniform numbers. Heavier tails in the base matter because a flow
of Lipschitz maps keeps the tails of its base.

References:
    - Jaini et al. (2020), Tails of Lipschitz Triangular Flows, https://arxiv.org/abs/1907.04481.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pushforward.flows.bases.base import LocationScale
from pushforward.flows.bases.normal import normal_from_tail
from pushforward.flows.bases.sampling import uniform_sample


class Laplace(LocationScale):
    """Independent Laplace features, density ``exp(-|y|) / 2``, with trainable location and scale.

    Args:
        features: Number of features.
        context: Number of context features, which move location and scale.
        trainable: Whether location and scale are parameters.
    """

    def standard_log_prob(self, y: Tensor) -> Tensor:
        return -(y.abs() + math.log(2.0)).sum(-1)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        uniform = uniform_sample(self, lead)
        return torch.where(uniform < 0.5, (2.0 * uniform).log(), -(2.0 - 2.0 * uniform).log())

    def standard_latents(self, y: Tensor) -> Tensor:
        return normal_from_tail(0.5 * torch.exp(-y.abs()), y)

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.location), torch.full_like(self.location, 2.0**0.5)


class Logistic(LocationScale):
    """Independent logistic features, distribution function ``1 / (1 + exp(-y))``, with trainable location and scale.

    Args:
        features: Number of features.
        context: Number of context features, which move location and scale.
        trainable: Whether location and scale are parameters.
    """

    def standard_log_prob(self, y: Tensor) -> Tensor:
        return (logsigmoid(y) + logsigmoid(-y)).sum(-1)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        return uniform_sample(self, lead).logit()

    def standard_latents(self, y: Tensor) -> Tensor:
        return normal_from_tail(torch.sigmoid(-y.abs()), y)

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.location), torch.full_like(self.location, math.pi / 3.0**0.5)
