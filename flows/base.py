r"""Base densities: reparameterized laws :math:`z = g(\epsilon, \theta)` with :math:`\epsilon \sim N(0, I)`."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pushforward.flows.bijection import check_shape

_LOG_2PI = math.log(2.0 * math.pi)


class Gaussian(nn.Module):
    r"""Reparameterized Gaussian :math:`z = m(c) + L(c)\,\epsilon`, :math:`\epsilon \sim N(0, I)`.

    Location and scale train with everything else: through ``log_prob`` by likelihood, and through ``rsample`` by the
    path of the sample. Starts as the standard Gaussian.

    Args:
        features: Number of features :math:`D`.
        context: Number of context features; the context shifts the location and scales the standard deviations
            through a linear map that starts at zero.
        covariance: ``"diagonal"``, or ``"full"`` for a lower triangular :math:`L`.
        trainable: Whether location and scale are parameters; otherwise they are constants.

    Shape:
        points and noise ``(..., D)``, context ``(..., context)``, log-density ``(...)``.
    """

    location: Tensor
    log_scale: Tensor
    lower: Tensor

    def __init__(
        self,
        features: int,
        context: int = 0,
        covariance: Literal["diagonal", "full"] = "diagonal",
        trainable: bool = True,
    ) -> None:
        super().__init__()
        if features < 1 or context < 0:
            raise ValueError(
                f"Gaussian: expected features of at least 1 and context of at least 0; got {features}, {context}"
            )
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"Gaussian: expected covariance 'diagonal' or 'full'; got {covariance!r}")
        self.features, self.context = features, context
        self.covariance, self.trainable = covariance, trainable
        state = {"location": torch.zeros(features), "log_scale": torch.zeros(features)}
        if covariance == "full":
            # L = (I + strictly lower) diag(exp(log_scale)): unit columns times the scales.
            state["lower"] = torch.zeros(features, features)
        for name, value in state.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.from_context = nn.Linear(context, 2 * features) if context else None
        if self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)
            nn.init.zeros_(self.from_context.bias)

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Set location and scale to a mean ``(D,)`` and covariance ``(D, D)``; a diagonal law keeps the variances."""
        self.location.copy_(mean)
        if self.covariance == "diagonal":
            self.log_scale.copy_(0.5 * covariance.diagonal().log())
            return
        factor = torch.linalg.cholesky(covariance)
        scale = factor.diagonal()
        self.log_scale.copy_(scale.log())
        self.lower.copy_((factor / scale).tril(-1))

    def push(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Push standard-normal noise ``(..., D)`` to base points ``(..., D)``: the map g."""
        location, log_scale = self._location_and_log_scale(context)
        scaled = noise * log_scale.exp()
        if self.covariance == "full":
            scaled = scaled + scaled @ self.lower.tril(-1).transpose(-1, -2)
        return location + scaled

    def standardize(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map base points ``(..., D)`` to the noise they came from: the inverse of ``push``."""
        return self._standardize(z, context)[0]

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of base points ``(..., D)``, in nats."""
        noise, log_scale = self._standardize(z, context)
        return -0.5 * (noise.square().sum(-1) + self.features * _LOG_2PI) - log_scale.sum(-1)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw points that carry gradients to location and scale.

        Args:
            n: Number of points, or a shape of leading dimensions.
            context: Context ``(..., context)``; its leading dimensions come after those of ``n``.

        Returns:
            Points ``(n, ..., D)``.
        """
        return self.push(self.noise(n, context), context)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw points ``(n, ..., D)`` without gradients."""
        return self.rsample(n, context)

    def noise(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw the standard-normal noise ``(n, ..., D)`` that ``push`` takes, in the dtype of the parameters."""
        lead = (n,) if isinstance(n, int) else tuple(n)
        if self.context and context is not None:
            lead = (*lead, *context.shape[:-1])
        return torch.randn(*lead, self.features, dtype=self.location.dtype, device=self.location.device)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this law (without its weights)."""
        return {
            "features": self.features,
            "context": self.context,
            "covariance": self.covariance,
            "trainable": self.trainable,
        }

    def _standardize(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        check_shape("Gaussian", "points", z, self.features)
        location, log_scale = self._location_and_log_scale(context)
        centred = z - location
        if self.covariance == "full":
            # One small triangular solve for the matrix, then a matrix product for all points.
            eye = torch.eye(self.features, dtype=z.dtype, device=z.device)
            inverse = torch.linalg.solve_triangular(self.lower.tril(-1) + eye, eye, upper=False, unitriangular=True)
            centred = centred @ inverse.transpose(-1, -2)
        return centred * (-log_scale).exp(), log_scale

    def _location_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.from_context is None:
            return self.location, self.log_scale
        if context is None:
            raise ValueError(f"Gaussian: expected context of shape (..., {self.context}); got none")
        check_shape("Gaussian", "context", context, self.context)
        shift, log_scale = self.from_context(context).chunk(2, dim=-1)
        return self.location + shift, self.log_scale + log_scale
