"""Residual networks: from features and context to the parameters of a univariate map."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.flows.checks import check_at_least, check_dropout


class ResidualNet(nn.Module):
    """Pre-activation residual network, with context added to the input and to every block.

    The last layer starts at zero, so the univariate maps it feeds start as the identity.

    Args:
        inputs: Number of input features; 0 makes the output depend on the context only.
        outputs: Number of outputs.
        context: Number of context features.
        hidden: Width.
        blocks: Number of residual blocks of two linear layers each.
        dropout: Probability of zeroing an activation while training.

    Shape:
        inputs ``(..., inputs)``, context ``(..., context)``, outputs ``(..., outputs)``.

    References:
        - Durkan et al. (2019), Neural Spline Flows, https://arxiv.org/abs/1906.04032, appendix B.1.
    """

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
        # A layer without inputs is its bias; nn.Linear(0, n) would warn and leave the bias unset.
        self.first = nn.Linear(inputs, hidden) if inputs else _Constant(hidden)
        self.first_context = nn.Linear(context, hidden, bias=False) if context else None
        self.body = nn.ModuleList(ResidualBlock(hidden, context, dropout) for _ in range(blocks))
        self.last = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    known = None
    """Nothing is masked."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return evaluate(self, x, context)

    def masks(self) -> tuple[Tensor, ...] | None:
        """Masks of the weights among ``tensors``; None without masks."""
        return None

    def tensors(
        self, lead: Sequence[int], context: Tensor | None = None, *, dropout: bool = True
    ) -> tuple[Tensor | None, ...]:
        """See ``MaskedResidualNet.tensors``."""
        return layer_tensors(self, lead, context, dropout=dropout)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this network (without its weights)."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "context": self.context,
            "hidden": self.hidden,
            "blocks": self.blocks,
            "dropout": self.dropout,
        }


def evaluate(net: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Input layer, blocks, output layer: what both networks do, masked or not."""
    h = net.first(x)
    if net.first_context is not None:
        h = h + net.first_context(context)
    for block in net.body:
        h = block(h, context)
    outputs: Tensor = net.last(F.relu(h))
    return outputs


def layer_tensors(net: Any, lead: Sequence[int], context: Tensor | None, *, dropout: bool) -> tuple[Tensor | None, ...]:
    """The tensors of a network in the order of the kernels; see ``MaskedResidualNet.tensors``."""
    if net.context and context is None:
        raise ValueError(f"{type(net).__name__}: expected context of shape (..., {net.context}); got none")

    def term(layer: nn.Linear | None) -> Tensor | None:
        return None if layer is None else layer(context).expand(*lead, -1).reshape(-1, net.hidden)

    first: Any = net.first
    found: list[Tensor | None] = [first.weight, first.bias, term(net.first_context)]
    body: list[Any] = list(net.body)  # to mypy, the members of a ModuleList are any Module
    for block in body:
        keep = None
        if dropout and net.training and net.dropout:
            shape = math.prod(lead), net.hidden
            keep = block.first.weight.new_empty(shape).bernoulli_(1.0 - net.dropout).div_(1.0 - net.dropout)
        found += [block.first.weight, block.first.bias, term(block.context), keep]
        found += [block.second.weight, block.second.bias]
    return (*found, net.last.weight, net.last.bias)


class _Constant(nn.Module):
    """A linear layer without inputs: its bias, whatever the leading dimensions."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:-1], -1)


class ResidualBlock(nn.Module):
    """Residual block; with a mask, its two layers keep to it."""

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
    """Start a residual branch small, so that a deep stack starts near a linear map."""
    with torch.no_grad():
        linear.weight.mul_(0.1)
        nn.init.zeros_(linear.bias)


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are always zero.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        mask: ``(outputs, inputs)``, 0 where there is no connection.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor) -> None:
        super().__init__(inputs, outputs)
        # Not saved: the sizes determine it.
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def masked_weight(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.masked_weight(), self.bias)
