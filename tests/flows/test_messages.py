"""Error messages of flows, word by word."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pushforward.flows import (
    ActNorm,
    Affine,
    Chain,
    Coupling,
    Flow,
    Gaussian,
    Inverse,
    LULinear,
    MaskedAutoregressive,
    MaskedResidualNet,
    Permutation,
    RationalQuadraticSpline,
    ResidualNet,
    Standardize,
    build,
)

FLOWS = "realnvp, maf, iaf, nsf-c, nsf-ar, made-mog, gaussian, bayesian-network"

MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "points": (
        lambda: ActNorm(3)(torch.zeros(5, 4)),
        "ActNorm: expected points of shape (..., 3); got (5, 4)",
    ),
    "points of no dimension": (
        lambda: ActNorm(3)(torch.zeros(())),
        "ActNorm: expected points of shape (..., 3); got ()",
    ),
    "context missing": (
        lambda: MaskedAutoregressive(MaskedResidualNet(2, 2, context=3), Affine())(torch.zeros(5, 2)),
        "MaskedAutoregressive: expected context of shape (..., 3); got none",
    ),
    "context of the wrong size": (
        lambda: MaskedAutoregressive(MaskedResidualNet(2, 2, context=3), Affine())(torch.zeros(5, 2), torch.zeros(2)),
        "MaskedAutoregressive: expected context of shape (..., 3); got (2,)",
    ),
    "points of the base": (
        lambda: Gaussian(3).log_prob(torch.zeros(5, 4)),
        "Gaussian: expected points of shape (..., 3); got (5, 4)",
    ),
    "flow: points": (
        lambda: build("gaussian", 3).log_prob(torch.zeros(5, 4)),
        "Flow: expected points of shape (..., 3); got (5, 4)",
    ),
    "flow: context missing": (
        lambda: build("maf", 2, 3).log_prob(torch.zeros(5, 2)),
        "Flow: expected context of shape (..., 3); got none",
    ),
    "flow: context missing in sampling": (
        lambda: build("maf", 2, 3).sample(5),
        "Flow: expected context of shape (..., 3); got none",
    ),
    "flow: context not accepted": (
        lambda: build("maf", 2).log_prob(torch.zeros(5, 2), torch.zeros(5, 3)),
        "Flow: expected no context; got one of shape (5, 3)",
    ),
    "flow: context of the wrong size": (
        lambda: build("maf", 2, 3).log_prob(torch.zeros(5, 2), torch.zeros(5, 4)),
        "Flow: expected context of shape (..., 3); got (5, 4)",
    ),
    "flow: features differ": (
        lambda: Flow(Gaussian(2), LULinear(3)),
        "Flow: expected a bijection of 2 features; got 3",
    ),
    "flow: contexts differ": (
        lambda: Flow(Gaussian(2, 3), build("maf", 2, 4).bijection),
        "Flow: expected a bijection with 3 context features; got 4",
    ),
    "flow: not a bijection": (
        lambda: Flow(Gaussian(2), torch.nn.Linear(2, 2)),
        "expected a Bijection or an nflows Transform; got Linear",
    ),
    "chain: features unknown": (
        lambda: Chain([]),
        "Chain: expected features, because no member states them; got none",
    ),
    "chain: features differ": (
        lambda: Chain([LULinear(2), LULinear(3)]),
        "Chain: expected 2 features in member 1; got 3",
    ),
    "chain: contexts differ": (
        lambda: Chain([build("maf", 2, 4).bijection, build("maf", 2, 3).bijection]),
        "Chain: expected a context of 0 or 4 in member 1; got 3",
    ),
    "features": (lambda: LULinear(0), "LULinear: expected features of at least 1; got 0"),
    "preset: features": (lambda: build("realnvp", 0), "build: expected features of at least 1; got 0"),
    "permutation": (lambda: Permutation([0, 2]), "Permutation: expected an order of 0 .. 1; got [0, 2]"),
    "permutation of nothing": (lambda: Permutation([]), "Permutation: expected features of at least 1; got 0"),
    "standardize: scale": (
        lambda: Standardize([0.0, 1.0], [1.0, 0.0]),
        "Standardize: expected 2 positive scales; got [1.0, 0.0]",
    ),
    "standardize: scale not a number": (
        lambda: Standardize([0.0], [float("nan")]),
        "Standardize: expected 1 positive scales; got [nan]",
    ),
    "standardize: mean not a number": (
        lambda: Standardize([float("nan")], [1.0]),
        "Standardize: expected finite means; got [nan]",
    ),
    "affine": (lambda: Affine(log_scale_bound=0.0), "Affine: expected log_scale_bound above 0; got 0.0"),
    "spline: bins": (
        lambda: RationalQuadraticSpline(bins=1),
        "RationalQuadraticSpline: expected bins of 2 to 500; got 1",
    ),
    "spline: bound": (
        lambda: RationalQuadraticSpline(bound=-1.0),
        "RationalQuadraticSpline: expected bound above 0; got -1.0",
    ),
    "coupling: no transformed feature": (
        lambda: Coupling(ResidualNet(2, 2), Affine(), transformed=[False, False]),
        "Coupling: expected at least one transformed feature; got none",
    ),
    "coupling: conditioner": (
        lambda: Coupling(ResidualNet(1, 3), Affine(), transformed=[False, True]),
        "Coupling: expected a conditioner from 1 inputs to 1 x 2 outputs; got 1 to 3",
    ),
    "autoregressive: conditioner": (
        lambda: MaskedAutoregressive(MaskedResidualNet(2, 3), Affine()),
        "MaskedAutoregressive: expected a conditioner with 2 outputs a feature; got 3",
    ),
    "conditioner: width": (
        lambda: ResidualNet(1, 1, hidden=0),
        "ResidualNet: expected hidden of at least 1; got 0",
    ),
    "conditioner: dropout": (
        lambda: MaskedResidualNet(1, 1, dropout=1.0),
        "MaskedResidualNet: expected dropout in [0, 1); got 1.0",
    ),
    "conditioner: features": (
        lambda: MaskedResidualNet(0, 2),
        "MaskedResidualNet: expected features of at least 1; got 0",
    ),
    "base: covariance": (
        lambda: Gaussian(2, covariance="round"),  # type: ignore[arg-type]
        "Gaussian: expected covariance 'diagonal', 'low-rank' or 'full'; got 'round'",
    ),
    "base: features": (
        lambda: Gaussian(0),
        "Gaussian: expected features of at least 1 and context of at least 0; got 0, 0",
    ),
    "inverse": (
        lambda: Inverse(ActNorm(2))(torch.zeros(5, 3)),
        "ActNorm: expected points of shape (..., 2); got (5, 3)",
    ),
    "preset: unknown": (lambda: build("nsf_ar", 2), f"unknown flow 'nsf_ar'; did you mean 'nsf-ar'? known: {FLOWS}"),
    "preset: unknown, far off": (
        lambda: build("real", 2),
        f"unknown flow 'real'; did you mean 'realnvp'? known: {FLOWS}",
    ),
    "preset: layers": (lambda: build("maf", 2, layers=0), "build: expected layers of at least 1; got 0"),
    "preset: context": (
        lambda: build("maf", 2, -1),
        "build: expected context of at least 0; got -1",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_message(name: str) -> None:
    call, message = MESSAGES[name]
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert str(error.value) == message
