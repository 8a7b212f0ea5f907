"""The network that reads rows for the posterior over latent points."""

from typing import Any

from torch import Tensor, nn

from pushforward.flows.bijections.normalization import Standardize


class Encoder(nn.Module):
    """Network that reads rows in the units of the data.

    Args:
        net: Network from standardised rows ``(..., D)`` to the posterior's context ``(..., C)``.
        standardize: The data's location and scale; None to hand rows on as they are.
    """

    def __init__(self, net: nn.Module, standardize: Standardize | None = None) -> None:
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
