r"""The contract of base distributions, and the part that those with a location and a scale share."""

import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pushforward.flows.checks import check_dtype, check_shape, check_tensor, sample_shape
from pushforward.flows.state import Part


class Base(Part):
    r"""A base distribution :math:`p_0(z \mid c)` of a flow, with reparameterized samples.

    A subclass implements ``log_prob``, ``rsample``, ``latents``, ``initialize`` and ``config``, checks its points with
    ``check_points``, and has at least one parameter or buffer.

    Args:
        features: Number of features :math:`D` of a point.
        context: Number of context features :math:`C`; with 0, any context given is ignored.

    Shape:
        points ``(..., D)``, context ``(..., C)`` broadcasting against them, log-densities ``(...)`` in nats; any number
        of leading dimensions, also none, also empty. Points and context have the dtype of the parameters.
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
        """The dtype of the parameters and of the samples."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters and of the samples."""
        return self.like.device

    @property
    def like(self) -> Tensor:
        """A parameter or buffer, which gives dtype and device."""
        own = (tensor for tensors in (self._parameters, self._buffers) for tensor in tensors.values())  # the fast way
        tensors = itertools.chain(own, self.parameters(), self.buffers())
        return next(tensor for tensor in tensors if tensor is not None and tensor.is_floating_point())

    @property
    def support(self) -> list[tuple[float, float]] | None:
        """The open interval of each feature outside of which the density is zero; None if parameters change it."""
        return [(-torch.inf, torch.inf)] * self.features

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of points ``(..., D)``, in nats; ``-inf`` outside of the support."""
        raise NotImplementedError

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples with gradients to the parameters.

        Args:
            n: Number of samples, or a shape of leading dimensions.
            context: Context ``(..., context)``; its leading dimensions come after those of ``n``.

        Returns:
            Samples ``(n, ..., D)``.
        """
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples ``(n, ..., D)`` without gradients."""
        return self.rsample(n, context)

    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map points ``(..., D)`` to latents ``(..., D)``, standard normal if the points are samples of this base.

        Feature by feature, given the ones before, this is the probability integral transform followed by the normal
        quantile function; a Gaussian is whitened. Latents serve for diagnostics: they may come without gradients, and
        they are infinite where the density is zero.
        """
        raise NotImplementedError

    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Match a mean ``(D,)`` and a covariance ``(D, D)`` before training, as far as the family allows.

        Raises:
            ValueError: If they are not finite, or a variance is not positive.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this base (without its weights), JSON values and modules only."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to rebuild it: override config()")

    def transformed_log_prob(self, bijection: nn.Module, z: Tensor) -> Tensor:
        """Log-density ``(...)`` at ``z`` of this distribution pushed forward through a bijection.

        A subclass overrides it for bijections with a closed form that stays exact where points of the support would
        round to its ends.
        """
        x, log_det = bijection.inverse(z)  # type: ignore[operator]
        density: Tensor = self.log_prob(x) + log_det
        return density

    def transformed_rsample(self, bijection: nn.Module, n: int | tuple[int, ...] = ()) -> Tensor:
        """Draw samples ``(n, D)`` of this distribution pushed forward through a bijection.

        A subclass overrides it for the same bijections as ``transformed_log_prob``.
        """
        samples: Tensor = bijection(self.rsample(n))[0]
        return samples

    def check_points(self, z: Tensor) -> None:
        """Raise an error unless points have the shape ``(..., D)`` and the dtype of the parameters."""
        name = type(self).__name__
        check_shape(name, "points", z, self.features)
        check_dtype(name, "points", z, self.dtype)

    def check_moments(self, mean: Tensor, covariance: Tensor) -> None:
        """Raise a ``ValueError`` unless a mean and a covariance are finite and the variances positive."""
        for what, moment in (("mean", mean), ("covariance", covariance)):
            check_tensor(type(self).__name__, what, moment)
        variances = covariance.diagonal()
        if not bool(mean.isfinite().all() & covariance.isfinite().all() & (variances > 0).all()):
            raise ValueError(
                f"{type(self).__name__}: expected a finite mean and covariance with variances above 0; "
                f"got {mean.tolist()} and {variances.tolist()}"
            )

    def lead(self, n: int | tuple[int, ...], context: Tensor | None) -> tuple[int, ...]:
        """Leading dimensions of samples: those of ``n``, then those of the context."""
        lead = sample_shape(type(self).__name__, n)
        return (*lead, *context.shape[:-1]) if self.context and context is not None else lead

    def add_tensor(self, name: str, value: Tensor, trainable: bool) -> None:
        """Register a tensor as a parameter if it is trainable, otherwise as a buffer."""
        if trainable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)


class LocationScale(Base):
    r"""A distribution with a location and a scale: :math:`z = m(c) + e^{s(c)} \odot y`.

    The subclass states the standard distribution of :math:`y` by ``standard_log_prob``, ``standard_rsample``,
    ``standard_latents`` and ``standard_moments``.

    Args:
        features: Number of features :math:`D`.
        context: Number of context features; the context shifts the location and the log-scale through a linear map
            that starts at zero.
        trainable: Whether location and scale are parameters; otherwise they are constants.
    """

    location: Tensor
    log_scale: Tensor
    free: ClassVar[tuple[str, ...]] = ("trainable",)

    def __init__(self, features: int, context: int = 0, trainable: bool = True) -> None:
        super().__init__(features, context)
        self.trainable = trainable
        self.add_tensor("location", torch.zeros(features), trainable)
        self.add_tensor("log_scale", torch.zeros(features), trainable)
        self.from_context = nn.Linear(context, 2 * features) if context else None
        if self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)
            nn.init.zeros_(self.from_context.bias)

    def standard_log_prob(self, y: Tensor) -> Tensor:
        """Log-density ``(...)`` of the standard distribution at ``(..., D)``."""
        raise NotImplementedError

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        """Samples ``(*lead, D)`` of the standard distribution, with gradients to its parameters."""
        raise NotImplementedError

    def standard_latents(self, y: Tensor) -> Tensor:
        """Map points ``(..., D)`` of the standard distribution to standard-normal latents ``(..., D)``."""
        raise NotImplementedError

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the standard distribution, each broadcasting against ``(D,)``."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Set location and scale to match a mean ``(D,)`` and the variances of a covariance ``(D, D)``."""
        self.check_moments(mean, covariance)
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

    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.standard_latents(self._to_standard(z, context)[0])

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "context": self.context, "trainable": self.trainable}

    def location_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and log-scale: ``(D,)`` each, or ``(..., D)`` given a context ``(..., C)``."""
        if self.from_context is None:
            return self.location, self.log_scale
        name = type(self).__name__
        if context is None:
            raise ValueError(f"{name}: expected context of shape (..., {self.context}); got none")
        check_shape(name, "context", context, self.context)
        shift, log_scale = self.from_context(context).chunk(2, dim=-1)
        return self.location + shift, self.log_scale + log_scale

    def _to_standard(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points in units of location and scale, and the log-scale."""
        self.check_points(z)
        location, log_scale = self.location_and_log_scale(context)
        return (z - location) * (-log_scale).exp(), log_scale
