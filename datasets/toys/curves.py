r"""Densities of a curve with noise.

A sample on a curve :math:`c(t)`, with density :math:`w(t)` of the parameter and noise of density k, has the density
:math:`p(x) = \int w(t)\,k(x - c(t))\,dt`. Three of the toys are of this kind and have no closed form. The integral is
computed by Gauss-Legendre quadrature on panels a few noise widths long, so the error of the log-density is far below
1e-9 wherever the distribution has its mass; only the nodes near a point are evaluated.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kernel = Callable[[Array, Array], tuple[Array, Array | None]]

# A term this many nats below the largest one does not change the sum in float64.
_NEGLIGIBLE_NATS = 40.0
# Points evaluated at a time: limits the memory of one block (points, nodes) to about 100 MB.
_BLOCK_POINTS = 100_000


@dataclass(frozen=True)
class Nodes:
    """Quadrature nodes on a curve: ``centres`` (m, 2) and ``weights`` (m,), which sum to 1."""

    centres: Array
    weights: Array


def place_nodes(
    curve: Callable[[Array], tuple[Array, Array]],
    weight: Callable[[Array], Array],
    edges: Array,
    order: int = 10,
) -> Nodes:
    """Place Gauss-Legendre nodes on a curve.

    Args:
        curve: The two coordinates of the curve as functions of its parameter.
        weight: The density of the parameter, up to a constant.
        edges: Values of the parameter that divide the curve into panels. Ten nodes on a panel three noise widths
            long integrate a Gaussian to about 1e-10.
        order: Nodes on each panel.
    """
    x, w = np.polynomial.legendre.leggauss(order)
    half = np.diff(edges)[:, None] / 2
    t = ((edges[:-1] + edges[1:])[:, None] / 2 + half * x).ravel()
    weights = (half * w).ravel() * weight(t)
    return Nodes(np.stack(curve(t), axis=1), weights / weights.sum())


def join(*parts: Nodes) -> Nodes:
    """Return the nodes of an equal mixture of several curves."""
    return Nodes(
        np.concatenate([part.centres for part in parts]),
        np.concatenate([part.weights for part in parts]) / len(parts),
    )


def gaussian_kernel(sigma: float) -> Kernel:
    """Return the kernel of isotropic Gaussian noise, without the constant ``1 / (2 pi sigma**2)``."""
    scale = -0.5 / sigma**2

    def kernel(dx: Array, dy: Array) -> tuple[Array, Array | None]:
        return (dx * dx + dy * dy) * scale, None

    return kernel


def box_gaussian_kernel(width: float, sigma: float) -> Kernel:
    """Return the kernel of uniform noise on a centred square plus Gaussian noise, without ``1 / (2 width)**2``.

    In each coordinate the density is ``(erfc(p) - erfc(q)) / (2 width)`` with ``p, q = (|d| -+ width / 2) / (sigma
    sqrt 2)``. The scaled ``erfcx`` keeps full precision in the far tail, where both ``erfc`` underflow.
    """
    from scipy.special import erfcx

    scale = 1 / (sigma * math.sqrt(2))

    def one(d: Array) -> tuple[Array, Array]:
        p = (np.abs(d) - width / 2) * scale
        q = p + width * scale
        return -p * p, erfcx(p) - np.exp(p * p - q * q) * erfcx(q)

    def kernel(dx: Array, dy: Array) -> tuple[Array, Array | None]:
        exponent_x, factor_x = one(dx)
        exponent_y, factor_y = one(dy)
        return exponent_x + exponent_y, factor_x * factor_y

    return kernel


def log_density(points: Array, nodes: Nodes, kernel: Kernel, sigma: float, slack: float = 0.0) -> Array:
    """Log of the mixture of ``kernel`` over ``nodes`` at finite ``points`` (n, 2), without the kernel's constant.

    Points are grouped by the cells of a square grid, and each cell is evaluated only against the nodes that can matter:
    O(n) nodes in total instead of O(n m).

    Args:
        points: Where to evaluate, shape (n, 2), finite.
        nodes: The curve.
        kernel: The noise: returns the log of the kernel, and a factor to multiply it with, or None.
        sigma: Scale of the Gaussian part of the noise, which decides which nodes are near.
        slack: Radius of the noise beyond its Gaussian part.
    """
    out = np.empty(len(points))
    for members in _cells(points, 2.5 * sigma):
        block = points[members]
        low, high = block.min(axis=0), block.max(axis=0)
        centre, radius = (low + high) / 2, math.hypot(*(high - low)) / 2
        distance = np.hypot(*(nodes.centres - centre).T)
        closest = distance.min() + radius + slack
        keep = np.maximum(distance - radius - slack, 0) ** 2 < closest**2 + 2 * sigma**2 * _NEGLIGIBLE_NATS
        near = nodes.centres[keep]
        exponent, factor = kernel(block[:, :1] - near[:, 0], block[:, 1:] - near[:, 1])
        top = exponent.max(axis=1, keepdims=True)
        terms = np.exp(exponent - top)
        if factor is not None:
            terms *= factor
        out[members] = top[:, 0] + np.log(terms @ nodes.weights[keep])
    return out


def _cells(points: Array, side: float) -> Iterator[NDArray[np.intp]]:
    """Yield the indices of the points in each occupied cell of a square grid, in blocks of bounded size."""
    # Points beyond the clip fall into the outermost cells, which then only select more nodes.
    cell = np.floor(np.clip(points / side, -1e6, 1e6)).astype(np.int64)
    key = cell[:, 0] * 4_000_003 + cell[:, 1]
    order = np.argsort(key, kind="stable")
    breaks = np.flatnonzero(np.diff(key[order])) + 1
    for members in np.split(order, breaks) if len(points) else []:
        for start in range(0, len(members), _BLOCK_POINTS):
            yield members[start : start + _BLOCK_POINTS]
