"""Objectives that are added: what they say of themselves decides, and not their names."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pushforward
from pushforward.common.errors import ConfigError
from pushforward.flows import Bijection, Build, register_flow
from pushforward.flows.registries import FLOWS
from pushforward.train import Likelihood, register_objective
from pushforward.train.objectives.bound import EvidenceBound, ImportanceWeightedBound
from pushforward.train.objectives.energy import Energy
from pushforward.train.objectives.registry import OBJECTIVES
from pushforward.train.objectives.target import ForwardKl, ReverseKl

ROWS = np.random.default_rng(0).normal(size=(300, 2))
QUICK: dict[str, Any] = {"layers": 1, "hidden": 8, "steps": 4, "progress": False}


class Samples(Energy):
    """An objective that needs no density."""


class Rows(Likelihood):
    """Maximum likelihood by another name."""


class Own(Likelihood):
    """An objective of one architecture."""

    uses = ("alpha",)
    only_own_flows = True


def own_layers(build: Build, index: int) -> list[Bijection]:
    """Couplings that only one objective fits."""
    return build.coupling(build.map("affine"), index)


ADDED: dict[str, type[Any]] = {
    "rows/test-samples": Samples,
    "rows/test-rows": Rows,
    "rows/test-own": Own,
    "target/test-reverse": type("Reverse", (ReverseKl,), {"__doc__": "Another name."}),
    "target/test-forward": type("Forward", (ForwardKl,), {"__doc__": "Another name."}),
    "autoencoder/test-elbo": type("Elbo", (EvidenceBound,), {"__doc__": "Another name."}),
    "autoencoder/test-iwae": type("Iwae", (ImportanceWeightedBound,), {"__doc__": "Another name."}),
}


@pytest.fixture(autouse=True, scope="module")
def _added() -> Iterator[None]:
    """Add these objectives and a flow for the tests of this file only: messages list what is known."""
    for path, kind in ADDED.items():
        problem, _, name = path.partition("/")
        register_objective(name, problem=problem)(kind)
    register_flow("test-own-flow", uses=("hidden", "blocks"), objective="test-own")(own_layers)
    yield
    for path in ADDED:
        OBJECTIVES.remove(path)
    FLOWS.remove("test-own-flow")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weight": np.ones(300)}, "train.objective: test-samples does not know weights of rows; "),
        ({"members": 2}, "flow.members: test-samples fits a single flow; got 2"),
        ({"stacking": True}, "flow.stacking: weights by likelihood, which train.objective=test-samples leaves aside"),
        ({"batch_size": 1}, "train.batch_size: expected at least 2 for train.objective=test-samples; got 1"),
        ({"alpha": 1.0}, "train.alpha: has no effect with train.objective=test-samples; "),
    ],
)
def test_an_objective_says_what_it_takes(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        pushforward.fit(ROWS, flow="maf", objective="test-samples", **QUICK | keys)
    assert str(refused.value).startswith(message)
    if "alpha" not in keys:
        pushforward.fit(ROWS, flow="maf", objective="test-rows", **QUICK | keys)


def test_the_likelihood_decides_only_where_it_is_the_objective() -> None:
    """These rows are Gaussian, so that a fit by likelihood ends with a Gaussian."""
    names = [
        pushforward.fit(ROWS, flow="maf", objective=name, **QUICK).results["flow"]
        for name in ("test-rows", "test-samples")
    ]
    assert names == ["gaussian", "maf"]


def test_an_architecture_with_an_objective_of_its_own() -> None:
    density = pushforward.fit(ROWS, flow="test-own-flow", alpha=3.0, **QUICK)  # alpha is a key of its objective alone
    assert density.results["test_nll"] < 4
    with pytest.raises(ConfigError, match="flow=test-own-flow is fitted by test-own, and by nothing else; got mle"):
        pushforward.fit(ROWS, flow="test-own-flow", objective="mle", **QUICK)
    with pytest.raises(ConfigError, match="test-own fits flow=test-own-flow, and nothing else; got flow=maf"):
        pushforward.fit(ROWS, flow="maf", objective="test-own", **QUICK)
    with pytest.raises(ConfigError, match="evidence fits flow=bayesian-network, and nothing else; got flow=maf"):
        pushforward.fit(ROWS, flow="maf", objective="evidence", **QUICK)


@pytest.mark.parametrize(
    ("data", "name", "other"),
    [
        ("target:banana", "reverse-kl", "test-reverse"),
        ("target:banana", "forward-kl", "test-forward"),
        (ROWS, "elbo", "test-elbo"),
        (ROWS, "iwae", "test-iwae"),
    ],
)
def test_a_subclass_of_a_built_in_objective_fits_the_same(data: Any, name: str, other: str) -> None:
    keys = QUICK if isinstance(data, str) else {"hidden": 8, "steps": 4, "progress": False}
    states = [pushforward.fit(data, objective=each, **keys).model.state_dict() for each in (name, other)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])


def test_what_is_no_objective_is_refused_when_it_is_added() -> None:
    before = OBJECTIVES.names()
    with pytest.raises(
        ValueError, match=r"^register_objective: test-none: expected a subclass of train\.objectives\.base"
    ):
        register_objective("test-none")(dict)  # type: ignore[arg-type]
    assert OBJECTIVES.names() == before
