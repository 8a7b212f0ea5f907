"""Residual networks, and the parts that they share with masked ones."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.flows.checks import check_at_least, check_dropout
from pushforward.flows.constants import Constants
from pushforward.flows.kernels import layers
from pushforward.flows.kernels.description import (
    Description,
    description_of,
    evaluate as by_kernels,
    is_described,
    is_usable,
)
from pushforward.flows.kernels.layers import Layer
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

    def describe(self) -> Description | None:
        """Describe the network alone for the kernels; None if somebody has changed it."""
        return describe_alone(self, self.inputs, 1, self.outputs)

    def describe_parameters(self, inputs: int, outputs: int) -> Description | None:
        """Describe its parameters, as part of a layer; see ``describe_network``."""
        return describe_network(self, nn.Linear, inputs, outputs)

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
    if is_usable(x) and (done := by_kernels(description_of(net), x, context, name="network")):
        return done[0]
    h = net.first(x)
    if net.first_context is not None:
        h = h + net.first_context(context)
    for block in net.body:
        h = block(h, context)
    outputs: Tensor = net.last(F.relu(h))
    return outputs


def describe_alone(net: Any, inputs: int, values: int, size: int) -> Description | None:
    """Describe a network without a map for the kernels: ``size`` outputs for each of so many values."""
    found: Description | None = net.describe_parameters(inputs, values * size)
    if found is None:
        return None
    hidden, blocks, known = net.hidden, net.blocks, net.known
    return found.of(
        Layer("network", False, inputs, hidden, blocks, values, size, known=known, has_terms=bool(net.context))
    )


def describe_network(net: Any, linear: type, inputs: int, outputs: int) -> Description | None:
    """Describe the parameters of a residual network for the kernels.

    Args:
        net: The network.
        linear: Class of its linear layers.
        inputs: Number of inputs, as the layer has it, not the network's own attribute.
        outputs: Number of outputs, likewise.

    Returns:
        The description; None if a part is not as the network's class builds it.
    """
    known, hidden = net.known, net.hidden
    if (
        not is_described(type(net), ("forward", "tensors"), by="describe_parameters")
        or not inputs
        or net.blocks > layers.MOST_BLOCKS
    ):
        return None
    if known is not None and (len(known) != inputs + 1 or known[-1] != hidden):
        return None
    found = Description()
    guard = found.guard
    guard.module(net)
    for name in ("hidden", "blocks", "known", "dropout", "context"):
        guard.attribute(net, name, vars(net).get(name))

    def add(owner: nn.Module, name: str, rows: int, columns: int) -> bool:
        member = guard.child(owner, name)
        if not isinstance(member, nn.Linear) or type(member) is not linear:
            return False
        guard.module(member)
        found.add(member, "weight", rows, columns)
        found.add(member, "bias", rows)
        return True

    if not add(net, "first", hidden, inputs):
        return None
    found.skip(1)
    body = guard.child(net, "body")
    guard.module(body)
    if len(body) != net.blocks:
        return None
    for i in range(net.blocks):
        block = guard.child(body, str(i))
        if type(block) is not ResidualBlock:
            return None
        guard.module(block)
        dropout = guard.child(block, "dropout")
        if type(dropout) is not nn.Dropout:
            return None
        guard.module(dropout)
        guard.dropouts.append((net, dropout))
        if not add(block, "first", hidden, hidden):
            return None
        found.skip(2)
        if not add(block, "second", hidden, hidden):
            return None
    if not add(net, "last", outputs, hidden):
        return None
    found.networks.append((0, net, False))
    return found


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
