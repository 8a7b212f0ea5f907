"""Layers computed by the kernels equal those computed by torch's operations, for every shape and memory layout."""

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import Affine, Coupling, RationalQuadraticSpline, ResidualNet, Univariate
from pushforward.flows.kernels.description import description_of, evaluate
from tests.fixtures.bijections import SPLINE
from tests.fixtures.kernels import (
    DOUBLE,
    LAYERS,
    LEARNED,
    MAPS,
    Perturb,
    assert_engines_agree,
    autoregressive,
    both_directions,
    both_layers,
    both_maps,
    evaluated,
)


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
@both_layers
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.points}x{s.features}")
def test_engines_agree(shape: Shape, kind: str, univariate: str, direction: str, perturb: Perturb) -> None:
    map_: Univariate = Affine(2.0) if univariate == "affine" else RationalQuadraticSpline(shape.bins, 2.0)
    layer = LAYERS[kind](shape.features, map_, shape.context, hidden=shape.hidden, blocks=shape.blocks)
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
def test_engines_agree_for_any_transformed_features(transformed: list[bool], direction: str, perturb: Perturb) -> None:
    count = sum(transformed)
    net = ResidualNet(len(transformed) - count, count * SPLINE.size, context=1, hidden=12)
    layer = perturb(Coupling(net, SPLINE, transformed=transformed).double())
    points = torch.randn(50, len(transformed), dtype=DOUBLE)
    assert_engines_agree(layer, direction, points, torch.randn(50, 1, dtype=DOUBLE))


@both_directions
@both_layers
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[7], SHAPES[9]], ids=lambda s: f"{s.points}x{s.features}")
def test_engines_agree_on_learned_tails(shape: Shape, kind: str, direction: str, perturb: Perturb) -> None:
    map_ = RationalQuadraticSpline(shape.bins, 1.0, "learned")  # a third of the points lie outside
    layer = LAYERS[kind](shape.features, map_, shape.context, hidden=shape.hidden, blocks=shape.blocks)
    perturb(layer, 0.3)
    context = torch.randn(shape.points, shape.context, dtype=DOUBLE) if shape.context else None
    assert_engines_agree(layer, direction, torch.randn(shape.points, shape.features, dtype=DOUBLE), context)


@both_directions
@both_layers
def test_kernels_in_float32(kind: str, direction: str, perturb: Perturb) -> None:
    for univariate in (*MAPS.values(), LEARNED):
        layer = perturb(LAYERS[kind](7, univariate, 2, hidden=21).float(), 0.1)
        points, context = torch.randn(150, 7), torch.randn(150, 2)
        found = evaluated(layer, direction, points, context, kernel=True)
        exact = evaluated(copy.deepcopy(layer).double(), direction, points.double(), context.double())
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            assert_close(
                tensor.double(), exact[name], rtol=1e-4, atol=1e-4, msg=functools.partial("{}: {}".format, name)
            )


@both_directions
@both_layers
@pytest.mark.parametrize(
    ("points_lead", "context_lead"),
    [((), ()), ((4,), ()), ((1,), (4,)), ((2, 1), (3,)), ((2, 3), (2, 3)), ((3, 0), ())],
)
def test_engines_agree_with_any_leading_dimensions(
    points_lead: tuple[int, ...], context_lead: tuple[int, ...], kind: str, direction: str, perturb: Perturb
) -> None:
    layer = perturb(LAYERS[kind](3, SPLINE, 2))
    points, context = torch.randn(*points_lead, 3, dtype=DOUBLE), torch.randn(*context_lead, 2, dtype=DOUBLE)
    assert_engines_agree(layer, direction, points, context)


@both_directions
@both_layers
def test_engines_agree_for_any_memory_layout(kind: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](4, SPLINE, 2))
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
@both_layers
def test_two_threads_compute_what_one_does(kind: str, direction: str, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](6, SPLINE, 2, hidden=20))
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
@both_layers
def test_a_row_does_not_depend_on_the_others(kind: str, direction: str, dtype: torch.dtype, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](5, SPLINE, 1)).to(dtype)
    points, context = torch.randn(70, 5, dtype=dtype), torch.randn(70, 1, dtype=dtype)
    apply = getattr(layer, direction)
    with torch.no_grad():
        value, log_det = apply(points, context)
        for rows in (slice(0, 1), slice(69, 70), slice(3, 40)):
            assert_close(apply(points[rows], context[rows]), (value[rows], log_det[rows]), rtol=0, atol=0)


@pytest.mark.parametrize(
    "points", [torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), None], ids=["float", "meta", "own"]
)
def test_other_tensors_are_left_to_torch(points: Tensor | None) -> None:
    layer = autoregressive(3)
    points = torch.zeros(2, 3, dtype=DOUBLE).as_subclass(Subclass) if points is None else points
    assert evaluate(description_of(layer), points) is None
    assert evaluate(description_of(layer), torch.zeros(2, 3, dtype=DOUBLE)) is not None


class Subclass(Tensor):
    pass
