"""Build base distributions by name."""

from collections.abc import Callable

import torch

from pushforward.common.text import unknown_name
from pushforward.flows.bases.base import Base
from pushforward.flows.bases.bounded import Beta, Gamma, Uniform
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.gaussian_mixture import GaussianMixture
from pushforward.flows.bases.heavy_tailed import Laplace, Logistic
from pushforward.flows.bases.student_t import StudentT
from pushforward.flows.bases.transformed import TransformedDistribution
from pushforward.flows.bijections.support import Log, Logit

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


def make_base(name: str, features: int, context: int = 0) -> Base:
    """Make a base distribution on all of space, with mean 0 and variances 1; its context moves location and scale.

    - ``diagonal``, ``low-rank``, ``full``: Gaussians by their covariance, see ``Gaussian``.
    - ``student-t``, ``laplace``, ``logistic``: independent features with heavier tails.
    - ``uniform``, ``beta``: mapped by the logit, which makes the uniform a logistic distribution of fixed shape.
    - ``gamma``: mapped by the logarithm.
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
        # Concentrations of 4 start near a Gaussian; training can move away from it.
        "gamma": lambda: TransformedDistribution(Gamma(features, 4.0, 4.0), Log(features), context),
        "beta": lambda: TransformedDistribution(Beta(features, 4.0, 4.0), Logit(features), context),
        "mixture": lambda: GaussianMixture(features, context=context),
    }
    if name not in BASES:
        raise ValueError(unknown_name("base", name, BASES))
    base = makers[name]()
    if not isinstance(base, Gaussian):  # Gaussians start this way
        base.initialize(torch.zeros(features), torch.eye(features))
    return base
