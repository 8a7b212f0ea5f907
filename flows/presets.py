"""The named architectures of the literature, ready to train."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from pushforward.common.text import unknown_name
from pushforward.flows.bases.base import Base
from pushforward.flows.bases.bounded import Beta, Gamma, Uniform
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.gaussian_mixture import GaussianMixture
from pushforward.flows.bases.heavy_tailed import Laplace, Logistic
from pushforward.flows.bases.made_mog import AutoregressiveMixture
from pushforward.flows.bases.student_t import StudentT
from pushforward.flows.bases.transformed import TransformedDistribution
from pushforward.flows.bijections.autoregressive import MaskedAutoregressive
from pushforward.flows.bijections.base import Bijection, Chain, Inverse
from pushforward.flows.bijections.coupling import Coupling
from pushforward.flows.bijections.elementwise import Elementwise
from pushforward.flows.bijections.linear import LULinear, Permutation
from pushforward.flows.bijections.normalization import ActNorm
from pushforward.flows.bijections.support import Log, Logit
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
    """Build a named flow; its layers start as the identity up to the order of features, its base as ``make_base`` says.

    - ``realnvp``: affine couplings with alternating halves and ActNorm.
    - ``maf``: masked affine autoregressive layers with ActNorm, the order reversed in between; fast densities.
    - ``iaf``: the same the other way round: fast samples, densities by the sequential inverse.
    - ``nsf-c``: rational-quadratic spline couplings with permutations and LU layers in between.
    - ``nsf-ar``: rational-quadratic spline autoregressive layers with permutations and LU layers in between.
    - ``made-mog``: no layers, and a masked network with a mixture of Gaussians for every feature as the base; see
      ``AutoregressiveMixture``. ``base`` is the covariance of its frame.
    - ``gaussian``: no layers: the base alone.

    Args:
        name: One of the names above.
        features: Number of features :math:`D`; 1 works everywhere.
        context: Number of context features.
        layers: Number of coupling or autoregressive layers.
        hidden: Width of the conditioners.
        blocks: Residual blocks of each conditioner.
        bins: Bins of a spline.
        bound: Half-width of the interval a spline acts on, in units of its input (standard deviations, for
            standardised data).
        tails: Slopes of splines outside that interval: one (``"linear"``), or ``"learned"``.
        linear: What mixes the features: what the list above says, ``"between"`` the layers, or ``"around"`` them, a
            random permutation and an LU layer before every layer and after the last one, as Durkan et al. have it.
        unconditional: What couplings apply to their identity features: ``"none"``, or a ``"spline"`` for each, whose
            parameters depend on nothing, as in Durkan et al.
        elementwise: Whether a spline for each feature stands at the data end, see ``Elementwise``.
        dropout: Dropout in the conditioners.
        conditioner: Network of autoregressive layers and of the mixture: ``"residual"``, or ``"transformer"`` with
            ``blocks`` layers of width ``hidden``.
        components: Gaussians a feature, where there is a mixture.
        base: Name of the base law, see ``make_base``; ``made-mog``, a network of the same sizes with mixtures for
            conditionals; or a law of as many features.

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
    if name not in NAMES:
        raise ValueError(_unknown("flow", name, NAMES))
    sizes = (("features", features, 1), ("context", context, 0), ("layers", layers, 1), ("components", components, 1))
    for what, size, least in sizes:
        if size < least:
            raise ValueError(f"build: expected {what} of at least {least}; got {size}")

    for what, value, known in (
        ("linear", linear, get_args(Linear)),
        ("unconditional", unconditional, get_args(Unconditional)),
        ("conditioner", conditioner, get_args(NetName)),
    ):
        if value not in known:
            raise ValueError(_unknown(what, value, known))
    if unconditional == "spline" and name not in ("realnvp", "nsf-c"):
        raise ValueError(f"build: expected unconditional none for {name}, which has no couplings; got spline")

    def coupling(univariate: Univariate, flip: bool) -> list[Bijection]:
        # Every other feature, the other ones in the next layer. A single feature has nobody to learn from.
        transformed = [(i % 2 == 1) != flip for i in range(features)] if features > 1 else [True]
        count = sum(transformed)
        conditioner = ResidualNet(
            features - count,
            count * univariate.size,
            context=context,
            hidden=hidden,
            blocks=blocks,
            dropout=dropout,
        )
        layer = Coupling(conditioner, univariate, transformed=transformed)
        if unconditional == "none" or count == features:
            return [layer]
        # Behind the coupling, so that its network sees the features as they come.
        return [layer, Elementwise(features, spline, mapped=[not moves for moves in transformed])]

    def masked(outputs: int) -> MaskedConditioner:
        kind = MaskedTransformer if conditioner == "transformer" else MaskedResidualNet
        return kind(features, outputs, context=context, hidden=hidden, blocks=blocks, dropout=dropout)

    def mixture(covariance: Literal["full", "diagonal"]) -> Base:
        return AutoregressiveMixture(masked(3 * components), Gaussian(features, context, covariance))

    def autoregressive(univariate: Univariate) -> Bijection:
        return MaskedAutoregressive(masked(univariate.size), univariate)

    spline = RationalQuadraticSpline(bins=bins, bound=bound, tails=tails)

    def mixed() -> list[Bijection]:
        return [Permutation.random(features), LULinear(features)]

    # The first layer sees the columns of the data as they are; what follows sees mixtures of them.
    def mix(layer: list[Bijection], index: int) -> list[Bijection]:
        return [*(mixed() if index else []), *layer]

    def mix_pairs(index: int) -> list[Bijection]:
        # Two couplings with complementary masks stand in one order, so that every pair transforms every feature;
        # only then comes a new order (two features have no other one worth having).
        reorder = [Permutation.random(features)] if index and index % 2 == 0 and features > 2 else []
        between = [*reorder, LULinear(features)] if index else []
        return [*between, *steps["nsf-c"](index)]

    def flip(layer: list[Bijection], index: int) -> list[Bijection]:
        return [*([Permutation.reverse(features)] if index else []), *layer]

    # The published couplings begin with the other half, which matters where the halves are not equal.
    other = linear == "around"
    steps: dict[str, Callable[[int], list[Bijection]]] = {
        "realnvp": lambda i: [ActNorm(features), *coupling(Affine(), flip=(i % 2 == 1) != other)],
        "maf": lambda i: [ActNorm(features), autoregressive(Affine())],
        "iaf": lambda i: [ActNorm(features), Inverse(autoregressive(Affine()))],
        "nsf-c": lambda i: coupling(spline, flip=(i % 2 == 1) != other),
        "nsf-ar": lambda i: [autoregressive(spline)],
        "made-mog": lambda _: [],
        "gaussian": lambda _: [],
    }
    with_between: dict[str, Callable[[int], list[Bijection]]] = {
        "maf": lambda i: flip(steps["maf"](i), i),
        "iaf": lambda i: flip(steps["iaf"](i), i),
        "nsf-c": mix_pairs,
        "nsf-ar": lambda i: mix(steps["nsf-ar"](i), i),
    }
    if linear == "around" and steps[name](0):
        members = [member for i in range(layers) for member in (*mixed(), *steps[name](i))] + mixed()
    else:
        members = [member for i in range(layers) for member in with_between.get(name, steps[name])(i)]
    if base == "made-mog" and members and linear == "between":
        members += mixed()  # the mixture sees the features in another order than the layer before it
    if elementwise:
        members = [Elementwise(features, spline), *members]
    if isinstance(base, Base):
        law = base
    elif name == "made-mog":
        if base not in ("full", "diagonal"):
            raise ValueError(
                f"build: expected base full or diagonal for made-mog, the covariance of its frame; got {base}"
            )
        law = mixture("full" if base == "full" else "diagonal")
    else:
        if base not in (*BASES, "made-mog"):
            raise ValueError(_unknown("base", base, (*BASES, "made-mog")))
        law = mixture(_frame(features)) if base == "made-mog" else make_base(base, features, context)
    return Flow(law, Chain(members, features=features))


def _frame(features: int) -> Literal["full", "diagonal"]:
    """Covariance of the frame of a mixture that has a flow in front: full as far as that is no larger than the rest."""
    return "full" if features <= 256 else "diagonal"


def build_mixture(name: str, features: int, context: int = 0, *, members: int, **options: Any) -> Mixture:
    """Build flows of one kind that differ by their initial weights, and each by an order of the features of its own.

    Args:
        name: As of ``build``.
        features: Number of features.
        context: Number of context features.
        members: Number of flows.
        **options: Those of ``build``; a base goes by its name.
    """

    def member() -> Flow:
        flow = build(name, features, context, **options)
        if features == 1:
            return flow
        chain = Chain([Permutation.random(features), *flow.bijection.bijections], features=features)  # type: ignore[misc]
        return Flow(flow.base, chain)

    return Mixture([member() for _ in range(members)])


def make_base(name: str, features: int, context: int = 0) -> Base:
    """Make a base law on all of space, at mean 0 and variances 1; its context moves location and scale.

    - ``diagonal``, ``low-rank``, ``full``: Gaussians by their covariance, see ``Gaussian``.
    - ``student-t``, ``laplace``, ``logistic``: independent features with heavier tails.
    - ``uniform``, ``beta``: through the logit, the first a logistic law of fixed shape.
    - ``gamma``: through the logarithm.
    - ``mixture``: eight diagonal Gaussians, see ``GaussianMixture``.

    Args:
        name: One of the names above.
        features: Number of features.
        context: Number of context features.

    Raises:
        ValueError: If the name is unknown (the nearest is named).

    Example:
        >>> make_base("student-t", features=3).sample(5).shape
        torch.Size([5, 3])
    """
    makers: dict[str, Callable[[], Base]] = {
        "diagonal": lambda: Gaussian(features, context),
        "low-rank": lambda: Gaussian(features, context, "low-rank"),
        "full": lambda: Gaussian(features, context, "full"),
        "student-t": lambda: StudentT(features, context),
        "laplace": lambda: Laplace(features, context),
        "logistic": lambda: Logistic(features, context),
        "uniform": lambda: TransformedDistribution(Uniform(features, trainable=False), Logit(features), context),
        # Concentrations of four: round enough to start near a Gaussian, with all that is not one still to learn.
        "gamma": lambda: TransformedDistribution(Gamma(features, 4.0, 4.0), Log(features), context),
        "beta": lambda: TransformedDistribution(Beta(features, 4.0, 4.0), Logit(features), context),
        "mixture": lambda: GaussianMixture(features, context=context),
    }
    if name not in BASES:
        raise ValueError(_unknown("base", name, BASES))
    law = makers[name]()
    if not isinstance(law, Gaussian):  # which starts so
        law.initialize(torch.zeros(features), torch.eye(features))
    return law


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    return unknown_name(what, name, known)


NAMES = ("realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "made-mog", "gaussian")
BASES = (
    "diagonal",
    "low-rank",
    "full",
    "student-t",
    "laplace",
    "logistic",
    "uniform",
    "gamma",
    "beta",
    "mixture",
)
