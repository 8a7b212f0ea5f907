"""The encoder of an autoencoder: a network from rows to the context of the posterior."""

from typing import Any

from torch import Tensor, nn

from pushforward.flows.bijections.base import Bijection
from pushforward.flows.state import Part


class Encoder(Part):
    """A network that takes rows in the units of the data.

    Args:
        net: Network from standardised rows ``(..., D)`` to the posterior's context ``(..., C)``.
        standardize: Map from the units of the data to standardised ones; None to leave rows as they are.
    """

    def __init__(self, net: nn.Module, standardize: Bijection | None = None) -> None:
        super().__init__()
        self.net = net
        self.standardize = standardize

    def forward(self, x: Tensor) -> Tensor:
        if self.standardize is not None:
            x = self.standardize(x)[0]
        context: Tensor = self.net(x)
        return context

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this encoder (without its weights)."""
        return {"net": self.net, "standardize": self.standardize}
