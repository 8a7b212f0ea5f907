"""The distributions of the toys: for each a sampler and the exact log-density.

Rings and other curves draw independent uniform angles, where some published generators use a grid of angles per batch:
so the rows are independent samples of the distribution whose density is given.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.toys import curves, pinwheel

Array = NDArray[np.float64]
Sampler = Callable[[int, np.random.Generator], Array]
LogProb = Callable[[Array], Array]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class ToyDistribution:
    """A sampler, and its exact log-density at finite points (n, 2)."""

    sample: Sampler
    log_prob: LogProb


def checkerboard() -> ToyDistribution:
    """Uniform on the eight squares of side 2 in [-4, 4)² whose column and row add up to an even number."""

    def sample(n: int, generator: np.random.Generator) -> Array:
        column = generator.integers(-2, 2, size=n)
        row = 2 * generator.integers(-1, 1, size=n) + column % 2
        square = np.stack([column, row], axis=1)
        return 2 * (square + generator.random((n, 2)))

    def log_prob(x: Array) -> Array:
        inside = ((x >= -4) & (x < 4)).all(axis=1)
        even = np.floor(x / 2).sum(axis=1) % 2 == 0
        return np.where(inside & even, -math.log(32), -np.inf)

    return ToyDistribution(sample, log_prob)


def gaussian_mixture(centres: Array, sigma: float) -> ToyDistribution:
    """Equal mixture of isotropic Gaussians."""

    def sample(n: int, generator: np.random.Generator) -> Array:
        chosen = centres[generator.integers(len(centres), size=n)]
        samples: Array = chosen + sigma * generator.standard_normal((n, 2))
        return samples

    def log_prob(x: Array) -> Array:
        squares = (x[:, :1] - centres[:, 0]) ** 2 + (x[:, 1:] - centres[:, 1]) ** 2
        return _log_mean_exp(squares / (-2 * sigma**2)) - _LOG_2PI - 2 * math.log(sigma)

    return ToyDistribution(sample, log_prob)


def eight_gaussians() -> ToyDistribution:
    """Eight Gaussians on a circle, with the rounded constant 1.414 of the published generator."""
    angle = np.arange(8) * math.pi / 4
    return gaussian_mixture(4 / 1.414 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.5 / 1.414)


def circles(
    radii: tuple[float, ...], sigma: float, centres: tuple[tuple[float, float], ...] = ((0, 0),)
) -> ToyDistribution:
    """Equal mixture of circles, every radius around every centre, with Gaussian noise.

    A circle of radius R has the density ``exp(-(r - R)² / 2s²) i0e(r R / s²) / (2 pi s²)`` at distance r from its
    centre.
    """
    middle = np.array([centre for centre in centres for _ in radii], dtype=np.float64)
    radius = np.array(list(radii) * len(centres), dtype=np.float64)

    def sample(n: int, generator: np.random.Generator) -> Array:
        which = generator.integers(len(radius), size=n)
        angle = 2 * math.pi * generator.random(n)
        on_circle = radius[which, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        samples: Array = middle[which] + on_circle + sigma * generator.standard_normal((n, 2))
        return samples

    def log_prob(x: Array) -> Array:
        from scipy.special import i0e

        r = np.hypot(x[:, :1] - middle[:, 0], x[:, 1:] - middle[:, 1])
        terms = -0.5 * ((r - radius) / sigma) ** 2 + np.log(i0e(r * radius / sigma**2))
        return _log_mean_exp(terms) - _LOG_2PI - 2 * math.log(sigma)

    return ToyDistribution(sample, log_prob)


def moons() -> ToyDistribution:
    """Two interleaved half circles of radius 2, with Gaussian noise of 0.2."""
    sigma = 0.2

    def curve(t: Array, inner: bool) -> tuple[Array, Array]:
        if inner:
            return 1 - 2 * np.cos(t), 0.8 - 2 * np.sin(t)
        return 2 * np.cos(t) - 1, 2 * np.sin(t) - 0.2

    def sample(n: int, generator: np.random.Generator) -> Array:
        inner = generator.random(n) < 0.5
        t = math.pi * generator.random(n)
        on_curve = np.where(inner, curve(t, True), curve(t, False)).T
        samples: Array = on_curve + sigma * generator.standard_normal((n, 2))
        return samples

    @functools.cache
    def nodes() -> curves.Nodes:
        edges = np.linspace(0, math.pi, 13)
        arcs = (functools.partial(curve, inner=inner) for inner in (False, True))
        return curves.join(*(curves.place_nodes(arc, np.ones_like, edges) for arc in arcs))

    return ToyDistribution(sample, _gaussian_curve(nodes, sigma))


def swissroll() -> ToyDistribution:
    """A spiral of three half turns, from radius 0.94 to 2.83, with Gaussian noise of 0.2."""
    sigma, first, last = 0.2, 1.5 * math.pi, 4.5 * math.pi

    def curve(t: Array) -> tuple[Array, Array]:
        return t * np.cos(t) / 5, t * np.sin(t) / 5

    def sample(n: int, generator: np.random.Generator) -> Array:
        t = first + (last - first) * generator.random(n)
        return np.stack(curve(t), axis=1) + sigma * generator.standard_normal((n, 2))

    @functools.cache
    def nodes() -> curves.Nodes:
        # Arc length on a spiral is about proportional to the square of its angle.
        return curves.place_nodes(curve, np.ones_like, np.sqrt(np.linspace(first**2, last**2, 33)))

    return ToyDistribution(sample, _gaussian_curve(nodes, sigma))


def two_spirals() -> ToyDistribution:
    """Two spiral arms, each the other's mirror image, blurred by a small square and a Gaussian of 0.1.

    The parameter is the angle, whose density on an arm is proportional to it.
    """
    sigma, width, last = 0.1, 0.5 / 3, 3 * math.pi

    def curve(t: Array) -> tuple[Array, Array]:
        # The noise square of the first arm lies up and to the right of the curve: its centre is half a side away.
        return -t * np.cos(t) / 3 + width / 2, t * np.sin(t) / 3 + width / 2

    def sample(n: int, generator: np.random.Generator) -> Array:
        t = last * np.sqrt(generator.random(n))
        arm = np.stack(curve(t), axis=1) + width * (generator.random((n, 2)) - 0.5)
        arm *= np.where(generator.random((n, 1)) < 0.5, -1, 1)
        samples: Array = arm + sigma * generator.standard_normal((n, 2))
        return samples

    @functools.cache
    def nodes() -> curves.Nodes:
        # Arc length is proportional to the square of the angle, except near the centre, which gets two more panels.
        outer = last * np.sqrt(np.linspace(0.04, 1, 51))
        edges = np.concatenate([[0, outer[0] / 3, outer[0] * 2 / 3], outer])
        arm = curves.place_nodes(curve, np.asarray, edges)
        return curves.join(arm, curves.Nodes(-arm.centres, arm.weights))

    def log_prob(x: Array) -> Array:
        kernel = curves.box_gaussian_kernel(width, sigma)
        return curves.log_density(x, nodes(), kernel, sigma, slack=width / math.sqrt(2)) - 2 * math.log(2 * width)

    return ToyDistribution(sample, log_prob)


def five_blades() -> ToyDistribution:
    """The pinwheel; see :mod:`pushforward.datasets.toys.pinwheel`."""
    return ToyDistribution(pinwheel.sample, pinwheel.log_prob)


def conditional(mean: Callable[[Array], Array], sd: float, swap: bool = False) -> ToyDistribution:
    """``u ~ N(0, 1)``, ``v ~ N(mean(u), sd²)``; a sample is (u, v), or (v, u) with ``swap``."""

    def sample(n: int, generator: np.random.Generator) -> Array:
        u = generator.standard_normal(n)
        v = mean(u) + sd * generator.standard_normal(n)
        return np.stack([v, u] if swap else [u, v], axis=1)

    def log_prob(x: Array) -> Array:
        u, v = (x[:, 1], x[:, 0]) if swap else (x[:, 0], x[:, 1])
        out: Array = -0.5 * (u * u + ((v - mean(u)) / sd) ** 2) - _LOG_2PI - math.log(sd)
        return out

    return ToyDistribution(sample, log_prob)


def diamond() -> ToyDistribution:
    """A lattice of 20 by 20 Gaussians of 0.04 in [-2.5, 2.5]², turned by 45 degrees.

    The published generator also moves each centre by up to 0.001, differently in every run; that is left out. Along
    the axes of the lattice the two coordinates are independent.
    """
    sigma, lattice = 0.04, np.linspace(-2.5, 2.5, 20)
    turn = np.array([[1, -1], [1, 1]]) / math.sqrt(2)

    def sample(n: int, generator: np.random.Generator) -> Array:
        along = lattice[generator.integers(20, size=(n, 2))]
        samples: Array = (along + sigma * generator.standard_normal((n, 2))) @ turn
        return samples

    def log_prob(x: Array) -> Array:
        along = x @ turn.T
        terms = -0.5 * ((along[:, :, None] - lattice) / sigma) ** 2
        out: Array = _log_mean_exp(terms).sum(axis=1) - _LOG_2PI - 2 * math.log(sigma)
        return out

    return ToyDistribution(sample, log_prob)


def _gaussian_curve(nodes: Callable[[], curves.Nodes], sigma: float) -> LogProb:
    constant = _LOG_2PI + 2 * math.log(sigma)

    def log_prob(x: Array) -> Array:
        return curves.log_density(x, nodes(), curves.gaussian_kernel(sigma), sigma) - constant

    return log_prob


def _log_mean_exp(terms: Array) -> Array:
    """Log of the mean of ``exp(terms)`` along the last axis, without overflow."""
    top = terms.max(axis=-1, keepdims=True)
    out: Array = top[..., 0] + np.log(np.exp(terms - top).mean(axis=-1))
    return out
