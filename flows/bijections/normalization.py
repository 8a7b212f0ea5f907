"""Affine layers that bring features to zero mean and unit scale."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.flows.bijections.base import Bijection
from pushforward.flows.kernels.description import Description
from pushforward.flows.kernels.layers import Layer


class Standardize(Bijection):
    r"""Fixed shift and scale, :math:`z = (x - m) / s`, from the units of the data to standardized ones.

    The constants are float64 whatever the flow's dtype, because a column such as a year or an identifier may need more
    digits than float32 has; the result has the dtype of the points.

    Args:
        mean: Shift :math:`m` of each feature, in data units.
        scale: Positive scale :math:`s` of each feature, in data units.
    """

    adopted = ("mean", "scale")

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__(len(mean))
        self.adopt(mean=mean, scale=scale)

    def adopt(self, **arguments: Any) -> None:
        mean, scale = arguments["mean"], arguments["scale"]
        if len(scale) != self.features or not all(0 < s < math.inf for s in scale):
            raise ValueError(f"Standardize: expected {self.features} positive scales; got {list(scale)}")
        if not all(math.isfinite(m) for m in mean):
            raise ValueError(f"Standardize: expected finite means; got {list(mean)}")
        if len(mean) != self.features:
            raise ValueError(f"Standardize: expected {self.features} means; got {len(mean)}")
        # Plain attributes, not buffers: .float() on the flow must not round them. The default device may be meta.
        self._mean = torch.tensor([float(m) for m in mean], dtype=torch.float64, device="cpu")
        self._scale = torch.tensor([float(s) for s in scale], dtype=torch.float64, device="cpu")
        self._log_det = -float(self._scale.log().sum())

    @property
    def log_det(self) -> float:
        """Log-determinant of the map, equal at all points, in nats: ``nll_standardized - nll``."""
        return self._log_det

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        mean, scale = self._on(x)
        return ((x - mean) / scale).to(x.dtype), x.new_full(x.shape[:-1], self._log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        mean, scale = self._on(z)
        return (z * scale + mean).to(z.dtype), z.new_full(z.shape[:-1], -self._log_det)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self.forward(x), (score * self._on(x)[1]).to(score.dtype)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self.inverse(z), (score / self._on(z)[1]).to(score.dtype)

    def config(self) -> dict[str, Any]:
        return {"mean": self._mean.tolist(), "scale": self._scale.tolist()}

    def _on(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self._mean.to(points.device), self._scale.to(points.device)


class ActNorm(Bijection):
    r"""Trainable :math:`z = (x - m) e^{-s}`, initialized so that the first training batch comes out standardized.

    The first call of ``forward`` in training mode with two rows or more sets the parameters; before that the layer is
    the identity. Rows that are not finite, or so large that their squares overflow, do not count. The saved state
    records whether that has happened, so a loaded layer is never initialized again.

    Args:
        features: Number of features.

    References:
        - Kingma & Dhariwal (2018), Glow, https://arxiv.org/abs/1807.03039, section 3.1.
    """

    initialized: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.uint8))
        # The same as a Python value: reading a tensor would break a compiled graph and stall a GPU.
        self._is_initialized = False

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set shift and scale from points ``(..., features)``; a single point changes nothing.

        Raises:
            ValueError: If fewer than two of several points can be used.
        """
        rows = x.detach().reshape(-1, self.features)
        n = len(rows)
        if n < 2:
            return
        # The sum of squared deviations must not overflow. NaN compares as false.
        usable_rows = (rows.abs() < (torch.finfo(rows.dtype).max / (4 * n)) ** 0.5).all(-1)
        count = usable_rows.sum()
        if not torch.compiler.is_compiling() and count < 2:
            raise ValueError(
                f"ActNorm: expected at least 2 rows of finite, moderate numbers to start from; got {int(count)} of {n}"
            )
        # Without indexing by the mask, so that it compiles; if all rows are usable, both factors are exactly 1.
        mean = torch.where(usable_rows[:, None], rows, 0.0).mean(0) * (n / count)
        deviation = torch.where(usable_rows[:, None], rows, mean).std(0)
        scale = deviation * ((n - 1) / (count - 1)).sqrt()
        self.shift.copy_(mean)
        self.log_scale.copy_(torch.where(scale > 1e-6, scale, 1.0).log())  # a constant feature keeps its scale
        self.mark_initialized()

    def mark_initialized(self) -> None:
        """Keep the parameters as they are: no batch will set them."""
        self.initialized.fill_(1)
        self._is_initialized = True

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        self.check_dtypes(self.shift, x)
        if self.training and not self._is_initialized:
            self.initialize(x)
        if done := self.by_kernels(x, None, inverse=False):
            return done[0], done[1]
        return (x - self.shift) * torch.exp(-self.log_scale), (-self.log_scale.sum()).expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        self.check_dtypes(self.shift, z)
        if done := self.by_kernels(z, None, inverse=True):
            return done[0], done[1]
        x = z * torch.exp(self.log_scale) + self.shift
        return x, self.log_scale.sum().expand(z.shape[:-1])

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, log_det = self.forward(x)  # this comes first, because it may set the scale
        return z, log_det, score * torch.exp(self.log_scale.detach())

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self.inverse(z), score * torch.exp(-self.log_scale.detach())

    def describe(self) -> Description | None:
        if self.training and not self._is_initialized:
            return None
        found = Description()
        found.guard.attribute(self, "_is_initialized", self._is_initialized)
        if not self._is_initialized:
            found.guard.attribute(self, "training", self.training)
        found.add(self, "shift", self.features)
        found.add(self, "log_scale", self.features)
        return found.of(Layer("normalize"))

    def config(self) -> dict[str, Any]:
        return {"features": self.features}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.initialized.is_meta:
            self._is_initialized = bool(self.initialized.item())
