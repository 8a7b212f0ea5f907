"""Base class of unnormalised target densities."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.common.errors import DataError
from pushforward.common.text import one_line, shorten

_COORDINATES_SHOWN = 8

# Errors raised unchanged: their message is one line already, or not about the target.
_RAISED_UNCHANGED = (DataError, torch.OutOfMemoryError)


class TargetError(DataError):
    """A target's log-density cannot be fitted; the message is one line and names the point."""


class Target(ABC):
    """A log-density on R^D, up to a constant.

    A subclass sets ``features`` and defines ``log_prob``; the other attributes are optional.

    Attributes:
        name: Its name on the command line.
        features: Number of coordinates D.
        description: One line.
        log_z: Log of the integral of exp(log_prob), in nats; None if unknown.
        entropy: Differential entropy of the normalised distribution, in nats; None if unknown.
        bounds: The box (low, high)^D outside of which the density is zero; None for all of R^D.
        spread: Typical distance of a coordinate from the origin; flows are initialised at this scale.

    Shape:
        points ``(..., D)``, log-densities ``(...)``.

    Example:
        >>> class Laplace(Target):
        ...     features = 3
        ...     def log_prob(self, x):
        ...         return -x.abs().sum(-1)
        >>> Laplace().score_function(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    name: str = ""
    features: int
    description: str = ""
    log_z: float | None = None
    entropy: float | None = None
    bounds: tuple[float, float] | None = None
    spread: float = 1.0

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the unnormalised log-density in nats, ``(..., D) -> (...)``, in the dtype and on the device of ``x``.

        It must be differentiable almost everywhere, and -inf where the density is zero.
        """

    def score_function(self, x: Tensor) -> Tensor:
        """Return the gradient of ``log_prob`` with respect to ``x`` (score function), ``(..., D) -> (..., D)``.

        It is computed by autograd, at the cost of about two evaluations, and is zero where the log-density does not
        depend on ``x``, as inside a flat box. The result is detached.

        Raises:
            TargetError: If the gradient cannot be computed.
        """
        return value_and_gradient(self, x)[1]

    def sample(self, n: int, seed: int) -> Tensor | None:
        """Draw ``n`` independent samples of the normalised distribution, float64 on the CPU; None if not available."""
        return None

    @property
    def has_samples(self) -> bool:
        """Whether ``sample`` is implemented."""
        return type(self).sample is not Target.sample


class FunctionTarget(Target):
    """A target defined by a function of a matrix.

    Args:
        function: Takes points ``(n, D)`` and returns their log-densities ``(n,)`` in nats, up to a constant.
        features: Number of coordinates D.
        name: Its name in messages; the name of the function by default.
        bounds: The box (low, high)^D outside of which the density is zero. The function
            is then only evaluated inside the box.
        spread: Typical distance of a coordinate from the origin.

    Raises:
        TargetError: From ``log_prob``, if the function raises or does not return one log-density per point.

    Example:
        >>> target = FunctionTarget(lambda x: -x.pow(4).sum(-1), features=3)
        >>> target.log_prob(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        features: int,
        *,
        name: str | None = None,
        bounds: tuple[float, float] | None = None,
        spread: float = 1.0,
    ) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        check_features(self.name, features)
        if bounds is not None and not bounds[0] < bounds[1]:
            raise TargetError(f"{self.name}: expected bounds (low, high) with low < high; got {bounds}")
        if not 0 < spread < float("inf"):
            raise TargetError(f"{self.name}: expected a positive spread; got {spread}")
        self.features, self.bounds, self.spread = features, bounds, spread
        self.description = "a user-defined function"

    def log_prob(self, x: Tensor) -> Tensor:
        points = x if self.bounds is None else x.clamp(*self.bounds)
        rows = points.reshape(-1, self.features)
        try:
            found = self.function(rows)
        except _RAISED_UNCHANGED:
            raise
        except Exception as error:
            raise _error_from(self.name, error) from error
        if not isinstance(found, Tensor):
            raise TargetError(f"{self.name}: expected a torch tensor; got {type(found).__name__}")
        if found.shape != rows.shape[:1]:
            raise wrong_shape(self.name, rows, found)
        out = found.reshape(x.shape[:-1])
        return out if self.bounds is None else clip(out, x, self.bounds)


def clip(log_prob: Tensor, x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Set log-densities ``(...)`` to -inf where ``x`` ``(..., D)`` is outside the box; NaN stays NaN."""
    outside = ((x < bounds[0]) | (x > bounds[1])).any(-1)
    return torch.where(outside, -torch.inf, log_prob)


def value_and_gradient(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-densities ``(...)`` and their gradients ``(..., D)``, both detached, from one evaluation.

    Raises:
        TargetError: If the target's code raises.
    """
    with torch.enable_grad():
        points = x.detach().requires_grad_()
        value = evaluate(target, points)
        if not value.requires_grad:
            return value.detach(), torch.zeros_like(x)
        try:
            (gradient,) = torch.autograd.grad(value.sum(), points, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _error_from(target.name or type(target).__name__, error, "its gradient") from error
    return value.detach(), torch.zeros_like(x) if gradient is None else gradient


def evaluate(target: Target, x: Tensor) -> Tensor:
    """Evaluate ``log_prob``; any error becomes a ``TargetError`` of one line."""
    name = target.name or type(target).__name__
    try:
        value: Any = target.log_prob(x)
    except _RAISED_UNCHANGED:
        raise
    except Exception as error:
        raise _error_from(name, error) from error
    if not isinstance(value, Tensor):
        raise TargetError(f"{name}: expected a torch tensor; got {type(value).__name__}")
    return value


def wrong_shape(name: str, x: Tensor, found: Tensor) -> TargetError:
    """Return the error for a function that does not return one number per point."""
    return TargetError(
        f"{name}: expected log-densities of shape {tuple(x.shape[:-1])} for points of shape {tuple(x.shape)}; "
        f"got {tuple(found.shape)}"
    )


def check_features(name: str, features: object) -> None:
    """Raise if the number of features is not a positive integer."""
    if isinstance(features, bool) or not isinstance(features, int) or features < 1:
        raise TargetError(f"{name}: expected features of at least 1; got {features!r}")


def show_point(x: Tensor) -> str:
    """Format a point ``(D,)`` with few digits, as in ``[0.5, -1.25]``."""
    numbers = ", ".join(f"{value:.4g}" for value in x[:_COORDINATES_SHOWN].tolist())
    more = len(x) - _COORDINATES_SHOWN
    return f"[{numbers}, and {more} more]" if more > 0 else f"[{numbers}]"


def describe_error(error: BaseException) -> str:
    """Return the type and the message of an error, on one line of limited length."""
    kind, text = type(error).__name__, shorten(one_line(error), 300)
    return kind if text == kind else f"{kind}: {text}"


def _error_from(name: str, error: Exception, what: str = "its log-density") -> TargetError:
    return TargetError(f"{name}: computing {what} raised {describe_error(error)}")
