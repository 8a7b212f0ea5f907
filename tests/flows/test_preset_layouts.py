"""Which layers the named flows consist of, for each option of their layout."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import (
    Chain,
    Coupling,
    Elementwise,
    Flow,
    MaskedAutoregressive,
    Permutation,
    RationalQuadraticSpline,
    build,
)

DOUBLE = torch.float64


def layers(flow: Flow) -> list[str]:
    assert isinstance(flow.bijection, Chain)
    return [type(member).__name__ for member in flow.bijection.bijections]


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
def test_linear_layers_around_each_step(name: str, step: list[str]) -> None:
    flow = build(name, 4, layers=3, hidden=8, linear="around")
    mixed = ["Permutation", "LULinear"] if step else []
    assert layers(flow) == [*mixed, *step] * 3 + mixed
    orders = [m.order for m in flow.modules() if isinstance(m, Permutation)]
    assert all(order != [0, 1, 2, 3] for order in orders)


def test_couplings_first_transform_the_even_features() -> None:
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


def test_the_elementwise_layer_is_applied_to_the_data() -> None:
    flow = build("nsf-ar", 3, layers=1, hidden=8, bins=6, elementwise=True)
    chain: Any = flow.bijection
    first = chain.bijections[0]
    assert isinstance(first, Elementwise)
    assert first.univariate == RationalQuadraticSpline(bins=6)
    assert layers(flow)[1:] == layers(build("nsf-ar", 3, layers=1, hidden=8))


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
def test_invalid_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("nsf-ar", 3, **options)
