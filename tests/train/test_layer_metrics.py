"""Metrics of single layers add up to those of the flow."""

from collections.abc import Callable

import pytest
import torch

from pushforward.flows import NAMES, Flow, Standardize, build
from pushforward.train.layer_metrics import gradient_norms, log_det_terms, named_layers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("context", [0, 2])
def test_terms_add_up_to_the_log_determinant(name: str, context: int, perturb: Callable[[Flow], Flow]) -> None:
    flow = perturb(build(name, 3, context, hidden=8)).double()
    x = torch.randn(40, 3, dtype=torch.float64)
    given = torch.randn(40, context, dtype=torch.float64) if context else None
    terms = log_det_terms(flow, x, given)
    expected = flow.log_prob_terms(x, given)[1].mean()
    torch.testing.assert_close(torch.stack([torch.zeros((), dtype=x.dtype), *terms.values()]).sum(), expected)
    assert not any("permutation" in layer for layer in terms)


def test_terms_use_the_embedded_context(perturb: Callable[[Flow], Flow]) -> None:
    core = perturb(build("maf", 2, 1, hidden=8))
    flow = Flow(core.base, core.bijection, embedding=Standardize([5.0], [3.0])).double()
    x, given = torch.randn(30, 2, dtype=torch.float64), 5 + 3 * torch.randn(30, 1, dtype=torch.float64)
    total = torch.stack(list(log_det_terms(flow, x, given).values())).sum()
    torch.testing.assert_close(total, flow.log_prob_terms(x, given)[1].mean())


@pytest.mark.parametrize("name", NAMES)
def test_norms_add_up_to_the_norm_of_the_gradient(name: str, perturb: Callable[[Flow], Flow]) -> None:
    flow = perturb(build(name, 3, hidden=8))
    (-flow.log_prob(torch.randn(64, 3)).mean()).backward()
    norms = gradient_norms(named_layers(flow))
    expected = torch.stack([p.grad.norm() for p in flow.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(torch.stack(list(norms.values())).norm(), expected)
    assert "base" in norms


def test_layers_are_named_in_order() -> None:
    assert list(named_layers(build("nsf-ar", 2, layers=2)))[:3] == [
        "00-masked-autoregressive",
        "01-permutation",
        "02-lu-linear",
    ]
