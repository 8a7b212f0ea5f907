"""The standard normal distribution function and its inverse, accurate in both tails."""

import math

import torch
from torch import Tensor
from torch.special import erfc, log_ndtr, ndtri

from pushforward.flows.checks import at_least_single

_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)
_FAR = -30.0  # logarithm of a probability below which the quantile is solved for


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


def normal_from_log_tails(below: Tensor, above: Tensor) -> Tensor:
    """Standard normal value ``(...)`` from the logarithms of the probabilities below and above it.

    It is accurate also where a probability underflows. Cost: two Newton steps in float64.
    """
    tail = torch.minimum(below, above).double()
    # The leading terms of the tail are the start of a solution of log_ndtr(value) = tail.
    twice = -2.0 * (tail.clamp(max=_FAR) + _LOG_ROOT_2PI)
    far = -(twice - twice.log()).sqrt()
    for _ in range(2):
        log_cdf = log_ndtr(far)
        far = far - (log_cdf - tail) * (log_cdf + 0.5 * far.square() + _LOG_ROOT_2PI).exp()
    value = torch.where((tail < _FAR) & tail.isfinite(), far, ndtri(tail.exp()))
    return torch.copysign(value, below - above).to(below.dtype)
