"""Posteriors over weights against closed forms: posterior, evidence and predictions of linear models."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import Flow, build
from pushforward.flows.bayesian.density import build_bayesian_network
from pushforward.train.objectives.evidence import Evidence, log_likelihoods, network_of
from pushforward.train.objectives.likelihood import RowTensors
from pushforward.train.options import TrainOptions
from pushforward.train.state import start
from pushforward.train.trainer import Trainer
from tests.fixtures.bayesian import (
    curve,
    evidence_bound,
    exact_posterior,
    fit_evidence,
    in_units_of,
    linear_data,
    linear_model,
    row_tensors,
)
from tests.fixtures.callbacks import Functions

LINEAR: dict[str, Any] = {"steps": 600, "learning_rate": 3e-2, "kl_warmup": 0.0, "gradient": "path"}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["path", "path-wise"])
@pytest.mark.parametrize("posterior", ["full", "flow"])
def test_the_posterior_of_a_linear_model_is_exact(posterior: str, gradient: str) -> None:
    x, y = linear_data()
    rows = row_tensors(x, y)
    options: dict[str, Any] = LINEAR | {"gradient": gradient}
    flow = fit_evidence(linear_model(posterior, 100_000), rows, **options)
    mean, covariance, evidence = exact_posterior(x, y)
    sd = np.sqrt(np.diag(covariance))
    weights = network_of(flow).weights.double().numpy()
    np.testing.assert_allclose((weights.mean(0) - mean) / sd, 0.0, atol=0.08)
    np.testing.assert_allclose(np.cov(weights.T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.08)
    bound = evidence_bound(flow, rows)
    assert evidence - 0.02 < bound.value < evidence + 0.005 + 4 * bound.se


def test_the_mean_field_of_a_linear_model_has_its_mean_and_conditional_variances() -> None:
    x, y = linear_data()
    rows = row_tensors(x, y)
    flow = fit_evidence(linear_model("mean-field", 5_000), rows, **LINEAR)
    mean, covariance, evidence = exact_posterior(x, y)
    conditional = 1.0 / np.diag(np.linalg.inv(covariance))
    weights = network_of(flow).weights.double().numpy()
    np.testing.assert_allclose((weights.mean(0) - mean) / np.sqrt(np.diag(covariance)), 0.0, atol=0.1)
    np.testing.assert_allclose(weights.var(0) / conditional, 1.0, atol=0.1)
    # The gap of a factorised posterior is known: the KL divergence of a Gaussian from its product of conditionals.
    gap = 0.5 * (np.linalg.slogdet(covariance)[1] - np.log(conditional).sum())
    bound = evidence_bound(flow, rows)
    assert gap > 0.3
    assert abs(evidence - bound.value - gap) < 0.02 + 4 * bound.se


@pytest.mark.parametrize("gradient", ["path", "path-wise"])
def test_the_path_gradient_has_no_noise_where_the_posterior_is_exact(gradient: Any) -> None:
    x, y = linear_data()
    rows = RowTensors(torch.from_numpy(y)[:, None], torch.from_numpy(x))
    flow = linear_model("full", 1).double()
    posterior: Any = network_of(flow).posterior
    mean, covariance, _ = exact_posterior(x, y)
    posterior.base.initialize(torch.from_numpy(mean), torch.from_numpy(covariance))
    objective = Evidence(rows, rows, len(rows), gradient=gradient)
    torch.manual_seed(0)
    objective.loss(flow, objective.draw(1.0))[0].backward()
    largest = max(float(p.grad.abs().max()) for p in posterior.parameters() if p.grad is not None)
    assert largest < 1e-6 if gradient == "path" else largest > 1e-3


def test_the_likelihood_given_weights_is_in_the_units_of_the_rows() -> None:
    x, y = curve(20)
    rows = row_tensors(x, y)
    torch.manual_seed(0)
    flow = in_units_of(x, y, build_bayesian_network(1, 1, hidden=(4,), samples=8))
    network_of(flow).draw_weights()
    with torch.no_grad():
        terms = log_likelihoods(flow, rows.x, rows.context, network_of(flow).weights)
        assert_close(terms.logsumexp(0) - math.log(8), flow.log_prob(rows.x, rows.context))


def test_later_weights_are_kept_within_the_standard_error_of_the_validation() -> None:
    rows, one = row_tensors(*curve(10)), row_tensors(*curve(1))
    flow = learned_curve(steps=1)
    found = Evidence(rows, rows, 5).validate(flow)
    assert found.tolerance == found.metrics["val/nll_se"] > 0.0
    assert Evidence(rows, one, 5).validate(flow).tolerance == 0.0


def test_an_irrelevant_input_gets_a_small_prior_scale() -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(200, 2))
    y = x[:, 0] + 0.05 * random.normal(size=200)
    torch.manual_seed(0)
    network = build_bayesian_network(1, 2, "mean-field", hidden=(8,), prior="inputs", prior_scale=1.0, samples=10)
    fit_evidence(in_units_of(x, y, network), row_tensors(x, y), steps=400)
    scales = network.log_prior_scales.exp()
    assert scales[1] < 0.3 * scales[0]


def learned_curve(seed: int = 0, batch_size: int = 20, steps: int = 60) -> Flow:
    """A short fit of a curve in the units of the data."""
    x, y = curve()
    torch.manual_seed(seed)
    network = build_bayesian_network(1, 1, hidden=(10,), samples=60)
    rows = row_tensors(x, y)
    return fit_evidence(in_units_of(x, y, network), rows, steps=steps, batch_size=batch_size, seed=seed, samples=4)


def test_the_seed_decides_everything_and_the_global_random_state_is_unchanged() -> None:
    x, y = curve()
    rows = row_tensors(x, y)
    found = []
    for seed in (4, 4, 5):
        flow = learned_curve(seed)
        torch.manual_seed(99)
        with torch.no_grad():
            found.append(flow.log_prob(rows.x, rows.context))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    flow = learned_curve(4, steps=1)
    objective = Evidence(rows, rows, 20)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    objective.validate(flow)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_density_that_was_validated_is_kept() -> None:
    x, y = curve()
    rows = row_tensors(x, y)
    torch.manual_seed(0)
    flow = in_units_of(x, y, build_bayesian_network(1, 1, hidden=(10,), samples=60))
    options = TrainOptions(steps=80, learning_rate=1e-2, validate_every=20)
    losses: dict[int, float] = {}

    def log(kind: str, step: int, seconds: float, metrics: dict[str, float]) -> None:
        if kind == "validation":
            losses[step] = metrics["val/nll"]

    state = Trainer(options, callbacks=[Functions(log=log)]).run(start(flow, options), Evidence(rows, rows, 60))
    with torch.no_grad():
        nll = -float(flow.log_prob(rows.x, rows.context).double().mean())
    assert list(losses) == [0, 20, 40, 60, 80]
    assert nll == pytest.approx(losses[state.progress.best_step], abs=1e-6)
    weights = network_of(flow).weights.clone()
    network_of(flow).draw_weights(0)
    assert torch.equal(network_of(flow).weights, weights)


def test_a_network_with_two_hidden_layers_learns_a_curve_and_its_noise() -> None:
    x, y = curve(200)
    rows = row_tensors(x, y)
    torch.manual_seed(0)
    network = build_bayesian_network(1, 1, hidden=(20, 20), noise="heteroscedastic", samples=60)
    flow = fit_evidence(in_units_of(x, y, network), rows, steps=300, batch_size=64, samples=4)
    gaussian = -0.5 * math.log(2 * math.pi * y.var()) - 0.5
    with torch.no_grad():
        assert float(flow.log_prob(rows.x, rows.context).mean()) > gaussian + 0.5


def test_rows_with_weights_count_as_repeated_rows() -> None:
    x, y = curve(6)
    repeats = np.array([1, 3, 2, 1, 1, 4])
    plain = row_tensors(np.repeat(x, repeats, axis=0), np.repeat(y, repeats))
    few = row_tensors(x, y)
    weighted = RowTensors(few.x, few.context, weights=torch.from_numpy(repeats).float())
    torch.manual_seed(0)
    flow = in_units_of(x, y, build_bayesian_network(1, 1, hidden=(4,), samples=8)).double()
    expected = []
    for rows in (plain, weighted):
        objective = Evidence(rows, rows, 100)
        torch.manual_seed(1)
        loss, numbers = objective.loss(flow, objective.draw(1.0))
        nll, divergence, share = numbers.tolist()
        expected.append((nll, divergence * len(rows), objective.validate(flow).loss))
        assert float(loss.detach()) == pytest.approx(nll + divergence, rel=1e-6)
        assert share == 1.0
    assert expected[0] == pytest.approx(expected[1], rel=1e-6)


def test_the_divergence_is_warmed_up_and_logged() -> None:
    rows = row_tensors(*curve(10))
    objective = Evidence(rows, rows, 5, kl_warmup=0.4)
    assert [objective.draw(spent)[1] for spent in (0.0, 0.1, 0.4, 0.9)] == [0.0, 0.25, 1.0, 1.0]
    assert Evidence(rows, rows, 5, kl_warmup=0.0).draw(0.0)[1] == 1.0
    flow = learned_curve(steps=1)
    loss, numbers = objective.loss(flow, (objective.draw(0.0)[0], 0.25))
    metrics = objective.metrics(numbers.tolist())
    assert float(loss.detach()) == pytest.approx(metrics["train/nll"] + 0.25 * metrics["train/kl"], rel=1e-5)
    assert metrics["train/kl_weight"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "expected samples of at least 1; got 0"),
        ({"kl_warmup": 1.0}, "expected kl_warmup of at least 0 and below 1; got 1.0"),
        ({"gradient": "score-function"}, "expected gradient 'path' or 'path-wise'; got 'score-function'"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    rows = row_tensors(*curve(10))
    with pytest.raises(ValueError, match=f"Evidence: {message}"):
        Evidence(rows, rows, 5, **options)


def test_other_models_and_no_rows_are_refused() -> None:
    x, y = curve(10)
    rows, none = row_tensors(x, y), row_tensors(x[:0], y[:0])
    with pytest.raises(ValueError, match="expected training and validation rows; got 10 and 0"):
        Evidence(rows, none, 5)
    with pytest.raises(TypeError, match="expected a flow whose base is a BayesianNetwork; got a base Gaussian"):
        Evidence(rows, rows, 5).validate(build("gaussian", 1, 1))
    with pytest.raises(TypeError, match="got Linear"):
        network_of(torch.nn.Linear(1, 1))
