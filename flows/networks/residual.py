"""Residual networks, and the parts that they share with masked ones."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.flows.checks import check_at_least, check_dropout
from pushforward.flows.constants import Constants
from pushforward.flows.state import Part


class ResidualNet(Part):
    """Pre-activation residual network; the context is added to the input layer and to each block.

    The last layer starts at zero, so the univariate maps start as the identity.

    Args:
        inputs: Number of input features; with 0 the output depends only on the context.
        outputs: Number of outputs.
        context: Number of context features.
        hidden: Number of hidden units per layer.
        blocks: Number of residual blocks of two linear layers each.
        dropout: Probability of zeroing an activation while training.

    Shape:
        inputs ``(..., inputs)``, context ``(..., context)``, outputs ``(..., outputs)``.

    References:
        - Durkan et al. (2019), Neural Spline Flows, https://arxiv.org/abs/1906.04032, appendix B.1.
    """

    free = ("dropout",)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        context: int = 0,
        hidden: int = 128,
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_at_least(name, 1, outputs=outputs, hidden=hidden)
        check_at_least(name, 0, inputs=inputs, context=context, blocks=blocks)
        check_dropout(name, dropout)
        self.inputs, self.outputs, self.context = inputs, outputs, context
        self.hidden, self.blocks, self.dropout = hidden, blocks, dropout
        # nn.Linear(0, n) would warn and leave the bias uninitialized.
        self.first = nn.Linear(inputs, hidden) if inputs else _Constant(hidden)
        self.first_context = nn.Linear(context, hidden, bias=False) if context else None
        self.body = nn.ModuleList(ResidualBlock(hidden, context, dropout) for _ in range(blocks))
        self.last = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    known = None
    """Not masked; see ``MaskedResidualNet.known``."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return evaluate(self, x, context)

    def masks(self) -> tuple[Tensor, ...] | None:
        """Masks of the weights in the order of ``tensors``; None without masks."""
        return None

    def tensors(
        self, lead: Sequence[int], context: Tensor | None = None, *, dropout: bool = True
    ) -> tuple[Tensor | None, ...]:
        """See ``MaskedResidualNet.tensors``."""
        return layer_tensors(self, lead, context, dropout=dropout)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this network, without its weights."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "context": self.context,
            "hidden": self.hidden,
            "blocks": self.blocks,
            "dropout": self.dropout,
        }


def evaluate(net: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Evaluate a residual network, masked or not: input layer, blocks, output layer."""
    h = net.first(x)
    if net.first_context is not None:
        h = h + net.first_context(context)
    for block in net.body:
        h = block(h, context)
    outputs: Tensor = net.last(F.relu(h))
    return outputs


def layer_tensors(net: Any, lead: Sequence[int], context: Tensor | None, *, dropout: bool) -> tuple[Tensor | None, ...]:
    """Collect the tensors of a network in the order of the kernels; see ``MaskedResidualNet.tensors``."""
    if net.context and context is None:
        raise ValueError(f"{type(net).__name__}: expected context of shape (..., {net.context}); got none")

    def context_term(layer: nn.Linear | None) -> Tensor | None:
        return None if layer is None else layer(context).expand(*lead, -1).reshape(-1, net.hidden)

    first: Any = net.first
    found: list[Tensor | None] = [first.weight, first.bias, context_term(net.first_context)]
    body: list[Any] = list(net.body)  # for mypy: a ModuleList holds any Module
    for block in body:
        factors = None
        if dropout and net.training and net.dropout:
            shape = math.prod(lead), net.hidden
            factors = block.first.weight.new_empty(shape).bernoulli_(1.0 - net.dropout).div_(1.0 - net.dropout)
        found += [block.first.weight, block.first.bias, context_term(block.context), factors]
        found += [block.second.weight, block.second.bias]
    return (*found, net.last.weight, net.last.bias)


class _Constant(nn.Module):
    """A linear layer without inputs: it returns its bias, expanded to the leading dimensions."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:-1], -1)


class ResidualBlock(nn.Module):
    """Residual block of two linear layers, both with the given mask."""

    def __init__(self, hidden: int, context: int, dropout: float, mask: Tensor | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden) if mask is None else MaskedLinear(hidden, hidden, mask)
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.second = nn.Linear(hidden, hidden) if mask is None else MaskedLinear(hidden, hidden, mask)
        self.dropout = nn.Dropout(dropout)
        _shrink(self.second)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        g = self.first(F.relu(h))
        if self.context is not None:
            g = g + self.context(context)
        return h + self.second(self.dropout(F.relu(g)))  # type: ignore[no-any-return]


def _shrink(linear: nn.Linear) -> None:
    """Scale down the last layer of a residual branch, so that a deep network starts close to a linear map."""
    with torch.no_grad():
        linear.weight.mul_(0.1)
        nn.init.zeros_(linear.bias)


class MaskedLinear(Constants, nn.Linear):
    """A linear layer with some weights fixed at zero.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        mask: ``(outputs, inputs)``, 0 where there is no connection.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor) -> None:
        super().__init__(inputs, outputs)
        self.set_constant("mask", mask.to(self.weight.dtype))

    def masked_weight(self) -> Tensor:
        """The weight ``(outputs, inputs)``, zero where the mask is."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.masked_weight(), self.bias)
