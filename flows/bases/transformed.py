"""A distribution pushed forward through a bijection, as a base."""

import math
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bases.base import Base, LocationScale
from pushforward.flows.bijections.base import Bijection

_DRAWS = 2**14
"""Draws from which a pushed law finds its mean and deviation, to about one percent."""


class TransformedDistribution(LocationScale):
    r"""A law pushed forward through a bijection, then moved and scaled: :math:`z = m(c) + e^{s(c)} \odot b(x)`.

    With ``Logit`` and ``Log``, a Beta, uniform or Gamma law becomes a base on all of :math:`R^D`. In the pairs Beta or
    uniform and ``Logit``, Gamma and ``Log``, densities and samples are computed on the line and exact far beyond the
    points where :math:`x` would round to an end of its support.

    Args:
        law: The law of :math:`x`, without context.
        bijection: The bijection :math:`b`, without context, from the law's support to all of space.
        context: Number of context features that move and scale :math:`z`.
        trainable: Whether :math:`m` and :math:`s` are parameters; law and bijection keep theirs.
    """

    def __init__(self, law: Base, bijection: Bijection, context: int = 0, trainable: bool = True) -> None:
        super().__init__(law.features, context, trainable)
        if bijection.features != law.features or bijection.context:
            raise ValueError(
                f"TransformedDistribution: expected a bijection of {law.features} features without context; "
                f"got {bijection.features}, context {bijection.context}"
            )
        domain = getattr(bijection, "domain", [(-math.inf, math.inf)] * law.features)
        if law.support != domain:
            support = "one that its parameters move" if law.support is None else law.support
            raise ValueError(
                f"TransformedDistribution: expected a distribution on the bijection's domain {domain}; got {support}"
            )
        self.law, self.bijection = law.refuse_context(), bijection

    def standard_log_prob(self, y: Tensor) -> Tensor:
        return self.law.log_prob_pushed(self.bijection, y)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        return self.law.rsample_pushed(self.bijection, lead)

    def standard_noise(self, y: Tensor) -> Tensor:
        return self.law.standardize(self.bijection.inverse(y)[0])

    @torch.no_grad()
    def standard_moments(self) -> tuple[Tensor, Tensor]:
        device = self.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            y = self.law.rsample_pushed(self.bijection, _DRAWS).double()
        return y.mean(0), y.std(0)

    def config(self) -> dict[str, Any]:
        return {"law": self.law, "bijection": self.bijection, "context": self.context, "trainable": self.trainable}
