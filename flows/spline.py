"""The rational-quadratic spline: a pure kernel, and the univariate map around it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pushforward.flows import native
from pushforward.flows.elementwise import apply_map, usable
from pushforward.flows.univariate import Univariate

# Smallest width and height of a bin as a fraction of the interval, and smallest slope at a knot (Durkan et al.).
_LEAST = 1e-3
# softplus(0 + _SLOPE_AT_ZERO) + _LEAST == 1, so that parameters of zero give slopes of one.
_SLOPE_AT_ZERO = math.log(math.expm1(1.0 - _LEAST))


@dataclass(frozen=True)
class RationalQuadraticSpline(Univariate):
    r"""Monotone rational-quadratic spline on :math:`[-B, B]`, the identity outside.

    Each bin is a ratio of two quadratics with matching slopes at the knots, inverted in closed form. Parameters are
    :math:`K` width logits, :math:`K` height logits and :math:`K - 1` slopes; zeros give the identity.

    Numerics: float32 parameters are computed with in float64, because the position in a narrow bin is a small
    difference of sums (with logits of standard deviation 5 that costs 1e-2 nats otherwise, and 1e-6 so). On a GPU
    whose float64 is slow this is the price of those digits. Bin widths and heights are taken from the softmax and never
    as differences of knots; values are clamped into the interval before any division, so gradients are finite
    everywhere; the discriminant of the inverse is a sum of squares, and its root is chosen without cancellation.

    Args:
        bins: Number of bins :math:`K`, at least 2.
        bound: Half-width :math:`B` of the interval, in units of the value.

    References:
        - Durkan et al. (2019), Neural Spline Flows, https://arxiv.org/abs/1906.04032, eqs. 4-8 and 29.

    Example:
        >>> spline = RationalQuadraticSpline(bins=8, bound=3.0)
        >>> z, log_derivative = spline.forward(torch.linspace(-5, 5, 11), torch.zeros(11, spline.size))
        >>> z.shape, log_derivative.shape
        (torch.Size([11]), torch.Size([11]))
    """

    bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        if self.bins < 2 or self.bins > 500:
            raise ValueError(f"RationalQuadraticSpline: expected bins of 2 to 500; got {self.bins}")
        if not self.bound > 0:
            raise ValueError(f"RationalQuadraticSpline: expected bound above 0; got {self.bound}")

    @property
    def size(self) -> int:
        return 3 * self.bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        if usable(x, parameters):
            return apply_map(self._forward, self.kernel(), self.size, x, parameters, inverse=False)
        return self._forward(x, parameters)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        if usable(z, parameters):
            return apply_map(self._inverse, self.kernel(), self.size, z, parameters, inverse=True)
        return self._inverse(z, parameters)

    def kernel(self) -> native.Map:
        return native.Map(spline=1, bins=self.bins, bound=self.bound)

    def _forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, parameters, self.bins, self.bound)

    def _inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_inverse(z, parameters, self.bins, self.bound)


def rational_quadratic(x: Tensor, parameters: Tensor, bins: int, bound: float) -> tuple[Tensor, Tensor]:
    """Evaluate the spline; see ``RationalQuadraticSpline``.

    Args:
        x: Values ``(...)``.
        parameters: Raw parameters ``(..., 3 * bins - 1)``, broadcasting against the values.
        bins: Number of bins.
        bound: Half-width of the interval.

    Returns:
        The mapped values ``(...)`` and their log-derivatives ``(...)``.
    """
    inside = (x > -bound) & (x < bound)
    v = _precise(x).clamp(-bound, bound)
    x0, width, y0, height, d0, d1 = _bin(v, parameters, bins, bound, of_heights=False)
    t = ((v - x0) / width).clamp(0.0, 1.0)  # a knot is a rounded sum of widths, so t may miss its end by a little
    z, log_derivative = _segment(t, width, y0, height, d0, d1)
    return torch.where(inside, z.to(x.dtype), x), torch.where(inside, log_derivative, 0.0).to(x.dtype)


def rational_quadratic_inverse(z: Tensor, parameters: Tensor, bins: int, bound: float) -> tuple[Tensor, Tensor]:
    """Invert the spline in closed form; arguments and results as ``rational_quadratic``."""
    inside = (z > -bound) & (z < bound)
    v = _precise(z).clamp(-bound, bound)
    x0, width, y0, height, d0, d1 = _bin(v, parameters, bins, bound, of_heights=True)
    slope = height / width
    curve = d0 + d1 - 2.0 * slope
    # With r the relative height in the bin: r (s + curve t(1-t)) = s t^2 + d0 t(1-t), a quadratic in t (eq. 29).
    r = ((v - y0) / height).clamp(0.0, 1.0)
    a = slope - d0 + r * curve
    b = d0 - r * curve
    c = -slope * r
    # b^2 - 4ac, written as a sum of terms none of which is negative: b^2 and 4ac nearly cancel in a steep bin.
    root = ((d1 * r - d0 * (1.0 - r)).square() + 4.0 * slope.square() * r * (1.0 - r)).sqrt()
    # b can have either sign, and the solution must be formed without subtracting nearly equal numbers.
    positive = b >= 0.0
    t_positive = -2.0 * c / torch.where(positive, b + root, 1.0)
    t_negative = (root - b) / torch.where(positive, 1.0, 2.0 * a)
    t = torch.where(positive, t_positive, t_negative).clamp(0.0, 1.0)
    _, log_derivative = _segment(t, width, y0, height, d0, d1)
    x = x0 + t * width
    return torch.where(inside, x.to(z.dtype), z), torch.where(inside, -log_derivative, 0.0).to(z.dtype)


def _bin(
    v: Tensor, parameters: Tensor, bins: int, bound: float, of_heights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Find the bin of each value: left knot, width, lower knot, height, slopes at both knots, each ``(...)``."""
    lead = torch.broadcast_shapes(v.shape, parameters.shape[:-1])
    logits, raw_slopes = parameters.split([2 * bins, bins - 1], dim=-1)
    logits = _precise(logits).unflatten(-1, (2, bins))  # widths, heights
    # The softmax by hand: torch's is an order of magnitude slower than exp along a dimension as short as this, and
    # only the entries of one bin need to be divided by the total.
    weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
    sums = torch.cumsum(weights, dim=-1)
    total = sums[..., -1:]
    # A bin is a fixed least size plus its share of the rest.
    least, rest = 2.0 * bound * _LEAST, 2.0 * bound * (1.0 - _LEAST * bins)
    with torch.no_grad():
        inner = torch.arange(1, bins, dtype=v.dtype, device=v.device) * (least / rest)
        reached = ((v + bound) / rest).unsqueeze(-1) - inner  # where each inner knot would have to lie, in shares
        along = 1 if of_heights else 0
        index = (sums[..., along, :-1] <= reached * total[..., along, :]).sum(-1, keepdim=True).expand(*lead, 1)
    pair = index.unsqueeze(-2).expand(*lead, 2, 1)
    weight = weights.expand(*lead, 2, bins).gather(-1, pair)
    upto = sums.expand(*lead, 2, bins).gather(-1, pair)
    share = torch.cat([weight, upto - weight], dim=-1) / total * rest
    number = index.squeeze(-1).to(v.dtype)
    width, height = (share[..., 0, 0] + least), (share[..., 1, 0] + least)
    start = least * number - bound
    x0, y0 = share[..., 0, 1] + start, share[..., 1, 1] + start
    # The outermost slopes are one, to meet the identity outside; padding stands for them until it is replaced.
    raw = F.pad(raw_slopes, (1, 1)).expand(*lead, bins + 1).gather(-1, torch.cat([index, index + 1], dim=-1))
    left, right = (F.softplus(_precise(raw) + _SLOPE_AT_ZERO) + _LEAST).unbind(-1)
    d0 = torch.where(number == 0, 1.0, left)
    d1 = torch.where(number == bins - 1, 1.0, right)
    return x0, width, y0, height, d0, d1


def _precise(values: Tensor) -> Tensor:
    """In float64, where the device knows it: all but Apple's do."""
    return values if values.device.type == "mps" else values.double()


def _segment(t: Tensor, width: Tensor, y0: Tensor, height: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """Value and log-derivative at the relative position ``t`` of a bin (eqs. 4 and 5)."""
    slope = height / width
    s = 1.0 - t
    ts = t * s
    denominator = slope + (d0 + d1 - 2.0 * slope) * ts  # positive: a convex combination of slope and (d0 + d1) / 2
    value = y0 + height * (slope * t * t + d0 * ts) / denominator
    # The derivative is slope^2 times this positive combination over denominator^2.
    combination = d1 * t * t + 2.0 * slope * ts + d0 * s * s
    ratio = slope / denominator
    return value, torch.log(combination) + 2.0 * torch.log(ratio)
