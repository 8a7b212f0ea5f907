"""Build flows by the names of their architectures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pushforward.common.text import unknown_name
from pushforward.flows.bases.base import Base
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.made_mog import AutoregressiveMixture
from pushforward.flows.bases.named import BASES, make_base
from pushforward.flows.bijections.autoregressive import MaskedAutoregressive
from pushforward.flows.bijections.base import Bijection, Chain, Inverse
from pushforward.flows.bijections.coupling import Coupling
from pushforward.flows.bijections.elementwise import Elementwise
from pushforward.flows.bijections.linear import LULinear, Permutation
from pushforward.flows.bijections.normalization import ActNorm
from pushforward.flows.checks import check_at_least
from pushforward.flows.flow import Flow
from pushforward.flows.mixture import Mixture
from pushforward.flows.networks.masked import MaskedConditioner, MaskedResidualNet
from pushforward.flows.networks.residual import ResidualNet
from pushforward.flows.networks.transformer import MaskedTransformer
from pushforward.flows.univariate.affine import Affine
from pushforward.flows.univariate.base import Univariate
from pushforward.flows.univariate.rational_quadratic import RationalQuadraticSpline, Tails

Linear = Literal["between", "around"]
NetName = Literal["residual", "transformer"]
Unconditional = Literal["none", "spline"]

NAMES = ("realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "made-mog", "gaussian")


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
    conditioner: NetName = "residual",
    components: int = 10,
    base: str | Base = "diagonal",
) -> Flow:
    """Build a flow by the name of its architecture.

    Every layer starts as the identity up to the order of the features; ``make_base`` says how the base starts.

    - ``realnvp``: affine couplings with alternating halves and ActNorm.
    - ``maf``: masked affine autoregressive layers with ActNorm, the order reversed in between; fast densities.
    - ``iaf``: the inverse of ``maf``'s layers; fast samples, and densities by the sequential inverse.
    - ``nsf-c``: rational-quadratic spline couplings with permutations and LU layers in between.
    - ``nsf-ar``: rational-quadratic spline autoregressive layers with permutations and LU layers in between.
    - ``made-mog``: no layers; the base is a masked network with a mixture of Gaussians for every feature, see
      ``AutoregressiveMixture``. ``base`` is the covariance of the Gaussian in front.
    - ``gaussian``: no layers: the base alone.

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
        conditioner: Network of autoregressive layers and of the mixture: ``"residual"``, or ``"transformer"`` with
            ``blocks`` layers of width ``hidden``.
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
    _check_options(name, features, context, layers, components, linear, unconditional, conditioner)
    spline = RationalQuadraticSpline(bins=bins, bound=bound, tails=tails)
    options = _Options(features, context, hidden, blocks, dropout, conditioner, linear, unconditional, spline)
    members = _build_layers(name, options, layers)
    if base == "made-mog" and members and linear == "between":
        members += _random_mixing(features)  # the mixture sees the features in another order than the last layer
    if elementwise:
        members = [Elementwise(features, spline), *members]
    return Flow(_build_base(name, base, components, options), Chain(members, features=features))


@dataclass(frozen=True)
class _Options:
    """The options of ``build`` that layers and networks need."""

    features: int
    context: int
    hidden: int
    blocks: int
    dropout: float
    conditioner: NetName
    linear: Linear
    unconditional: Unconditional
    spline: RationalQuadraticSpline


def _check_options(
    name: str,
    features: int,
    context: int,
    layers: int,
    components: int,
    linear: str,
    unconditional: str,
    conditioner: str,
) -> None:
    if name not in NAMES:
        raise ValueError(unknown_name("flow", name, NAMES))
    check_at_least("build", 1, features=features)
    check_at_least("build", 0, context=context)
    check_at_least("build", 1, layers=layers, components=components)
    for what, value, known in (
        ("linear", linear, get_args(Linear)),
        ("unconditional", unconditional, get_args(Unconditional)),
        ("conditioner", conditioner, get_args(NetName)),
    ):
        if value not in known:
            raise ValueError(unknown_name(what, value, known))
    if unconditional == "spline" and name not in ("realnvp", "nsf-c"):
        raise ValueError(f"build: expected unconditional none for {name}, which has no couplings; got spline")


def _build_layers(name: str, options: _Options, layers: int) -> list[Bijection]:
    """Build the layers of an architecture and what mixes the features, data end first."""
    if name not in _LAYERS:
        return []
    layer = _LAYERS[name]
    if options.linear == "between":
        return [member for index in range(layers) for member in layer(options, index)]
    layer(options, 0)  # discarded: it only advances the random numbers, so that seeds keep giving the same flows
    members = [
        member for index in range(layers) for member in (*_random_mixing(options.features), *layer(options, index))
    ]
    return members + _random_mixing(options.features)


# One function per architecture: the layer of an index and, for linear="between", what mixes the features before it.
# The first layer sees the columns of the data unmixed. The order of statements is the order of the random draws.


def _realnvp(options: _Options, index: int) -> list[Bijection]:
    return [ActNorm(options.features), *_coupling(options, Affine(), index)]


def _maf(options: _Options, index: int) -> list[Bijection]:
    return [*_reversal(options, index), ActNorm(options.features), _autoregressive(options, Affine())]


def _iaf(options: _Options, index: int) -> list[Bijection]:
    return [*_reversal(options, index), ActNorm(options.features), Inverse(_autoregressive(options, Affine()))]


def _nsf_c(options: _Options, index: int) -> list[Bijection]:
    mixing: list[Bijection] = []
    if options.linear == "between" and index:
        # A pair of couplings with complementary masks shares one order, so that every pair transforms every feature.
        # With two features another order would only swap the masks.
        if index % 2 == 0 and options.features > 2:
            mixing.append(Permutation.random(options.features))
        mixing.append(LULinear(options.features))
    return [*mixing, *_coupling(options, options.spline, index)]


def _nsf_ar(options: _Options, index: int) -> list[Bijection]:
    layer = _autoregressive(options, options.spline)
    mixing = _random_mixing(options.features) if options.linear == "between" and index else []
    return [*mixing, layer]


_LAYERS: dict[str, Callable[[_Options, int], list[Bijection]]] = {
    "realnvp": _realnvp,
    "maf": _maf,
    "iaf": _iaf,
    "nsf-c": _nsf_c,
    "nsf-ar": _nsf_ar,
}


def _random_mixing(features: int) -> list[Bijection]:
    return [Permutation.random(features), LULinear(features)]


def _reversal(options: _Options, index: int) -> list[Bijection]:
    return [Permutation.reverse(options.features)] if options.linear == "between" and index else []


def _coupling(options: _Options, univariate: Univariate, index: int) -> list[Bijection]:
    """A coupling of every other feature; the next layer transforms the other half."""
    features = options.features
    # The published couplings, with linear layers around them, begin with the other half. It matters for odd features.
    flip = (index % 2 == 1) != (options.linear == "around")
    # A single feature has no others to depend on: it is transformed in every layer.
    transformed = [(i % 2 == 1) != flip for i in range(features)] if features > 1 else [True]
    count = sum(transformed)
    network = ResidualNet(
        features - count,
        count * univariate.size,
        context=options.context,
        hidden=options.hidden,
        blocks=options.blocks,
        dropout=options.dropout,
    )
    layer = Coupling(network, univariate, transformed=transformed)
    if options.unconditional == "none" or count == features:
        return [layer]
    # After the coupling, so that its network sees the identity features untransformed.
    return [layer, Elementwise(features, options.spline, mapped=[not is_transformed for is_transformed in transformed])]


def _autoregressive(options: _Options, univariate: Univariate) -> Bijection:
    return MaskedAutoregressive(_masked_network(options, univariate.size), univariate)


def _masked_network(options: _Options, outputs: int) -> MaskedConditioner:
    kind = MaskedTransformer if options.conditioner == "transformer" else MaskedResidualNet
    return kind(
        options.features,
        outputs,
        context=options.context,
        hidden=options.hidden,
        blocks=options.blocks,
        dropout=options.dropout,
    )


def _build_base(name: str, base: str | Base, components: int, options: _Options) -> Base:
    """Return the base of a flow, built from its name if it is one."""
    features, context = options.features, options.context
    if isinstance(base, Base):
        return base
    if name == "made-mog":
        if base not in ("full", "diagonal"):
            raise ValueError(
                "build: expected base full or diagonal for made-mog, the covariance of the Gaussian in front; "
                f"got {base}"
            )
        return _mixture_base(options, components, "full" if base == "full" else "diagonal")
    if base == "made-mog":
        # With a flow in front, a full covariance only where it has no more parameters than the rest of the flow.
        return _mixture_base(options, components, "full" if features <= 256 else "diagonal")
    if base not in BASES:
        raise ValueError(unknown_name("base", base, (*BASES, "made-mog")))
    return make_base(base, features, context)


def _mixture_base(options: _Options, components: int, covariance: Literal["full", "diagonal"]) -> Base:
    network = _masked_network(options, 3 * components)
    return AutoregressiveMixture(network, Gaussian(options.features, options.context, covariance))


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
