"""Univariate maps: pure functions of a value and its parameters, used by every pattern of layer.

A map is an immutable object with no weights of its own. Parameters that are all zero make it the identity, so a
conditioner whose last layer starts at zero makes a layer that starts as the identity.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.kernels import native


class Univariate(ABC):
    """A strictly increasing map of the real line, given by a vector of parameters.

    A subclass is a frozen dataclass that implements ``size`` and ``forward``; it overrides ``inverse`` where there
    is a formula. Without one, the inverse is found by a bracketed root search, with the gradient of the implicit
    function.

    Shape:
        values ``(...)``, parameters ``(..., size)``, log-derivative ``(...)``.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of parameters of one map."""

    @abstractmethod
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map values; return them with the logarithm of the derivative."""

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map values back; return them with the logarithm of the derivative of this inverse map."""
        return invert(self, z, parameters)

    def kernel(self) -> native.Map | None:
        """How the kernels in C know this map; None if they do not."""
        return None

    def identity(self, *shape: int) -> Tensor:
        """Parameters ``(*shape, size)`` that make the map the identity."""
        return torch.zeros(*shape, self.size)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this map."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # subclasses are dataclasses


def invert(
    univariate: Univariate, z: Tensor, parameters: Tensor, doublings: int = 40, halvings: int = 64
) -> tuple[Tensor, Tensor]:
    """Invert an increasing map by doubling a bracket, halving it, and two guarded Newton steps.

    The number of steps is fixed, so the search compiles; it covers roots up to ``2**doublings`` away from ``z`` and
    ends at the accuracy of the dtype. The gradient is that of the implicit function:
    ``dx = (dz - df/dparameters dparameters) / f'(x)``.

    Args:
        univariate: The map.
        z: Values ``(...)`` to invert.
        parameters: Parameters ``(..., size)``.
        doublings: Steps of the bracket's expansion.
        halvings: Steps of bisection.

    Returns:
        The roots ``(...)`` and the log-derivative of the inverse map there.

    Cost:
        ``2 * doublings + halvings + 4`` evaluations of the map.
    """
    with torch.no_grad():
        low, high = z - 1.0, z + 1.0
        width = torch.ones_like(z)
        for _ in range(doublings):
            width = 2.0 * width
            low = torch.where(univariate.forward(low, parameters)[0] > z, low - width, low)
            high = torch.where(univariate.forward(high, parameters)[0] < z, high + width, high)
        for _ in range(halvings):
            middle = 0.5 * (low + high)
            below = univariate.forward(middle, parameters)[0] < z
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        x = 0.5 * (low + high)
        for _ in range(2):
            value, log_derivative = univariate.forward(x, parameters)
            # A Newton step may leave the bracket where the derivative jumps: then it is not taken.
            step = x - (value - z) * torch.exp(-log_derivative)
            x = torch.where((step >= low) & (step <= high), step, x)
    # One more Newton step with gradients: its value changes nothing, its derivative is the implicit function's.
    value, log_derivative = univariate.forward(x, parameters)
    x = x - (value - z) * torch.exp(-log_derivative.detach())
    return x, -univariate.forward(x, parameters)[1]
