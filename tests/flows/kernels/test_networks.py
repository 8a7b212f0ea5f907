"""Networks alone: a map that the kernels do not know still gets the fused network."""

import functools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import Coupling, MaskedAutoregressive, MaskedResidualNet, ResidualNet
from pushforward.flows.kernels import native
from tests.fixtures.bijections import Bend
from tests.fixtures.kernels import DOUBLE, Perturb, evaluated, kernels_in, second_derivatives

BEND = Bend()


def masked(features: int, context: int = 0, **options: float) -> MaskedAutoregressive:
    net = MaskedResidualNet(features, BEND.size, context=context, hidden=9, **options)  # type: ignore[arg-type]
    return MaskedAutoregressive(net, BEND).double()


def plain(features: int, context: int = 0, **options: float) -> Coupling:
    transformed = [i % 2 == 1 for i in range(features)]
    inputs = features - sum(transformed)
    net = ResidualNet(inputs, sum(transformed) * BEND.size, context=context, hidden=9, **options)  # type: ignore[arg-type]
    return Coupling(net, BEND, transformed=transformed).double()


both = pytest.mark.parametrize("make", [masked, plain], ids=["masked", "plain"])


@both
@pytest.mark.parametrize("points", [0, 1, 64, 200])
@pytest.mark.parametrize("context", [0, 2])
def test_engines_agree(
    make: functools.partial[MaskedAutoregressive], context: int, points: int, perturb: Perturb
) -> None:
    layer = perturb(make(5, context), 0.3)
    rows = torch.randn(points, 5, dtype=DOUBLE)
    given = torch.randn(points, 2, dtype=DOUBLE) if context else None
    assert kernels_in(layer(rows, given)[0]) == {"network"}
    found = evaluated(layer, "forward", rows, given)
    with native.disabled():
        for name, tensor in evaluated(layer, "forward", rows, given).items():
            assert_close(found[name], tensor)


@both
def test_dropout_and_second_derivatives(make: functools.partial[MaskedAutoregressive], perturb: Perturb) -> None:
    layer = perturb(make(4, dropout=0.5), 0.3).train()
    rows = torch.randn(6, 4, dtype=DOUBLE)

    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        return layer(x)  # type: ignore[no-any-return]

    found = second_derivatives(apply, rows, *layer.parameters())
    with native.disabled():
        assert_close(found, second_derivatives(apply, rows, *layer.parameters()), rtol=1e-6, atol=1e-8)


@both
def test_two_threads(make: functools.partial[MaskedAutoregressive], perturb: Perturb) -> None:
    layer, rows = perturb(make(4), 0.3), torch.randn(1000, 4, dtype=DOUBLE)
    alone = evaluated(layer, "forward", rows)
    torch.set_num_threads(2)
    shared = evaluated(layer, "forward", rows)
    for name, tensor in alone.items():
        assert_close(shared[name], tensor, rtol=1e-11, atol=1e-11)


def test_networks_alone_compile_and_batch(perturb: Perturb) -> None:
    layer = perturb(masked(3), 0.3)
    rows = torch.randn(6, 3, dtype=DOUBLE)
    expected = layer(rows)
    assert_close(torch.vmap(layer)(rows), expected)
    torch.compiler.reset()
    assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(rows), expected)
    jacobian = torch.func.jacrev(lambda x: layer(x)[0])(rows[0])
    assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected[1][0])


def test_a_single_point(perturb: Perturb) -> None:
    layer = perturb(masked(3), 0.3)
    point = torch.randn(3, dtype=DOUBLE)
    z, log_det = layer(point)
    assert (z.shape, log_det.shape) == ((3,), ())
    assert math.isfinite(float(log_det.detach()))
    assert_close(layer.conditioner(point), layer.conditioner(point[None])[0])
