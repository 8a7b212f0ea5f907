"""The standard normal distribution function and its inverse, accurate in both tails."""

import torch
from torch import Tensor
from torch.special import erfc, ndtri

from pushforward.flows.checks import at_least_single


def normal_cdf(value: Tensor) -> Tensor:
    """Distribution function ``(...)`` of the standard normal; unlike torch's ``ndtr``, accurate far below the mean."""
    probability: Tensor = 0.5 * erfc(-(0.5**0.5) * value)
    return probability


def normal_from_tail(tail: Tensor, sign: Tensor) -> Tensor:
    """Standard normal value ``(...)`` with a probability ``tail`` beyond it, on the side that a sign gives."""
    return torch.copysign(-ndtri(at_least_single(tail.clamp(max=0.5))).to(tail.dtype), sign)


def normal_from_tails(below: Tensor, above: Tensor) -> Tensor:
    """Standard normal value ``(...)`` with these probabilities below and above it, computed from the smaller one."""
    return normal_from_tail(torch.minimum(below, above), below - above)
