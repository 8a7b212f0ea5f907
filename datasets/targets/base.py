"""The contract of an unnormalised target density."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.common.errors import DataError

_COORDINATES_SHOWN = 8

# What is one line already, and what says nothing of the target.
_PASSED_ON = (DataError, torch.OutOfMemoryError)


class TargetError(DataError):
    """A target's log-density is not one that a flow can be fitted to; the message names the point and is one line."""


class Target(ABC):
    """A log-density on R^D whose normalising constant need not be known.

    A subclass sets ``features`` and defines ``log_prob``; the other attributes say what is known besides.

    Attributes:
        name: What the command calls it.
        features: Number of coordinates D.
        description: One line.
        log_z: Log of the integral of exp(log_prob), in nats; ``None`` where unknown.
        entropy: Differential entropy of the normalised law, in nats; ``None`` where unknown.
        bounds: The box (low, high)^D outside of which the density is zero; ``None`` for all of R^D.
        spread: About how far from the origin a coordinate's values lie: where a flow had better start.

    Shape:
        points ``(..., D)``, log-densities ``(...)``.

    Example:
        >>> class Laplace(Target):
        ...     features = 3
        ...     def log_prob(self, x):
        ...         return -x.abs().sum(-1)
        >>> Laplace().force(torch.ones(5, 3)).shape
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
        """Unnormalised log-density in nats, ``(..., D) -> (...)``, in the dtype and on the device of the points.

        It is differentiable almost everywhere, and -inf where the density is zero.
        """

    def force(self, x: Tensor) -> Tensor:
        """Gradient of ``log_prob`` at the points, ``(..., D) -> (..., D)``, by autograd: about two evaluations.

        It is zero where the log-density does not depend on the point, as on the inside of a flat box. The result
        carries no gradient.

        Raises:
            TargetError: The gradient cannot be computed.
        """
        return value_and_force(self, x)[1]

    def sample(self, n: int, seed: int) -> Tensor | None:
        """Draw ``n`` independent points of the normalised law, float64 on the CPU; ``None`` where nobody knows how."""
        return None

    @property
    def has_samples(self) -> bool:
        """Whether ``sample`` draws points."""
        return type(self).sample is not Target.sample


class FunctionTarget(Target):
    """A target from a function of a matrix.

    Args:
        function: Takes points ``(n, D)`` and returns their log-densities ``(n,)`` in nats, up to a constant.
        features: Number of coordinates D.
        name: What messages call it; the function's name unless told.
        bounds: The box (low, high)^D outside of which the density is zero. Where it is given, the function is only
            asked for points of the box.
        spread: About how far from the origin a coordinate's values lie.

    Raises:
        TargetError: From ``log_prob``, when the function raises or does not return one log-density a point.

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
        self.description = "a function of the user's"

    def log_prob(self, x: Tensor) -> Tensor:
        points = x if self.bounds is None else x.clamp(*self.bounds)
        rows = points.reshape(-1, self.features)
        try:
            found = self.function(rows)
        except _PASSED_ON:
            raise
        except Exception as error:
            raise _raised(self.name, error) from error
        if not isinstance(found, Tensor):
            raise TargetError(f"{self.name}: expected a torch tensor; got {type(found).__name__}")
        if found.shape != rows.shape[:1]:
            raise wrong_shape(self.name, rows, found)
        out = found.reshape(x.shape[:-1])
        return out if self.bounds is None else clip(out, x, self.bounds)


def clip(log_prob: Tensor, x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Log-densities ``(...)`` with -inf where a point ``(..., D)`` is outside the box; NaN points keep their NaN."""
    outside = ((x < bounds[0]) | (x > bounds[1])).any(-1)
    return torch.where(outside, -torch.inf, log_prob)


def value_and_force(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log-densities ``(...)`` and their gradients ``(..., D)``, both without a graph, from one evaluation.

    Raises:
        TargetError: The target's code raises.
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
            raise _raised(target.name or type(target).__name__, error, "its gradient") from error
    return value.detach(), torch.zeros_like(x) if gradient is None else gradient


def evaluate(target: Target, x: Tensor) -> Tensor:
    """Evaluate ``log_prob``; whatever it raises becomes one line."""
    name = target.name or type(target).__name__
    try:
        value: Any = target.log_prob(x)
    except _PASSED_ON:
        raise
    except Exception as error:
        raise _raised(name, error) from error
    if not isinstance(value, Tensor):
        raise TargetError(f"{name}: expected a torch tensor; got {type(value).__name__}")
    return value


def wrong_shape(name: str, x: Tensor, found: Tensor) -> TargetError:
    """The error of a function that does not give one number a point."""
    return TargetError(
        f"{name}: expected log-densities of shape {tuple(x.shape[:-1])} for points of shape {tuple(x.shape)}; "
        f"got {tuple(found.shape)}"
    )


def check_features(name: str, features: object) -> None:
    """Complain of a number of features that is none."""
    if isinstance(features, bool) or not isinstance(features, int) or features < 1:
        raise TargetError(f"{name}: expected features of at least 1; got {features!r}")


def show_point(x: Tensor) -> str:
    """Show a point ``(D,)`` in a few digits, as in ``[0.5, -1.25]``."""
    numbers = ", ".join(f"{value:.4g}" for value in x[:_COORDINATES_SHOWN].tolist())
    more = len(x) - _COORDINATES_SHOWN
    return f"[{numbers}, and {more} more]" if more > 0 else f"[{numbers}]"


def one_line(error: BaseException) -> str:
    """The kind and the text of an error in one line that is not too long."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _raised(name: str, error: Exception, what: str = "its log-density") -> TargetError:
    return TargetError(f"{name}: computing {what} raised {one_line(error)}")
