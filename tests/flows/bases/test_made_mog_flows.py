"""Flows whose base is an autoregressive mixture."""

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import (
    AutoregressiveMixture,
    Flow,
    build,
    load_model,
    save,
)
from pushforward.flows.bases.made_mog import MixtureConditional
from pushforward.flows.kernels import native
from tests.fixtures.autoregressive_mixtures import (
    Engine,
    Perturb,
    both_engines,
    flow_on_mixture,
    using,
    with_and_without_context,
)
from tests.fixtures.integrals import AREA, GRID
from tests.fixtures.path_gradients import path_gradients_agree

F64 = torch.float64


@pytest.mark.parametrize("name", ["made-mog", "nsf-ar"])
@pytest.mark.parametrize("conditioner", ["residual", "transformer"])
@with_and_without_context
def test_a_saved_flow_is_loaded_unchanged(
    context: int, conditioner: Literal["residual", "transformer"], name: str, tmp_path: Path, perturb: Perturb
) -> None:
    base = "full" if name == "made-mog" else "made-mog"
    sizes: dict[str, Any] = {"layers": 1, "hidden": 8, "blocks": 1, "components": 3, "base": base}
    flow = build(name, 3, context, conditioner=conditioner, **sizes).eval()
    perturb(flow)
    assert isinstance(flow.base, AutoregressiveMixture)
    flow.base.conditional = MixtureConditional(3, 0.125)
    save(flow, tmp_path)
    twin = load_model(tmp_path, Flow)
    x, given = torch.randn(8, 3), torch.randn(8, context) if context else None
    assert_close(twin(x, given), flow(x, given), rtol=0, atol=0)
    assert_close(twin.state_dict(), flow.state_dict(), rtol=0, atol=0)
    assert isinstance(twin.base, AutoregressiveMixture)
    assert twin.base.conditional == flow.base.conditional
    assert type(twin.base.conditioner) is type(flow.base.conditioner)
    assert_close(copy.deepcopy(flow)(x, given), flow(x, given), rtol=0, atol=0)


def test_options_reach_the_base() -> None:
    flow = build("made-mog", 4, 2, hidden=7, blocks=3, components=6, dropout=0.25, base="full")
    base = flow.base
    assert isinstance(base, AutoregressiveMixture)
    assert base.conditional == MixtureConditional(6)
    assert base.frame.config() == {"features": 4, "context": 2, "covariance": "full", "trainable": True}
    sizes = {"features": 4, "outputs_per_feature": 18, "context": 2, "hidden": 7, "blocks": 3, "dropout": 0.25}
    assert base.conditioner.config() == sizes
    with pytest.raises(ValueError, match=r"expected base full or diagonal for made-mog.*; got student-t$"):
        build("made-mog", 4, base="student-t")
    with pytest.raises(ValueError, match=r"^build: expected components of at least 1; got 0$"):
        build("made-mog", 4, components=0)
    with pytest.raises(
        ValueError, match=r"^unknown base 'made-mgo'; did you mean 'made-mog'\? known: diagonal, .*mog$"
    ):
        build("maf", 4, base="made-mgo")
    with pytest.raises(ValueError, match=r"^unknown conditioner 'transform'; did you mean 'transformer'\?"):
        build("made-mog", 4, conditioner="transform")


def test_the_density_of_a_flow_integrates_to_one(perturb: Perturb) -> None:
    flow = flow_on_mixture("nsf-ar", 2, perturb)
    with torch.no_grad():
        assert float((flow.log_prob(GRID).exp() * AREA).sum()) == pytest.approx(1.0, abs=4e-3)


@both_engines
@pytest.mark.parametrize("name", ["made-mog", "nsf-ar", "nsf-c"])
def test_path_gradients_agree_with_their_definition(name: str, engine: Engine, perturb: Perturb) -> None:
    with using(engine):
        path_gradients_agree(flow_on_mixture(name, 3, perturb))


def test_score_function_is_the_gradient_of_the_log_density(perturb: Perturb) -> None:
    flow = flow_on_mixture("nsf-ar", 3, perturb, 2)
    x, given = torch.randn(5, 3, dtype=F64), torch.randn(5, 2, dtype=F64)
    with native.disabled():
        exact = torch.func.vmap(torch.func.grad(flow.log_prob))(x, given)
    assert_close(flow.score_function(x, given), exact)


@pytest.mark.parametrize("path", [True, False])
def test_log_densities_of_samples_are_without_dropout(path: bool, perturb: Perturb) -> None:
    """Samples are drawn without dropout, so their log-densities must be too, also in training mode."""
    for name in ("made-mog", "nsf-ar"):
        flow = flow_on_mixture(name, 3, perturb, dropout=0.5).train()
        x, log_prob = flow.rsample_and_log_prob(20, path=path)
        assert not torch.allclose(flow.log_prob(x), flow.log_prob(x))  # dropout is on again
        assert all(module.training for module in flow.modules())
        assert_close(log_prob.detach(), flow.eval().log_prob(x).detach())


def test_likelihood_learns_what_a_gaussian_cannot() -> None:
    """A cross: the second conditional has two modes, whose locations depend on the first feature."""
    x = torch.randn(512, 2)
    x[:, 1] = torch.randint(2, (512,)).sub(0.5).sign() * x[:, 0] + 0.1 * x[:, 1]
    flow = build("made-mog", 2, hidden=32, blocks=1, components=5)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    before = -flow.log_prob(x).mean()
    for _ in range(80):
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(p.grad is not None for p in flow.parameters())
    assert (before + flow.log_prob(x).mean()).item() > 0.5
