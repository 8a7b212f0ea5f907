"""The map from an open box to all of space by the normal quantile function."""

import math

import torch
from torch import Tensor

from pushforward.flows.bijections.support import Box, above
from pushforward.flows.checks import at_least_single

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Probit(Box):
    r"""Elementwise map from an open box to all of space, :math:`z = \Phi^{-1}((x - l) / (h - l))`.

    It maps the uniform distribution on the box to the standard Gaussian. So a density that does not vanish at the
    faces of the box gets Gaussian tails, which a flow with a Gaussian base fits well; ``Logit`` gives it the heavier
    tails of a logistic distribution.

    Arguments, and the result for points outside, are those of ``Box``.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        low, high = self._low.to(x), self._high.to(x)
        inside = (x > low) & (x < high)
        x = torch.where(inside, x, 0.5 * low + 0.5 * high)
        # The distance to the nearer end keeps its digits.
        upper = x > 0.5 * low + 0.5 * high
        share = torch.where(upper, high - x, x - low) / (high - low)
        tail = torch.special.ndtri(at_least_single(share)).to(x.dtype)
        z = torch.where(upper, -tail, tail)
        log_det = torch.where(inside, 0.5 * z.square() + _LOG_SQRT_2PI - (high - low).log(), -torch.inf)
        return torch.where(inside, z, 0.0), log_det.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        low, high = self._low.to(z), self._high.to(z)
        share = (high - low) * torch.special.ndtr(-z.abs())
        x = torch.where(z < 0, low + share, high - share)
        x = torch.maximum(torch.minimum(x, torch.nextafter(high, low)), above(low))
        return x, ((high - low).log() - 0.5 * z.square() - _LOG_SQRT_2PI).sum(-1)
