"""Univariate maps: pure functions of a value and its parameters, used by all kinds of layers.

A map is an immutable object without weights. With all parameters zero it is the identity, so a layer starts as the
identity if the last layer of its conditioner starts at zero.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.kernels.layers import Map


class Univariate(ABC):
    """A strictly increasing map of the real line with a vector of parameters.

    A subclass is a frozen dataclass that implements ``size`` and ``forward``, and overrides ``inverse`` if there is a
    formula. Otherwise the inverse is a bracketed root search, with its gradient by the implicit function theorem.

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

    def kernel(self) -> Map | None:
        """The description of this map for the kernels in C; None if they do not implement it."""
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

    The number of steps is fixed, so the search compiles. It finds roots up to ``2**doublings`` away from ``z``, to the
    accuracy of the dtype. The gradient follows from the implicit function theorem:
    ``dx = (dz - df/dparameters dparameters) / f'(x)``.

    Args:
        univariate: The map.
        z: Values ``(...)`` to invert.
        parameters: Parameters ``(..., size)``.
        doublings: Number of doublings of the bracket.
        halvings: Number of bisection steps.

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
            # A Newton step that leaves the bracket, as it may where the derivative jumps, is not taken.
            step = x - (value - z) * torch.exp(-log_derivative)
            x = torch.where((step >= low) & (step <= high), step, x)
    # One more Newton step, with gradients: it leaves the value as it is and gives the implicit function's derivative.
    value, log_derivative = univariate.forward(x, parameters)
    x = x - (value - z) * torch.exp(-log_derivative.detach())
    return x, -univariate.forward(x, parameters)[1]
