"""Flows by name: every size works, each starts as a standard Gaussian, and every feature is transformed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pushforward.flows import NAMES, ActNorm, Coupling, LULinear, MaskedAutoregressive, Permutation, build

Perturb = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("base", ["diagonal", "full"])
@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_starts_as_a_standard_gaussian(name: str, features: int, base: str, context: int) -> None:
    flow = build(name, features, context, layers=3, hidden=8, base=base).double().eval()
    x = 2 * torch.randn(16, features, dtype=torch.float64)
    given = torch.randn(16, context, dtype=torch.float64) if context else None
    normal = torch.distributions.Normal(0.0, 1.0)
    if name == "made-mog":  # nearly: a mixture of narrower components is not exactly Gaussian
        x = normal.sample((2_000, features)).double()
        given = None if given is None else given[:1].expand(2_000, -1)
        assert 0.0 < (normal.log_prob(x).sum(-1) - flow(x, given)).mean().item() < 0.02 * features
    else:
        assert_close(flow(x, given), normal.log_prob(x).sum(-1))
    assert_close(flow.transform_to_base(x, given).sort(-1).values, x.sort(-1).values)
    assert flow.sample(3, None if given is None else given[0]).shape == (3, features)


def test_the_number_of_layers_is_as_configured() -> None:
    for name in NAMES:
        flow = build(name, 3, layers=4, hidden=4)
        count = sum(isinstance(m, Coupling | MaskedAutoregressive) for m in flow.modules())
        assert count == (0 if name in ("gaussian", "made-mog") else 4)


def test_options_reach_the_layers() -> None:
    flow = build("nsf-ar", 3, 2, layers=1, hidden=7, blocks=3, bins=5, bound=2.5, dropout=0.25, base="full")
    (layer,) = (m for m in flow.modules() if isinstance(m, MaskedAutoregressive))
    assert layer.univariate.config() == {"bins": 5, "bound": 2.5, "tails": "linear"}
    assert layer.conditioner.config() == {
        "features": 3,
        "outputs_per_feature": 14,
        "context": 2,
        "hidden": 7,
        "blocks": 3,
        "dropout": 0.25,
    }
    assert flow.base.config() == {"features": 3, "context": 2, "covariance": "full", "trainable": True}
    coupling_flow = build("nsf-c", 4, 2, layers=1, hidden=7, blocks=3, bins=5, bound=2.5, dropout=0.25)
    (coupling,) = (m for m in coupling_flow.modules() if isinstance(m, Coupling))
    assert coupling.univariate.config() == {"bins": 5, "bound": 2.5, "tails": "linear"}
    assert coupling.conditioner.config() == {
        "inputs": 2,
        "outputs": 28,
        "context": 2,
        "hidden": 7,
        "blocks": 3,
        "dropout": 0.25,
    }


@pytest.mark.parametrize(
    ("name", "features", "layers"),
    [("realnvp", 1, 1), ("realnvp", 2, 2), ("realnvp", 3, 2), ("realnvp", 5, 2), ("nsf-c", 1, 1), ("nsf-c", 2, 2)],
)
def test_couplings_transform_every_feature(name: str, features: int, layers: int) -> None:
    flow = build(name, features, layers=layers, hidden=4)
    columns = list(range(features))  # the column of the data at each position
    transformed: set[int] = set()
    for member in flow.bijection.children().__next__().children():
        assert isinstance(member, Permutation | Coupling | ActNorm | LULinear)
        if isinstance(member, Permutation):
            columns = [columns[i] for i in member.order]
        if isinstance(member, Coupling):
            transformed |= {columns[i] for i, is_transformed in enumerate(member.transformed) if is_transformed}
    assert transformed == set(range(features))


@pytest.mark.parametrize("features", [2, 3, 5])
@pytest.mark.parametrize("name", ["realnvp", "maf", "iaf", "nsf-c", "nsf-ar"])
def test_the_map_is_nonlinear_in_every_column(name: str, features: int, perturb: Perturb) -> None:
    flow = build(name, features, layers=4, hidden=8, blocks=1).double().eval()
    perturb(flow)
    point = torch.randn(features, dtype=torch.float64)
    step = 0.5 * torch.eye(features, dtype=torch.float64)
    # A linear map has no second difference in any direction.
    z = flow.transform_to_base
    second = z(point + step) + z(point - step) - 2 * z(point)
    assert bool((second.abs().amax(-1) > 1e-6).all())


def test_conditioners_of_couplings_and_autoregressive_layers_start_at_zero() -> None:
    # Both patterns start with the same spline parameters.
    for name in ("nsf-c", "nsf-ar", "realnvp", "maf"):
        for module in build(name, 4, layers=1, hidden=8).modules():
            if isinstance(module, Coupling | MaskedAutoregressive):
                assert not module.conditioner.last.weight.any()
                assert not module.conditioner.last.bias.any()


def test_the_same_seed_builds_the_same_flow() -> None:
    torch.manual_seed(5)
    first = build("nsf-c", 6, layers=3, hidden=4)
    torch.manual_seed(5)
    second = build("nsf-c", 6, layers=3, hidden=4)
    assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    orders = [[m.order for m in flow.modules() if isinstance(m, Permutation)] for flow in (first, second)]
    assert orders[0] == orders[1]
