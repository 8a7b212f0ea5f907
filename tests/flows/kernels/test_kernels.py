"""The kernels in C against torch's operations, and everything that must not notice which of the two is at work."""

import copy
import ctypes
import functools
import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from pushforward.flows import (
    Affine,
    Bijection,
    Chain,
    Coupling,
    Flow,
    MaskedAutoregressive,
    MaskedResidualNet,
    Permutation,
    RationalQuadraticSpline,
    ResidualNet,
    Univariate,
    build,
)
from pushforward.flows.bijections import fused
from pushforward.flows.kernels import elementwise, native
from pushforward.flows.testing import check_bijection
from pushforward.flows.univariate.rational_quadratic import Tails
from tests.fixtures.kernels import kernels_in, second_derivatives

Perturb = Callable[..., Any]
DOUBLE = torch.float64
SPLINE = RationalQuadraticSpline(bins=5, bound=3.0)
LEARNED = RationalQuadraticSpline(bins=5, bound=3.0, tails="learned")
MAPS = {"affine": Affine(), "spline": SPLINE}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def autoregressive(features: int, univariate: Univariate = SPLINE, context: int = 0, **options: Any) -> Any:
    options = {"hidden": 8, **options}
    net = MaskedResidualNet(features, univariate.size, context=context, **options)
    return MaskedAutoregressive(net, univariate).double()


def coupling(features: int, univariate: Univariate = SPLINE, context: int = 0, **options: Any) -> Any:
    options = {"hidden": 8, **options}
    transformed = [i % 2 == 0 for i in range(features)]
    moving = sum(transformed)
    net = ResidualNet(features - moving, moving * univariate.size, context=context, **options)
    return Coupling(net, univariate, transformed=transformed).double()


PATTERNS = {"autoregressive": autoregressive, "coupling": coupling}
both_patterns = pytest.mark.parametrize("pattern", PATTERNS)
both_directions = pytest.mark.parametrize("direction", ["forward", "inverse"])
both_maps = pytest.mark.parametrize("univariate", MAPS)
both_tails = pytest.mark.parametrize("spline", [SPLINE, LEARNED], ids=["linear", "learned"])


def evaluated(
    layer: Any, direction: str, points: Tensor, context: Tensor | None = None, *, kernel: bool | None = None
) -> dict[str, Tensor]:
    """Values, and gradients with respect to points, context and every parameter."""
    points = points.detach().requires_grad_()
    context = None if context is None else context.detach().requires_grad_()
    value, log_det = getattr(layer, direction)(points, context)
    if kernel is not None:
        assert kernels_in(value, log_det) == ({"_LayerBackward"} if kernel else set())
    generator = torch.Generator().manual_seed(2)
    # In the other order of dimensions: the gradients that arrive need not lie row by row.
    cotangents = []
    for output in (value, log_det):
        drawn = torch.randn(output.shape[::-1], generator=generator, dtype=DOUBLE, device="cpu").to(output.dtype)
        cotangents.append(drawn.permute(list(range(drawn.dim()))[::-1]))
    sources = {"points": points, **dict(layer.named_parameters())}
    if context is not None:
        sources["context"] = context
    sources = {name: t for name, t in sources.items() if t.requires_grad}
    found = torch.autograd.grad((value, log_det), list(sources.values()), cotangents)
    return {"value": value, "log_det": log_det, **dict(zip(sources, found, strict=True))}


def assert_engines_agree(
    layer: Any, direction: str, points: Tensor, context: Tensor | None = None, *, rtol: float = 1e-8, atol: float = 1e-9
) -> None:
    ours = evaluated(layer, direction, points, context, kernel=True)
    with native.disabled():
        expected = evaluated(layer, direction, points, context, kernel=False)
    for name, tensor in expected.items():
        assert_close(ours[name], tensor, rtol=rtol, atol=atol, msg=functools.partial("{}: {}".format, name))
    with torch.no_grad():  # what is computed without a graph is the same to the last bit
        value, log_det = getattr(layer, direction)(points, context)
    assert_close((value, log_det), (ours["value"], ours["log_det"]), rtol=0, atol=0)


# Kernels and torch's operations


@dataclass(frozen=True)
class Shape:
    points: int
    features: int
    hidden: int = 8
    blocks: int = 1
    bins: int = 4
    context: int = 0


SHAPES = [
    Shape(0, 3, context=2),
    Shape(1, 2, 16, 0, 2),
    Shape(1, 65, 32, 2, 3),
    Shape(7, 2, 1, 3, 40, 1),
    Shape(31, 3, 17, 2, 7),
    Shape(32, 5, 16, 1, 8),
    Shape(33, 4, 15, 3, 8, 3),
    Shape(63, 3, 33, 2, 16),
    Shape(64, 6, 100, 1, 5, 2),
    Shape(65, 7, 70, 3, 6),
    Shape(200, 9, 5, 2, 8, 4),  # fewer hidden units than features
    Shape(200, 20, 3, 1, 2),
    Shape(20, 63, 40, 1, 2),
    Shape(20, 64, 129, 1, 3, 2),
    Shape(130, 65, 64, 0, 4),
    Shape(9, 70, 30, 2, 2, 1),
    Shape(17, 3, 8, 16, 3),
]


@both_directions
@both_maps
@both_patterns
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.points}x{s.features}")
def test_engines_agree(shape: Shape, pattern: str, univariate: str, direction: str, perturb: Perturb) -> None:
    map_: Univariate = Affine(2.0) if univariate == "affine" else RationalQuadraticSpline(shape.bins, 2.0)
    layer = PATTERNS[pattern](shape.features, map_, shape.context, hidden=shape.hidden, blocks=shape.blocks)
    perturb(layer, 0.3)
    points = torch.randn(shape.points, shape.features, dtype=DOUBLE)
    context = torch.randn(shape.points, shape.context, dtype=DOUBLE) if shape.context else None
    assert_engines_agree(layer, direction, points, context)


@both_directions
@both_maps
def test_engines_agree_with_one_feature(univariate: str, direction: str, perturb: Perturb) -> None:
    for context in (0, 2):
        layer = perturb(autoregressive(1, MAPS[univariate], context, blocks=2))
        given = torch.randn(70, 2, dtype=DOUBLE) if context else None
        assert_engines_agree(layer, direction, torch.randn(70, 1, dtype=DOUBLE), given)


@both_directions
@pytest.mark.parametrize("transformed", [[True, False, False, False], [False, True, True, True, False]], ids=str)
def test_engines_agree_whatever_is_transformed(transformed: list[bool], direction: str, perturb: Perturb) -> None:
    moving = sum(transformed)
    net = ResidualNet(len(transformed) - moving, moving * SPLINE.size, context=1, hidden=12)
    layer = perturb(Coupling(net, SPLINE, transformed=transformed).double())
    points = torch.randn(50, len(transformed), dtype=DOUBLE)
    assert_engines_agree(layer, direction, points, torch.randn(50, 1, dtype=DOUBLE))


@both_directions
@both_patterns
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[7], SHAPES[9]], ids=lambda s: f"{s.points}x{s.features}")
def test_engines_agree_on_learned_tails(shape: Shape, pattern: str, direction: str, perturb: Perturb) -> None:
    map_ = RationalQuadraticSpline(shape.bins, 1.0, "learned")  # a third of the points lie outside
    layer = PATTERNS[pattern](shape.features, map_, shape.context, hidden=shape.hidden, blocks=shape.blocks)
    perturb(layer, 0.3)
    context = torch.randn(shape.points, shape.context, dtype=DOUBLE) if shape.context else None
    assert_engines_agree(layer, direction, torch.randn(shape.points, shape.features, dtype=DOUBLE), context)


@both_directions
@both_patterns
def test_kernels_in_float32(pattern: str, direction: str, perturb: Perturb) -> None:
    for univariate in (*MAPS.values(), LEARNED):
        layer = perturb(PATTERNS[pattern](7, univariate, 2, hidden=21).float(), 0.1)
        points, context = torch.randn(150, 7), torch.randn(150, 2)
        ours = evaluated(layer, direction, points, context, kernel=True)
        exact = evaluated(copy.deepcopy(layer).double(), direction, points.double(), context.double())
        for name, tensor in ours.items():
            assert tensor.dtype == torch.float32
            assert_close(
                tensor.double(), exact[name], rtol=1e-4, atol=1e-4, msg=functools.partial("{}: {}".format, name)
            )


@both_directions
@both_patterns
@pytest.mark.parametrize(
    ("points_lead", "context_lead"),
    [((), ()), ((4,), ()), ((1,), (4,)), ((2, 1), (3,)), ((2, 3), (2, 3)), ((3, 0), ())],
)
def test_engines_agree_with_any_leading_dimensions(
    points_lead: tuple[int, ...], context_lead: tuple[int, ...], pattern: str, direction: str, perturb: Perturb
) -> None:
    layer = perturb(PATTERNS[pattern](3, SPLINE, 2))
    points, context = torch.randn(*points_lead, 3, dtype=DOUBLE), torch.randn(*context_lead, 2, dtype=DOUBLE)
    assert_engines_agree(layer, direction, points, context)


@both_directions
@both_patterns
def test_engines_agree_on_memory_of_any_order(pattern: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](4, SPLINE, 2))
    layer.conditioner.last.weight = nn.Parameter(layer.conditioner.last.weight.detach().t().contiguous().t())
    transposed = torch.randn(4, 70, dtype=DOUBLE).t()
    every_other = torch.randn(70, 8, dtype=DOUBLE)[:, ::2]
    repeated = torch.randn(1, 4, dtype=DOUBLE).expand(70, 4)
    offset = torch.randn(70 * 4 + 1, dtype=DOUBLE)[1:].view(70, 4)
    negated = torch._neg_view(torch.randn(70, 4, dtype=DOUBLE))  # pyright: ignore[reportPrivateImportUsage]
    context = torch.randn(2, 70, dtype=DOUBLE).t()
    for points in (transposed, every_other, repeated, offset):
        assert_engines_agree(layer, direction, points, context)
    apply = getattr(layer, direction)
    assert_close(apply(negated, context), apply(negated.resolve_neg(), context))


@both_directions
@both_patterns
def test_two_threads(pattern: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](6, SPLINE, 2, hidden=20))
    points, context = torch.randn(1000, 6, dtype=DOUBLE), torch.randn(1000, 2, dtype=DOUBLE)
    alone = evaluated(layer, direction, points, context, kernel=True)
    torch.set_num_threads(2)
    shared = evaluated(layer, direction, points, context, kernel=True)
    again = evaluated(layer, direction, points, context, kernel=True)
    for name, tensor in alone.items():
        assert_close(shared[name], tensor, rtol=1e-11, atol=1e-11)
        assert torch.equal(shared[name], again[name])
    assert torch.equal(shared["value"], alone["value"])
    parameters = torch.randn(1000, SPLINE.size, dtype=DOUBLE, requires_grad=True)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outputs = getattr(SPLINE, direction)(points[:, 0], parameters)
        results.append([*outputs, *torch.autograd.grad(sum(outputs).sum(), [parameters])])
    assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@both_directions
@both_patterns
def test_a_row_does_not_depend_on_the_others(
    pattern: str, direction: str, dtype: torch.dtype, perturb: Perturb
) -> None:
    layer = perturb(PATTERNS[pattern](5, SPLINE, 1)).to(dtype)
    points, context = torch.randn(70, 5, dtype=dtype), torch.randn(70, 1, dtype=dtype)
    apply = getattr(layer, direction)
    with torch.no_grad():
        value, log_det = apply(points, context)
        for rows in (slice(0, 1), slice(69, 70), slice(3, 40)):
            assert_close(apply(points[rows], context[rows]), (value[rows], log_det[rows]), rtol=0, atol=0)


# The univariate map by itself


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
        assert kernels_in(*outputs) == ({"_MapBackward"} if native.library() else set())
        return *outputs, *torch.autograd.grad(outputs, [x, parameters], list(weights))

    ours = gradients()
    with native.disabled():
        assert_close(ours, gradients(), rtol=1e-8, atol=1e-9)


@both_directions
def test_engines_agree_on_broadcast_splines(direction: str) -> None:
    apply = getattr(SPLINE, direction)
    x = torch.randn(3, 1, dtype=DOUBLE, requires_grad=True)
    parameters = torch.randn(2, 1, 5, SPLINE.size, dtype=DOUBLE).transpose(0, 2).requires_grad_()
    ours = apply(x, parameters)
    grads = torch.autograd.grad((ours[0] * ours[1]).sum(), [x, parameters])
    assert ours[0].shape == (5, 3, 2)
    with native.disabled():
        expected = apply(x, parameters)
        assert_close(ours, expected)
        assert_close(grads, torch.autograd.grad((expected[0] * expected[1]).sum(), [x, parameters]))


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

    ours = results()
    with native.disabled():
        expected = results()
    assert all(bool(t.isfinite().all()) for t in (*ours, *expected))
    # The kernel's gradient of the inverse starts from its result as float32 holds it; a bin may be 1e-3 wide, and
    # begin at an end of the interval, where float32 is coarsest, with a slope of 1e4.
    tolerance = 1e-6 if dtype == DOUBLE else 1e-2 if spline is SPLINE else 0.1
    assert_close(ours, expected, rtol=tolerance, atol=tolerance)


# nflows' float32 spline is off by 0.029 nats forward, and by 8 nats inverted, at the worst of these points.
@pytest.mark.parametrize("engine", ["kernels", "torch"])
@both_directions
def test_float32_is_exact_on_steep_splines(direction: str, engine: str) -> None:
    spline = RationalQuadraticSpline(bins=8, bound=5.0)
    apply = getattr(spline, direction)
    parameters, x = 5.0 * torch.randn(200_000, spline.size), 10 * torch.rand(200_000) - 5
    with native.disabled():
        exact = apply(x.double(), parameters.double())
        got = apply(x, parameters) if engine == "torch" else None
    value, log_derivative = got or apply(x, parameters)
    assert float((log_derivative.double() - exact[1]).abs().max()) < 1e-5
    assert float((value.double() - exact[0]).abs().max()) < 1e-5


def test_elementary_functions_are_exact() -> None:
    """To a few units in the last place: through the affine map's scale and the slope at a spline's knot."""
    raw = torch.cat([torch.linspace(-30, 19, 4001, dtype=DOUBLE), torch.tensor([0.0, 1e-300, -1e-300], dtype=DOUBLE)])
    layer = autoregressive(1, Affine(30.0), 1, hidden=1, blocks=0)
    net = layer.conditioner
    with torch.no_grad():  # the context is the log-scale, through a pair of rectified units' worth of bias
        for parameter in net.parameters():
            parameter.zero_()
        net.first_context.weight.fill_(1.0)
        net.first.bias.fill_(100.0)
        net.last.weight[1] = 1.0
        net.last.bias[1] = -100.0
        ones = torch.ones(len(raw), 1, dtype=DOUBLE)
        ours = layer(ones, raw[:, None])
        with native.disabled():
            assert_close(ours, layer(ones, raw[:, None]), rtol=1e-13, atol=1e-14)
    spline = RationalQuadraticSpline(bins=2, bound=1.0)
    parameters = torch.zeros(len(raw), spline.size, dtype=DOUBLE)
    parameters[:, -1] = raw  # above 20 torch's softplus is an approximation
    at_knot = torch.zeros(len(raw), dtype=DOUBLE)
    ours = spline.forward(at_knot, parameters)
    with native.disabled():
        assert_close(ours, spline.forward(at_knot, parameters), rtol=1e-13, atol=1e-14)


# Gradients


@both_directions
@both_patterns
@both_maps
def test_gradcheck(univariate: str, pattern: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](2, MAPS[univariate], 1, hidden=3, blocks=1))
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def apply(points: Tensor, context: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        outputs: Any = torch.func.functional_call(
            _Directed(layer, direction),
            dict(zip((f"layer.{n}" for n in names), values, strict=True)),
            (points, context),
        )
        assert kernels_in(*outputs) == {"_LayerBackward"}
        return outputs[0], outputs[1]

    inputs = [torch.randn(3, 2, dtype=DOUBLE), torch.randn(3, 1, dtype=DOUBLE), *(p.detach() for p in parameters)]
    inputs = [t.clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(apply, inputs, fast_mode=True)


class _Directed(nn.Module):
    def __init__(self, layer: Any, direction: str) -> None:
        super().__init__()
        self.layer, self.direction = layer, direction

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.layer, self.direction)(*inputs)


@both_directions
@pytest.mark.parametrize("tails", ["linear", "learned"])
def test_gradcheck_of_a_spline(direction: str, tails: Tails) -> None:
    spline = RationalQuadraticSpline(3, 2.0, tails)
    apply = getattr(spline, direction)
    x = torch.tensor([-2.5, -1.9, 0.3, 3.0], dtype=DOUBLE, requires_grad=True)
    parameters = torch.randn(4, spline.size, dtype=DOUBLE, requires_grad=True)
    assert kernels_in(*apply(x, parameters)) == {"_MapBackward"}
    assert torch.autograd.gradcheck(apply, (x, parameters))
    assert torch.autograd.gradgradcheck(apply, (x, parameters))


def plan_of(layer: Any) -> fused._Plan:
    net = layer.conditioner
    return fused._Plan(
        net=net,
        univariate=layer.univariate,
        kernel=layer.univariate.kernel(),
        blocks=net.blocks,
        known=net.known,
        identity_features=layer.identity_features if isinstance(layer, Coupling) else None,
        transformed_features=layer.transformed_features if isinstance(layer, Coupling) else None,
        inverse=False,
        sequential=False,
    )


@both_patterns
@both_maps
def test_gradients_with_dropout(univariate: str, pattern: str, perturb: Perturb) -> None:
    """With given factors: the kernel against finite differences, and against torch's operations."""
    layer = perturb(PATTERNS[pattern](4, MAPS[univariate], 2, hidden=5, blocks=2, dropout=0.4)).train()
    rows, context = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    given = layer.conditioner.tensors((6,), context)
    keeps = [given[6 + 6 * b] for b in range(2)]
    assert all({0.0, 1.0 / 0.6} == set(k.unique().tolist()) for k in keeps)
    plan = plan_of(layer)
    positions = [i for i, t in enumerate(given) if t is not None and i not in (6, 12)]

    def with_factors(function: Any) -> Callable[..., Any]:
        def apply(rows: Tensor, *tensors: Tensor) -> Any:
            every = list(given)
            for i, t in zip(positions, tensors, strict=True):
                every[i] = t
            return function(plan, rows, *every)

        return apply

    inputs = [rows, *(given[i].detach().clone() for i in positions)]
    inputs = [t.requires_grad_() for t in inputs]
    ours = with_factors(lambda plan, *tensors: fused._Layer.apply(plan, None, *tensors))  # type: ignore[no-untyped-call]
    expected = with_factors(fused._formula)
    assert_close(ours(*inputs), expected(*inputs))
    weights = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, dtype=DOUBLE)
    assert_close(
        torch.autograd.grad(ours(*inputs), inputs, weights), torch.autograd.grad(expected(*inputs), inputs, weights)
    )
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, inputs, fast_mode=True)


@both_patterns
def test_dropout_acts_in_training_only(pattern: str, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](4, Affine(), hidden=64, dropout=0.5), 1.0)
    points = torch.randn(1, 4, dtype=DOUBLE).expand(20_000, 4)
    with torch.no_grad():
        parted = layer.train()(points)[0]
        assert len(parted[:, 2].unique()) > 1000
        torch.manual_seed(5)
        first = layer(points)[0]
        torch.manual_seed(5)
        assert torch.equal(layer(points)[0], first)
        with native.disabled():
            theirs = layer(points)[0]
            whole = layer.eval()(points)[0]
        assert_close(parted.mean(0), theirs.mean(0), rtol=0.05, atol=0.05)
        assert_close(parted.std(0), theirs.std(0), rtol=0.1, atol=0.05)
        assert_close(layer.eval()(points)[0], whole)


@both_patterns
def test_dropout_that_was_switched_afterwards(pattern: str, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](4, Affine(), hidden=32, dropout=0.5), 1.0).eval()
    points = torch.randn(9, 4, dtype=DOUBLE)
    plain = layer(points)[0]
    parts = [m for m in layer.modules() if isinstance(m, nn.Dropout)]
    for part in parts:  # as Monte-Carlo dropout does
        part.train()
    assert not torch.equal(layer(points)[0], layer(points)[0])
    for part in parts:
        part.p = 0.0
    assert_close(layer.train()(points)[0], plain)


def test_gradients_of_the_inverse_equal_those_through_the_incremental_pass(perturb: Perturb) -> None:
    for univariate in MAPS.values():
        layer = perturb(autoregressive(13, univariate, 2, hidden=30, blocks=2))  # more than a block of features
        z, context = torch.randn(40, 13, dtype=DOUBLE), torch.randn(40, 2, dtype=DOUBLE)
        ours = evaluated(layer, "inverse", z, context, kernel=True)

        def through(points: Tensor, given: Tensor, layer: Any = layer) -> Any:
            return layer.conditioner.incremental(points, given).solve(layer.univariate, points)

        with native.disabled():
            layer.inverse_by_steps = through
            expected = evaluated(layer, "inverse_by_steps", z, context, kernel=False)
        for name, tensor in expected.items():
            assert_close(ours[name], tensor, rtol=1e-8, atol=1e-9)


@both_directions
@both_patterns
def test_second_derivatives_count_nothing_twice(pattern: str, direction: str, perturb: Perturb) -> None:
    """One layer used twice, and a context made of the points: an input of the layer that another one depends on."""
    layer = perturb(PATTERNS[pattern](3, SPLINE, 2), 0.2)
    apply = getattr(layer, direction)

    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        context = torch.sin(x[:, :2])
        y, first = apply(x, context)
        z, second = apply(y.flip(-1), context)
        return z, first + second

    x = torch.randn(5, 3, dtype=DOUBLE)
    weights = list(layer.parameters())
    ours = second_derivatives(twice, x, *weights)
    with native.disabled():
        expected = second_derivatives(twice, x, *weights)
    assert_close(ours, expected, rtol=1e-7, atol=1e-9)


@both_directions
@both_maps
def test_second_derivatives_where_nothing_else_is_trained(univariate: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(autoregressive(1, MAPS[univariate])).requires_grad_(False)
    apply = getattr(layer, direction)
    x = torch.randn(5, 1, dtype=DOUBLE)
    ours = second_derivatives(apply, x)
    with native.disabled():
        assert_close(ours, second_derivatives(apply, x))


@pytest.mark.parametrize("vectorize", [False, True])
@both_directions
@both_patterns
def test_jacobian_and_hessian(pattern: str, direction: str, vectorize: bool, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](3))
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

    ours = derivatives()
    with native.disabled():
        assert_close(ours, derivatives())


def test_several_gradients_at_once_of_a_spline() -> None:
    x = torch.randn(4, dtype=DOUBLE, requires_grad=True)
    z, _ = SPLINE.forward(x, torch.randn(4, SPLINE.size, dtype=DOUBLE))
    (at_once,) = torch.autograd.grad(z, x, torch.eye(4, dtype=DOUBLE), is_grads_batched=True, retain_graph=True)
    assert not at_once.requires_grad
    (one,) = torch.autograd.grad(z, x, torch.ones_like(z))
    assert_close(at_once, torch.diag(one))


@both_directions
@both_patterns
def test_frozen_parameters_and_points(pattern: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](3, SPLINE, 2))
    points, context = torch.randn(9, 3, dtype=DOUBLE), torch.randn(9, 2, dtype=DOUBLE)
    expected = evaluated(layer, direction, points, context)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_("body" in name)
    found = evaluated(layer, direction, points, context, kernel=True)
    for name, tensor in found.items():
        assert_close(tensor, expected[name])
    value, _ = getattr(layer, direction)(points, context)  # neither points nor context want a gradient
    value.sum().backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is not None) is ("body" in name)
    layer.requires_grad_(False)
    assert not getattr(layer, direction)(points, context)[0].requires_grad


def test_graph_kept_and_used_twice(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    points = torch.randn(70, 3, dtype=DOUBLE, requires_grad=True)
    for direction in ("forward", "inverse"):
        value, log_det = getattr(layer, direction)(points)
        loss = value.square().sum() + log_det.sum()
        parameters = [points, *layer.parameters()]
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        layer(torch.randn(70, 3, dtype=DOUBLE))[0].sum().backward()  # memory of another graph of that size
        assert_close(torch.autograd.grad(loss, parameters), first, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, parameters)


def test_changes_in_place(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))

    def gradient(x: Tensor) -> Tensor:
        z, log_det = layer(x[None])
        z[..., 0] *= 2.0
        z += 1.0
        return torch.autograd.grad(z.square().sum() + log_det.sum(), x)[0]

    x = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    ours = gradient(x)
    with native.disabled():
        assert_close(ours, gradient(x))
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


# NaN and infinity

R_MISSING = 0x7FF80000000007A2
"""The bits of R's NA: a NaN with a payload."""


def missing() -> float:
    return float(np.array([R_MISSING], dtype=np.uint64).view(np.float64)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), "NA"], ids=str)
@both_directions
@both_patterns
@both_maps
def test_a_bad_row_stays_alone_and_visible(
    univariate: str, pattern: str, direction: str, bad: float | str, perturb: Perturb
) -> None:
    layer = perturb(PATTERNS[pattern](4, MAPS[univariate], 1))
    apply = getattr(layer, direction)
    points, context = torch.randn(70, 4, dtype=DOUBLE), torch.randn(70, 1, dtype=DOUBLE)
    clean = apply(points, context)
    wrong = np.array([R_MISSING], dtype=np.uint64).view(np.float64)[0] if bad == "NA" else bad
    others = torch.arange(70) != 7
    weights = list(layer.parameters())
    for broken in (points, context):
        kept = broken[7].clone()
        for column in range(broken.shape[1]):
            broken.numpy()[7, column] = wrong
            value, log_det = apply(points, context)
            assert_close((value[others], log_det[others]), (clean[0][others], clean[1][others]), rtol=0, atol=0)
            assert not bool(value[7].isfinite().all())
            gradients = []  # of a loss that leaves the row out: zero times NaN, where torch has it too
            for engine in (torch.enable_grad, native.disabled):
                with engine():
                    value, log_det = apply(points, context)
                    loss = value[others].sum() + log_det[others].sum()
                    gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
            whole = gradients[1].isfinite()
            assert_close(gradients[0][whole], gradients[1][whole])
            broken[7] = kept


@both_directions
@both_tails
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_a_spline_of_bad_parameters_says_so(
    dtype: torch.dtype, direction: str, spline: RationalQuadraticSpline
) -> None:
    apply = getattr(spline, direction)
    bad = torch.tensor([float("nan"), float("inf"), 0.0], dtype=dtype)
    if dtype == DOUBLE:
        bad.numpy().view(np.uint64)[1] = R_MISSING
    parameters = bad[:, None].repeat(1, spline.size)
    for engine in (torch.enable_grad, native.disabled):
        with engine():
            value, log_derivative = apply(torch.full((3,), 0.5, dtype=dtype), parameters)
        assert value.isfinite().tolist() == [False, False, True]
        assert log_derivative.isfinite().tolist() == [False, False, True]


@both_patterns
@both_tails
def test_points_beyond_the_bound(pattern: str, spline: RationalQuadraticSpline, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](3, spline))
    values = [-1e300, -1e4, -3.0, -3.0 + 1e-9, 3.0 - 1e-9, 3.0, 3.0 + 1e-15, 1e4]
    points = torch.tensor(values, dtype=DOUBLE)[:, None].expand(-1, 3) * torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE)
    for direction in ("forward", "inverse"):
        moderate = points[1:]
        assert_engines_agree(layer, direction, moderate, rtol=1e-7, atol=1e-7)
        if spline is SPLINE:  # a learned slope at 1e300 has no bound: the network sees points as large
            assert bool(getattr(layer, direction)(points)[0][0].isfinite().all())


@pytest.mark.parametrize("size", [30.0, 1e4])
@both_directions
@both_patterns
def test_extreme_networks(pattern: str, direction: str, size: float, perturb: Perturb) -> None:
    layer = PATTERNS[pattern](4, SPLINE, 1)
    perturb(layer.conditioner.last, size)
    points, context = torch.randn(70, 4, dtype=DOUBLE), torch.randn(70, 1, dtype=DOUBLE)
    ours = evaluated(layer, direction, points, context, kernel=True)
    assert all(bool(t.isfinite().all()) for t in ours.values())
    if pattern == "coupling":  # an autoregressive layer as steep as that magnifies what rounding leaves
        assert_engines_agree(layer, direction, points, context, rtol=1e-5, atol=1e-5)


# Switching


def test_disabled_is_of_one_thread_and_ends() -> None:
    on = []
    assert native.library() is not None

    def fail() -> None:
        with native.disabled():
            assert native.library() is None
            with native.disabled():
                assert native.library() is None
            assert native.library() is None
            thread = threading.Thread(target=lambda: on.append(native.library() is not None))
            thread.start()
            thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert on == [True]
    assert native.library() is not None


def test_disabled_around_the_backward_pass_only(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    x = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    expected = torch.autograd.grad(layer(x)[0].sum(), x)
    z = layer(x)[0]
    with native.disabled():
        assert_close(torch.autograd.grad(z.sum(), x), expected)


SCRIPT = textwrap.dedent("""
    import json, sys, threading, warnings
    import torch
    torch.set_num_threads(1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        from pushforward.flows import build
        from pushforward.flows.kernels import native
        torch.manual_seed(0)
        flow = build("nsf-ar", features=5, context=2, layers=2, hidden=20, bins=4).double()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
        x, context = torch.randn(150, 5, dtype=torch.float64), torch.randn(150, 2, dtype=torch.float64)
        threads = [threading.Thread(target=lambda: flow.log_prob(x, context)) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        log_prob = flow.log_prob(x, context)
        log_prob.sum().backward()
        back, log_det = flow.bijection.inverse(x, context)
    print(json.dumps({
        "warnings": [str(w.message) for w in seen if w.category is native.NativeWarning],
        "native": native.library() is not None,
        "numbers": [log_prob.sum().item(), back.sum().item(), log_det.sum().item()]
        + [p.grad.square().sum().item() for p in flow.parameters()],
    }))
""")


def started(script: str = SCRIPT, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    return out.strip()


def told(**environment: str) -> Any:
    return json.loads(finished(started(**environment)))


@pytest.fixture
def numbers(capsys: pytest.CaptureFixture[str]) -> list[float]:
    """What the script prints with the kernels, in this process."""
    exec(SCRIPT, {})
    said = json.loads(capsys.readouterr().out)
    assert said["native"]
    assert said["warnings"] == []
    return list(said["numbers"])


@pytest.mark.slow
def test_threads_of_a_new_process(numbers: list[float]) -> None:
    said = told()
    assert said["native"]
    assert said["warnings"] == []
    assert said["numbers"] == pytest.approx(numbers, rel=1e-12)


def test_switched_off_for_a_process(numbers: list[float], tmp_path: Path) -> None:
    said = told(PUSHFORWARD_NATIVE="0", PUSHFORWARD_CACHE=str(tmp_path))
    assert not said["native"]
    assert said["warnings"] == []
    assert said["numbers"] == pytest.approx(numbers, rel=1e-9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        pytest.param({"PATH": "", "CC": ""}, "no C compiler found", marks=pytest.mark.slow),
        ({"CC": "/bin/false"}, "/bin/false"),
    ],
)
def test_no_compiler_is_said_once(
    environment: dict[str, str], reason: str, numbers: list[float], tmp_path: Path
) -> None:
    said = told(PUSHFORWARD_CACHE=str(tmp_path), **environment)
    assert not said["native"]
    assert len(said["warnings"]) == 1
    assert reason in said["warnings"][0]
    assert said["numbers"] == pytest.approx(numbers, rel=1e-9)


@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path: Path) -> None:
    script = "from pushforward.flows.kernels import native; print(native.library() is not None)"
    processes = [started(script, PUSHFORWARD_CACHE=str(tmp_path)) for _ in range(2)]
    assert [finished(process) for process in processes] == ["True", "True"]
    (folder,) = tmp_path.iterdir()
    assert {p.suffix for p in folder.iterdir()} == {".so"}  # nothing unfinished is left


@pytest.mark.slow
def test_a_compiler_that_knows_no_flags(numbers: list[float], tmp_path: Path) -> None:
    """Plain vectors, other tiles, no OpenMP: what the last of the attempts builds."""
    compiler = tmp_path / "plain"
    compiler.write_text(
        '#!/bin/sh\nfor a; do case $a in -m*|-fopenmp|-fvect*) echo unknown >&2; exit 1;; esac; done\nexec gcc "$@"\n'
    )
    compiler.chmod(0o755)
    said = told(PUSHFORWARD_CACHE=str(tmp_path), CC=str(compiler))
    assert said["native"]
    assert said["warnings"] == []
    assert said["numbers"] == pytest.approx(numbers, rel=1e-9)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The one file of a cache, compiled by whoever came first."""
    assert native.library() is not None
    cache = native._cache()
    assert cache is not None
    name = Path(native.library()._name).name  # type: ignore[union-attr]
    source = Path(native.library()._name)  # type: ignore[union-attr]
    copied = tmp_path / name
    copied.write_bytes(source.read_bytes())
    return copied


def works(library: ctypes.CDLL) -> bool:
    return int(library.points_of_tile(1)) > 0


def test_a_built_file_is_used_again(built: Path) -> None:
    before = built.stat()
    assert works(native._built(built.parent))
    assert list(built.parent.iterdir()) == [built]
    assert (built.stat().st_mtime_ns, built.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_broken_file_is_built_again(built: Path) -> None:
    whole = built.read_bytes()
    half = len(whole) // 2
    built.write_bytes(whole[:half])  # as long as the file's header promises, loading it would end the process
    assert works(native._built(built.parent))
    assert list(built.parent.iterdir()) == [built]
    assert built.read_bytes() == whole


@pytest.mark.slow
def test_a_file_that_cannot_be_loaded_is_built_again(built: Path) -> None:
    """As of another system: whole, and named as what it holds."""
    name = built.name.rsplit("-", 1)[0]
    built.write_bytes(b"nothing a processor knows")
    foreign = built.rename(built.with_name(native._named(name, built)))
    assert works(native._built(built.parent))
    assert built.exists()
    assert foreign.exists()


@pytest.mark.slow
@pytest.mark.parametrize("home", ["a file", "none", "read-only"])
def test_a_cache_that_cannot_be_written(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder: Path | None = None
    if home == "a file":
        folder = tmp_path / "file" / "kernels"
        folder.parent.write_text("")
    if home == "read-only":
        folder = Path("/proc/self/task")  # there, and not even root may write to it
        if not folder.is_dir():
            pytest.skip("no /proc")
    assert works(native._built(folder))
    assert list(temporary.iterdir()) == []  # loaded, and nothing left behind


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PUSHFORWARD_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # not in the list of users
    assert native._cache() is None


# Whoever watches, traces, compiles or batches


# torch's own use, when it first differentiates forwards
scripting = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture
def flow(perturb: Perturb) -> Flow:
    return perturb(build("nsf-ar", features=3, context=2, layers=2, hidden=16, bins=4).double(), 0.2)  # type: ignore[no-any-return]


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)


@scripting
def test_functorch(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    def derivatives() -> list[Any]:
        one = torch.func.jacrev(flow.log_prob)
        inverse = functools.partial(flow.bijection.inverse)
        return [
            torch.vmap(flow.log_prob)(*rows),
            torch.vmap(torch.func.grad(flow.log_prob))(*rows),
            one(*rows),
            torch.func.jacfwd(flow.log_prob)(*rows),
            torch.func.jvp(flow.log_prob, rows, (torch.ones_like(rows[0]), torch.ones_like(rows[1]))),
            torch.vmap(torch.func.jacrev(inverse))(*rows)[0],
            torch.func.hessian(flow.log_prob)(rows[0][0], rows[1][0]),
        ]

    plain = flow.log_prob(*rows)
    assert kernels_in(plain) == {"_LayerBackward"}
    ours = derivatives()
    assert_close(ours[0], plain)
    with native.disabled():
        assert_close(ours, derivatives())


def test_functional_call(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    doubled = {name: (2.0 * p).detach().requires_grad_() for name, p in flow.named_parameters()}
    ours = torch.func.functional_call(flow, doubled, rows)
    assert kernels_in(ours) == {"_LayerBackward"}
    grads = torch.autograd.grad(ours.sum(), list(doubled.values()))
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0)
    with native.disabled():
        expected = twin(*rows)
        assert_close(ours, expected)
        assert_close(grads, torch.autograd.grad(expected.sum(), list(twin.parameters())))
    stacked = {name: torch.stack([p, 2.0 * p]).detach() for name, p in flow.named_parameters()}
    ensemble = torch.vmap(lambda p: torch.func.functional_call(flow, p, rows))(stacked)
    assert_close(ensemble[1], expected)


@scripting
def test_forward_mode(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = flow.log_prob(forward_ad.make_dual(rows[0], torch.ones_like(rows[0])), rows[1])
        tangent = forward_ad.unpack_dual(dual).tangent
    x = rows[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(x, rows[1]).sum(), x)
    assert_close(tangent, gradient.sum(-1))


def test_traces_hold_operations_of_torch(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    graph = make_fx(lambda x, context: flow.log_prob(x, context))(*rows)
    assert len(graph.graph.nodes) > 50
    fresh = torch.randn_like(rows[0])
    assert_close(graph(fresh, rows[1]), flow.log_prob(fresh, rows[1]))


def test_fake_tensors(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = flow.log_prob(*(mode.from_tensor(t) for t in rows))
    assert fake.shape == (6,)
    assert type(fake).__name__ == "FakeTensor"


def test_counts_of_operations(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    loss = flow.log_prob(*rows).sum()
    with FlopCounterMode(display=False) as counter:
        flow.log_prob(*rows)
    assert counter.get_total_flops() > 1000
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() > 1000


def test_compiled_and_exported(rows: tuple[Tensor, Tensor], perturb: Perturb) -> None:
    torch.compiler.reset()
    flow = perturb(build("nsf-ar", features=3, context=2, layers=1, hidden=16, bins=4).double(), 0.2)
    expected = flow.log_prob(*rows)
    compiled: Any = torch.compile(flow, backend="eager", fullgraph=True)
    assert_close(compiled(*rows), expected)
    assert kernels_in(compiled(*rows)) == set()
    program = torch.export.export(flow, rows)
    assert_close(program.module()(*rows), expected)


def test_autocast(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    flow, rows = flow.float(), (rows[0].float(), rows[1].float())
    exact = flow.log_prob(*rows)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = flow.log_prob(*rows)
        assert kernels_in(rounded) == set()
        with native.disabled():
            assert_close(flow.log_prob(*rows), rounded, rtol=0, atol=0)
    assert not torch.equal(rounded, exact)


def test_autocast_around_the_backward_pass_only(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3)).float()
    points, weights = torch.randn(9, 3), list(layer.parameters())
    for create_graph in (False, True):
        loss = layer(points)[0].square().sum()
        expected = torch.autograd.grad(loss, weights, create_graph=True)
        with torch.autocast("cpu", torch.bfloat16):  # the pass forward was in float32
            assert_close(torch.autograd.grad(loss, weights, create_graph=create_graph), expected)


@both_patterns
@pytest.mark.usefixtures("_empty_pool")
def test_another_default_device(pattern: str, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](3))
    x = torch.randn(5, 3, dtype=DOUBLE)
    with torch.device("meta"):
        ours = evaluated(layer, "forward", x), second_derivatives(layer, x)
    assert_close(ours, (evaluated(layer, "forward", x), second_derivatives(layer, x)))


@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "backward pre", "global"])
@pytest.mark.parametrize("part", ["net", "first", "block", "linear", "last"])
def test_hooks_are_called(part: str, kind: str, perturb: Perturb) -> None:
    layer = perturb(coupling(3))
    net = layer.conditioner
    module: nn.Module = {
        "net": net,
        "first": net.first,
        "block": net.body[0],
        "linear": net.body[1].second,
        "last": net.last,
    }[part]
    calls = []

    def hook(called: nn.Module, *rest: Any) -> None:
        if called is module:
            calls.append(called)

    handle = {
        "forward": lambda: module.register_forward_hook(hook),
        "pre": lambda: module.register_forward_pre_hook(hook),
        "backward": lambda: module.register_full_backward_hook(hook),
        "backward pre": lambda: module.register_full_backward_pre_hook(hook),
        "global": lambda: nn.modules.module.register_module_forward_hook(hook),
    }[kind]()
    x = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    try:
        layer(x)[0].sum().backward()
        assert calls == [module]
    finally:
        handle.remove()
    assert kernels_in(layer(x)[0]) == {"_LayerBackward"}


# Networks and maps that are not quite the known ones


class Softer(ResidualNet):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return 0.5 * super().forward(x, context)


class SofterMasked(MaskedResidualNet):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return 0.5 * super().forward(x, context)


@dataclass(frozen=True)
class Doubled(RationalQuadraticSpline):
    """A subclass that keeps what its parent says of kernels."""

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super().forward(x, parameters)
        return 2.0 * z, log_derivative + float(np.log(2.0))

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x, log_derivative = super().inverse(0.5 * z, parameters)
        return x, log_derivative - float(np.log(2.0))


@dataclass(frozen=True)
class Shifted(Affine):
    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().inverse(z - 1.0, parameters)


@dataclass(frozen=True)
class Renamed(RationalQuadraticSpline):
    """A subclass that changes nothing."""


class OwnNet(nn.Module):
    """A conditioner that shares no code with ours."""

    inputs, outputs, context = 1, 2 * SPLINE.size, 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, self.outputs)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.sin(self.linear(x))


def test_subclass_of_a_conditioner(perturb: Perturb) -> None:
    x = torch.randn(5, 3, dtype=DOUBLE)
    for layer, kind in ((coupling(3), Softer), (autoregressive(3), SofterMasked)):
        perturb(layer)
        plain = layer(x)[0]
        layer.conditioner.__class__ = kind
        assert not torch.equal(layer(x)[0], plain)
    check_bijection(layer_of(Softer(1, 2 * SPLINE.size, hidden=4), perturb))


def layer_of(net: Any, perturb: Perturb) -> Bijection:
    return perturb(Coupling(net, SPLINE, transformed=[True, False, True]))  # type: ignore[no-any-return]


def test_conditioner_of_ones_own(perturb: Perturb) -> None:
    check_bijection(layer_of(OwnNet(), perturb))


@pytest.mark.parametrize("map_", [Doubled(5, 3.0), Shifted()], ids=lambda m: type(m).__name__)
@both_patterns
def test_subclass_of_a_map(pattern: str, map_: Univariate, perturb: Perturb) -> None:
    layer = perturb(PATTERNS[pattern](3, map_))
    x = torch.randn(5, 3, dtype=DOUBLE)
    for direction in ("forward", "inverse"):
        ours = getattr(layer, direction)(x)
        with native.disabled():
            assert_close(ours, getattr(layer, direction)(x))
    if isinstance(map_, Doubled):
        check_bijection(layer)


def test_subclass_that_changes_nothing_is_fast(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3, Renamed(5, 3.0)))
    assert_engines_agree(layer, "forward", torch.randn(5, 3, dtype=DOUBLE))


class Bent(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return torch.sin(super().forward(input))


def replaced_last(net: Any) -> None:
    net.last = Bent(8, net.outputs).double()


def replaced_inner(net: Any) -> None:
    net.body[1].second = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double()


def replaced_block(net: Any) -> None:
    net.body[0] = Linear3(8, 8).double()


class Linear3(nn.Linear):
    def forward(self, input: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(input)


def without_bias(net: Any) -> None:
    net.last = nn.Linear(8, net.outputs, bias=False).double()


def shortened(net: Any) -> None:
    net.body = net.body[:1]


def other_dropout(net: Any) -> None:
    net.body[0].dropout = nn.Tanh()


def patched(net: Any) -> None:
    net.last.forward = lambda x: torch.sin(F.linear(x, net.last.weight, net.last.bias))


def weight_norm(net: Any) -> None:
    nn.utils.parametrizations.weight_norm(net.last)


def spectral_norm(net: Any) -> None:
    nn.utils.parametrizations.spectral_norm(net.body[0].first)


def pruned(net: Any) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(net.last, "weight", 0.5)


@pytest.mark.parametrize(
    "change",
    [
        replaced_last,
        replaced_inner,
        replaced_block,
        without_bias,
        shortened,
        other_dropout,
        patched,
        weight_norm,
        spectral_norm,
        pruned,
    ],
    ids=lambda f: f.__name__,
)
def test_changed_networks(change: Callable[[Any], None], perturb: Perturb) -> None:
    layer = perturb(coupling(3), 1.0)
    twin = copy.deepcopy(layer)
    points = torch.randn(9, 3, dtype=DOUBLE)
    before = layer(points)[0]
    for bijection in (layer, twin):
        torch.manual_seed(4)
        change(bijection.conditioner)
    for _ in range(3):  # in training, a spectral norm changes with every use of the weight
        results = []
        for bijection, engine in ((layer, torch.enable_grad), (twin, native.disabled)):
            with engine():
                value, log_det = bijection(points)
            bijection.zero_grad()
            (value.square().sum() + log_det.sum()).backward()
            results.append([value, log_det, *(p.grad.clone() for p in bijection.parameters() if p.grad is not None)])
            assert torch.allclose(value, before) is (change is weight_norm)
            with torch.no_grad():
                for parameter in bijection.parameters():
                    parameter.mul_(1.1)
        assert_close(results[0], results[1])
        before = before + 1.0 if change is not weight_norm else twin(points)[0]


def test_weights_of_another_kind_are_refused(perturb: Perturb) -> None:
    points = torch.randn(5, 3, dtype=DOUBLE)
    layer = perturb(coupling(3))
    layer.conditioner.first.float()
    with pytest.raises(RuntimeError, match="dtype"):
        layer(points)
    layer = perturb(coupling(3))
    layer.conditioner.body[0].first = nn.Linear(3, 8).double()
    with pytest.raises(RuntimeError, match="shapes"):
        layer(points)
    layer = coupling(3).to("meta")
    assert layer(points.to("meta"))[0].device.type == "meta"


@pytest.mark.parametrize("make", [coupling, autoregressive])
def test_parts_that_no_longer_fit_are_left_to_torch(make: Callable[..., Any], perturb: Perturb) -> None:
    """A kernel would read beyond the weights; torch says what is wrong."""
    points = torch.randn(5, 3, dtype=DOUBLE)
    for change in (more_bins, fewer_bins, other_conditioner):
        layer = perturb(make(3))
        change(layer)
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            layer(points)
    layer = perturb(autoregressive(3))
    layer.conditioner.known = layer.conditioner.known[:-1]
    assert "_LayerBackward" not in kernels_in(*layer(points))


def more_bins(layer: Any) -> None:
    layer.univariate = RationalQuadraticSpline(bins=40)


def fewer_bins(layer: Any) -> None:
    layer.univariate = RationalQuadraticSpline(bins=2)


def other_conditioner(layer: Any) -> None:
    kind = type(layer.conditioner)
    layer.conditioner = kind(5, 7, hidden=4).double()


def test_shared_weights(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3, blocks=2))
    body = layer.conditioner.body
    body[1].first.weight = body[0].first.weight
    points = torch.randn(9, 3, dtype=DOUBLE)
    for direction in ("forward", "inverse"):
        assert_engines_agree(layer, direction, points)
        apply = getattr(layer, direction)
        ours = second_derivatives(apply, points, *layer.parameters())
        with native.disabled():
            assert_close(ours, second_derivatives(apply, points, *layer.parameters()), rtol=1e-7, atol=1e-9)


def test_copies(perturb: Perturb) -> None:
    chain = perturb(Chain([autoregressive(3), Permutation([2, 0, 1]), coupling(3)]).double())
    points = torch.randn(9, 3, dtype=DOUBLE, requires_grad=True)
    expected = chain(points)
    expected[0].sum().backward()  # nothing of this may end up in a copy
    for twin in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert_close(twin(points), expected, rtol=0, atol=0)


# Threads


def test_backward_pass_in_another_thread(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    points = torch.randn(70, 3, dtype=DOUBLE, requires_grad=True)
    expected = torch.autograd.grad(layer.inverse(points)[0].sum(), points)
    value = layer.inverse(points)[0].sum()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(torch.autograd.grad, value, points).result()
    assert_close(found, expected, rtol=0, atol=0)


def test_threads_evaluate_one_flow_at_once(flow: Flow) -> None:
    batches = [(torch.randn(n, 3, dtype=DOUBLE), torch.randn(n, 2, dtype=DOUBLE)) for n in (300, 70, 129, 300)]

    def work(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for _ in range(10):
            x = batch[0].clone().requires_grad_()
            log_prob = flow.log_prob(x, batch[1])
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
            y, log_det = flow.bijection.inverse(x, batch[1])
            (gradient_back,) = torch.autograd.grad(y.sum() + log_det.sum(), x)
            found += [log_prob, gradient, y, gradient_back]
        return found

    expected = [work(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, batches))
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_threads_leave_no_memory_behind(perturb: Perturb) -> None:
    layer = perturb(autoregressive(20, hidden=256)).float()
    points = torch.randn(64, 20)

    def work() -> None:
        with torch.no_grad():
            layer(points)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for count in (20, 100):
        before = resident()
        for _ in range(count):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert resident() - before < 50e6  # it was 1.9 MB a thread


# Memory of the graphs


def leases() -> list[fused._Lease]:
    gc.collect()
    return [o for o in gc.get_objects() if type(o) is fused._Lease]


@pytest.fixture
def _empty_pool() -> Iterator[None]:
    gc.freeze()  # what is there already is none of these tests' business, and takes long to walk through
    fused._Lease._pool.clear()
    fused._Lease._bytes = 0
    yield
    gc.collect()
    gc.unfreeze()


def pooled() -> list[Tensor]:
    return [t for free in fused._Lease._pool.values() for t in free]


@pytest.mark.usefixtures("_empty_pool")
def test_graphs_alive_share_no_memory(perturb: Perturb) -> None:
    chain = perturb(Chain([autoregressive(3), autoregressive(3)]))
    points = torch.randn(70, 3, dtype=DOUBLE, requires_grad=True)
    alone = torch.autograd.grad(chain(points)[0].sum(), points)
    first, second = chain(points)[0], chain(points + 1.0)[0]
    places = [lease.tensor.data_ptr() for lease in leases()]
    assert len(set(places)) == len(places) == 4
    torch.autograd.grad(second.sum(), points)
    assert_close(torch.autograd.grad(first.sum(), points), alone, rtol=0, atol=0)
    assert {t.data_ptr() for t in pooled()} == set(places)  # given back by the pass backward, though both live
    third = chain(points)[0]
    assert {lease.tensor.data_ptr() for lease in leases()} < set(places)
    del first, second, third


@pytest.mark.usefixtures("_empty_pool")
def test_the_pool_is_bounded_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_MOST_POOLED_BYTES", 10_000)
    for numbers in range(1, 2000, 7):
        fused._Lease(numbers, torch.float32)
        assert fused._Lease._bytes == sum(t.nbytes for t in pooled()) <= 10_000
    for _ in range(3):  # sizes of the past make room
        lease = fused._Lease(1000, DOUBLE)
        place = lease.tensor.data_ptr()
        assert lease.tensor.dtype == DOUBLE
        del lease
        assert place in {t.data_ptr() for t in pooled()}
    del_too_large = fused._Lease(20_000, DOUBLE)
    seen = weakref.ref(del_too_large.tensor)
    del del_too_large
    assert seen() is None
    assert fused._Lease._bytes == sum(t.nbytes for t in pooled()) <= 10_000
    assert all(fused._Lease._pool.values())


@pytest.mark.usefixtures("_empty_pool")
def test_graphs_never_used_give_their_memory_back(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    for _ in range(5):
        layer(torch.randn(70, 3, dtype=DOUBLE))
        with torch.no_grad():
            layer(torch.randn(70, 3, dtype=DOUBLE))
    assert len(pooled()) == 1
    assert leases() == []


def test_kinds_of_tensors() -> None:
    assert elementwise.usable(torch.zeros(2), None, nn.Parameter(torch.zeros(2)))
    assert not elementwise.usable(torch.zeros(2), torch.zeros(2, dtype=DOUBLE))
    assert not elementwise.usable(torch.zeros(2, dtype=torch.bfloat16))
    assert not elementwise.usable(torch.zeros(2, dtype=torch.int64))
    assert not elementwise.usable(torch.zeros(2, device="meta"))
    assert not elementwise.usable(torch.zeros(2).as_subclass(Odd))


class Odd(Tensor):
    pass
