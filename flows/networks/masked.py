"""Networks that turn points and context into parameters of univariate maps."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.flows.networks.incremental import Affinity, Incremental, IncrementalPass


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
        _check_at_least(name, 1, outputs=outputs, hidden=hidden)
        _check_at_least(name, 0, inputs=inputs, context=context, blocks=blocks)
        _check_dropout(name, dropout)
        self.inputs, self.outputs, self.context = inputs, outputs, context
        self.hidden, self.blocks, self.dropout = hidden, blocks, dropout
        # A layer without inputs is its bias; nn.Linear(0, n) would warn and leave the bias unset.
        self.first = nn.Linear(inputs, hidden) if inputs else _Constant(hidden)
        self.first_context = nn.Linear(context, hidden, bias=False) if context else None
        self.body = nn.ModuleList(_Block(hidden, context, dropout) for _ in range(blocks))
        self.last = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    known = None
    """Nothing is masked."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return _evaluate(self, x, context)

    def masks(self) -> tuple[Tensor, ...] | None:
        """Masks of the weights among ``tensors``; None without masks."""
        return None

    def tensors(
        self, lead: Sequence[int], context: Tensor | None = None, *, dropout: bool = True
    ) -> tuple[Tensor | None, ...]:
        """See ``MaskedResidualNet.tensors``."""
        return _tensors(self, lead, context, dropout=dropout)

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


def _evaluate(net: "ResidualNet | MaskedResidualNet", x: Tensor, context: Tensor | None) -> Tensor:
    """Input layer, blocks, output layer: what both networks do, masked or not."""
    h = net.first(x)
    if net.first_context is not None:
        h = h + net.first_context(context)
    for block in net.body:
        h = block(h, context)
    outputs: Tensor = net.last(F.relu(h))
    return outputs


def _tensors(
    net: "ResidualNet | MaskedResidualNet", lead: Sequence[int], context: Tensor | None, *, dropout: bool
) -> tuple[Tensor | None, ...]:
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


class _Block(nn.Module):
    """Residual block; with a mask, its two layers keep to it."""

    def __init__(self, hidden: int, context: int, dropout: float, mask: Tensor | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden) if mask is None else _MaskedLinear(hidden, hidden, mask)
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.second = nn.Linear(hidden, hidden) if mask is None else _MaskedLinear(hidden, hidden, mask)
        self.dropout = nn.Dropout(dropout)
        _shrink(self.second)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        g = self.first(F.relu(h))
        if self.context is not None:
            g = g + self.context(context)
        return h + self.second(self.dropout(F.relu(g)))  # type: ignore[no-any-return]


class MaskedConditioner(Protocol):
    """What an autoregressive layer asks of its network, a module.

    Outputs ``(..., features, outputs_per_feature)`` for feature :math:`d` depend on points ``(..., features)`` by the
    features before :math:`d` only, and on the context; zeros at first make the layer start as the identity.
    """

    features: int
    outputs_per_feature: int
    context: int

    @property
    def last(self) -> Any:
        """The output layer; its ``bias`` has ``features * outputs_per_feature`` entries, ordered by feature."""

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Outputs ``(..., features, outputs_per_feature)``; the context broadcasts against the points."""
        ...

    def incremental(self, like: Tensor, context: Tensor | None = None) -> Incremental:
        """Start an evaluation one feature at a time; see ``MaskedResidualNet.incremental``."""
        ...

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this network (without its weights)."""
        ...


class MaskedResidualNet(nn.Module):
    r"""Residual network whose outputs for feature :math:`d` see the features before :math:`d`, and the context.

    Every hidden unit has a degree: a unit of degree :math:`k` reads the first :math:`k` features only. Units are
    sorted by degree, which makes every mask block triangular and lets ``incremental`` evaluate the network one
    feature at a time for the cost of a single pass.

    Args:
        features: Number of features :math:`D`.
        outputs_per_feature: Number of outputs :math:`P` of each feature.
        context: Number of context features.
        hidden: Width.
        blocks: Number of residual blocks of two linear layers each.
        dropout: Probability of zeroing an activation while training.

    Shape:
        points ``(..., D)``, context ``(..., context)``, outputs ``(..., D, P)``.

    References:
        - Germain et al. (2015), MADE, https://arxiv.org/abs/1502.03509; residual blocks after Nash & Durkan (2019),
          Autoregressive Energy Machines, https://arxiv.org/abs/1904.05626.
    """

    def __init__(
        self,
        features: int,
        outputs_per_feature: int,
        *,
        context: int = 0,
        hidden: int = 128,
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check_at_least(name, 1, features=features, outputs_per_feature=outputs_per_feature, hidden=hidden)
        _check_at_least(name, 0, context=context, blocks=blocks)
        _check_dropout(name, dropout)
        self.features, self.outputs_per_feature, self.context = features, outputs_per_feature, context
        self.hidden, self.blocks, self.dropout = hidden, blocks, dropout
        degrees = _hidden_degrees(features, hidden, context)
        inputs = torch.arange(1, features + 1)
        outputs = torch.arange(1, features + 1).repeat_interleave(outputs_per_feature)
        self.first = _MaskedLinear(features, hidden, degrees[:, None] >= inputs)
        self.first_context = nn.Linear(context, hidden, bias=False) if context else None
        within = degrees[:, None] >= degrees
        self.body = nn.ModuleList(_Block(hidden, context, dropout, within) for _ in range(blocks))
        self.last = _MaskedLinear(hidden, features * outputs_per_feature, outputs[:, None] > degrees)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        # known[d]: how many hidden units may be evaluated once the first d features are known.
        self.known = tuple(int((degrees <= d).sum()) for d in range(features + 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.unflatten(_evaluate(self, x, context), -1, (self.features, self.outputs_per_feature))

    def incremental(self, like: Tensor, context: Tensor | None = None) -> IncrementalPass:
        """Start an evaluation one feature at a time.

        Args:
            like: Any tensor ``(points, ...)`` with the number, dtype and device of the points to come; under
                ``torch.vmap``, batched if they are.
            context: Context ``(points, context)``.
        """
        if self.context and context is None:
            raise ValueError(f"{type(self).__name__}: expected context of shape (..., {self.context}); got none")

        def layer(linear: _MaskedLinear, of_context: nn.Linear | None = None) -> Affinity:
            term = None if of_context is None else of_context(context).t()
            return Affinity(linear.masked_weight(), linear.bias, term)

        body: list[Any] = list(self.body)  # to mypy, the members of a ModuleList are any Module
        return IncrementalPass(
            self.known,
            layer(self.first, self.first_context),
            [(layer(block.first, block.context), layer(block.second)) for block in body],
            layer(self.last),
            like,
        )

    def masks(self) -> tuple[Tensor, ...] | None:
        """Masks of the weights among ``tensors``; None without masks."""
        body: list[Any] = list(self.body)
        inner = [layer.mask for block in body for layer in (block.first, block.second)]
        return (self.first.mask, *inner, self.last.mask)

    def tensors(
        self, lead: Sequence[int], context: Tensor | None = None, *, dropout: bool = True
    ) -> tuple[Tensor | None, ...]:
        """What an evaluation of points ``(*lead, ...)`` depends on, besides the points.

        Args:
            lead: Leading dimensions, those of the context included.
            context: Context ``(..., context)``.
            dropout: Whether to apply dropout, if this is training.

        Returns:
            Weight, bias and term of the input layer; for each block weight, bias, term, and factors of the first
            layer, weight and bias of the second; weight and bias of the output layer. A term ``(points, hidden)`` is
            what the context adds, factors ``(points, hidden)`` are what dropout multiplies with; each may be None.
        """
        return _tensors(self, lead, context, dropout=dropout)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this network (without its weights)."""
        return {
            "features": self.features,
            "outputs_per_feature": self.outputs_per_feature,
            "context": self.context,
            "hidden": self.hidden,
            "blocks": self.blocks,
            "dropout": self.dropout,
        }


class _MaskedLinear(nn.Linear):
    mask: Tensor

    def __init__(self, inputs: int, outputs: int, mask: Tensor) -> None:
        super().__init__(inputs, outputs)
        # Not saved: the sizes determine it.
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def masked_weight(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.masked_weight(), self.bias)


def _hidden_degrees(features: int, hidden: int, context: int) -> Tensor:
    """Ascending degrees of the hidden units, spread evenly; degree 0 where only context (or nothing) is read."""
    lowest = 0 if context or features == 1 else 1
    count = features - lowest  # degrees lowest .. features - 1; a unit of degree D would reach no output
    return lowest + torch.arange(hidden) * count // hidden


def _shrink(linear: nn.Linear) -> None:
    """Start a residual branch small, so that a deep stack starts near a linear map."""
    with torch.no_grad():
        linear.weight.mul_(0.1)
        nn.init.zeros_(linear.bias)


def _check_at_least(where: str, least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{where}: expected {name} of at least {least}; got {size}")


def _check_dropout(where: str, dropout: float) -> None:
    if not 0.0 <= dropout < 1.0 or math.isnan(dropout):
        raise ValueError(f"{where}: expected dropout in [0, 1); got {dropout}")
