"""A network that takes its weights as an argument, as one vector."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WeightedNetwork(nn.Module):
    """Fully connected ReLU network that takes its weights as an argument: many vectors of all weights at a time.

    Weights are in units of their fan-in: a layer multiplies by ``w / sqrt(inputs)``, so that weights of unit size give
    outputs of the size of the inputs. Biases are not scaled.

    Args:
        inputs: Number of inputs.
        hidden: Widths of the hidden layers; empty for a linear model.
        outputs: Number of outputs.

    Shape:
        inputs ``(n, inputs)``, weights ``(s, size)``, outputs ``(s, n, outputs)``.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.widths = [inputs, *hidden, outputs]
        self.layers = list(zip(self.widths[:-1], self.widths[1:], strict=True))
        self.size = sum((a + 1) * b for a, b in self.layers)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        h, start = x, 0
        for layer, (a, b) in enumerate(self.layers):
            matrix, bias = weights[:, start : start + a * b], weights[:, start + a * b : start + (a + 1) * b]
            start += (a + 1) * b
            h = h @ (matrix.unflatten(1, (a, b)) / math.sqrt(a)) + bias.unsqueeze(1)
            if layer < len(self.layers) - 1:
                h = h.relu()
        return h

    def groups(self, each_input: bool) -> Tensor:
        """Group index ``(size,)`` of each weight.

        The weights of a layer are one group and its biases another; with ``each_input``, the weights of the first layer
        are one group per input.
        """
        sizes: list[int] = []
        for layer, (a, b) in enumerate(self.layers):
            parts = a if each_input and layer == 0 else 1
            sizes += [a * b // parts] * parts + [b]
        indices = torch.arange(len(sizes), device="cpu")
        return indices.repeat_interleave(torch.tensor(sizes, device="cpu"))

    def initial_scales(self) -> Tensor:
        """Initial scales ``(size,)`` of the weights, in units of the prior's standard deviation.

        Biases start at zero, so that all units see the data; the last layer is small, so that training starts near a
        constant function.
        """
        found = []
        for layer, (a, b) in enumerate(self.layers):
            found += [torch.full((a * b,), 1.0 if layer < len(self.layers) - 1 else 0.3), torch.zeros(b)]
        return torch.cat(found)
