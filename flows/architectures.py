"""The architectures of flows: which layers they are made of, and which options these use."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from pushforward.common.registry import Registry
from pushforward.common.text import one_line
from pushforward.flows.bases.base import Base
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.made_mog import AutoregressiveMixture
from pushforward.flows.bijections.autoregressive import MaskedAutoregressive
from pushforward.flows.bijections.base import Bijection, Inverse
from pushforward.flows.bijections.coupling import Coupling
from pushforward.flows.bijections.elementwise import Elementwise
from pushforward.flows.bijections.linear import LULinear, Permutation
from pushforward.flows.bijections.normalization import ActNorm
from pushforward.flows.networks.masked import MaskedConditioner
from pushforward.flows.registries import COUPLING_NETWORKS, FLOWS, MASKED_NETWORKS, UNIVARIATE_MAPS
from pushforward.flows.univariate.base import Univariate
from pushforward.flows.univariate.rational_quadratic import RationalQuadraticSpline, Tails

Linear = Literal["between", "around"]
Unconditional = Literal["none", "spline"]

SPLINE_OPTIONS = ("bins", "bound", "tails")
"""Options of univariate maps; a map takes those that its constructor has."""


@dataclass(frozen=True)
class Build:
    """The options of ``build``, and the parts that layers are made of with them."""

    features: int
    context: int = 0
    hidden: int = 128
    blocks: int = 2
    dropout: float = 0.0
    conditioner: str = "residual"
    linear: Linear = "between"
    unconditional: Unconditional = "none"
    univariate: str = ""
    bins: int = 8
    bound: float = 5.0
    tails: Tails = "linear"
    components: int = 10
    name: str = ""
    base: str = ""

    @property
    def spline(self) -> RationalQuadraticSpline:
        """The spline of elementwise layers."""
        return RationalQuadraticSpline(bins=self.bins, bound=self.bound, tails=self.tails)

    def map(self, default: str) -> Univariate:
        """The univariate map that was asked for, or that of a name, with the options that it takes."""
        name = self.univariate or default
        made = UNIVARIATE_MAPS[name](**{key: getattr(self, key) for key in map_options(name)})
        if not isinstance(made, Univariate):  # of others
            raise ValueError(f"{name}: expected a class of univariate maps; got one of {type(made).__name__}")
        return made

    def mixing(self) -> list[Bijection]:
        """A random permutation and an LU layer."""
        return [Permutation.random(self.features), LULinear(self.features)]

    def reversal(self, index: int) -> list[Bijection]:
        """The reversal of the features before all layers but the first, unless linear layers are around them."""
        return [Permutation.reverse(self.features)] if self.linear == "between" and index else []

    def coupling(self, univariate: Univariate, index: int) -> list[Bijection]:
        """A coupling of every other feature; the next layer transforms the other half."""
        features = self.features
        # The published couplings, with linear layers around them, begin with the other half: it matters if D is odd.
        flip = (index % 2 == 1) != (self.linear == "around")
        # A single feature has no others to depend on: it is transformed in every layer.
        transformed = [(i % 2 == 1) != flip for i in range(features)] if features > 1 else [True]
        count = sum(transformed)
        kind = self.conditioner if self.conditioner in COUPLING_NETWORKS.names() else "residual"
        network = COUPLING_NETWORKS[kind](features - count, count * univariate.size, **self._sizes)
        layer = Coupling(network, univariate, transformed=transformed)
        if self.unconditional == "none" or count == features:
            return [layer]
        # After the coupling, so that its network sees the identity features untransformed.
        mapped = [not is_transformed for is_transformed in transformed]
        return [layer, Elementwise(features, self.spline, mapped=mapped)]

    def autoregressive(self, univariate: Univariate) -> Bijection:
        """A masked autoregressive layer."""
        return MaskedAutoregressive(self.masked_network(univariate.size), univariate)

    def masked_network(self, outputs: int) -> MaskedConditioner:
        """A masked network with so many outputs for each feature."""
        kind = self.conditioner if self.conditioner in MASKED_NETWORKS.names() else "residual"
        network: MaskedConditioner = MASKED_NETWORKS[kind](self.features, outputs, **self._sizes)
        return network

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"context": self.context, "hidden": self.hidden, "blocks": self.blocks, "dropout": self.dropout}


Layer = Callable[[Build, int], list[Bijection]]
"""Makes the bijections of the layer of an index."""


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Args:
        layer: The bijections of the layer of an index and, for ``linear="between"``, what mixes the features before
            it; None for a base alone. The first layer sees the columns of the data unmixed.
        uses: Options that change the flow, besides ``base``, ``elementwise``, ``components`` and those of the map.
        univariate: The univariate map of the layers, unless another is asked for; empty if they take none.
        base: The base, if it is not that of its name.
        objective: The only objective that fits it; empty for any.
        defaults: Values of options of the flow and of training, instead of the usual ones.
        networks: Where the ``conditioner`` is looked up, if it is used; a name that is not there changes nothing.
    """

    layer: Layer | None
    uses: frozenset[str]
    univariate: str = ""
    base: Callable[[Build], Base] | None = None
    objective: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[Registry[type[Any]], ...] = (COUPLING_NETWORKS, MASKED_NETWORKS)

    def build_layers(self, build: Build, layers: int) -> list[Bijection]:
        """Build the layers and what mixes the features, data end first."""
        if self.layer is None:
            return []
        if build.linear == "between":
            return [member for index in range(layers) for member in self.layer(build, index)]
        self.layer(build, 0)  # discarded: it only advances the random numbers, so that seeds keep giving the same flows
        members = [member for index in range(layers) for member in (*build.mixing(), *self.layer(build, index))]
        return members + build.mixing()


def register_flow(
    name: str, *, uses: tuple[str, ...] = (), univariate: str = "", objective: str = ""
) -> Callable[[Layer], Layer]:
    """Return a decorator for a function from a ``Build`` and an index to the bijections of this layer.

    Args:
        name: The name, as in ``build("name", features=3)`` and ``flow=name``.
        uses: Options that the layers use besides ``layers``: ``hidden``, ``blocks``, ``dropout``, ``conditioner``,
            ``linear``, ``unconditional``.
        univariate: The univariate map of the layers, unless another is asked for; empty if they take none.
        objective: The only objective that fits it; empty for any.

    The first line of the function's docstring says in lists what the architecture is.
    """

    def add(layer: Layer) -> Layer:
        checked = partial(_checked, name, layer)
        architecture = Architecture(checked, frozenset({"layers", *uses}), univariate, objective=objective)
        FLOWS.register(name, definition=layer)(architecture)
        return layer

    return add


def _checked(name: str, layer: Layer, build: Build, index: int) -> list[Bijection]:
    """Return the bijections that a function of others makes; what goes wrong in it is said with its name."""
    try:
        members = list(layer(build, index))
    except Exception as error:  # whatever it raises
        raise ValueError(f"{name}: its function fails: {type(error).__name__}: {one_line(error)}") from error
    for member in members:
        if not isinstance(member, Bijection):
            raise ValueError(f"{name}: its function: expected a list of bijections; got {type(member).__name__}")
    return members


def map_options(univariate: str) -> tuple[str, ...]:
    """The options that the constructor of a univariate map takes."""
    taken = inspect.signature(UNIVARIATE_MAPS[univariate]).parameters
    return tuple(key for key in SPLINE_OPTIONS if key in taken)


# The order of statements is the order of the random draws.


def _realnvp(build: Build, index: int) -> list[Bijection]:
    return [ActNorm(build.features), *build.coupling(build.map("affine"), index)]


def _maf(build: Build, index: int) -> list[Bijection]:
    return [*build.reversal(index), ActNorm(build.features), build.autoregressive(build.map("affine"))]


def _iaf(build: Build, index: int) -> list[Bijection]:
    return [*build.reversal(index), ActNorm(build.features), Inverse(build.autoregressive(build.map("affine")))]


def _nsf_c(build: Build, index: int) -> list[Bijection]:
    mixing: list[Bijection] = []
    if build.linear == "between" and index:
        # A pair of couplings with complementary masks shares one order, so that every pair transforms every feature.
        # With two features another order would only swap the masks.
        if index % 2 == 0 and build.features > 2:
            mixing.append(Permutation.random(build.features))
        mixing.append(LULinear(build.features))
    return [*mixing, *build.coupling(build.map("rational-quadratic"), index)]


def _nsf_ar(build: Build, index: int) -> list[Bijection]:
    layer = build.autoregressive(build.map("rational-quadratic"))
    mixing = build.mixing() if build.linear == "between" and index else []
    return [*mixing, layer]


def mixture_base(build: Build) -> Base:
    """A masked network with a mixture of Gaussians for each feature, behind a Gaussian."""
    if build.name == "made-mog":
        covariance: Literal["full", "diagonal"] = "full" if build.base == "full" else "diagonal"
    else:  # with a flow in front, a full covariance only where it has no more parameters than the rest of the flow
        covariance = "full" if build.features <= 256 else "diagonal"
    network = build.masked_network(3 * build.components)
    return AutoregressiveMixture(network, Gaussian(build.features, build.context, covariance))


def _made_mog_base(build: Build) -> Base:
    if build.base not in ("full", "diagonal"):
        raise ValueError(
            "build: expected base full or diagonal for made-mog, the covariance of the Gaussian in front; "
            f"got {build.base}"
        )
    return mixture_base(build)


_NETWORK = frozenset({"hidden", "blocks", "dropout", "conditioner"})
_AUTOREGRESSIVE = _NETWORK | {"layers", "linear", "univariate"}
_COUPLING = _AUTOREGRESSIVE | {"unconditional"}
_MASKED, _PLAIN = (MASKED_NETWORKS,), (COUPLING_NETWORKS,)

REALNVP = Architecture(_realnvp, _COUPLING, "affine", networks=_PLAIN)
MAF = Architecture(_maf, _AUTOREGRESSIVE, "affine", networks=_MASKED)
IAF = Architecture(_iaf, _AUTOREGRESSIVE, "affine", networks=_MASKED)
NSF_C = Architecture(_nsf_c, _COUPLING, "rational-quadratic", networks=_PLAIN)
NSF_AR = Architecture(_nsf_ar, _AUTOREGRESSIVE, "rational-quadratic", networks=_MASKED)
MADE_MOG = Architecture(None, _NETWORK | {"components"}, base=_made_mog_base, networks=_MASKED)
GAUSSIAN = Architecture(None, frozenset())
