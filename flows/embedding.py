"""An embedding of the context in the units of the data: a bijection that standardises it, then a module."""

from typing import Any

from torch import Tensor, nn

from pushforward.flows.bijections.base import Bijection
from pushforward.flows.state import Part


class ScaledEmbedding(Part):
    """Applies a bijection to context rows, and then a module.

    Args:
        scale: The bijection, such as ``Standardize``.
        module: A module from ``(n, C)`` to ``(n, E)``.
    """

    def __init__(self, scale: Bijection, module: nn.Module) -> None:
        super().__init__()
        self.scale, self.module = scale, module

    def forward(self, context: Tensor) -> Tensor:
        """Embed context rows, ``(n, C) -> (n, E)``."""
        embedded: Tensor = self.module(self.scale(context)[0])
        return embedded

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this embedding."""
        return {"scale": self.scale, "module": self.module}
