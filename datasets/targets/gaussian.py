"""Targets built from Gaussians, with closed forms and exact samples."""

import math

import torch
from torch import Generator, Tensor

from pushforward.datasets.targets.base import Target, TargetError
from pushforward.datasets.targets.names import TARGETS

_LOG_2PI = math.log(2 * math.pi)
_NORMAL = 0.5 * (1 + _LOG_2PI)  # entropy of the standard normal


class GaussianChain(Target):
    """A chain of standard normals with correlation 0.9 between neighbours; exp(log_prob) is 1 at the origin.

    This is the autoregression ``x_i = 0.9 x_{i-1} + sqrt(1 - 0.81) e_i``, with covariance ``0.9^|i - j|``. Cost O(D).

    Args:
        features: Number of coordinates D.
    """

    name, description = "gaussian", TARGETS["gaussian"].description
    correlation = 0.9

    def __init__(self, features: int = 10) -> None:
        self.features = features
        log_det = (features - 1) * math.log1p(-(self.correlation**2))
        self.log_z = 0.5 * (features * _LOG_2PI + log_det)
        self.entropy = self.log_z + 0.5 * features

    def log_prob(self, x: Tensor) -> Tensor:
        innovations = x[..., 1:] - self.correlation * x[..., :-1]
        return -0.5 * (x[..., 0].square() + innovations.square().sum(-1) / (1 - self.correlation**2))

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples by the autoregression."""
        columns = list(_normal(n, self.features, seed).unbind(-1))
        for i in range(1, self.features):
            columns[i] = self.correlation * columns[i - 1] + math.sqrt(1 - self.correlation**2) * columns[i]
        return torch.stack(columns, -1)


class GaussianMixtureTarget(Target):
    """An equal mixture of Gaussians of covariance I/2 at all corners of the cube {-1, 1}^D; normalised.

    Each coordinate is an independent mixture of two Gaussians, so the log of the sum over 2^D modes is a sum over D
    coordinates. The target of Vaitl et al. (2024), https://arxiv.org/abs/2403.15881, where D is 6.

    Args:
        features: Number of coordinates D.
    """

    name, description = "gaussian-mixture", TARGETS["gaussian-mixture"].description
    variance = 0.5
    log_z = 0.0
    spread = 1.2

    def __init__(self, features: int = 6) -> None:
        self.features = features
        self.entropy = features * 1.572437079  # of one coordinate, by quadrature, rounded to nine digits

    def log_prob(self, x: Tensor) -> Tensor:
        # log N(x | 1, v) and log N(x | -1, v) share the square terms.
        pair = torch.logaddexp(x / self.variance, -x / self.variance)
        shared = (x.square() + 1) / (2 * self.variance)
        return (pair - shared).sum(-1) - self.features * (math.log(2) + 0.5 * (_LOG_2PI + math.log(self.variance)))

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples: a random corner plus Gaussian noise."""
        generator = Generator().manual_seed(seed)
        corners = torch.randint(2, (n, self.features), generator=generator).double().mul_(2).sub_(1)
        noise = torch.randn(n, self.features, dtype=torch.float64, generator=generator)
        return corners + math.sqrt(self.variance) * noise


class Funnel(Target):
    """Neal's funnel, normalised: v = x1 ~ N(0, 9), and the other coordinates ~ N(0, exp(v)).

    Neal (2003), Slice sampling, section 8, https://doi.org/10.1214/aos/1056562461.

    Args:
        features: Number of coordinates D, at least 2.
    """

    name, description = "funnel", TARGETS["funnel"].description
    deviation = 3.0
    log_z = 0.0
    spread = 3.0

    def __init__(self, features: int = 10) -> None:
        _at_least_two(self.name, features)
        self.features = features
        # The entropies of the others contain v / 2, whose mean is zero.
        self.entropy = features * _NORMAL + math.log(self.deviation)

    def log_prob(self, x: Tensor) -> Tensor:
        v, others = x[..., 0], x[..., 1:]
        # The scale is applied before squaring: for very negative v, exp(-v) would overflow where the product does not.
        squares = (others * torch.exp(-0.5 * v)[..., None]).square().sum(-1)
        log_scales = 0.5 * (self.features - 1) * v + math.log(self.deviation)
        return -0.5 * ((v / self.deviation).square() + squares + self.features * _LOG_2PI) - log_scales

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples: v first, then the others."""
        noise = _normal(n, self.features, seed)
        v = self.deviation * noise[:, :1]
        return torch.cat([v, torch.exp(0.5 * v) * noise[:, 1:]], -1)


class Banana(Target):
    """A twisted Gaussian, normalised: x1 ~ N(0, 100); x2 + 0.03 (x1^2 - 100) and the others ~ N(0, 1).

    The twist has Jacobian 1. Haario, Saksman, Tamminen (1999), Adaptive proposal distribution for random walk
    Metropolis algorithm, its moderately twisted target, https://doi.org/10.1007/s001800050022.

    Args:
        features: Number of coordinates D, at least 2.
    """

    name, description = "banana", TARGETS["banana"].description
    deviation, bend = 10.0, 0.03
    log_z = 0.0
    spread = 10.0

    def __init__(self, features: int = 2) -> None:
        _at_least_two(self.name, features)
        self.features = features
        self.entropy = features * _NORMAL + math.log(self.deviation)

    def log_prob(self, x: Tensor) -> Tensor:
        first, second, others = x[..., 0], x[..., 1], x[..., 2:]
        squares = (
            (first / self.deviation).square()
            + (second + self.bend * (first.square() - self.deviation**2)).square()
            + others.square().sum(-1)
        )
        return -0.5 * (squares + self.features * _LOG_2PI) - math.log(self.deviation)

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples: a Gaussian, twisted."""
        noise = _normal(n, self.features, seed)
        first = self.deviation * noise[:, :1]
        second = noise[:, 1:2] - self.bend * (first.square() - self.deviation**2)
        return torch.cat([first, second, noise[:, 2:]], -1)


def _normal(n: int, features: int, seed: int) -> Tensor:
    return torch.randn(n, features, dtype=torch.float64, generator=Generator().manual_seed(seed))


def _at_least_two(name: str, features: int) -> None:
    if features < 2:
        raise TargetError(f"{name}: expected features of at least 2; got {features}")
