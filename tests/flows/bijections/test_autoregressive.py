"""Autoregressive layers: what the masked network reads, and the incremental inverse."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import Affine, MaskedAutoregressive, MaskedResidualNet, Univariate
from tests.fixtures.bijections import (
    CASES,
    SPLINE,
    Bend,
    Perturb,
    autoregressive,
    draw,
    engine as engine,
    in_both_engines,
    made,
)


def one_pass_per_feature(layer: MaskedAutoregressive, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The textbook inverse: one full pass of the conditioner per feature."""
    x = torch.zeros_like(z)
    total = z.new_zeros(z.shape[:-1])
    for d, one_hot in enumerate(torch.eye(layer.features, dtype=z.dtype)):
        parameters = layer.conditioner(x, context)[..., d, :]
        x_d, log_derivative = layer.univariate.inverse(z[..., d], parameters)
        x = x * (1.0 - one_hot) + x_d[..., None] * one_hot
        total = total + log_derivative
    return x, total


AUTOREGRESSIVE = [name for name in CASES if name.startswith("MaskedAutoregressive")]


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_jacobian_is_lower_triangular(name: str, perturb: Perturb) -> None:
    layer = made(name, perturb)
    point, context = draw(layer)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, context)[0], point)
    assert isinstance(jacobian, Tensor)
    assert_close(jacobian.triu(1), torch.zeros_like(jacobian), rtol=0, atol=0)
    assert bool((jacobian.diagonal() > 0).all())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("features", [1, 2, 5])
def test_masked_net_reads_only_earlier_features(features: int, context: int, perturb: Perturb) -> None:
    net = MaskedResidualNet(features, 2, context=context, hidden=16).double()
    perturb(net)
    # A ReLU unit may be zero at a point, so the dependence is tested at many.
    points = torch.randn(32, features, dtype=torch.float64)
    given = torch.randn(32, context, dtype=torch.float64) if context else None
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, given).sum(0), points)
    assert isinstance(jacobian, Tensor)  # (output feature, output, point, input feature)
    depends = (jacobian != 0).any(2).any(1)
    assert torch.equal(depends, torch.ones(features, features).tril(-1).bool())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("features", "hidden"), [(1, 4), (2, 8), (5, 8), (5, 3), (9, 4)])
def test_masked_net_wastes_no_hidden_unit(features: int, hidden: int, context: int) -> None:
    net = MaskedResidualNet(features, 1, context=context, hidden=hidden)
    reaches_an_output = net.last.mask.any(0)
    reads_something = net.first.mask.any(1) | bool(context) | (features == 1)
    assert bool(reaches_an_output.all())
    assert bool(reads_something.all())


@in_both_engines
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_incremental_inverse_equals_one_pass_per_feature(name: str, grad: bool, perturb: Perturb) -> None:
    layer = made(name, perturb)
    assert isinstance(layer, MaskedAutoregressive)
    z, context = draw(layer, 8)
    with torch.set_grad_enabled(grad):
        assert_close(layer.inverse(z, context), one_pass_per_feature(layer, z, context), rtol=1e-9, atol=1e-9)


@in_both_engines
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_gradients_of_the_inverse_equal_those_of_one_pass_per_feature(name: str, perturb: Perturb) -> None:
    layer = made(name, perturb)
    assert isinstance(layer, MaskedAutoregressive)
    z, context = draw(layer, 8)
    sources = [z.requires_grad_(), *layer.parameters()]
    if context is not None:
        sources.append(context.requires_grad_())
    weights = torch.randn_like(z)

    def gradients(result: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((result[0] * weights).sum() + result[1].square().sum(), sources)

    incremental, naive = gradients(layer.inverse(z, context)), gradients(one_pass_per_feature(layer, z, context))
    assert_close(incremental, naive, rtol=1e-8, atol=1e-9)


@in_both_engines
@pytest.mark.parametrize("univariate", [Affine(), SPLINE, Bend()], ids=["affine", "spline", "bend"])
def test_gradcheck_of_the_inverse(univariate: Univariate, perturb: Perturb) -> None:
    layer = autoregressive(2, univariate, context=1, blocks=1).double()
    perturb(layer)
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.inverse, (z, context))


@in_both_engines
def test_inverse_ignores_dropout_in_training_mode(perturb: Perturb) -> None:
    layer = autoregressive(3, Affine(), dropout=0.5)
    perturb(layer)
    z = torch.randn(8, 3)
    assert_close(layer.train().inverse(z), layer.eval().inverse(z), rtol=0, atol=0)
