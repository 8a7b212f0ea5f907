"""Gradients of the kernels: first and second derivatives, dropout, and graphs that are kept, changed or recomputed."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from pushforward.flows import Affine, RationalQuadraticSpline
from pushforward.flows.kernels import native
from pushforward.flows.univariate.rational_quadratic import Tails
from tests.fixtures.bijections import SPLINE
from tests.fixtures.kernels import (
    DOUBLE,
    LAYERS,
    MAPS,
    Perturb,
    autoregressive,
    both_directions,
    both_layers,
    both_maps,
    evaluated,
    kernels_in,
    second_derivatives,
)


def as_function(
    layer: Any, direction: str, points: Tensor, context: Tensor, seed: int = 0
) -> tuple[Callable[..., tuple[Tensor, Tensor]], list[Tensor]]:
    """A layer as a function of points, context and all parameters, and their values."""
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def apply(points: Tensor, context: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        outputs: Any = torch.func.functional_call(
            Directed(layer, direction), {f"layer.{n}": v for n, v in zip(names, values, strict=True)}, (points, context)
        )
        assert kernels_in(*outputs) == {"chain"}
        return outputs[0], outputs[1]

    return apply, [t.detach().clone().requires_grad_() for t in (points, context, *parameters)]


class Directed(nn.Module):
    """One direction of a layer as a module."""

    def __init__(self, layer: Any, direction: str) -> None:
        super().__init__()
        self.layer, self.direction = layer, direction

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.layer, self.direction)(*inputs)


@both_directions
@both_layers
@both_maps
def test_gradcheck(univariate: str, kind: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](2, MAPS[univariate], 1, hidden=3, blocks=1))
    apply, inputs = as_function(layer, direction, torch.randn(3, 2, dtype=DOUBLE), torch.randn(3, 1, dtype=DOUBLE))
    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(apply, inputs, fast_mode=True)


@both_directions
@pytest.mark.parametrize("tails", ["linear", "learned"])
def test_gradcheck_of_a_spline(direction: str, tails: Tails) -> None:
    spline = RationalQuadraticSpline(3, 2.0, tails)
    apply = getattr(spline, direction)
    x = torch.tensor([-2.5, -1.9, 0.3, 3.0], dtype=DOUBLE, requires_grad=True)
    parameters = torch.randn(4, spline.size, dtype=DOUBLE, requires_grad=True)
    assert kernels_in(*apply(x, parameters)) == {"map"}
    assert torch.autograd.gradcheck(apply, (x, parameters))
    assert torch.autograd.gradgradcheck(apply, (x, parameters))


@both_layers
@both_maps
def test_engines_drop_the_same_activations(univariate: str, kind: str, perturb: Perturb) -> None:
    """With the same seed, values and gradients in training mode are those of torch's operations."""
    layer = perturb(LAYERS[kind](4, MAPS[univariate], 2, hidden=5, blocks=2, dropout=0.4)).train()
    points, context = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    factors = layer.conditioner.tensors((6,), context)[6::6]
    assert all({0.0, 1.0 / 0.6} == set(f.unique().tolist()) for f in factors[:2])
    by_kernels = evaluated(layer, "forward", points, context, kernel=True, seed=7)
    with native.disabled():
        by_torch = evaluated(layer, "forward", points, context, kernel=False, seed=7)
    for name, tensor in by_torch.items():
        assert_close(by_kernels[name], tensor, rtol=1e-8, atol=1e-9)
    assert not torch.equal(evaluated(layer, "forward", points, context, seed=8)["value"], by_torch["value"])


@both_layers
@both_maps
def test_gradcheck_with_dropout(univariate: str, kind: str, perturb: Perturb) -> None:
    """First and second derivatives against finite differences, with the same activations dropped in each call."""
    layer = perturb(LAYERS[kind](4, MAPS[univariate], 2, hidden=5, blocks=2, dropout=0.4)).train()
    apply, inputs = as_function(layer, "forward", torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE), 7)
    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(apply, inputs, fast_mode=True)


@both_layers
def test_dropout_acts_in_training_only(kind: str, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](4, Affine(), hidden=64, dropout=0.5), 1.0)
    points = torch.randn(1, 4, dtype=DOUBLE).expand(20_000, 4)
    with torch.no_grad():
        dropped = layer.train()(points)[0]
        assert len(dropped[:, 2].unique()) > 1000
        torch.manual_seed(5)
        first = layer(points)[0]
        torch.manual_seed(5)
        assert torch.equal(layer(points)[0], first)
        with native.disabled():
            by_torch = layer(points)[0]
            without = layer.eval()(points)[0]
        assert_close(dropped.mean(0), by_torch.mean(0), rtol=0.05, atol=0.05)
        assert_close(dropped.std(0), by_torch.std(0), rtol=0.1, atol=0.05)
        assert_close(layer.eval()(points)[0], without)


@both_layers
def test_dropout_switched_on_by_hand(kind: str, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](4, Affine(), hidden=32, dropout=0.5), 1.0).eval()
    points = torch.randn(9, 4, dtype=DOUBLE)
    plain = layer(points)[0]
    parts = [m for m in layer.modules() if isinstance(m, nn.Dropout)]
    for part in parts:  # Monte Carlo dropout
        part.train()
    assert not torch.equal(layer(points)[0], layer(points)[0])
    for part in parts:
        part.p = 0.0
    assert_close(layer.train()(points)[0], plain)


def test_gradients_of_the_inverse_equal_those_through_the_incremental_pass(perturb: Perturb) -> None:
    for univariate in MAPS.values():
        layer = perturb(autoregressive(13, univariate, 2, hidden=30, blocks=2))  # more features than one block
        z, context = torch.randn(40, 13, dtype=DOUBLE), torch.randn(40, 2, dtype=DOUBLE)
        by_kernels = evaluated(layer, "inverse", z, context, kernel=True)

        def by_steps(points: Tensor, given: Tensor, layer: Any = layer) -> Any:
            return layer.conditioner.incremental(points, given).solve(layer.univariate, points)

        with native.disabled():
            layer.inverse_by_steps = by_steps
            expected = evaluated(layer, "inverse_by_steps", z, context, kernel=False)
        for name, tensor in expected.items():
            assert_close(by_kernels[name], tensor, rtol=1e-8, atol=1e-9)


@both_directions
@both_layers
def test_second_derivatives_count_nothing_twice(kind: str, direction: str, perturb: Perturb) -> None:
    """One layer is used twice, with a context computed from the points, so its inputs depend on each other."""
    layer = perturb(LAYERS[kind](3, SPLINE, 2), 0.2)
    apply = getattr(layer, direction)

    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        context = torch.sin(x[:, :2])
        y, first = apply(x, context)
        z, second = apply(y.flip(-1), context)
        return z, first + second

    x = torch.randn(5, 3, dtype=DOUBLE)
    weights = list(layer.parameters())
    by_kernels = second_derivatives(twice, x, *weights)
    with native.disabled():
        by_torch = second_derivatives(twice, x, *weights)
    assert_close(by_kernels, by_torch, rtol=1e-7, atol=1e-9)


@both_directions
@both_maps
def test_second_derivatives_with_frozen_parameters(univariate: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(autoregressive(1, MAPS[univariate])).requires_grad_(False)
    apply = getattr(layer, direction)
    x = torch.randn(5, 1, dtype=DOUBLE)
    by_kernels = second_derivatives(apply, x)
    with native.disabled():
        assert_close(by_kernels, second_derivatives(apply, x))


@pytest.mark.parametrize("vectorize", [False, True])
@both_directions
@both_layers
def test_jacobian_and_hessian(kind: str, direction: str, vectorize: bool, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](3))
    apply = getattr(layer, direction)
    x = torch.randn(4, 3, dtype=DOUBLE)
    z = apply(points := x.clone().requires_grad_())[0]
    several = torch.randn(2, *z.shape, dtype=DOUBLE)
    assert not torch.autograd.grad(z, points, several, is_grads_batched=True)[0].requires_grad
    functional: Any = torch.autograd.functional

    def derivatives() -> list[Any]:
        jacobian = functional.jacobian(lambda t: apply(t)[0].sum(0), x, vectorize=vectorize)
        assert not jacobian.requires_grad
        hessian = functional.hessian(lambda t: apply(t)[1].sum(), x, vectorize=vectorize)
        _, product = functional.jvp(lambda t: apply(t)[0], x, torch.ones_like(x))
        return [jacobian, hessian, product]

    by_kernels = derivatives()
    with native.disabled():
        assert_close(by_kernels, derivatives())


def test_several_gradients_at_once_of_a_spline() -> None:
    x = torch.randn(4, dtype=DOUBLE, requires_grad=True)
    z, _ = SPLINE.forward(x, torch.randn(4, SPLINE.size, dtype=DOUBLE))
    (at_once,) = torch.autograd.grad(z, x, torch.eye(4, dtype=DOUBLE), is_grads_batched=True, retain_graph=True)
    assert not at_once.requires_grad
    (one,) = torch.autograd.grad(z, x, torch.ones_like(z))
    assert_close(at_once, torch.diag(one))


@both_directions
@both_layers
def test_frozen_parameters_and_points(kind: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](3, SPLINE, 2))
    points, context = torch.randn(9, 3, dtype=DOUBLE), torch.randn(9, 2, dtype=DOUBLE)
    expected = evaluated(layer, direction, points, context)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_("body" in name)
    found = evaluated(layer, direction, points, context, kernel=True)
    for name, tensor in found.items():
        assert_close(tensor, expected[name])
    value, _ = getattr(layer, direction)(points, context)  # neither points nor context need a gradient
    value.sum().backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is not None) is ("body" in name)
    layer.requires_grad_(False)
    assert not getattr(layer, direction)(points, context)[0].requires_grad


def test_a_retained_graph_can_be_used_twice(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    points = torch.randn(70, 3, dtype=DOUBLE, requires_grad=True)
    for direction in ("forward", "inverse"):
        value, log_det = getattr(layer, direction)(points)
        loss = value.square().sum() + log_det.sum()
        parameters = [points, *layer.parameters()]
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        layer(torch.randn(70, 3, dtype=DOUBLE))[0].sum().backward()  # another graph with buffers of that size
        assert_close(torch.autograd.grad(loss, parameters), first, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, parameters)


def test_in_place_changes_are_tracked(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))

    def gradient(x: Tensor) -> Tensor:
        z, log_det = layer(x[None])
        z[..., 0] *= 2.0
        z += 1.0
        return torch.autograd.grad(z.square().sum() + log_det.sum(), x)[0]

    x = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    by_kernels = gradient(x)
    with native.disabled():
        assert_close(by_kernels, gradient(x))
    for changed in (layer.conditioner.last.weight, y := x * 1.0):
        z, _ = layer(y)
        with torch.no_grad():
            changed.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_with_dropout(reentrant: bool, perturb: Perturb) -> None:
    layer = perturb(autoregressive(3, dropout=0.5)).train()
    x = torch.randn(40, 3, dtype=DOUBLE)
    found = []
    for apply in (layer, functools.partial(checkpoint, layer, use_reentrant=reentrant)):
        torch.manual_seed(3)
        points = x.clone().requires_grad_()
        z, log_det = apply(points)
        found.append(torch.autograd.grad(z.sum() + log_det.sum(), points)[0] if not reentrant else None)
        if reentrant:
            (z.sum() + log_det.sum()).backward()
            found[-1] = points.grad
    assert_close(found[0], found[1], rtol=0, atol=0)
