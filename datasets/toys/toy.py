"""Two-dimensional toys with a known density, so that the distance of a fit from the true distribution is known.

The entropy of a toy is the smallest expected test NLL of any model, and ``nll - entropy`` estimates the divergence
KL(true distribution | model), both in nats.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.toys import distributions

Array = NDArray[np.float64]

# Curves without noise have no density in the plane.
CURVES = {
    "line": "the segment x2 = x1",
    "cos": "the curve x2 = 2.5 sin(x1)",
}

_NORMAL = 1 + math.log(2 * math.pi)  # entropy of two independent standard normals


@dataclass(frozen=True)
class Toy:
    """A distribution on the plane with its exact density.

    Args:
        name: Its name on the command line.
        build: Builds the sampler and the density.
        entropy: Differential entropy in nats: a closed form, or a quadrature rounded to six decimals.
        description: One line.

    Example:
        >>> toy = TOYS["moons"]
        >>> x = toy.sample(5, np.random.default_rng(0))
        >>> x.shape, toy.log_prob(x).shape
        ((5, 2), (5,))
    """

    name: str
    build: Callable[[], distributions.ToyDistribution]
    entropy: float
    description: str

    def sample(self, n: int, generator: np.random.Generator) -> Array:
        """Draw ``n`` independent samples, shape (n, 2), float64."""
        if n < 0:
            raise ValueError(f"Toy.sample: expected n of at least 0; got {n}")
        return self._distribution.sample(n, generator)

    def log_prob(self, x: Array) -> Array:
        """Exact log-density in nats at the points ``x`` (n, 2), shape (n,).

        It is -inf outside the support and at infinite points, and NaN where a coordinate is NaN. Cost: 100,000 points
        take between a millisecond and a second.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"Toy.log_prob: expected points of shape (n, 2); got {x.shape}")
        # Beyond 1e150 squares overflow; all these densities are zero there.
        with np.errstate(invalid="ignore"):
            usable = (np.abs(x) < 1e150).all(axis=1)
        if usable.all():
            return self._distribution.log_prob(x)
        out = np.where(np.isnan(x).any(axis=1), np.nan, -np.inf)
        out[usable] = self._distribution.log_prob(x[usable])
        return out

    @functools.cached_property
    def _distribution(self) -> distributions.ToyDistribution:
        return self.build()


# Entropies of six decimals are integrals of -p log p over the plane by the midpoint rule, with the step halved until
# seven digits did not change; the slow tests repeat it. The others are closed forms.
TOYS: dict[str, Toy] = {
    toy.name: toy
    for toy in (
        Toy("checkerboard", distributions.checkerboard, math.log(32), "uniform on eight squares of a board"),
        Toy("8gaussians", distributions.eight_gaussians, 2.831880, "eight Gaussians on a circle"),
        Toy(
            "rings",
            functools.partial(distributions.circles, (3, 2.25, 1.5, 0.75), 0.08),
            2.623183,
            "four thin concentric rings",
        ),
        Toy(
            "circles",
            functools.partial(distributions.circles, (3, 1.5), 0.24),
            3.268136,
            "two concentric rings",
        ),
        Toy("moons", distributions.moons, 2.393879, "two interleaved half circles"),
        Toy("2spirals", distributions.two_spirals, 2.645450, "two interleaved spirals"),
        Toy("swissroll", distributions.swissroll, 2.669646, "one rolled-up curve"),
        Toy("pinwheel", distributions.five_blades, 2.317788, "five bent blades"),
        Toy(
            "gaussian",
            functools.partial(distributions.conditional, np.zeros_like, 0.5),
            _NORMAL - math.log(2),
            "two independent Gaussians, of deviation 1 and 1/2",
        ),
        Toy(
            "crescent",
            functools.partial(distributions.conditional, lambda u: 0.5 * u**2 - 1, math.exp(-1), swap=True),
            _NORMAL - 1,
            "a Gaussian bent to a parabola",
        ),
        Toy(
            "crescent-cubed",
            functools.partial(distributions.conditional, lambda u: 0.2 * u**3, 1.0, swap=True),
            _NORMAL,
            "a Gaussian bent to a cubic",
        ),
        Toy(
            "sine-wave",
            functools.partial(distributions.conditional, lambda u: np.sin(5 * u), math.exp(-1)),
            _NORMAL - 1,
            "a Gaussian bent to a sine",
        ),
        Toy(
            "abs",
            functools.partial(distributions.conditional, lambda u: np.abs(u) - 1, math.exp(-1.5)),
            _NORMAL - 1.5,
            "a Gaussian bent to a corner",
        ),
        Toy(
            "sign",
            functools.partial(distributions.conditional, lambda u: np.sign(u) + u, math.exp(-1.5)),
            _NORMAL - 1.5,
            "a Gaussian cut and pulled apart",
        ),
        Toy("diamond", distributions.diamond, 2.386083, "a lattice of 400 small Gaussians"),
        Toy(
            "four-circles",
            functools.partial(distributions.circles, (2,), 0.1, ((-1, -1), (-1, 1), (1, -1), (1, 1))),
            2.870819,
            "four overlapping circles",
        ),
    )
}
