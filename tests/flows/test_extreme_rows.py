"""Rows of any finite size have a finite log-density, or one of minus infinity."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pushforward.flows import NAMED, NAMES, Mixture, build
from tests.fixtures.bijections import engine as engine, in_both_engines

Perturb = Callable[[nn.Module], nn.Module]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned tails": {"tails": "learned", "linear": "around", "elementwise": True},
    "transformer": {"conditioner": "transformer"},
}

PRESETS = [(name, "plain") for name in NAMES] + [
    *((name, "learned tails") for name in ("realnvp", "nsf-c", "nsf-ar")),
    *((name, "transformer") for name in ("maf", "nsf-ar", "made-mog")),
]


@in_both_engines
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), PRESETS)
def test_no_row_is_undefined(name: str, options: str, dtype: torch.dtype, perturb: Perturb) -> None:
    largest = torch.finfo(dtype).max
    sizes = torch.tensor([largest**share for share in (0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95, 1.0)], dtype=dtype)
    signs = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 1.0, 1e-9]], dtype=dtype)
    rows = (sizes[:, None, None] * signs).reshape(-1, 3)
    every = name == "gaussian" or (name == "nsf-c" and options == "plain")
    for base in (*NAMED, "made-mog") if every else ("diagonal", "full"):
        flow = build(name, 3, layers=2, hidden=8, blocks=1, bins=4, base=base, **OPTIONS[options]).to(dtype).eval()
        perturb(flow)
        with torch.no_grad():
            log_prob = flow.log_prob(rows)
            assert bool((log_prob < 0).all()), base  # NaN compares as false
            assert_close(Mixture([flow, flow]).log_prob(rows), log_prob)


def test_a_row_that_is_not_a_number_stays_one(perturb: Perturb) -> None:
    flow = perturb(build("nsf-ar", 3, layers=2, hidden=8)).eval()
    rows = torch.randn(4, 3)
    rows[2, 1] = float("nan")
    with torch.no_grad():
        assert flow.log_prob(rows).isnan().tolist() == [False, False, True, False]  # type: ignore[operator]


@in_both_engines
def test_ordinary_rows_are_the_same_with_and_without_gradients(perturb: Perturb) -> None:
    flow: Any = perturb(build("nsf-c", 3, layers=2, hidden=8)).double().eval()
    rows = 10.0 ** torch.arange(0.0, 100.0, 10.0, dtype=torch.float64)[:, None] * torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        found = flow.log_prob(rows)
    assert_close(found, flow.log_prob(rows).detach(), rtol=0, atol=0)
