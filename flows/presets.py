"""The named architectures of the literature, ready to train."""

import difflib
from collections.abc import Callable

import torch
from torch import nn

from pushforward.flows.autoregressive import MaskedAutoregressive
from pushforward.flows.base import Base
from pushforward.flows.bijection import Bijection, Chain, Inverse
from pushforward.flows.bounded import Beta, Gamma, Uniform
from pushforward.flows.conditioners import MaskedResidualNet, ResidualNet
from pushforward.flows.coupling import Coupling
from pushforward.flows.flow import Flow
from pushforward.flows.gaussian import Gaussian
from pushforward.flows.laws import Laplace, Logistic, StudentT
from pushforward.flows.linear import LULinear, Permutation
from pushforward.flows.mixture import GaussianMixture
from pushforward.flows.normalization import ActNorm
from pushforward.flows.resampled import Resampled
from pushforward.flows.spline import RationalQuadraticSpline
from pushforward.flows.support import Log, Logit, Pushed
from pushforward.flows.univariate import Affine, Univariate


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
    dropout: float = 0.0,
    base: str | Base = "diagonal",
) -> Flow:
    """Build a named flow; its layers start as the identity up to the order of features, its base as ``make_base`` says.

    - ``realnvp``: affine couplings with alternating halves and ActNorm.
    - ``maf``: masked affine autoregressive layers with ActNorm, the order reversed in between; fast densities.
    - ``iaf``: the same the other way round: fast samples, densities by the sequential inverse.
    - ``nsf-c``: rational-quadratic spline couplings with permutations and LU layers in between.
    - ``nsf-ar``: rational-quadratic spline autoregressive layers with permutations and LU layers in between.
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
        dropout: Dropout in the conditioners.
        base: Name of the base law, see ``make_base``; or a law of as many features.

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
    for what, size, least in (("features", features, 1), ("context", context, 0), ("layers", layers, 1)):
        if size < least:
            raise ValueError(f"build: expected {what} of at least {least}; got {size}")

    def coupling(univariate: Univariate, flip: bool) -> Bijection:
        # Every other feature, the other ones in the next layer. A single feature has nobody to learn from.
        transformed = [(i % 2 == 1) != flip for i in range(features)] if features > 1 else [True]
        moving = sum(transformed)
        conditioner = ResidualNet(
            features - moving,
            moving * univariate.size,
            context=context,
            hidden=hidden,
            blocks=blocks,
            dropout=dropout,
        )
        return Coupling(conditioner, univariate, transformed=transformed)

    def autoregressive(univariate: Univariate) -> Bijection:
        conditioner = MaskedResidualNet(
            features, univariate.size, context=context, hidden=hidden, blocks=blocks, dropout=dropout
        )
        return MaskedAutoregressive(conditioner, univariate)

    spline = RationalQuadraticSpline(bins=bins, bound=bound)

    # The first layer sees the columns of the data as they are; what follows sees mixtures of them.
    def mix(layer: Bijection, index: int) -> list[nn.Module]:
        between = [Permutation.random(features), LULinear(features)] if index else []
        return [*between, layer]

    def mix_pairs(index: int) -> list[nn.Module]:
        # Two couplings with complementary masks stand in one order, so that every pair transforms every feature;
        # only then comes a new order (two features have no other one worth having).
        reorder = [Permutation.random(features)] if index and index % 2 == 0 and features > 2 else []
        between = [*reorder, LULinear(features)] if index else []
        return [*between, coupling(spline, flip=index % 2 == 1)]

    def flipped(layer: Bijection, index: int) -> list[nn.Module]:
        between = [Permutation.reverse(features)] if index else []
        return [*between, ActNorm(features), layer]

    makers: dict[str, Callable[[int], list[nn.Module]]] = {
        "realnvp": lambda i: [ActNorm(features), coupling(Affine(), flip=i % 2 == 1)],
        "maf": lambda i: flipped(autoregressive(Affine()), i),
        "iaf": lambda i: flipped(Inverse(autoregressive(Affine())), i),
        "nsf-c": mix_pairs,
        "nsf-ar": lambda i: mix(autoregressive(spline), i),
        "gaussian": lambda _: [],
    }
    members = [member for i in range(layers) for member in makers[name](i)]
    law = base if isinstance(base, Base) else make_base(base, features, context)
    return Flow(law, Chain(members, features=features))


def make_base(name: str, features: int, context: int = 0) -> Base:
    """Make a base law on all of space, at mean 0 and variances 1; its context moves location and scale.

    - ``diagonal``, ``low-rank``, ``full``: Gaussians by their covariance, see ``Gaussian``.
    - ``student-t``, ``laplace``, ``logistic``: independent features with heavier tails.
    - ``uniform``, ``beta``: through the logit, the first a logistic law of fixed shape.
    - ``gamma``: through the logarithm.
    - ``mixture``: eight diagonal Gaussians, see ``GaussianMixture``.
    - ``resampled``: a diagonal Gaussian with learned acceptance, see ``Resampled``.

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
        "uniform": lambda: Pushed(Uniform(features, trainable=False), Logit(features), context),
        # Concentrations of four: round enough to start near a Gaussian, with all that is not one still to learn.
        "gamma": lambda: Pushed(Gamma(features, 4.0, 4.0), Log(features), context),
        "beta": lambda: Pushed(Beta(features, 4.0, 4.0), Logit(features), context),
        "mixture": lambda: GaussianMixture(features, context=context),
        "resampled": lambda: Resampled(Gaussian(features, context)),
    }
    if name not in BASES:
        raise ValueError(_unknown("base", name, BASES))
    law = makers[name]()
    if not isinstance(law, Gaussian):  # which starts so
        law.initialize(torch.zeros(features), torch.eye(features))
    return law


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown {what} {name!r}; did you mean {nearest[0]!r}? known: {', '.join(known)}"


NAMES = ("realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "gaussian")
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
    "resampled",
)
