"""Bayesian networks by the name of their architecture."""

from typing import Any

import pytest

from pushforward.flows import build
from pushforward.flows.bayesian.density import BayesianNetwork
from pushforward.flows.bijections.linear import LowRankLinear


@pytest.mark.parametrize(("base", "is_coupled"), [("full", True), ("diagonal", False)])
def test_the_base_chooses_the_posterior(base: str, is_coupled: bool) -> None:
    network = build("bayesian-network", 2, 3, hidden=6, blocks=2, base=base).base
    assert isinstance(network, BayesianNetwork)
    assert (network.features, network.context, network.hidden) == (2, 3, [6, 6])
    assert any(isinstance(part, LowRankLinear) for part in network.posterior.modules()) == is_coupled
    assert network.log_prior_scales.requires_grad == (not is_coupled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "expected columns to condition on for bayesian-network; got none"),
        ({"context": 2, "base": "laplace"}, "expected base full or diagonal for bayesian-network, .* got laplace"),
    ],
)
def test_other_bases_and_a_missing_context_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("bayesian-network", 1, **options)
