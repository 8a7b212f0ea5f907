"""The rational-quadratic spline, as functions and as a univariate map."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pushforward.flows.kernels.elementwise import apply_map
from pushforward.flows.kernels.layers import Map
from pushforward.flows.univariate.base import Univariate

# Smallest width and height of a bin as a fraction of the interval, and smallest slope at a knot (Durkan et al.).
_LEAST = 1e-3
SLOPE_AT_ZERO = math.log(math.expm1(1.0 - _LEAST))
"""Added to the slope parameters: ``softplus(0 + SLOPE_AT_ZERO) + 1e-3 == 1``, so that zero gives a slope of one."""

Tails = Literal["linear", "learned"]


@dataclass(frozen=True)
class RationalQuadraticSpline(Univariate):
    r"""Monotone rational-quadratic spline on :math:`[-B, B]`, linear outside.

    Each bin is a ratio of two quadratics with matching slopes at the knots, inverted in closed form. Parameters are
    :math:`K` width logits, :math:`K` height logits and the slopes at the :math:`K - 1` inner knots; zeros give the
    identity. Outside the interval the map is the identity, and the slopes at both ends are one. With
    ``tails="learned"`` these two slopes are parameters as well, before and after those of the inner knots, and the map
    continues with them, so it can shorten or extend the tails of the data. The derivative is continuous in both cases.

    Args:
        bins: Number of bins :math:`K`, 2 to 500.
        bound: Half-width :math:`B` of the interval, in units of the value.
        tails: Slopes outside the interval: ``"linear"`` for one, as published, or ``"learned"``.

    Numerics:
        float32 inputs are computed in float64, because the position in a narrow bin is a small difference of sums: with
        logits of standard deviation 5 the error is 1e-6 nats instead of 1e-2. This is slow on GPUs with slow float64.
        Bin widths and heights come from the softmax and not from differences of knots. Values are clamped into the
        interval before any division, so all gradients are finite. The discriminant of the inverse is a sum of squares,
        and its root is chosen without cancellation.

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
    tails: Tails = "linear"

    def __post_init__(self) -> None:
        if self.bins < 2 or self.bins > 500:
            raise ValueError(f"RationalQuadraticSpline: expected bins of 2 to 500; got {self.bins}")
        if not self.bound > 0:
            raise ValueError(f"RationalQuadraticSpline: expected bound above 0; got {self.bound}")
        if self.tails not in get_args(Tails):
            raise ValueError(f"RationalQuadraticSpline: expected tails linear or learned; got {self.tails!r}")

    @property
    def size(self) -> int:
        return 3 * self.bins + (1 if self.tails == "learned" else -1)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return apply_map(self.kernel(), self.size, x, parameters, inverse=False) or self._forward(x, parameters)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return apply_map(self.kernel(), self.size, z, parameters, inverse=True) or self._inverse(z, parameters)

    def kernel(self) -> Map:
        return Map("spline", bins=self.bins, bound=self.bound, learned=self.tails == "learned")

    def _forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, parameters, self.bins, self.bound, self.tails)

    def _inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_inverse(z, parameters, self.bins, self.bound, self.tails)


def rational_quadratic(
    x: Tensor, parameters: Tensor, bins: int, bound: float, tails: Tails = "linear"
) -> tuple[Tensor, Tensor]:
    """Evaluate the spline; see ``RationalQuadraticSpline``.

    Args:
        x: Values ``(...)``.
        parameters: Parameters ``(..., 3 * bins - 1)``, two more with learned tails, broadcasting against the values.
        bins: Number of bins.
        bound: Half-width of the interval.
        tails: ``"linear"`` or ``"learned"``.

    Returns:
        The mapped values ``(...)`` and their log-derivatives ``(...)``.
    """
    inside = (x > -bound) & (x < bound)
    v = _precise(x).clamp(-bound, bound)
    x0, width, y0, height, d0, d1 = _bin(v, parameters, bins, bound, tails, of_heights=False)
    t = ((v - x0) / width).clamp(0.0, 1.0)  # rounding of the knots may put t slightly outside [0, 1]
    z, log_derivative = _segment(t, width, y0, height, d0, d1)
    if tails == "linear":
        return torch.where(inside, z.to(x.dtype), x), torch.where(inside, log_derivative, 0.0).to(x.dtype)
    end, slope = _line(x, bound, d0, d1)
    z = torch.where(inside, z, end + slope * (_precise(x) - end))
    return z.to(x.dtype), torch.where(inside, log_derivative, slope.log()).to(x.dtype)


def rational_quadratic_inverse(
    z: Tensor, parameters: Tensor, bins: int, bound: float, tails: Tails = "linear"
) -> tuple[Tensor, Tensor]:
    """Invert the spline in closed form; arguments and results as ``rational_quadratic``."""
    inside = (z > -bound) & (z < bound)
    v = _precise(z).clamp(-bound, bound)
    x0, width, y0, height, d0, d1 = _bin(v, parameters, bins, bound, tails, of_heights=True)
    slope = height / width
    curve = d0 + d1 - 2.0 * slope
    # With r the relative height in the bin: r (s + curve t(1-t)) = s t^2 + d0 t(1-t), a quadratic in t (eq. 29).
    r = ((v - y0) / height).clamp(0.0, 1.0)
    a = slope - d0 + r * curve
    b = d0 - r * curve
    c = -slope * r
    # b^2 - 4ac, written as a sum of non-negative terms, because b^2 and 4ac nearly cancel in a steep bin.
    root = ((d1 * r - d0 * (1.0 - r)).square() + 4.0 * slope.square() * r * (1.0 - r)).sqrt()
    # Which form of the solution does not subtract nearly equal numbers depends on the sign of b.
    positive = b >= 0.0
    t_positive = -2.0 * c / torch.where(positive, b + root, 1.0)
    t_negative = (root - b) / torch.where(positive, 1.0, 2.0 * a)
    t = torch.where(positive, t_positive, t_negative).clamp(0.0, 1.0)
    _, log_derivative = _segment(t, width, y0, height, d0, d1)
    x = x0 + t * width
    if tails == "linear":
        return torch.where(inside, x.to(z.dtype), z), torch.where(inside, -log_derivative, 0.0).to(z.dtype)
    end, slope = _line(z, bound, d0, d1)
    x = torch.where(inside, x, end + (_precise(z) - end) / slope)
    return x.to(z.dtype), torch.where(inside, -log_derivative, -slope.log()).to(z.dtype)


def _line(v: Tensor, bound: float, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """Start and slope of the line outside, from the slopes of the outermost bin on that side."""
    below = v < 0.0
    # Multiplied by the bound afterwards, because torch.where of two Python numbers is float32.
    return torch.where(below, -1.0, 1.0).to(d0.dtype) * bound, torch.where(below, d0, d1)


def _bin(
    v: Tensor, parameters: Tensor, bins: int, bound: float, tails: Tails, of_heights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Find the bin of each value: left knot, width, lower knot, height, slopes at both knots, each ``(...)``."""
    lead = torch.broadcast_shapes(v.shape, parameters.shape[:-1])
    logits, raw_slopes = parameters[..., : 2 * bins], parameters[..., 2 * bins :]
    logits = _precise(logits).unflatten(-1, (2, bins))  # widths, heights
    # The softmax is written out: torch's is an order of magnitude slower than exp along so short a dimension, and
    # only the entries of one bin need the division by the total.
    weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
    sums = torch.cumsum(weights, dim=-1)
    total = sums[..., -1:]
    # The size of a bin is a fixed minimum plus its share of the rest.
    least, rest = 2.0 * bound * _LEAST, 2.0 * bound * (1.0 - _LEAST * bins)
    with torch.no_grad():
        inner = torch.arange(1, bins, dtype=v.dtype, device=v.device) * (least / rest)
        reached = ((v + bound) / rest).unsqueeze(-1) - inner  # cumulative share at which each inner knot equals v
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
    # With linear tails the outermost slopes are padding here, and replaced by one below.
    all_raw = F.pad(raw_slopes, (1, 1)) if tails == "linear" else raw_slopes
    raw = all_raw.expand(*lead, bins + 1).gather(-1, torch.cat([index, index + 1], dim=-1))
    left, right = (F.softplus(_precise(raw) + SLOPE_AT_ZERO) + _LEAST).unbind(-1)
    if tails == "learned":
        return x0, width, y0, height, left, right
    d0 = torch.where(number == 0, 1.0, left)
    d1 = torch.where(number == bins - 1, 1.0, right)
    return x0, width, y0, height, d0, d1


def _precise(values: Tensor) -> Tensor:
    """Convert to float64, except on Apple's GPUs, which have none."""
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
