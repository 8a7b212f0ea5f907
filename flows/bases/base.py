r"""The contract of a base law, and what all laws with a location and a scale share."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from pushforward.flows.checks import check_shape


class Base(nn.Module):
    r"""A law :math:`p_0(z \mid c)` at the far end of a flow, reparameterized: its samples carry gradients.

    A subclass implements ``log_prob``, ``rsample``, ``standardize``, ``initialize`` and ``config``, checks its points
    with ``check_points``, and keeps at least one parameter or buffer.

    Args:
        features: Number of features :math:`D` of a point.
        context: Number of context features :math:`C`; 0 means the law ignores any context it is given.

    Shape:
        points ``(..., D)``, context ``(..., C)`` broadcasting against them, log-densities ``(...)`` in nats; any number
        of leading dimensions, also none, also empty.
    """

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        if features < 1 or context < 0:
            raise ValueError(
                f"{type(self).__name__}: expected features of at least 1 and context of at least 0; "
                f"got {features}, {context}"
            )
        self.features, self.context = features, context

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters, and of the samples."""
        return self._any_tensor().dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters, and of the samples."""
        return self._any_tensor().device

    @property
    def support(self) -> list[tuple[float, float]] | None:
        """The open interval of each feature outside of which there is no density; None where parameters move it."""
        return [(-torch.inf, torch.inf)] * self.features

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of base points ``(..., D)``, in nats; ``-inf`` outside of the support."""
        raise NotImplementedError

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw points that carry gradients to the parameters.

        Args:
            n: Number of points, or a shape of leading dimensions.
            context: Context ``(..., context)``; its leading dimensions come after those of ``n``.

        Returns:
            Points ``(n, ..., D)``.
        """
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw points ``(n, ..., D)`` without gradients."""
        return self.rsample(n, context)

    def standardize(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map base points ``(..., D)`` to noise that is standard normal if the points are of this law.

        It is there to look at: a law may answer without gradients, and with infinities where it has no density.
        """
        raise NotImplementedError

    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Bring a fresh law to a mean ``(D,)`` and covariance ``(D, D)``, as far as its family allows."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this law (without its weights), JSON values and modules only."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to rebuild it: override config()")

    def log_prob_pushed(self, bijection: nn.Module, z: Tensor) -> Tensor:
        """Log-density ``(...)`` at ``z`` of this law pushed forward through a bijection.

        A law overrides it for the bijections for which it knows a form that stays exact where points of the support
        would round to its ends.
        """
        x, log_det = bijection.inverse(z)  # type: ignore[operator]
        density: Tensor = self.log_prob(x) + log_det
        return density

    def rsample_pushed(self, bijection: nn.Module, n: int | tuple[int, ...] = ()) -> Tensor:
        """Draw points ``(n, D)`` of this law pushed forward through a bijection; overridden likewise."""
        pushed: Tensor = bijection(self.rsample(n))[0]
        return pushed

    def check_points(self, z: Tensor) -> None:
        """Raise a ``ValueError`` that names both shapes if points do not fit."""
        check_shape(type(self).__name__, "points", z, self.features)

    def lead(self, n: int | tuple[int, ...], context: Tensor | None) -> tuple[int, ...]:
        """Leading dimensions of a sample: those of ``n``, then those of the context."""
        lead = (n,) if isinstance(n, int) else tuple(n)
        return (*lead, *context.shape[:-1]) if self.context and context is not None else lead

    def keep(self, name: str, value: Tensor, trainable: bool) -> None:
        """Register a parameter, or a buffer where it is not to be trained."""
        if trainable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def refuse_context(self) -> Self:
        """Raise a ``ValueError`` if this law has a context; for those that stand where there is none."""
        if self.context:
            raise ValueError(f"{type(self).__name__}: expected a law without context here; got context {self.context}")
        return self

    def _any_tensor(self) -> Tensor:
        return next(t for tensors in (self.parameters(), self.buffers()) for t in tensors if t.is_floating_point())


class LocationScale(Base):
    r"""A law :math:`z = m(c) + e^{s(c)} \odot y` with :math:`y` of a standard law that the subclass states.

    The subclass implements ``standard_log_prob``, ``standard_rsample``, ``standard_noise`` and ``standard_moments``.

    Args:
        features: Number of features :math:`D`.
        context: Number of context features; the context shifts the location and the log-scale through a linear map
            that starts at zero.
        trainable: Whether location and scale are parameters; otherwise they are constants.
    """

    location: Tensor
    log_scale: Tensor

    def __init__(self, features: int, context: int = 0, trainable: bool = True) -> None:
        super().__init__(features, context)
        self.trainable = trainable
        self.keep("location", torch.zeros(features), trainable)
        self.keep("log_scale", torch.zeros(features), trainable)
        self.from_context = nn.Linear(context, 2 * features) if context else None
        if self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)
            nn.init.zeros_(self.from_context.bias)

    def standard_log_prob(self, y: Tensor) -> Tensor:
        """Log-density ``(...)`` of the standard law at ``(..., D)``."""
        raise NotImplementedError

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        """Points ``(*lead, D)`` of the standard law, with gradients to its parameters."""
        raise NotImplementedError

    def standard_noise(self, y: Tensor) -> Tensor:
        """Points of the standard law mapped to standard normals, ``(..., D) -> (..., D)``."""
        raise NotImplementedError

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the standard law, each broadcasting against ``(D,)``."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Set location and scale so that the law has a mean ``(D,)`` and the variances of a covariance ``(D, D)``."""
        centre, deviation = self.standard_moments()
        scale = covariance.diagonal().sqrt() / deviation.to(covariance)
        self.location.copy_(mean - scale * centre.to(mean))
        self.log_scale.copy_(scale.log())

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        y, log_scale = self._to_standard(z, context)
        return self.standard_log_prob(y) - log_scale.sum(-1)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        location, log_scale = self.location_and_log_scale(context)
        return location + self.standard_rsample(self.lead(n, context)) * log_scale.exp()

    def standardize(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.standard_noise(self._to_standard(z, context)[0])

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "context": self.context, "trainable": self.trainable}

    def location_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and log-scale ``(D,)``, or ``(..., D)`` under a context ``(..., C)``."""
        if self.from_context is None:
            return self.location, self.log_scale
        name = type(self).__name__
        if context is None:
            raise ValueError(f"{name}: expected context of shape (..., {self.context}); got none")
        check_shape(name, "context", context, self.context)
        shift, log_scale = self.from_context(context).chunk(2, dim=-1)
        return self.location + shift, self.log_scale + log_scale

    def _to_standard(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        self.check_points(z)
        location, log_scale = self.location_and_log_scale(context)
        return (z - location) * (-log_scale).exp(), log_scale
