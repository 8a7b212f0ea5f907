"""The elementwise layer: own parameters per feature, unmapped features, and the unconditional transform of nflows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    Affine,
    Chain,
    Coupling,
    Elementwise,
    Flow,
    RationalQuadraticSpline,
    ResidualNet,
    build,
    load_model,
    save,
)
from pushforward.flows.kernels import native
from pushforward.flows.univariate.rational_quadratic import SLOPE_AT_ZERO

Perturb = Callable[..., Any]
SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)
DOUBLE = torch.float64


@pytest.mark.parametrize("univariate", [SPLINE, Affine()], ids=["spline", "affine"])
def test_each_feature_has_its_own_map(univariate: Any, perturb: Perturb) -> None:
    layer = perturb(Elementwise(4, univariate).double(), 1.0)
    x = 2 * torch.randn(50, 4, dtype=DOUBLE)
    z, log_det = layer(x)
    columns = [univariate.forward(x[:, d], layer.raw[d]) for d in range(4)]
    assert_close(z, torch.stack([column[0] for column in columns], -1))
    assert_close(log_det, sum(column[1] for column in columns))
    before = z.detach()
    with torch.no_grad():
        layer.raw[2] += 0.5
    changed = (layer(x)[0] != before).any(0)
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_unmapped_features_are_unchanged_to_the_last_bit(direction: str, perturb: Perturb) -> None:
    mapped = [False, True, True, False, True]
    layer = perturb(Elementwise(5, SPLINE, mapped=mapped), 1.0)
    assert layer.raw.shape == (3, SPLINE.size)
    x = torch.randn(2, 30, 5)
    value, log_det = getattr(layer, direction)(x)
    assert (value == x).flatten(0, 1).all(0).tolist() == [not one for one in mapped]
    alone = perturb(Elementwise(3, SPLINE), 1.0)
    expected = getattr(alone, direction)(x[..., [1, 2, 4]])
    assert_close((value[..., [1, 2, 4]], log_det), expected, rtol=0, atol=0)


def test_kernel_and_torch_agree(perturb: Perturb) -> None:
    layer = perturb(Elementwise(6, SPLINE, mapped=[True, True, False, True, True, True]).double(), 1.0)
    x = 2 * torch.randn(100, 6, dtype=DOUBLE)
    weights = torch.randn(100, 6, dtype=DOUBLE)

    def results(apply: Any) -> tuple[Tensor, ...]:
        points = x.clone().requires_grad_()
        value, log_det = apply(points)
        loss = (weights * value).sum() + (log_det * weights[:, 0]).sum()
        return value, log_det, *torch.autograd.grad(loss, [points, layer.raw])

    for apply in (layer, layer.inverse):
        by_kernel = results(apply)
        with native.disabled():
            assert_close(by_kernel, results(apply), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mapped", [[True], [True, False, True, False], [False] * 3, []], ids=str)
def test_mapped_must_fit_the_features(mapped: list[bool]) -> None:
    with pytest.raises(
        ValueError, match="Elementwise: expected mapped of 3 truth values, at least one of them true; got"
    ):
        Elementwise(3, SPLINE, mapped=mapped)


def test_a_saved_flow_is_the_same(tmp_path: Path, perturb: Perturb) -> None:
    flow = build(
        "nsf-c", 5, layers=2, hidden=8, tails="learned", linear="around", unconditional="spline", elementwise=True
    )
    perturb(flow).eval()
    save(flow, tmp_path)
    twin = load_model(tmp_path, Flow)
    x = torch.randn(20, 5)
    assert torch.equal(twin.log_prob(x), flow.log_prob(x))
    assert [type(m) for m in twin.modules()] == [type(m) for m in flow.modules()]


class NflowsNet(nn.Module):
    """A conditioner of this package for a transform of nflows, which adds no constant to the slope parameters."""

    hidden_features = 1  # nflows divides widths and heights by its square root

    def __init__(self, net: ResidualNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        each = self.net(x, context).unflatten(-1, (-1, SPLINE.size))
        return torch.cat([each[..., :8], each[..., 8:] + SLOPE_AT_ZERO], -1).flatten(-2)


def test_spline_on_the_identity_features_equals_that_of_nflows(perturb: Perturb) -> None:
    flow = build("nsf-c", 5, layers=1, hidden=8, bins=4, bound=3.0, linear="around", unconditional="spline").double()
    perturb(flow, 1.0).eval()
    chain: Any = flow.bijection
    *_, coupling, marginal, _, _ = chain.bijections
    assert isinstance(coupling, Coupling)
    assert isinstance(marginal, Elementwise)
    assert marginal.mapped == [not one for one in coupling.transformed]
    nflows_layer: Any = PiecewiseRationalQuadraticCouplingTransform(
        torch.tensor(coupling.transformed, dtype=torch.int64),
        lambda inputs, outputs: NflowsNet(coupling.conditioner),
        num_bins=4,
        tails="linear",
        tail_bound=3.0,
        apply_unconditional_transform=True,
    ).double()
    spline = nflows_layer.unconditional_transform
    raw = (spline.unnormalized_widths, spline.unnormalized_heights, spline.unnormalized_derivatives)
    shifts = (0.0, 0.0, SLOPE_AT_ZERO)
    with torch.no_grad():
        for parameter, value, shift in zip(raw, marginal.raw.split([4, 4, 3], -1), shifts, strict=True):
            parameter.copy_(value + shift)
        x = 2 * torch.randn(200, 5, dtype=DOUBLE)
        layer = Chain([coupling, marginal])
        assert_close(layer(x), nflows_layer(x), rtol=1e-10, atol=1e-10)
        assert_close(layer.inverse(x), nflows_layer.inverse(x), rtol=1e-9, atol=1e-9)


def test_learns_the_marginals() -> None:
    x = torch.distributions.Gamma(2.0, 1.0).sample((2000, 2)) * torch.tensor([1.0, -1.0])
    x = (x - x.mean(0)) / x.std(0)
    flow = build("gaussian", 2, bins=8, bound=5.0, tails="learned", elementwise=True)
    optimizer = torch.optim.Adam(flow.parameters(), 0.05)
    losses = []
    for _ in range(80):
        loss = -flow(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3  # a Gamma distribution of shape 2 is 0.19 nats from a Gaussian, per feature
