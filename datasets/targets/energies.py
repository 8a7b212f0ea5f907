"""Benchmark energies for fits to unnormalised densities: U1 to U4 and the double wells.

References:
    - Rezende, Mohamed (2015), Variational inference with normalizing flows, table 1, https://arxiv.org/abs/1505.05770
    - Noé, Olsson, Köhler, Wu (2019), Boltzmann generators, https://arxiv.org/abs/1812.01729
    - Midgley et al. (2023), Flow annealed importance sampling bootstrap, https://arxiv.org/abs/2208.01893
"""

import math
from abc import abstractmethod
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from pushforward.datasets.targets.base import Target, TargetError, clip
from pushforward.datasets.targets.names import TARGETS
from pushforward.datasets.targets.rejection import rejection_sample

# log_z and entropies were computed in float64 by composite Gauss-Legendre quadrature (the last digit did not change
# when the cells were halved) and rounded to nine digits.


class U1(Target):
    """Energy U1: a ring of radius 2 times two Gaussians in the first coordinate, on the whole plane.

    The mass outside [-6, 6]^2 is below 1e-20. No constant is added inside the logarithm of the two Gaussians.
    """

    name, features, description = TARGETS["u1"]
    log_z, entropy, spread = 1.877501626, 2.660012536, 2.0

    def log_prob(self, x: Tensor) -> Tensor:
        side = x[..., 0] / 0.36
        # log(exp(-((a - 2) / 0.6)^2 / 2) + exp(-((a + 2) / 0.6)^2 / 2), with the common square factored out.
        sides = torch.logaddexp(2 * side, -2 * side) - (x[..., 0].square() + 4) / 0.72
        radius: Tensor = torch.linalg.vector_norm(x, dim=-1)  # unlike sqrt of a sum, it has a gradient at the origin
        return sides - 0.5 * ((radius - 2) / 0.4).square()

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples by rejection from [-6, 6]^2; about one proposal in forty is accepted."""
        return _from_box(self, 6.0, math.log(2), n, seed)


class Band(Target):
    """An infinite band along a sine, restricted to [-4, 4]^2; uniform in x1 except for the split of U4."""

    bounds = (-4.0, 4.0)
    spread = 2.0

    def log_prob(self, x: Tensor) -> Tensor:
        # Clamped first: far outside, overflowing squares would make gradients NaN although the value is -inf.
        low, high = -4.0, 4.0
        inside = x.clamp(low, high)
        return clip(self.band_log_prob(inside[..., 0], inside[..., 1]), x, (low, high))

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples by rejection from the box; about one proposal in eight is accepted."""
        return _from_box(self, 4.0, math.log(2), n, seed)

    @abstractmethod
    def band_log_prob(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the unnormalised log-density at the points (a, b), as if there were no box."""


class U2(Band):
    """Energy U2 on [-4, 4]^2: a band along sin(pi x1 / 2)."""

    name, features, description = TARGETS["u2"]
    log_z, entropy = 2.082089343, 2.582089343

    def band_log_prob(self, a: Tensor, b: Tensor) -> Tensor:
        return _log_bump(b - _sine(a), 0.4)


class U3(Band):
    """Energy U3 on [-4, 4]^2: the band of U2, with a second band that leaves it and returns."""

    name, features, description = TARGETS["u3"]
    log_z, entropy = 2.641705131, 2.626706570

    def band_log_prob(self, a: Tensor, b: Tensor) -> Tensor:
        away = b - _sine(a)
        return torch.logaddexp(
            _log_bump(away, 0.35), _log_bump(away + 3 * torch.exp(-0.5 * ((a - 1) / 0.6).square()), 0.35)
        )


class U4(Band):
    """Energy U4 on [-4, 4]^2: the band of U2, with a second band that leaves it and does not return."""

    name, features, description = TARGETS["u4"]
    log_z, entropy = 2.684567670, 2.766181078

    def band_log_prob(self, a: Tensor, b: Tensor) -> Tensor:
        away = b - _sine(a)
        return torch.logaddexp(_log_bump(away, 0.4), _log_bump(away + 3 * torch.sigmoid((a - 1) / 0.3), 0.35))


class DoubleWells(Target):
    """Independent pairs of coordinates (u, v) with the energy ``quartic u^4 + quadratic u^2 + linear u + v^2 / 2``.

    (x1, x2) is the first pair, (x3, x4) the next.

    Args:
        name: Its name, one of ``TARGETS``.
        quartic: Coefficient of u^4, positive.
        quadratic: Coefficient of u^2, negative, so that there are two wells.
        linear: Coefficient of u.
        log_z: Log of the integral over one pair.
        entropy: Entropy of one pair.
        spread: Typical size of u.
        features: Number of coordinates; even.
    """

    def __init__(
        self,
        name: str,
        *,
        quartic: float,
        quadratic: float,
        linear: float,
        log_z: float,
        entropy: float,
        spread: float,
        features: int = 2,
    ) -> None:
        if features < 2 or features % 2:
            raise TargetError(f"{name}: expected an even number of features; got {features}")
        self.name, self.features, self.description = name, features, TARGETS[name].description
        self.quartic, self.quadratic, self.linear = quartic, quadratic, linear
        self.wells = features // 2
        self.log_z, self.entropy, self.spread = self.wells * log_z, self.wells * entropy, spread

    def log_prob(self, x: Tensor) -> Tensor:
        u, v = x[..., 0::2], x[..., 1::2]
        return (self._log_well(u) - 0.5 * v.square()).sum(-1)

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` samples: u by rejection from a mixture of three Gaussians, v from a Gaussian."""
        generator = Generator().manual_seed(seed)
        u = rejection_sample(self.propose, self.log_ratio, self.log_ratio_bound, n * self.wells, generator)
        v = torch.randn(n * self.wells, dtype=torch.float64, generator=generator)
        return torch.stack([u, v], -1).reshape(n, self.features)

    def _log_well(self, u: Tensor) -> Tensor:
        square = u.square()
        return -((self.quartic * square + self.quadratic) * square + self.linear * u)

    @cached_property
    def _proposal(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and standard deviations: one Gaussian per well, wider than it, and one for the barrier."""
        roots = np.sort(np.roots([4 * self.quartic, 0, 2 * self.quadratic, self.linear]).real)
        wells = torch.from_numpy(roots[[0, 2]])  # the maximum of the quartic is between its two minima
        width = (12 * self.quartic * wells.square() + 2 * self.quadratic).rsqrt()
        share = torch.softmax(self._log_well(wells) + width.log(), 0)
        middle = torch.zeros(1, dtype=torch.float64)
        return (
            torch.cat([0.8 * share, middle + 0.2]),
            torch.cat([wells, middle]),
            torch.cat([1.2 * width, middle + wells.abs().max() / 2]),
        )

    def propose(self, k: int, generator: Generator) -> Tensor:
        """Draw ``k`` samples of the proposal for u; more than half of them are accepted."""
        weights, centres, deviations = self._proposal
        which = torch.multinomial(weights, k, replacement=True, generator=generator)
        return centres[which] + deviations[which] * torch.randn(k, dtype=torch.float64, generator=generator)

    def log_ratio(self, u: Tensor) -> Tensor:
        """Return the log-density of u minus that of the proposal, both up to constants."""
        weights, centres, deviations = self._proposal
        parts = -0.5 * ((u[..., None] - centres) / deviations).square() + (weights / deviations).log()
        return self._log_well(u) - torch.logsumexp(parts, -1)

    @cached_property
    def log_ratio_bound(self) -> float:
        """Upper bound of ``log_ratio``."""
        # The ratio is smooth: between points 1e-3 apart it rises by less than the 1e-3 that is added. Beyond the grid
        # the fourth power dominates and it only falls; rejection_sample also checks every proposal.
        grid = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
        return float(self.log_ratio(grid).max()) + 1e-3


def double_well(name: str, features: int) -> DoubleWells:
    """Build ``double-well``, ``many-well`` (the same well in every pair) or ``double-well-2`` by name."""
    if name == "double-well-2":
        return DoubleWells(
            name,
            quartic=0.25,
            quadratic=-3.0,
            linear=1.0,
            log_z=12.064928999,
            entropy=1.637009284,
            spread=2.5,
            features=features,
        )
    return DoubleWells(
        name,
        quartic=1.0,
        quadratic=-6.0,
        linear=-0.5,
        log_z=10.293479707087,  # more digits, because many-well multiplies the rounding error
        entropy=1.718576066841,
        spread=1.7,
        features=features,
    )


def _sine(a: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * a)


def _log_bump(away: Tensor, width: float) -> Tensor:
    return -0.5 * (away / width).square()


def _from_box(target: Target, half: float, bound: float, n: int, seed: int) -> Tensor:
    def propose(k: int, generator: Generator) -> Tensor:
        return half * (2 * torch.rand(k, 2, dtype=torch.float64, generator=generator) - 1)

    return rejection_sample(propose, target.log_prob, bound, n, Generator().manual_seed(seed))
