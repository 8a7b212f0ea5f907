r"""Sampler and density of the pinwheel: five Gaussian blades, each bent by a rotation that grows with the radius.

A blade is :math:`r \sim N(1, 0.3^2)`, :math:`t \sim N(0, 0.1^2)`, rotated by :math:`-(2\pi k/5 + e^r/4)` and doubled.
The rotation keeps the length :math:`\rho` of :math:`(r, t)` and sends its angle :math:`\psi` to
:math:`f(\psi) - 2\pi k/5`, :math:`f(\psi) = \psi - e^{\rho\cos\psi}/4`. So the density at a point with polar
coordinates :math:`(\rho, \varphi)` is the sum of :math:`p(r, t)/|f'(\psi)|` over every :math:`\psi` with
:math:`f(\psi) = \varphi + 2\pi j/5`, :math:`j` any integer: the five blades and all windings at once.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLADES = 5
_RADIAL_SD, _TANGENTIAL_SD, _RATE, _SCALE = 0.3, 0.1, 0.25, 2.0
_LOG_NORMALIZER = math.log(2 * math.pi * _RADIAL_SD * _TANGENTIAL_SD * BLADES * _SCALE**2)
_STEP = 2 * math.pi / BLADES
# Beyond this rho, exp(rho cos psi) cannot be resolved in the angle; the density is zero long before.
_FAR = 9.0


def sample(n: int, generator: np.random.Generator) -> Array:
    """Draw ``n`` samples (n, 2)."""
    r = 1 + _RADIAL_SD * generator.standard_normal(n)
    t = _TANGENTIAL_SD * generator.standard_normal(n)
    angle = _STEP * generator.integers(BLADES, size=n) + _RATE * np.exp(r)
    cos, sin = np.cos(angle), np.sin(angle)
    return _SCALE * np.stack([r * cos + t * sin, t * cos - r * sin], axis=1)


def log_prob(points: Array) -> Array:
    """Exact log-density at finite ``points`` (n, 2); -inf where the density underflows."""
    rho = np.hypot(points[:, 0], points[:, 1]) / _SCALE
    phi = np.arctan2(points[:, 1], points[:, 0])
    total = np.zeros(len(points))
    inside = np.flatnonzero(rho < _FAR)
    rho, phi = rho[inside], phi[inside]
    density = np.zeros(len(inside))
    for low, high in _monotone_pieces(rho):
        first = np.minimum(_image(low, rho), _image(high, rho))
        last = np.maximum(_image(low, rho), _image(high, rho))
        # Solutions phi + j step in [first, last): half open, so that a root on the boundary counts once.
        lowest = np.ceil((first - phi) / _STEP)
        counts = np.where(high > low, np.ceil((last - phi) / _STEP) - lowest, 0).astype(int)
        for k in range(int(counts.max(initial=0))):
            has = np.flatnonzero(counts > k)
            target = phi[has] + (lowest[has] + k) * _STEP
            psi = _solve(target, rho[has], low[has], high[has])
            density[has] += _term(psi, rho[has])
    total[inside] = density
    with np.errstate(divide="ignore"):
        out: Array = np.log(total) - _LOG_NORMALIZER
    return out


def _image(psi: Array, rho: Array) -> Array:
    return psi - _RATE * np.exp(rho * np.cos(psi))


def _slope(psi: Array, rho: Array) -> Array:
    return 1 + _RATE * rho * np.sin(psi) * np.exp(rho * np.cos(psi))


def _term(psi: Array, rho: Array) -> Array:
    r, t = rho * np.cos(psi), rho * np.sin(psi)
    exponent = -0.5 * ((r - 1) / _RADIAL_SD) ** 2 - 0.5 * (t / _TANGENTIAL_SD) ** 2
    # On a fold, a set of measure zero, the density is infinite; keep it finite.
    term: Array = np.exp(exponent) / np.maximum(np.abs(_slope(psi, rho)), 1e-12)
    return term


def _monotone_pieces(rho: Array) -> list[tuple[Array, Array]]:
    """Divide [-pi, pi] where the slope of ``f`` changes sign: one piece, or three beyond about rho = 1.7.

    The slope is ``1 - h / 4`` with ``h = rho sin(-psi) exp(rho cos psi)``, negative only around the single maximum
    of ``h``. A piece that does not exist has equal ends.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(rho > 1e-6, (np.sqrt(1 + 4 * rho * rho) - 1) / (2 * rho), 0.0)
    steepest = -np.arccos(np.clip(cosine, -1, 1))
    folds = _slope(steepest, rho) < 0
    ends = np.full_like(rho, -math.pi), np.full_like(rho, math.pi)
    if not folds.any():
        return [ends]
    left, right = ends[0].copy(), ends[0].copy()
    left[folds] = _bisect(rho[folds], ends[0][folds], steepest[folds])
    right[folds] = _bisect(rho[folds], np.zeros(folds.sum()), steepest[folds])
    return [(ends[0], left), (left, right), (right, ends[1])]


def _bisect(rho: Array, positive: Array, negative: Array) -> Array:
    """Find the zero of the slope between an angle where it is positive and one where it is negative."""
    for _ in range(55):
        middle = (positive + negative) / 2
        up = _slope(middle, rho) > 0
        positive, negative = np.where(up, middle, positive), np.where(up, negative, middle)
    return positive


def _solve(target: Array, rho: Array, low: Array, high: Array) -> Array:
    """Solve ``f(psi) = target`` on a piece where ``f`` is monotone, by Newton steps inside a shrinking bracket."""
    rising = _image(high, rho) >= _image(low, rho)
    below, above = np.where(rising, low, high), np.where(rising, high, low)
    psi = (low + high) / 2
    active = np.arange(len(psi))
    for _ in range(80):
        p, r = psi[active], rho[active]
        excess = _image(p, r) - target[active]
        above[active] = np.where(excess > 0, p, above[active])
        below[active] = np.where(excess > 0, below[active], p)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = p - excess / _slope(p, r)
        a, b = below[active], above[active]
        inside = (newton > np.minimum(a, b)) & (newton < np.maximum(a, b))
        psi[active] = np.where(inside, newton, (a + b) / 2)
        active = active[np.abs(psi[active] - p) > 1e-14 * (1 + np.abs(p))]
        if not len(active):
            break
    return psi
