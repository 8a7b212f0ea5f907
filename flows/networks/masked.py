"""The masked network of an autoregressive layer, and what such a layer requires of its network."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pushforward.flows.checks import check_at_least, check_dropout
from pushforward.flows.kernels.description import Description
from pushforward.flows.networks.incremental import Incremental, IncrementalPass, LinearWeights
from pushforward.flows.networks.residual import (
    MaskedLinear,
    ResidualBlock,
    describe_alone,
    describe_network,
    evaluate,
    layer_tensors,
)
from pushforward.flows.state import Part


class MaskedConditioner(Protocol):
    r"""The interface of a network for an autoregressive layer.

    Its outputs ``(..., features, outputs_per_feature)`` for feature :math:`d` depend only on the features before
    :math:`d` and on the context. Outputs that are zero at initialization make the layer start as the identity.
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
        """Arguments that rebuild this network, without its weights."""
        ...


class MaskedResidualNet(Part):
    r"""Masked residual network: outputs for feature :math:`d` depend on the features before :math:`d` and the context.

    A hidden unit of degree :math:`k` reads only the first :math:`k` features. Units are sorted by degree, which makes
    every mask block triangular and lets ``incremental`` evaluate the network one feature at a time for the cost of a
    single pass.

    Args:
        features: Number of features :math:`D`.
        outputs_per_feature: Number of outputs :math:`P` of each feature.
        context: Number of context features.
        hidden: Number of hidden units per layer.
        blocks: Number of residual blocks of two linear layers each.
        dropout: Probability of zeroing an activation while training.

    Shape:
        points ``(..., D)``, context ``(..., context)``, outputs ``(..., D, P)``.

    References:
        - Germain et al. (2015), MADE, https://arxiv.org/abs/1502.03509; residual blocks after Nash & Durkan (2019),
          Autoregressive Energy Machines, https://arxiv.org/abs/1904.05626.
    """

    free = ("dropout",)

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
        check_at_least(name, 1, features=features, outputs_per_feature=outputs_per_feature, hidden=hidden)
        check_at_least(name, 0, context=context, blocks=blocks)
        check_dropout(name, dropout)
        self.features, self.outputs_per_feature, self.context = features, outputs_per_feature, context
        self.hidden, self.blocks, self.dropout = hidden, blocks, dropout
        degrees = _hidden_degrees(features, hidden, context)
        inputs = torch.arange(1, features + 1, device="cpu")  # with values, also if the default device is meta
        outputs = inputs.repeat_interleave(outputs_per_feature)
        self.first = MaskedLinear(features, hidden, degrees[:, None] >= inputs)
        self.first_context = nn.Linear(context, hidden, bias=False) if context else None
        within = degrees[:, None] >= degrees
        self.body = nn.ModuleList(ResidualBlock(hidden, context, dropout, within) for _ in range(blocks))
        self.last = MaskedLinear(hidden, features * outputs_per_feature, outputs[:, None] > degrees)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        # known[d]: number of hidden units that can be evaluated once the first d features are known.
        self.known = _known_units(features, hidden, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.unflatten(evaluate(self, x, context), -1, (self.features, self.outputs_per_feature))

    def incremental(self, like: Tensor, context: Tensor | None = None) -> IncrementalPass:
        """Start an evaluation one feature at a time.

        Args:
            like: Any tensor ``(points, ...)`` that gives the number, dtype and device of the points; under
                ``torch.vmap`` it must be batched if they are.
            context: Context ``(points, context)``.
        """
        if self.context and context is None:
            raise ValueError(f"{type(self).__name__}: expected context of shape (..., {self.context}); got none")

        def weights(linear: MaskedLinear, of_context: nn.Linear | None = None) -> LinearWeights:
            context_term = None if of_context is None else of_context(context).t()
            return LinearWeights(linear.masked_weight(), linear.bias, context_term)

        body: list[Any] = list(self.body)  # for mypy: a ModuleList holds any Module
        return IncrementalPass(
            self.known,
            weights(self.first, self.first_context),
            [(weights(block.first, block.context), weights(block.second)) for block in body],
            weights(self.last),
            like,
        )

    def describe(self) -> Description | None:
        """Describe the network alone for the kernels; None if somebody has changed it."""
        return describe_alone(self, self.features, self.features, self.outputs_per_feature)

    def describe_parameters(self, inputs: int, outputs: int) -> Description | None:
        """Describe its parameters, as part of a layer; see ``describe_network``."""
        return describe_network(self, MaskedLinear, inputs, outputs)

    def tensors(
        self, lead: Sequence[int], context: Tensor | None = None, *, dropout: bool = True
    ) -> tuple[Tensor | None, ...]:
        """All tensors that an evaluation of points ``(*lead, ...)`` depends on, except the points.

        Args:
            lead: Leading dimensions of points and context, broadcast.
            context: Context ``(..., context)``.
            dropout: Whether to apply dropout if the network is in training mode.

        Returns:
            Weight, bias and context term of the input layer; for each block weight, bias, context term and dropout
            factors of the first layer, then weight and bias of the second; weight and bias of the output layer. The
            context term ``(points, hidden)`` is added to the layer's output, the dropout factors ``(points, hidden)``
            multiply the activations; each may be None.
        """
        return layer_tensors(self, lead, context, dropout=dropout)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this network, without its weights."""
        return {
            "features": self.features,
            "outputs_per_feature": self.outputs_per_feature,
            "context": self.context,
            "hidden": self.hidden,
            "blocks": self.blocks,
            "dropout": self.dropout,
        }


def _hidden_degrees(features: int, hidden: int, context: int) -> Tensor:
    """Ascending degrees of the hidden units, spread evenly."""
    lowest = _lowest_degree(features, context)
    count = features - lowest  # degrees lowest .. features - 1; a unit of degree D would reach no output
    return lowest + torch.arange(hidden, device="cpu") * count // hidden


def _known_units(features: int, hidden: int, context: int) -> tuple[int, ...]:
    """Number of hidden units with a degree of at most ``d``, for ``d = 0 .. D``."""
    lowest = _lowest_degree(features, context)
    degrees = range(1 - lowest, features + 2 - lowest)  # of those from the lowest on, how many are at most d
    return tuple(min(hidden, max(0, -(-number * hidden // (features - lowest)))) for number in degrees)


def _lowest_degree(features: int, context: int) -> int:
    """The lowest degree of a hidden unit; a unit of degree 0 reads only the context (or nothing)."""
    return 0 if context or features == 1 else 1
