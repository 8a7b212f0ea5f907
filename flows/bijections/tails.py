"""The map that shortens heavy tails: the identity in the middle, a logarithm outside."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bijections.base import Bijection


class LogTails(Bijection):
    r"""Elementwise map :math:`z = x` for :math:`|x| \le b`, :math:`z = \pm(b + \log(1 + |x| - b))` outside.

    A flow of Lipschitz maps keeps the tails of its base. Behind this map a Gaussian tail becomes a log-normal one, and
    an exponential tail a power law, so that a few values far outside neither stretch the scale of all the others nor
    dominate the loss. The map and its derivative are continuous.

    Args:
        features: Number of features.
        bound: The positive :math:`b`, in the units of the points.
        mapped: Which features are mapped; all by default.

    References:
        - Hickling & Prangle (2024), Flexible Tails for Normalizing Flows, https://arxiv.org/abs/2406.16971, argue for
          heavy tails at the data end instead of in the base.
    """

    def __init__(self, features: int, bound: float = 5.0, mapped: Sequence[bool] | None = None) -> None:
        super().__init__(features)
        if not 0.0 < bound < math.inf:
            raise ValueError(f"LogTails: expected a positive bound; got {bound}")
        mapped = [True] * features if mapped is None else [bool(is_mapped) for is_mapped in mapped]
        if len(mapped) != features:
            raise ValueError(f"LogTails: expected {features} values in mapped; got {len(mapped)}")
        self.bound = float(bound)
        self.mapped = mapped
        # Plain attribute, not a buffer: it follows from the configuration.
        self._is_mapped = torch.tensor(mapped, device="cpu")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        is_mapped, middle = self._is_mapped.to(x.device), x.clamp(-self.bound, self.bound)
        compressed = torch.where(is_mapped, torch.log1p(torch.relu(x.abs() - self.bound)), 0.0)
        return torch.where(is_mapped, middle + x.sign() * compressed, x), -compressed.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        is_mapped, middle = self._is_mapped.to(z.device), z.clamp(-self.bound, self.bound)
        # Beyond this the exponential, in other units, would overflow.
        most = 0.75 * math.log(torch.finfo(z.dtype).max)
        compressed = torch.where(is_mapped, torch.relu(z.abs() - self.bound).clamp(max=most), 0.0)
        return torch.where(is_mapped, middle + z.sign() * torch.expm1(compressed), z), compressed.sum(-1)

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "bound": self.bound, "mapped": self.mapped}
