"""Base distributions by name: on all of space, with mean 0 and variances 1; the context moves location and scale."""

import torch

from pushforward.common.text import unknown_name
from pushforward.flows.architectures import Build
from pushforward.flows.bases.base import Base
from pushforward.flows.bases.bounded import Beta, Gamma, Uniform
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.gaussian_mixture import GaussianMixture
from pushforward.flows.bases.heavy_tailed import Laplace, Logistic
from pushforward.flows.bases.student_t import StudentT
from pushforward.flows.bases.transformed import TransformedDistribution
from pushforward.flows.bijections.support import Log, Logit
from pushforward.flows.registries import BASES

NAMED = tuple(name for name in BASES.builtins if name != "made-mog")
"""Names of the built-in bases that need no network."""


def make_base(name: str, features: int, context: int = 0) -> Base:
    """Make a base distribution on all of space, with mean 0 and variances 1; its context moves location and scale.

    - ``diagonal``, ``low-rank``, ``full``: Gaussians by their covariance, see ``Gaussian``.
    - ``student-t``, ``laplace``, ``logistic``: independent features with heavier tails.
    - ``uniform``, ``beta``: mapped by the logit, which makes the uniform a logistic distribution of fixed shape.
    - ``gamma``: mapped by the logarithm.
    - ``mixture``: eight diagonal Gaussians, see ``GaussianMixture``.

    Args:
        name: One of the names above, or one that was added by ``register_base``.
        features: Number of features.
        context: Number of context features.

    Raises:
        ValueError: If the name is unknown (the nearest is named).

    Example:
        >>> make_base("student-t", features=3).sample(5).shape
        torch.Size([5, 3])
    """
    known = [known for known in BASES.names() if known != "made-mog"]
    if name not in known:
        raise ValueError(unknown_name("base", name, known))
    base: Base = BASES[name](Build(features, context))
    return base


def diagonal(build: Build) -> Base:
    """A Gaussian with independent features."""
    return Gaussian(build.features, build.context)


def low_rank(build: Build) -> Base:
    """A Gaussian with a covariance of low rank and a diagonal."""
    return Gaussian(build.features, build.context, "low-rank")


def full(build: Build) -> Base:
    """A Gaussian with any covariance."""
    return Gaussian(build.features, build.context, "full")


def student_t(build: Build) -> Base:
    """Independent Student-t distributions."""
    return _standardized(StudentT(build.features, build.context))


def laplace(build: Build) -> Base:
    """Independent Laplace distributions."""
    return _standardized(Laplace(build.features, build.context))


def logistic(build: Build) -> Base:
    """Independent logistic distributions."""
    return _standardized(Logistic(build.features, build.context))


def uniform(build: Build) -> Base:
    """Uniform distributions behind the logit."""
    features = build.features
    inner = Uniform(features, trainable=False)
    return _standardized(TransformedDistribution(inner, Logit(features), build.context))


# Concentrations of 4 start near a Gaussian; training can move away from it.


def gamma(build: Build) -> Base:
    """Gamma distributions behind the logarithm."""
    features = build.features
    return _standardized(TransformedDistribution(Gamma(features, 4.0, 4.0), Log(features), build.context))


def beta(build: Build) -> Base:
    """Beta distributions behind the logit."""
    features = build.features
    return _standardized(TransformedDistribution(Beta(features, 4.0, 4.0), Logit(features), build.context))


def mixture(build: Build) -> Base:
    """A mixture of eight diagonal Gaussians."""
    return _standardized(GaussianMixture(build.features, context=build.context))


def _standardized(base: Base) -> Base:
    """Give a new base mean 0 and variances 1."""
    if base.device.type != "meta":
        base.initialize(torch.zeros(base.features), torch.eye(base.features))
    return base
