"""Bijections from an open box or a half-line to all of space, for features with a restricted support."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bijections.base import Bijection


class Box(Bijection):
    r"""Base class of elementwise maps from an open box to all of space.

    Points outside the box or on its faces have no image: they map to 0 with a log-determinant of ``-inf``, so that
    their density is zero and nothing becomes NaN. The inverse stays inside the box: a value that would round to a face
    becomes the floating-point number next to it.

    Args:
        features: Number of features.
        low: Lower end :math:`l` of each feature, or one number for all.
        high: Upper end :math:`h` of each feature, or one number for all.
    """

    adopted = ("low", "high")

    def __init__(self, features: int, low: float | Sequence[float] = 0.0, high: float | Sequence[float] = 1.0) -> None:
        super().__init__(features)
        self.adopt(low=low, high=high)

    def adopt(self, **arguments: Any) -> None:
        name = type(self).__name__
        lows, highs = (ends(name, which, arguments[which], self.features) for which in self.adopted)
        if not all(a < b for a, b in zip(lows, highs, strict=True)):
            raise ValueError(f"{name}: expected every low below its high; got {lows} and {highs}")
        # Plain attributes, not buffers: .float() on the flow must not round them. The default device may be meta.
        self._low, self._high = (torch.tensor(e, dtype=torch.float64, device="cpu") for e in (lows, highs))

    @property
    def domain(self) -> list[tuple[float, float]]:
        """For each feature, the open interval that is mapped to the line."""
        return list(zip(self._low.tolist(), self._high.tolist(), strict=True))

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "low": self._low.tolist(), "high": self._high.tolist()}


class Logit(Box):
    r"""Elementwise map from an open box to all of space, :math:`z = \log(x - l) - \log(h - x)`.

    Arguments, and the result for points outside, are those of ``Box``.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        low, high = self._low.to(x), self._high.to(x)
        inside = (x > low) & (x < high)
        x = torch.where(inside, x, 0.5 * low + 0.5 * high)
        below, above = (x - low).log(), (high - x).log()
        log_det = torch.where(inside, (high - low).log() - below - above, -torch.inf)
        return torch.where(inside, below - above, 0.0), log_det.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        low, high = self._low.to(z), self._high.to(z)
        # The distance to the nearer end keeps its digits.
        share = (high - low) * torch.sigmoid(-z.abs())
        x = torch.where(z < 0, low + share, high - share)
        x = torch.maximum(torch.minimum(x, torch.nextafter(high, low)), above(low))
        log_det = (high - low).log() + torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)
        return x, log_det.sum(-1)


class Log(Bijection):
    r"""Elementwise map from a half-line to the line, :math:`z = \log(x - l)`.

    Points at or below :math:`l` have no image: they map to 0 with a log-determinant of ``-inf``. The inverse stays
    between the floating-point number next to :math:`l` and the largest finite one.

    Args:
        features: Number of features.
        low: Lower end :math:`l` of each feature, or one number for all.
    """

    adopted = ("low",)

    def __init__(self, features: int, low: float | Sequence[float] = 0.0) -> None:
        super().__init__(features)
        self.adopt(low=low)

    def adopt(self, **arguments: Any) -> None:
        lows = ends("Log", "low", arguments["low"], self.features)
        self._low = torch.tensor(lows, dtype=torch.float64, device="cpu")

    @property
    def domain(self) -> list[tuple[float, float]]:
        """For each feature, the open interval that is mapped to the line."""
        return [(low, math.inf) for low in self._low.tolist()]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        distance = x - self._low.to(x)
        inside = distance > 0
        z = torch.where(inside, distance, 1.0).log()
        return z, torch.where(inside, -z, -torch.inf).sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        low = self._low.to(z)
        # At most half of the largest number, so that adding the lower end cannot overflow.
        x = low + z.clamp(max=math.log(torch.finfo(z.dtype).max) - math.log(2.0)).exp()
        return torch.maximum(x, above(low)), z.sum(-1)

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "low": self._low.tolist()}


def ends(where: str, what: str, value: float | Sequence[float], features: int) -> list[float]:
    """Return one finite number per feature, or raise a ``ValueError`` that names the argument ``what``."""
    ends = [float(value)] * features if isinstance(value, int | float) else [float(end) for end in value]
    if len(ends) != features or not all(math.isfinite(end) for end in ends):
        raise ValueError(f"{where}: expected {what} as one finite number or {features} of them; got {value}")
    return ends


def above(low: Tensor) -> Tensor:
    """The next number above a lower end; above zero the smallest normal number, as denormals have fewer digits."""
    return torch.maximum(torch.nextafter(low, torch.full_like(low, torch.inf)), low + torch.finfo(low.dtype).tiny)
