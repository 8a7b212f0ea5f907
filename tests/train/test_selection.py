"""The meaning of ``auto``: candidates, members, defaults; the loss of a mixture; keys without effect."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pushforward.config.read import load_config
from pushforward.flows import (
    AutoregressiveMixture,
    Mixture,
    build,
    build_mixture,
    members_of,
    save,
)
from pushforward.train.architecture import build_model, describe, uses_key
from pushforward.train.defaults import candidates, is_open, members_for, resolve
from pushforward.train.objectives.likelihood import Batch, Likelihood, RowTensors
from pushforward.train.options import FlowOptions

ABOUT: dict[str, Any] = {"features": 3, "is_toy": False}


def asked(*overrides: str) -> dict[str, Any]:
    return load_config("some.csv", overrides=overrides).model_dump()


@pytest.mark.parametrize("rows", [100, 3_000, 50_000])
def test_auto_has_mixtures_on_tables(rows: int) -> None:
    flow = resolve(asked(), rows=rows, **ABOUT).flow
    assert "made-mog" in (flow.name, flow.base)
    assert "auto" not in vars(flow).values()
    assert flow.stacking is (rows < 6_000)
    assert (flow.members > 1) is (rows < 6_000)
    model = build_model(flow, 3, 2, seed=0)
    assert isinstance(model, Mixture) is (flow.members > 1)
    assert all(isinstance(member.base, AutoregressiveMixture) for member in members_of(model))
    # Width and dropout are those of a single mixture network.
    assert flow.hidden in (128, 256)
    assert (flow.dropout == 0.0) is (rows == 50_000)


@pytest.mark.parametrize(
    "keys",
    [
        ("flow=nsf-ar",),
        ("flow=made-mog",),
        ("flow.layers=2",),
        ("flow.bins=4",),
        ("flow.tails=learned",),
        ("flow.elementwise=true",),
        ("flow.base=student-t",),
        ("train.objective=energy",),
        ("train.objective=mle+energy",),
    ],
)
def test_a_chosen_flow_is_a_single_one(keys: tuple[str, ...]) -> None:
    chosen = asked(*keys)
    flow = resolve(chosen, rows=300, **ABOUT).flow
    assert flow.name == ("made-mog" if keys == ("flow=made-mog",) else "nsf-ar")
    assert flow.base != "made-mog"
    assert (flow.members, flow.stacking) == (1, False)
    assert not is_open(chosen, is_toy=False)


def test_toys_have_a_single_flow() -> None:
    flow = resolve(asked(), rows=20_000, features=2, is_toy=True).flow
    assert (flow.name, flow.members, flow.stacking) == ("nsf-ar", 1, False)
    assert not is_open(asked(), is_toy=True)


def test_given_keys_are_kept() -> None:
    keys = ("flow.members=3", "flow.stacking=false", "flow.hidden=17", "flow.dropout=0.05", "flow.components=7")
    given = asked(*keys)
    for resolved in (resolve(given, rows=300, **ABOUT), *candidates(given, 8, rows=300, features=3)):
        flow = resolved.flow
        assert (flow.members, flow.stacking, flow.hidden, flow.dropout, flow.components) == (3, False, 17, 0.05, 7)
    named = resolve(asked("flow=nsf-ar", "flow.members=4", "flow.stacking=true"), rows=300, **ABOUT).flow
    assert (named.name, named.members, named.stacking) == ("nsf-ar", 4, True)
    for seconds in (None, 7.0):
        given = asked(*(() if seconds is None else (f"train.seconds={seconds}",)))
        assert all(c.train.seconds == (seconds or 15.1125) for c in candidates(given, 2, rows=300, features=3))


def test_every_budget_selects_a_model() -> None:
    assert is_open(asked(), is_toy=False)
    assert is_open(asked("train.seconds=9", "flow.base=full", "flow.members=2", "flow.hidden=64"), is_toy=False)
    assert is_open(asked("train.steps=100"), is_toy=False)
    assert is_open(asked("train.steps=100", "train.seconds=9"), is_toy=False)


@pytest.mark.parametrize(
    ("rows", "features", "decay"),
    [
        (78, 16, 1.0),
        (1_294, 61, 0.9),
        (1_300, 11, 0.2),
        (4_700, 14, 0.1),
        (36_584, 9, 0.1),
        (400_000, 8, 0.01),
        (4_000, 400, 1.0),
    ],
)
def test_weight_decay_follows_rows_and_columns(rows: int, features: int, decay: float) -> None:
    for keys in ((), ("flow=nsf-ar",), ("flow=made-mog",)):
        assert resolve(asked(*keys), rows=rows, features=features, is_toy=False).train.weight_decay == decay
    assert resolve(asked(), rows=rows, features=features, is_toy=True).train.weight_decay == 0.0
    given = resolve(asked("train.weight_decay=0.5"), rows=rows, features=features, is_toy=False)
    assert given.train.weight_decay == 0.5


def test_the_number_of_members_follows_the_time() -> None:
    for rows in (100, 3_000, 10_000, 1_000_000):
        counts = [members_for(rows, step, 60.0) for step in (1e-6, 1e-3, 0.01, 0.1, 10.0)]
        assert counts == sorted(counts, reverse=True)
        assert (counts[0], counts[-1]) == (16, 1)
        # Ten times the time gives ten times the members, at least 1 and at most 16.
        least = 1 if counts[2] == 1 else 10 * counts[2]
        assert members_for(rows, 0.01, 600.0) in (16, *range(least, 10 * counts[2] + 10))
    # One more member for every 800 steps, for a table of 3,000 rows.
    assert [members_for(3_000, 0.01, seconds) for seconds in (7.9, 16.1, 24.1, 127.9, 500.0)] == [1, 2, 3, 15, 16]
    assert members_for(100, 0.01, 60.0) >= members_for(10_000, 0.01, 60.0) >= members_for(1_000_000, 0.01, 60.0)


@pytest.mark.parametrize(("rows", "features"), [(300, 3), (3_000, 3), (50_000, 3), (3_000, 60)])
def test_candidates_are_different_and_resolved(rows: int, features: int) -> None:
    found = candidates(asked(), 4, rows=rows, features=features)
    kinds = [(c.flow.name, c.flow.base, c.flow.conditioner) for c in found]
    assert len(set(kinds)) == len(kinds) >= 2
    assert ("transformer" in {c.flow.conditioner for c in found}) is (features == 60)
    for options in found:
        assert "auto" not in vars(options.flow).values()
        assert options.flow.stacking is (rows < 6_000)
    assert found[0].flow.members == 4
    # A budget in steps gets the first candidate.
    first = resolve(asked(f"flow.members={found[0].flow.members}"), rows=rows, features=features, is_toy=False).flow
    assert first == found[0].flow


def test_descriptions_of_flows() -> None:
    assert describe(FlowOptions(name="maf")) == "maf"
    assert describe(FlowOptions(name="made-mog", members=8)) == "made-mog x 8"
    assert describe(FlowOptions(name="nsf-ar", base="made-mog", members=2)) == "nsf-ar + made-mog x 2"


def test_the_seed_decides_all_members() -> None:
    flow = FlowOptions(name="maf", members=2, layers=1, hidden=4, stacking=True)
    flows = [build_model(flow, 3, seed=seed).state_dict() for seed in (5, 5, 6)]
    names = [name for name in flows[0] if name.endswith("weight")]
    assert all(torch.equal(flows[0][name], flows[1][name]) for name in names)
    assert not all(torch.equal(flows[0][name], flows[2][name]) for name in names)


def test_the_loss_of_a_mixture_is_that_of_its_members() -> None:
    """The mean is logged; the gradient is scaled to the norm of one member's."""
    x = torch.randn(64, 3)
    mixture = Mixture([build("maf", 3, layers=1, hidden=4) for _ in range(4)])
    mixture.log_prob(x)  # sets ActNorm
    with torch.no_grad():
        for m, member in enumerate(mixture.members):
            next(member.base.parameters()).add_(0.3 * m)
    likelihood = Likelihood(RowTensors(x), RowTensors(x), 64)
    loss, numbers = likelihood.loss(mixture, Batch(x))
    loss.backward()
    each = [-member.log_prob(x).mean() for member in mixture.members]
    assert float(numbers.sum()) == pytest.approx(float(torch.stack(each).detach().mean()), rel=1e-5)
    for member, alone in zip(mixture.members, each, strict=True):
        exact = torch.autograd.grad(alone, list(member.parameters()), allow_unused=True)
        for parameter, gradient in zip(member.parameters(), exact, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None and parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, gradient / 2.0, rtol=1e-4, atol=1e-6)
    found = likelihood.validate(mixture)
    assert found.loss == pytest.approx(-float(mixture.eval().log_prob(x).detach().mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        *itertools.product(["realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "gaussian"], ["diagonal", "made-mog"]),
        ("made-mog", "diagonal"),
    ],
)
def test_keys_without_effect_are_those_that_change_nothing(name: str, base: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"layers": 2, "hidden": 8, "blocks": 1, "bins": 4, "bound": 3.0, "tails": "linear"}
    common |= {"linear": "between", "dropout": 0.0, "conditioner": "residual", "components": 3}
    other: dict[str, Any] = {
        "layers": 3,
        "hidden": 12,
        "blocks": 2,
        "bins": 5,
        "bound": 4.0,
        "tails": "learned",
        "linear": "around",
    }
    other |= {"dropout": 0.5, "conditioner": "transformer", "components": 4}

    def made(**changed: Any) -> str:
        torch.manual_seed(0)
        save(build(name, 3, base=base, **(common | changed)), tmp_path)
        return (tmp_path / "config.json").read_text()  # with the checksum of the weights

    idle = {key for key in common if made(**{key: other[key]}) == made()}
    flow = FlowOptions(name=name, base=base, **common)
    assert {key for key in common if not uses_key(replace(flow, **{key: other[key]}), key)} == idle


@pytest.mark.parametrize("base", ["diagonal", "full", "low-rank", "student-t", "laplace", "mixture", "made-mog"])
@pytest.mark.parametrize("name", ["gaussian", "maf"])
def test_members_are_idle_if_they_are_equal(name: str, base: str) -> None:
    mixture = build_mixture(name, 3, members=2, base=base, layers=1, hidden=8, components=3)
    # The order of the columns does not change a Gaussian.
    first, second = (torch.nn.utils.parameters_to_vector(member.parameters()) for member in mixture.members)
    assert uses_key(FlowOptions(name=name, base=base, members=2), "members") != torch.equal(first, second)
    assert uses_key(FlowOptions(name=name, base=base), "members")
