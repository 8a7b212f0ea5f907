"""Networks and maps that differ from the known ones are computed by their own code and not by a kernel."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    Affine,
    Bijection,
    Chain,
    Coupling,
    MaskedResidualNet,
    Permutation,
    RationalQuadraticSpline,
    ResidualNet,
    Univariate,
)
from pushforward.flows.kernels import native
from pushforward.flows.testing import check_bijection
from tests.fixtures.bijections import SPLINE
from tests.fixtures.kernels import (
    DOUBLE,
    LAYERS,
    Perturb,
    assert_engines_agree,
    autoregressive,
    both_layers,
    coupling,
    kernels_in,
    second_derivatives,
)


class Softer(ResidualNet):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return 0.5 * super().forward(x, context)


class SofterMasked(MaskedResidualNet):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return 0.5 * super().forward(x, context)


@dataclass(frozen=True)
class Doubled(RationalQuadraticSpline):
    """A subclass that inherits ``kernel()`` but changes the map."""

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


class CustomNet(nn.Module):
    """A conditioner that shares no code with those of the package."""

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


def test_custom_conditioner(perturb: Perturb) -> None:
    check_bijection(layer_of(CustomNet(), perturb))


@pytest.mark.parametrize("map_", [Doubled(5, 3.0), Shifted()], ids=lambda m: type(m).__name__)
@both_layers
def test_subclass_of_a_map(kind: str, map_: Univariate, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](3, map_))
    x = torch.randn(5, 3, dtype=DOUBLE)
    for direction in ("forward", "inverse"):
        found = getattr(layer, direction)(x)
        with native.disabled():
            assert_close(found, getattr(layer, direction)(x))
    if isinstance(map_, Doubled):
        check_bijection(layer)


def test_subclass_that_changes_nothing_uses_the_kernel(perturb: Perturb) -> None:
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
    for _ in range(3):  # in training mode a spectral norm changes with each use of the weight
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


def test_weights_of_wrong_dtype_or_shape_are_refused(perturb: Perturb) -> None:
    points = torch.randn(5, 3, dtype=DOUBLE)
    layer = perturb(coupling(3))
    layer.conditioner.first.float()
    with pytest.raises(
        TypeError, match=r"Coupling: expected points of torch.float32, as the parameters; got torch.float64"
    ):
        layer(points)
    layer = perturb(coupling(3))
    layer.conditioner.body[0].first = nn.Linear(3, 8).double()
    with pytest.raises(RuntimeError, match="shapes"):
        layer(points)
    layer = coupling(3).to("meta")
    assert layer(points.to("meta"))[0].device.type == "meta"


@pytest.mark.parametrize("make", [coupling, autoregressive])
def test_mismatched_parts_are_left_to_torch(make: Callable[..., Any], perturb: Perturb) -> None:
    """A kernel would read beyond the weights; torch raises an error."""
    points = torch.randn(5, 3, dtype=DOUBLE)
    for change in (more_bins, fewer_bins, other_conditioner):
        layer = perturb(make(3))
        change(layer)
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            layer(points)
    layer = perturb(autoregressive(3))
    layer.conditioner.known = layer.conditioner.known[:-1]
    assert "chain" not in kernels_in(*layer(points))


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
        found = second_derivatives(apply, points, *layer.parameters())
        with native.disabled():
            assert_close(found, second_derivatives(apply, points, *layer.parameters()), rtol=1e-7, atol=1e-9)


def test_copies_compute_the_same(perturb: Perturb) -> None:
    chain = perturb(Chain([autoregressive(3), Permutation([2, 0, 1]), coupling(3)]).double())
    points = torch.randn(9, 3, dtype=DOUBLE, requires_grad=True)
    expected = chain(points)
    expected[0].sum().backward()  # the copies must not contain anything of this graph
    for twin in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert_close(twin(points), expected, rtol=0, atol=0)
