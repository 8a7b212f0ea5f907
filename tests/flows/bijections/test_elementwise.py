"""The elementwise layer, and what the named flows make of it: published layouts, layer by layer."""

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
    MaskedAutoregressive,
    Permutation,
    RationalQuadraticSpline,
    ResidualNet,
    build,
    load_model,
    save,
)
from pushforward.flows.kernels import native
from pushforward.flows.univariate.rational_quadratic import _SLOPE_AT_ZERO

Perturb = Callable[..., Any]
SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)
DOUBLE = torch.float64


def kinds(flow: Flow) -> list[str]:
    assert isinstance(flow.bijection, Chain)
    return [type(member).__name__ for member in flow.bijection.bijections]


@pytest.mark.parametrize("univariate", [SPLINE, Affine()], ids=["spline", "affine"])
def test_every_feature_has_a_map_of_its_own(univariate: Any, perturb: Perturb) -> None:
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
def test_unmapped_features_stay_to_the_last_bit(direction: str, perturb: Perturb) -> None:
    mapped = [False, True, True, False, True]
    layer = perturb(Elementwise(5, SPLINE, mapped=mapped), 1.0)
    assert layer.raw.shape == (3, SPLINE.size)
    x = torch.randn(2, 30, 5)
    value, log_det = getattr(layer, direction)(x)
    assert (value == x).flatten(0, 1).all(0).tolist() == [not one for one in mapped]
    alone = perturb(Elementwise(3, SPLINE), 1.0)
    expected = getattr(alone, direction)(x[..., [1, 2, 4]])
    assert_close((value[..., [1, 2, 4]], log_det), expected, rtol=0, atol=0)


def test_kernel_and_formulas_agree(perturb: Perturb) -> None:
    layer = perturb(Elementwise(6, SPLINE, mapped=[True, True, False, True, True, True]).double(), 1.0)
    x = 2 * torch.randn(100, 6, dtype=DOUBLE)
    weights = torch.randn(100, 6, dtype=DOUBLE)

    def results(apply: Any) -> tuple[Tensor, ...]:
        points = x.clone().requires_grad_()
        value, log_det = apply(points)
        loss = (weights * value).sum() + (log_det * weights[:, 0]).sum()
        return value, log_det, *torch.autograd.grad(loss, [points, layer.raw])

    for apply in (layer, layer.inverse):
        ours = results(apply)
        with native.disabled():
            assert_close(ours, results(apply), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mapped", [[True], [True, False, True, False], [False] * 3, []], ids=str)
def test_what_is_mapped_must_fit(mapped: list[bool]) -> None:
    with pytest.raises(
        ValueError, match="Elementwise: expected mapped of 3 truth values, at least one of them true; got"
    ):
        Elementwise(3, SPLINE, mapped=mapped)


def test_survives_a_file(tmp_path: Path, perturb: Perturb) -> None:
    flow = build(
        "nsf-c", 5, layers=2, hidden=8, tails="learned", linear="around", unconditional="spline", elementwise=True
    )
    perturb(flow).eval()
    save(flow, tmp_path)
    twin = load_model(tmp_path, Flow)
    x = torch.randn(20, 5)
    assert torch.equal(twin.log_prob(x), flow.log_prob(x))
    assert kinds(twin) == kinds(flow)


class _Given(nn.Module):
    """A network for nflows: ours, whose slopes are one where theirs would be softplus of zero."""

    hidden_features = 1  # by the root of which nflows divides widths and heights

    def __init__(self, net: ResidualNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        each = self.net(x, context).unflatten(-1, (-1, SPLINE.size))
        return torch.cat([each[..., :8], each[..., 8:] + _SLOPE_AT_ZERO], -1).flatten(-2)


def test_spline_on_the_passing_half_is_that_of_nflows(perturb: Perturb) -> None:
    flow = build("nsf-c", 5, layers=1, hidden=8, bins=4, bound=3.0, linear="around", unconditional="spline").double()
    perturb(flow, 1.0).eval()
    chain: Any = flow.bijection
    *_, coupling, marginal, _, _ = chain.bijections
    assert isinstance(coupling, Coupling)
    assert isinstance(marginal, Elementwise)
    assert marginal.mapped == [not moves for moves in coupling.transformed]
    theirs: Any = PiecewiseRationalQuadraticCouplingTransform(
        torch.tensor(coupling.transformed, dtype=torch.int64),
        lambda inputs, outputs: _Given(coupling.conditioner),
        num_bins=4,
        tails="linear",
        tail_bound=3.0,
        apply_unconditional_transform=True,
    ).double()
    own = theirs.unconditional_transform
    with torch.no_grad():
        for parameter, value in zip(
            (own.unnormalized_widths, own.unnormalized_heights, own.unnormalized_derivatives),
            marginal.raw.split([4, 4, 3], -1),
            strict=True,
        ):
            parameter.copy_(value if parameter is not own.unnormalized_derivatives else value + _SLOPE_AT_ZERO)
        x = 2 * torch.randn(200, 5, dtype=DOUBLE)
        layer = Chain([coupling, marginal])
        assert_close(layer(x), theirs(x), rtol=1e-10, atol=1e-10)
        assert_close(layer.inverse(x), theirs.inverse(x), rtol=1e-9, atol=1e-9)


# The layouts of the named flows


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("realnvp", ["ActNorm", "Coupling"]),
        ("maf", ["ActNorm", "MaskedAutoregressive"]),
        ("iaf", ["ActNorm", "Inverse"]),
        ("nsf-c", ["Coupling"]),
        ("nsf-ar", ["MaskedAutoregressive"]),
        ("gaussian", []),
    ],
)
def test_linear_layers_around(name: str, step: list[str]) -> None:
    flow = build(name, 4, layers=3, hidden=8, linear="around")
    mixed = ["Permutation", "LULinear"] if step else []
    assert kinds(flow) == [*mixed, *step] * 3 + mixed
    orders = [m.order for m in flow.modules() if isinstance(m, Permutation)]
    assert all(order != [0, 1, 2, 3] for order in orders)


def test_couplings_around_begin_with_the_even_features() -> None:
    flow = build("nsf-c", 5, layers=2, hidden=8, linear="around")
    halves = [m.transformed for m in flow.modules() if isinstance(m, Coupling)]
    assert halves == [[True, False, True, False, True], [False, True, False, True, False]]


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("name", ["realnvp", "nsf-c", "nsf-ar", "gaussian"])
def test_every_layout_starts_as_a_gaussian(name: str, features: int) -> None:
    unconditional: Any = "spline" if name in ("realnvp", "nsf-c") else "none"
    flow = build(
        name,
        features,
        layers=2,
        hidden=8,
        tails="learned",
        linear="around",
        unconditional=unconditional,
        elementwise=True,
    ).double()
    x = 2 * torch.randn(16, features, dtype=DOUBLE)
    assert_close(flow.eval()(x), torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1))
    learned = [m.univariate for m in flow.modules() if isinstance(m, Elementwise | MaskedAutoregressive)]
    assert all(one.tails == "learned" for one in learned if isinstance(one, RationalQuadraticSpline))


def test_a_marginal_stands_at_the_data_end() -> None:
    flow = build("nsf-ar", 3, layers=1, hidden=8, bins=6, elementwise=True)
    chain: Any = flow.bijection
    first = chain.bijections[0]
    assert isinstance(first, Elementwise)
    assert first.univariate == RationalQuadraticSpline(bins=6)
    assert kinds(flow)[1:] == kinds(build("nsf-ar", 3, layers=1, hidden=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": "arround"}, "unknown linear 'arround'; did you mean 'around'"),
        ({"unconditional": "splines"}, "unknown unconditional 'splines'; did you mean 'spline'"),
        ({"unconditional": "spline"}, "expected unconditional none for nsf-ar, which has no couplings; got spline"),
        ({"tails": "learnt"}, "expected tails linear or learned; got 'learnt'"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("nsf-ar", 3, **options)


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
    assert losses[-1] < losses[0] - 0.3  # a Gamma law of shape 2 is 0.19 nats from a Gaussian, in each feature
