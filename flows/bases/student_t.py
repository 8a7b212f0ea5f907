"""Student's t as a base distribution."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pushforward.flows.bases.base import LocationScale
from pushforward.flows.bases.normal import normal_from_tail
from pushforward.flows.bases.sampling import log_gamma_rsample
from pushforward.flows.checks import at_least_single

_LEAST_DEGREES = 0.5
"""Below half a degree of freedom, samples overflow float32."""


class StudentT(LocationScale):
    r"""Independent Student-t features with trainable degrees of freedom :math:`\nu`, location and scale.

    The tails fall like :math:`|z|^{-\nu - 1}`; :math:`\nu = 0.5 + \operatorname{softplus}(\cdot)`.

    Args:
        features: Number of features.
        context: Number of context features, which move location and scale.
        trainable: Whether location, scale and degrees of freedom are parameters.
        degrees: Initial degrees of freedom, above 0.5.

    References:
        - Laszkiewicz et al. (2022), Marginal Tail-Adaptive Normalizing Flows, https://arxiv.org/abs/2206.10311.
    """

    raw_degrees: Tensor
    free = ("trainable", "degrees")

    def __init__(self, features: int, context: int = 0, trainable: bool = True, degrees: float = 5.0) -> None:
        super().__init__(features, context, trainable)
        if not _LEAST_DEGREES < degrees < math.inf:
            raise ValueError(f"StudentT: expected finite degrees above {_LEAST_DEGREES}; got {degrees}")
        self._degrees = degrees
        above = degrees - _LEAST_DEGREES
        self.add_tensor("raw_degrees", torch.full((features,), above + math.log(-math.expm1(-above))), trainable)

    @property
    def degrees(self) -> Tensor:
        """Degrees of freedom ``(D,)``."""
        return _LEAST_DEGREES + softplus(self.raw_degrees)

    def standard_log_prob(self, y: Tensor) -> Tensor:
        degrees = self.degrees
        half = 0.5 * degrees
        log_norm = _log_gamma_ratio(half) - 0.5 * (degrees * math.pi).log()
        return (log_norm - (half + 0.5) * _log_one_plus_square(y * degrees.rsqrt())).sum(-1)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        half = 0.5 * self.degrees
        normal = torch.randn(*lead, self.features, dtype=half.dtype, device=half.device)
        # A normal divided by the root of chi-squared / degrees, which is Gamma(half) / half.
        return normal * (0.5 * (half.log() - log_gamma_rsample(half, lead))).exp()

    def standard_latents(self, y: Tensor) -> Tensor:
        from scipy import special

        degrees, values = (at_least_single(t).detach().cpu().numpy() for t in (self.degrees, y))
        tail = special.stdtr(degrees, -np.abs(values))
        return normal_from_tail(torch.from_numpy(tail).to(y), y)

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        # With 2 degrees of freedom or fewer the variance is infinite, so the scale is matched as if there were 2.1.
        degrees = self.degrees.clamp(min=2.1)
        return torch.zeros_like(degrees), (degrees / (degrees - 2.0)).sqrt()

    def config(self) -> dict[str, Any]:
        return super().config() | {"degrees": self._degrees}


def _log_gamma_ratio(x: Tensor) -> Tensor:
    """``lgamma(x + 1/2) - lgamma(x)``, by its asymptotic series where the difference would cancel."""
    near, far = x.clamp(max=30.0), x.clamp(min=30.0)
    square = far.square().reciprocal()
    series = 0.5 * far.log() + (-1 / 8 + (1 / 192 - square / 640) * square) / far
    return torch.where(x < 30.0, torch.lgamma(near + 0.5) - torch.lgamma(near), series)


def _log_one_plus_square(y: Tensor) -> Tensor:
    """``log(1 + y²)`` without overflow of the square."""
    size = y.abs()
    near, far = size.clamp(max=1.0), size.clamp(min=1.0)
    return torch.where(size < 1.0, near.square().log1p(), 2.0 * far.log() + far.square().reciprocal().log1p())
