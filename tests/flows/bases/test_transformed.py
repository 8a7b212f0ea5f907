"""Distributions on a restricted support, mapped to all of space by a bijection."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import (
    Base,
    Beta,
    Bijection,
    Gamma,
    Gaussian,
    Log,
    Logit,
    LULinear,
    Probit,
    TransformedDistribution,
    Uniform,
)

F64 = torch.float64


class Plain(Base):
    """A distribution without its own formulas for bijections, so that the general ones are used."""

    def __init__(self, distribution: Base) -> None:
        super().__init__(distribution.features)
        self.distribution = distribution

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.distribution.log_prob(z)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        return self.distribution.rsample(n)

    @property
    def support(self) -> list[tuple[float, float]] | None:
        return self.distribution.support


PAIRS: dict[str, tuple[Callable[[], Base], Callable[[], Bijection]]] = {
    "beta": (lambda: Beta(2, 1.5, 3.0), lambda: Logit(2)),
    "gamma": (lambda: Gamma(2, 1.5, 3.0), lambda: Log(2)),
    "uniform": (lambda: Uniform(2, low=-1.0, width=3.0, trainable=False), lambda: Logit(2, -1.0, 2.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_own_formulas_equal_the_general_ones(name: str) -> None:
    distribution, bijection = PAIRS[name][0]().double(), PAIRS[name][1]()
    own = TransformedDistribution(distribution, bijection).double()
    general = TransformedDistribution(Plain(distribution), bijection).double()
    y = 3 * torch.randn(50, 2, dtype=F64)
    assert_close(own.log_prob(y), general.log_prob(y))
    a, b = own.sample(4000), general.sample(4000)
    for column in range(2):
        assert stats.ks_2samp(a[:, column], b[:, column]).pvalue > 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_own_formulas_stay_finite_where_points_round(name: str) -> None:
    transformed = TransformedDistribution(PAIRS[name][0](), PAIRS[name][1]())
    y = torch.tensor([-200.0, -40.0, 40.0, 80.0])[:, None].repeat(1, 2).requires_grad_()
    density = transformed.log_prob(y)
    density.sum().backward()
    assert bool(density.isfinite().all())
    assert y.grad is not None
    assert bool(y.grad.isfinite().all())
    assert bool((y.grad[:2] > 0).all())
    assert bool((y.grad[2:] < 0).all())


def test_location_and_scale() -> None:
    transformed = TransformedDistribution(Beta(1, 2.0, 2.0), Logit(1), context=1).double()
    with torch.no_grad():
        transformed.location.fill_(3.0)
        transformed.log_scale.fill_(math.log(2.0))
    z, context = torch.tensor([[4.0]], dtype=F64), torch.zeros(1, 1, dtype=F64)
    x = 1 / (1 + math.exp(-0.5))
    exact = stats.beta.logpdf(x, 2.0, 2.0) + math.log(x * (1 - x)) - math.log(2.0)
    assert float(transformed.log_prob(z, context).detach()) == pytest.approx(exact, rel=1e-7)


def test_probit_maps_the_uniform_distribution_to_a_gaussian() -> None:
    bijection = Probit(2, [0.0, -2.0], [1.0, 2.0])
    assert bijection.domain == [(0.0, 1.0), (-2.0, 2.0)]
    transformed = TransformedDistribution(Uniform(2, trainable=False), Probit(2)).double()
    y = torch.randn(50, 2, dtype=F64)
    assert_close(transformed.log_prob(y), Gaussian(2).double().log_prob(y))
    for column in transformed.sample(4000).T:
        assert stats.kstest(column.detach().numpy(), "norm").pvalue > 1e-4


def test_all_parameters_get_a_gradient() -> None:
    transformed = TransformedDistribution(Beta(2, 2.0, 2.0), Logit(2))
    transformed.rsample(7).square().sum().backward()
    for name, parameter in transformed.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.all()), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TransformedDistribution(Beta(2), Logit(3)),
            "TransformedDistribution: expected a bijection of 2 features without context; got 3, context 0",
        ),
        (
            lambda: TransformedDistribution(Gamma(1), Logit(1)),
            "TransformedDistribution: expected a distribution on the bijection's domain [(0.0, 1.0)]; got [(0.0, inf)]",
        ),
        (
            lambda: TransformedDistribution(Gamma(1), Probit(1, -1.0, 2.0)),
            "TransformedDistribution: expected a distribution on the bijection's domain "
            "[(-1.0, 2.0)]; got [(0.0, inf)]",
        ),
        (
            lambda: TransformedDistribution(Uniform(1), Logit(1)),
            "TransformedDistribution: expected a distribution on the bijection's domain [(0.0, 1.0)]; "
            "got a support that its parameters change",
        ),
        (
            lambda: TransformedDistribution(Gaussian(1, 2), LULinear(1)),
            "TransformedDistribution: expected a distribution without context; got context 2",
        ),
    ],
)
def test_message(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert str(error.value) == message
