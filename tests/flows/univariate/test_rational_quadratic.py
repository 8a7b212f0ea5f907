"""The rational-quadratic spline compared with nflows and with float64, at knots, bounds, extremes and NaN."""

import contextlib

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import (
    rational_quadratic_spline,
    unconstrained_rational_quadratic_spline,
)
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import RationalQuadraticSpline
from pushforward.flows.kernels import native
from pushforward.flows.univariate.rational_quadratic import SLOPE_AT_ZERO, Tails

BOUND = 4.0
both_tails = pytest.mark.parametrize("tails", ["linear", "learned"])
both_directions = pytest.mark.parametrize("direction", ["forward", "inverse"])


def drawn(n: int, bins: int = 8, size: float = 1.0, dtype: torch.dtype = torch.float64, ends: int = 0) -> Tensor:
    """Random parameters of ``n`` splines; with ``ends=1`` including the slopes at both ends."""
    return size * torch.randn(n, 3 * bins - 1 + 2 * ends, dtype=dtype)


def knots(spline: RationalQuadraticSpline, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Inner knots ``(n, bins - 1)`` and their images, by the formulas of the paper."""
    logits = parameters[:, : 2 * spline.bins].unflatten(-1, (2, spline.bins))
    sizes = 2 * spline.bound * (1e-3 + (1 - 1e-3 * spline.bins) * torch.softmax(logits, -1))
    ends = torch.cumsum(sizes, -1)[..., :-1] - spline.bound
    return ends[:, 0], ends[:, 1]


@both_tails
@pytest.mark.parametrize("bins", [2, 8, 32])
def test_zero_parameters_are_the_identity(bins: int, tails: Tails) -> None:
    spline = RationalQuadraticSpline(bins=bins, bound=BOUND, tails=tails)
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    parameters = spline.identity(301).double()
    for map_ in (spline.forward, spline.inverse):
        y, log_derivative = map_(x, parameters)
        assert_close(y, x, rtol=0, atol=1e-12)
        assert_close(log_derivative, torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 5, 16])
def test_equals_nflows(bins: int, inverse: bool) -> None:
    spline = RationalQuadraticSpline(bins=bins, bound=BOUND)
    x = 2.5 * torch.randn(2000, dtype=torch.float64)
    parameters = drawn(2000, bins)
    widths, heights, slopes = parameters.split([bins, bins, bins - 1], -1)
    expected = unconstrained_rational_quadratic_spline(
        x, widths, heights, slopes + SLOPE_AT_ZERO, inverse=inverse, tails="linear", tail_bound=BOUND
    )
    assert bool((x.abs() > BOUND).any())  # the tails are compared too
    found = (spline.inverse if inverse else spline.forward)(x, parameters)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


@both_directions
@pytest.mark.parametrize("bins", [2, 5, 16])
def test_learned_tails_equal_nflows_inside(bins: int, direction: str) -> None:
    spline = RationalQuadraticSpline(bins, BOUND, "learned")
    x = 2 * BOUND * torch.rand(2000, dtype=torch.float64) - BOUND
    parameters = drawn(2000, bins, ends=1)
    widths, heights, slopes = parameters.split([bins, bins, bins + 1], -1)
    ends = {"left": -BOUND, "right": BOUND, "bottom": -BOUND, "top": BOUND}
    expected = rational_quadratic_spline(
        x, widths, heights, slopes + SLOPE_AT_ZERO, inverse=direction == "inverse", **ends
    )
    assert_close(getattr(spline, direction)(x, parameters), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ["kernels", "torch"])
@both_directions
@pytest.mark.parametrize("bound", [BOUND, 3.3])  # float32 cannot represent 3.3
def test_learned_tails_continue_as_lines(bound: float, direction: str, engine: str) -> None:
    spline = RationalQuadraticSpline(5, bound, "learned")
    parameters = drawn(40, 5, ends=1)
    slopes = 1e-3 + torch.nn.functional.softplus(parameters[:, [10, 15]] + SLOPE_AT_ZERO)
    slopes = 1.0 / slopes if direction == "inverse" else slopes
    method = getattr(spline, direction)

    def apply(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        with native.disabled() if engine == "torch" else contextlib.nullcontext():
            value, log_derivative = method(x, parameters)
            return value, log_derivative

    for sign, slope in zip((-1.0, 1.0), slopes.unbind(-1), strict=True):
        for away in (0.0, 1e-9, 1.0, 1e6):
            x = torch.full((40,), sign * (bound + away), dtype=torch.float64)
            z, log_derivative = apply(x, parameters)
            assert_close(z, sign * (bound + slope * away), rtol=1e-12, atol=1e-12)
            assert_close(log_derivative, slope.log(), rtol=1e-12, atol=1e-12)
        # Value and derivative are continuous at the bound.
        x = torch.full((40,), sign * (bound - 1e-9), dtype=torch.float64)
        z, log_derivative = apply(x, parameters)
        assert_close(z, sign * (bound - 1e-9 * slope), rtol=0, atol=1e-12)
        assert_close(log_derivative, slope.log(), rtol=0, atol=1e-5)


def test_learned_tails_keep_the_digits_of_float32() -> None:
    spline = RationalQuadraticSpline(4, 3.3, "learned")
    x = torch.tensor([-1e30, -1e4, -3.3000002, 3.3000002, 50.0, 1e30])
    parameters = drawn(6, 4, ends=1, dtype=torch.float32)
    for map_ in (spline.forward, spline.inverse):
        value, log_derivative = map_(x, parameters)
        exact = map_(x.double(), parameters.double())
        assert_close((value, log_derivative), (exact[0].float(), exact[1].float()), rtol=1e-7, atol=0)


def test_unknown_tails_are_refused() -> None:
    with pytest.raises(ValueError, match="RationalQuadraticSpline: expected tails linear or learned; got 'quadratic'"):
        RationalQuadraticSpline(tails="quadratic")  # type: ignore[arg-type]


def test_is_increasing_and_keeps_its_interval() -> None:
    spline = RationalQuadraticSpline(bins=8, bound=BOUND)
    x = torch.linspace(-5, 5, 2001, dtype=torch.float64).expand(20, -1)
    z, log_derivative = spline.forward(x, drawn(20, size=4.0)[:, None])
    assert bool((z.diff(dim=-1) > 0).all())
    assert bool((z.abs() <= 5.0).all())
    outside = x.abs() >= BOUND
    assert torch.equal(z[outside], x[outside])
    assert torch.equal(log_derivative[outside], torch.zeros_like(x)[outside])


@both_tails
@pytest.mark.parametrize("shift", [-1e-6, 0.0, 1e-6])
@pytest.mark.parametrize("end", [-BOUND, BOUND])
def test_round_trip_at_the_bound(end: float, shift: float, tails: Tails) -> None:
    spline = RationalQuadraticSpline(bins=8, bound=BOUND, tails=tails)
    x = torch.full((500,), end + shift, dtype=torch.float64)
    parameters = drawn(500, size=2.0, ends=int(tails == "learned"))
    z, log_derivative = spline.forward(x, parameters)
    back, log_derivative_back = spline.inverse(z, parameters)
    assert_close(back, x, rtol=0, atol=1e-10)
    assert_close(log_derivative, -log_derivative_back, rtol=0, atol=1e-6)  # steep bins magnify the error of 1e-10


def test_knots_map_to_knots_and_back() -> None:
    spline = RationalQuadraticSpline(bins=8, bound=BOUND)
    parameters = drawn(200)
    x, z = knots(spline, parameters)
    expanded = parameters[:, None].expand(-1, 7, -1)
    assert_close(spline.forward(x, expanded)[0], z)
    assert_close(spline.inverse(z, expanded)[0], x)
    # The slope at a knot is its parameter, from both sides.
    slopes = torch.log(1e-3 + torch.nn.functional.softplus(parameters[:, 16:] + SLOPE_AT_ZERO))
    assert_close(spline.forward(x, expanded)[1], slopes)
    assert_close(spline.forward(x - 1e-12, expanded)[1], slopes, rtol=0, atol=1e-7)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("towards", [-9.0, 0.0, 9.0])
@pytest.mark.parametrize("size", [1.0, 12.0])
def test_float32_is_finite_at_knots(size: float, towards: float, inverse: bool) -> None:
    spline = RationalQuadraticSpline(bins=8, bound=5.0)
    parameters = drawn(20000, size=size, dtype=torch.float32)
    at = knots(spline, parameters)[int(inverse)].gather(-1, torch.randint(0, 7, (20000, 1))).squeeze(-1)
    if towards:
        at = torch.nextafter(at, torch.full_like(at, towards))
    at.requires_grad_()
    parameters.requires_grad_()
    y, log_derivative = (spline.inverse if inverse else spline.forward)(at, parameters)
    gradients = torch.autograd.grad((y + log_derivative).sum(), [at, parameters])
    for tensor in (y, log_derivative, *gradients):
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("value", [-1e30, -1e4, -5.0, 0.0, 5.0, 1e4, 1e30])
@pytest.mark.parametrize("parameter", [-1e4, 0.0, 1e4])
@both_tails
def test_extremes_are_finite(value: float, parameter: float, inverse: bool, tails: Tails) -> None:
    spline = RationalQuadraticSpline(bins=4, bound=5.0, tails=tails)
    x = torch.full((3,), value, requires_grad=True)
    parameters = torch.full((3, spline.size), 0.0)
    parameters[:, ::3] = parameter  # some widths, some heights and some slopes
    parameters.requires_grad_()
    y, log_derivative = (spline.inverse if inverse else spline.forward)(x, parameters)
    gradients = torch.autograd.grad((y + log_derivative).sum(), [x, parameters])
    for tensor in (y, log_derivative, *gradients):
        assert bool(tensor.isfinite().all())


@both_tails
@pytest.mark.parametrize("inverse", [False, True])
def test_nan_in_nan_out(inverse: bool, tails: Tails) -> None:
    spline = RationalQuadraticSpline(tails=tails)
    x = torch.tensor([float("nan"), 0.5])
    parameters = drawn(2, dtype=torch.float32, ends=int(tails == "learned"))
    y, log_derivative = (spline.inverse if inverse else spline.forward)(x, parameters)
    assert y.isnan().tolist() == [True, False]
    assert bool(log_derivative[1].isfinite())
    y, _ = (spline.inverse if inverse else spline.forward)(x, torch.full((2, spline.size), float("nan")))
    assert y.isnan().tolist() == [True, True]


@pytest.mark.parametrize(("size", "most"), [(1.0, 2e-4), (5.0, 2e-2)])
def test_float32_log_derivative_against_float64(size: float, most: float) -> None:
    spline = RationalQuadraticSpline(bins=8, bound=5.0)
    parameters = drawn(100_000, size=size, dtype=torch.float32)
    x = 10 * torch.rand(100_000) - 5
    for map_ in (spline.forward, spline.inverse):
        error = map_(x, parameters)[1].double() - map_(x.double(), parameters.double())[1]
        # The 99.99th percentile, because the curvature jumps at knots: a point that float32 rounds across one has a
        # larger error.
        assert float(error.abs().quantile(0.9999)) < most


@both_tails
def test_gradcheck(tails: Tails) -> None:
    spline = RationalQuadraticSpline(bins=3, bound=BOUND, tails=tails)
    x = torch.tensor([-4.5, -3.0, 0.3, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    parameters = drawn(5, 3, ends=int(tails == "learned")).requires_grad_()
    assert torch.autograd.gradcheck(spline.forward, (x, parameters))
    assert torch.autograd.gradcheck(spline.inverse, (x, parameters))
    assert torch.autograd.gradgradcheck(spline.forward, (x, parameters))


def test_broadcasts_values_against_parameters() -> None:
    spline = RationalQuadraticSpline(bins=4)
    x, parameters = torch.randn(3, 1, dtype=torch.float64), drawn(5, 4)
    for map_ in (spline.forward, spline.inverse):
        expected = map_(x.expand(3, 5), parameters.expand(3, 5, -1))
        assert_close(map_(x, parameters), expected)
        assert_close(map_(x[0, 0], parameters[0]), (expected[0][0, 0], expected[1][0, 0]))
