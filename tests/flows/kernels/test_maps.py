"""Univariate maps computed by the kernels: equal to torch's operations, and accurate."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import Affine, RationalQuadraticSpline
from pushforward.flows.kernels import native
from pushforward.flows.univariate.rational_quadratic import Tails
from tests.fixtures.bijections import SPLINE
from tests.fixtures.kernels import DOUBLE, autoregressive, both_directions, both_tails, kernels_in


@both_directions
@pytest.mark.parametrize("bins", [2, 3, 8, 40])
@pytest.mark.parametrize("points", [0, 1, 63, 64, 65])
@pytest.mark.parametrize("tails", ["linear", "learned"])
def test_engines_agree_on_a_spline(points: int, bins: int, direction: str, tails: Tails) -> None:
    spline = RationalQuadraticSpline(bins, 2.0, tails)
    apply = getattr(spline, direction)
    x = (1.5 * torch.randn(points, dtype=DOUBLE)).requires_grad_()
    parameters = (2.0 * torch.randn(points, spline.size, dtype=DOUBLE)).requires_grad_()
    weights = torch.randn(2, points, dtype=DOUBLE)

    def gradients() -> tuple[Any, ...]:
        outputs = apply(x, parameters)
        assert kernels_in(*outputs) == ({"map"} if native.library() else set())
        return *outputs, *torch.autograd.grad(outputs, [x, parameters], list(weights))

    by_kernels = gradients()
    with native.disabled():
        assert_close(by_kernels, gradients(), rtol=1e-8, atol=1e-9)


@both_directions
def test_engines_agree_on_broadcast_splines(direction: str) -> None:
    apply = getattr(SPLINE, direction)
    x = torch.randn(3, 1, dtype=DOUBLE, requires_grad=True)
    parameters = torch.randn(2, 1, 5, SPLINE.size, dtype=DOUBLE).transpose(0, 2).requires_grad_()
    found = apply(x, parameters)
    gradients = torch.autograd.grad((found[0] * found[1]).sum(), [x, parameters])
    assert found[0].shape == (5, 3, 2)
    with native.disabled():
        expected = apply(x, parameters)
        assert_close(found, expected)
        assert_close(gradients, torch.autograd.grad((expected[0] * expected[1]).sum(), [x, parameters]))


@both_directions
@both_tails
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_engines_agree_where_the_softmax_saturates(
    dtype: torch.dtype, direction: str, spline: RationalQuadraticSpline
) -> None:
    apply = getattr(spline, direction)
    x = torch.cat([torch.linspace(-4, 4, 398), torch.tensor([-3.0, 3.0])]).to(dtype).requires_grad_()
    extremes = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    parameters = extremes[torch.randint(0, 5, (400, spline.size))].to(dtype).requires_grad_()

    def results() -> tuple[Any, ...]:
        outputs = apply(x, parameters)
        return *outputs, *torch.autograd.grad(sum(outputs).sum(), [x, parameters])

    found = results()
    with native.disabled():
        expected = results()
    assert all(bool(t.isfinite().all()) for t in (*found, *expected))
    # The kernel's gradient of the inverse starts from the result rounded to float32; a bin may be 1e-3 wide and begin
    # at an end of the interval, where float32 is coarsest, with a slope of 1e4.
    tolerance = 1e-6 if dtype == DOUBLE else 1e-2 if spline is SPLINE else 0.1
    assert_close(found, expected, rtol=tolerance, atol=tolerance)


# nflows' float32 spline has a largest error of 0.029 nats forward and 8 nats inverted on such points.
@pytest.mark.parametrize("engine", ["kernels", "torch"])
@both_directions
def test_float32_is_exact_on_steep_splines(direction: str, engine: str) -> None:
    spline = RationalQuadraticSpline(bins=8, bound=5.0)
    apply = getattr(spline, direction)
    parameters, x = 5.0 * torch.randn(200_000, spline.size), 10 * torch.rand(200_000) - 5
    with native.disabled():
        exact = apply(x.double(), parameters.double())
        found = apply(x, parameters) if engine == "torch" else None
    value, log_derivative = found or apply(x, parameters)
    assert float((log_derivative.double() - exact[1]).abs().max()) < 1e-5
    assert float((value.double() - exact[0]).abs().max()) < 1e-5


def test_elementary_functions_are_exact() -> None:
    """Exponential and softplus, to a few units in the last place: by the affine scale and by the slope at a knot."""
    raw = torch.cat([torch.linspace(-30, 19, 4001, dtype=DOUBLE), torch.tensor([0.0, 1e-300, -1e-300], dtype=DOUBLE)])
    layer = autoregressive(1, Affine(30.0), 1, hidden=1, blocks=0)
    net = layer.conditioner
    with torch.no_grad():  # the log-scale is the context: a bias of 100 passes it through the ReLU
        for parameter in net.parameters():
            parameter.zero_()
        net.first_context.weight.fill_(1.0)
        net.first.bias.fill_(100.0)
        net.last.weight[1] = 1.0
        net.last.bias[1] = -100.0
        ones = torch.ones(len(raw), 1, dtype=DOUBLE)
        found = layer(ones, raw[:, None])
        with native.disabled():
            assert_close(found, layer(ones, raw[:, None]), rtol=1e-13, atol=1e-14)
    spline = RationalQuadraticSpline(bins=2, bound=1.0)
    parameters = torch.zeros(len(raw), spline.size, dtype=DOUBLE)
    parameters[:, -1] = raw  # at most 19: above 20 torch's softplus is an approximation
    at_knot = torch.zeros(len(raw), dtype=DOUBLE)
    found = spline.forward(at_knot, parameters)
    with native.disabled():
        assert_close(found, spline.forward(at_knot, parameters), rtol=1e-13, atol=1e-14)
