"""Build flows by the names of their architectures."""

from typing import Any, get_args

from pushforward.common.text import unknown_name
from pushforward.flows.architectures import Architecture, Build, Linear, Unconditional
from pushforward.flows.bases.base import Base
from pushforward.flows.bijections.base import Chain
from pushforward.flows.bijections.elementwise import Elementwise
from pushforward.flows.bijections.linear import Permutation
from pushforward.flows.checks import check_at_least
from pushforward.flows.flow import Flow
from pushforward.flows.mixture import Mixture
from pushforward.flows.registries import BASES, FLOWS, UNIVARIATE_MAPS, network_names
from pushforward.flows.univariate.rational_quadratic import Tails

NAMES = ("realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "made-mog", "gaussian")
"""The built-in architectures that need no context."""


def build(
    name: str,
    features: int,
    context: int = 0,
    *,
    layers: int = 5,
    hidden: int = 128,
    blocks: int = 2,
    bins: int = 8,
    bound: float = 5.0,
    tails: Tails = "linear",
    linear: Linear = "between",
    unconditional: Unconditional = "none",
    elementwise: bool = False,
    dropout: float = 0.0,
    conditioner: str = "residual",
    univariate: str = "",
    components: int = 10,
    base: str | Base = "diagonal",
) -> Flow:
    """Build a flow by the name of its architecture.

    Every layer starts as the identity up to the order of the features; ``make_base`` says how the base starts.

    ARCHITECTURES

    For ``made-mog``, ``base`` is the covariance of the Gaussian in front, see ``AutoregressiveMixture``.
    ``bayesian-network`` needs a context; ``base`` says whether its posterior has dependent weights (``"full"``) or
    independent ones (``"diagonal"``).

    Args:
        name: One of the names above.
        features: Number of features :math:`D`, at least 1.
        context: Number of context features.
        layers: Number of coupling or autoregressive layers.
        hidden: Width of the conditioners.
        blocks: Residual blocks of each conditioner.
        bins: Bins of a spline.
        bound: Half-width of the interval a spline acts on, in units of its input (standard deviations, for
            standardised data).
        tails: Slopes of splines outside that interval: 1 (``"linear"``), or ``"learned"``.
        linear: What mixes the features: ``"between"`` for the layers that the list above names, or ``"around"`` for a
            random permutation and an LU layer before every layer and after the last one, as in Durkan et al.
        unconditional: What couplings apply to their identity features: ``"none"``, or a ``"spline"`` for each, with
            parameters that do not depend on other features, as in Durkan et al.
        elementwise: Whether to apply a spline to each feature at the data end, see ``Elementwise``.
        dropout: Dropout in the conditioners.
        conditioner: Network of the layers and of the mixture: ``"residual"``; ``"transformer"``, with ``blocks``
            layers of width ``hidden``, which couplings do not take; or one that was added by ``register_network``.
        univariate: Map of the layers: ``"affine"``, ``"rational-quadratic"``, or one that was added by
            ``register_univariate``; empty for that of the architecture.
        components: Components of each feature's mixture of Gaussians in a ``made-mog`` base.
        base: The base distribution: a name of ``make_base``; ``"made-mog"``, an ``AutoregressiveMixture`` with a
            network of the same sizes; or a ``Base`` with as many features.

    Returns:
        The flow.

    Raises:
        ValueError: If the name is unknown (the nearest is named) or a size is out of range.

    References:
        - Dinh et al. (2017), https://arxiv.org/abs/1605.08803 (realnvp)
        - Papamakarios et al. (2017), https://arxiv.org/abs/1705.07057 (maf)
        - Kingma et al. (2016), https://arxiv.org/abs/1606.04934 (iaf)
        - Durkan et al. (2019), https://arxiv.org/abs/1906.04032 (nsf-c, nsf-ar)

    Example:
        >>> build("realnvp", features=4, layers=2).bijection.features
        4
    """
    if name not in FLOWS.names():
        raise ValueError(unknown_name("flow", name, FLOWS.names()))
    architecture = FLOWS[name]
    check_at_least("build", 1, features=features)
    check_at_least("build", 0, context=context)
    check_at_least("build", 1, layers=layers, components=components)
    for what, value, known in (
        ("linear", linear, get_args(Linear)),
        ("unconditional", unconditional, get_args(Unconditional)),
        ("conditioner", conditioner, network_names()),
        ("univariate map", univariate, ["", *UNIVARIATE_MAPS.names()]),
    ):
        if value not in known:
            raise ValueError(unknown_name(what, value, known))
    if unconditional == "spline" and "unconditional" not in architecture.uses:
        raise ValueError(f"build: expected unconditional none for {name}, which has no couplings; got spline")
    options = Build(
        features=features,
        context=context,
        hidden=hidden,
        blocks=blocks,
        dropout=dropout,
        conditioner=conditioner,
        linear=linear,
        unconditional=unconditional,
        univariate=univariate,
        bins=bins,
        bound=bound,
        tails=tails,
        components=components,
        name=name,
        base=base if isinstance(base, str) else "",
    )
    _ = options.spline  # checks its options, also where no layer uses them
    members = architecture.build_layers(options, layers)
    if base == "made-mog" and members and linear == "between":
        members += options.mixing()  # the mixture sees the features in another order than the last layer
    if elementwise:
        members = [Elementwise(features, options.spline), *members]
    return Flow(_build_base(architecture, base, options), Chain(members, features=features))


if build.__doc__:  # Python leaves it out with -OO
    _lines = [f"- ``{name}``: {FLOWS.about(name)}." for name in FLOWS.builtins]
    build.__doc__ = build.__doc__.replace("ARCHITECTURES", "\n    ".join(_lines))


def _build_base(architecture: Architecture, base: str | Base, options: Build) -> Base:
    """Return the base of a flow, built from its name if it is one."""
    if isinstance(base, Base):
        return base
    if architecture.base is not None:
        return architecture.base(options)
    if base not in BASES.names():
        raise ValueError(unknown_name("base", base, BASES.names()))
    made = BASES[base](options)
    if not isinstance(made, Base):  # of a function of others
        raise ValueError(f"{base}: its function: expected a Base; got {type(made).__name__}")
    return made


def build_mixture(name: str, features: int, context: int = 0, *, members: int, **options: Any) -> Mixture:
    """Build a mixture of flows of one architecture, which differ by their initial weights and orders of features.

    Args:
        name: Name of the architecture, as for ``build``.
        features: Number of features.
        context: Number of context features.
        members: Number of flows.
        **options: Options of ``build``; give a base by its name.
    """

    def member() -> Flow:
        flow = build(name, features, context, **options)
        if features == 1:
            return flow
        chain = Chain([Permutation.random(features), *flow.bijection.bijections], features=features)  # type: ignore[misc]
        return Flow(flow.base, chain)

    return Mixture([member() for _ in range(members)])
