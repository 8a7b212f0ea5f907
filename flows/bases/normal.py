"""The standard normal distribution function, with all its digits in both tails."""

import torch
from torch import Tensor
from torch.special import erfc, ndtri


def normal_cdf(value: Tensor) -> Tensor:
    """Probability ``(...)`` of a standard normal value below; torch's own ``ndtr`` has no digits far below the mean."""
    probability: Tensor = 0.5 * erfc(-(0.5**0.5) * value)
    return probability


def noise_between(below: Tensor, above: Tensor) -> Tensor:
    """Standard normal values ``(...)`` with these probabilities below and above; the smaller one decides."""
    return torch.copysign(-ndtri(torch.minimum(below, above).clamp(max=0.5)), below - above)
