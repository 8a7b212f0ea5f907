"""The affine map of the real line, with a bounded log-scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pushforward.flows.kernels.layers import Map
from pushforward.flows.univariate.base import Univariate


@dataclass(frozen=True)
class Affine(Univariate):
    r"""Scale and shift, :math:`z = e^{s} x + t` with :math:`s = S \tanh(a / S)`.

    The bound :math:`S` keeps a layer from multiplying by more than :math:`e^S`, because deep affine flows would
    overflow otherwise. For :math:`|a|` much smaller than :math:`S` it has no effect.

    Args:
        log_scale_bound: The bound :math:`S` on the log-scale.

    References:
        - Dinh et al. (2017), Density estimation using Real NVP, https://arxiv.org/abs/1605.08803, eqs. 7-8.
    """

    log_scale_bound: float = 3.0

    def __post_init__(self) -> None:
        if not self.log_scale_bound > 0:
            raise ValueError(f"Affine: expected log_scale_bound above 0; got {self.log_scale_bound}")

    @property
    def size(self) -> int:
        return 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        z = x * torch.exp(log_scale) + shift
        return z, log_scale.expand_as(z)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(parameters)
        x = (z - shift) * torch.exp(-log_scale)
        return x, (-log_scale).expand_as(x)

    def kernel(self) -> Map | None:
        return Map("affine", bound=self.log_scale_bound)

    def _shift_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.unbind(-1)
        return shift, self.log_scale_bound * torch.tanh(raw / self.log_scale_bound)
