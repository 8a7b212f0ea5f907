"""All univariate maps: identity, derivatives, and the inverse by root search for maps without a formula."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import Affine, RationalQuadraticSpline, Univariate


@dataclass(frozen=True)
class Bend(Univariate):
    """x + (e^a - 1) tanh(x) + b: strictly increasing, without a formula for its inverse, arbitrarily steep."""

    @property
    def size(self) -> int:
        return 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        bend, shift = parameters.unbind(-1)
        gain, y = torch.expm1(bend), torch.tanh(x)
        return x + gain * y + shift, torch.log1p(gain * (1.0 - y * y))


class SearchedAffine(Affine):
    """The affine map, inverted by root search."""

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return Univariate.inverse(self, z, parameters)


MAPS = [Affine(), Bend(), RationalQuadraticSpline(bins=4, bound=3.0)]
IDS = ["affine", "bend", "spline"]


@pytest.mark.parametrize("univariate", MAPS, ids=IDS)
def test_zero_parameters_are_the_identity(univariate: Univariate) -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    for map_ in (univariate.forward, univariate.inverse):
        y, log_derivative = map_(x, univariate.identity(33).double())
        assert_close(y, x, rtol=0, atol=1e-12)
        assert_close(log_derivative, torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("univariate", MAPS, ids=IDS)
def test_log_derivative_is_the_derivative(univariate: Univariate) -> None:
    parameters = torch.randn(50, univariate.size, dtype=torch.float64)
    for map_ in (univariate.forward, univariate.inverse):
        x = (2 * torch.randn(50, dtype=torch.float64)).requires_grad_()
        y, log_derivative = map_(x, parameters)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert_close(log_derivative, slope.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_searched_inverse_finds_the_root(scale: float) -> None:
    parameters = torch.randn(200, 2, dtype=torch.float64)
    x = scale * torch.randn(200, dtype=torch.float64)
    z, log_derivative = Bend().forward(x, parameters)
    back, log_derivative_back = Bend().inverse(z, parameters)
    assert_close(back, x, rtol=1e-12, atol=1e-11)
    assert_close(log_derivative_back, -log_derivative, rtol=1e-9, atol=1e-9)


def test_searched_inverse_reaches_far_roots_and_steep_maps() -> None:
    univariate = SearchedAffine(log_scale_bound=8.0)
    shift = torch.tensor([0.0, 1e6, -1e6, 1e10, 0.0, 0.0], dtype=torch.float64)
    raw = torch.tensor([0.0, 0.0, 1.0, 0.0, -8.0, 8.0], dtype=torch.float64)
    parameters = torch.stack([shift, raw], -1)
    z = torch.tensor([1e8, 1.0, -3.0, 0.0, 100.0, 1e-3], dtype=torch.float64)
    assert_close(univariate.inverse(z, parameters), Affine.inverse(univariate, z, parameters), rtol=1e-9, atol=1e-9)


def test_searched_inverse_in_float32() -> None:
    parameters = torch.randn(500, 2)
    x = 3 * torch.randn(500)
    back, log_derivative = Bend().inverse(Bend().forward(x, parameters)[0], parameters)
    assert back.dtype == log_derivative.dtype == torch.float32
    assert_close(back, x, rtol=1e-5, atol=3e-6)  # flat maps magnify the rounding of z


def test_searched_inverse_has_the_gradient_of_the_implicit_function() -> None:
    z = torch.randn(6, dtype=torch.float64, requires_grad=True)
    parameters = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Bend().inverse, (z, parameters))


def test_searched_inverse_of_nan_is_nan() -> None:
    x, _ = Bend().inverse(torch.tensor([float("nan"), 1.0]), torch.zeros(2, 2))
    assert x.isnan().tolist() == [True, False]


def test_affine_bounds_its_log_scale() -> None:
    univariate = Affine(log_scale_bound=2.0)
    parameters = torch.tensor([[0.0, 1e6], [0.0, -1e6], [0.0, 1e-3]], dtype=torch.float64)
    _, log_derivative = univariate.forward(torch.ones(3, dtype=torch.float64), parameters)
    assert_close(log_derivative, torch.tensor([2.0, -2.0, 1e-3], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("univariate", MAPS, ids=IDS)
def test_config_rebuilds_the_map(univariate: Univariate) -> None:
    assert type(univariate)(**univariate.config()) == univariate
