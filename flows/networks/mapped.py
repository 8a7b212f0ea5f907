"""Layers made of a network and a univariate map, described for the kernels."""

from typing import Any

from torch import nn

from pushforward.flows.kernels.description import Description, is_described
from pushforward.flows.kernels.layers import Layer
from pushforward.flows.univariate.base import Univariate


def describe_layer(
    owner: nn.Module,
    net: Any,
    univariate: Univariate,
    features: int,
    *,
    identity_features: tuple[int, ...] | None = None,
    transformed_features: tuple[int, ...] | None = None,
) -> Description | None:
    """Describe an autoregressive or a coupling layer for the kernels.

    Args:
        owner: The layer.
        net: Its conditioner; the kernels implement the residual networks, masked or not.
        univariate: Its map.
        features: Number of features of the layer.
        identity_features: In a coupling, the features that the network reads and that are unchanged.
        transformed_features: In a coupling, the features that are mapped.

    Returns:
        The description; None if the kernels do not implement the network or the map, or if somebody has changed them.
    """
    describe = getattr(net, "describe_parameters", None)
    if describe is None or not is_described(type(univariate), ("size", "forward", "inverse"), by="kernel"):
        return None
    kernel = univariate.kernel()
    if kernel is None:
        return None
    inputs = features if identity_features is None else len(identity_features)
    values = features if transformed_features is None else len(transformed_features)
    found: Description | None = describe(inputs, values * univariate.size)
    if found is None:
        return None
    for name, value in vars(owner).items():
        if value is univariate:
            found.guard.attribute(owner, name, value)
    found.guard.child(owner, "conditioner")
    layer = Layer(
        "network",
        inputs=inputs,
        hidden=net.hidden,
        blocks=net.blocks,
        values=values,
        size=univariate.size,
        map=kernel,
        identity_features=identity_features,
        transformed_features=transformed_features,
        known=net.known,
        has_terms=bool(net.context),
    )
    return found.of(layer)
