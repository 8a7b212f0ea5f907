"""Bayesian networks against closed forms: posterior and evidence of linear models, densities that integrate to one."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from pushforward.flows import Chain, Flow, Gaussian
from pushforward.flows.bayesian.network import WeightedNetwork
from pushforward.flows.bayesian.posterior import Gradient, coupled, mean_field
from pushforward.train.bayesian_regression import Array, BayesianRegression

NOISE, PRIOR_SCALE = 0.7, 1.5
LINEAR: dict[str, Any] = {
    "hidden": (),
    "noise": NOISE,
    "prior": "fixed",
    "prior_scale": PRIOR_SCALE,
    "steps": 600,
    "learning_rate": 3e-2,
    "kl_warmup": 0.0,
    "samples": 8,
    "gradient": "path",
}


def linear_data() -> tuple[Array, Array]:
    """Correlated inputs, so that the posterior is correlated too."""
    random = np.random.default_rng(3)
    x = random.normal(size=(30, 2)) @ np.array([[1.0, 0.8], [0.0, 0.5]]) + 4.0
    return x, 3.0 * x[:, 0] - 2.0 * x[:, 1] + NOISE * random.normal(size=30) - 10.0


def exact(x: Array, y: Array) -> tuple[Array, Array, float]:
    """Mean and covariance of the weights given the data, and the log-evidence in data units."""
    z = (x - x.mean(0)) / x.std(0)
    design = np.column_stack([z / math.sqrt(x.shape[1]), np.ones(len(x))])
    targets, noise = (y - y.mean()) / y.std(), NOISE / y.std()
    precision = design.T @ design / noise**2 + np.eye(3) / PRIOR_SCALE**2
    covariance = np.linalg.inv(precision)
    of_targets = design @ design.T * PRIOR_SCALE**2 + noise**2 * np.eye(len(x))
    evidence = (
        -0.5 * targets @ np.linalg.solve(of_targets, targets) - 0.5 * np.linalg.slogdet(2 * np.pi * of_targets)[1]
    )
    return covariance @ design.T @ targets / noise**2, covariance, float(evidence) - len(x) * math.log(y.std())


def full(size: int) -> Flow:
    flow = Flow(Gaussian(size, covariance="full"), Chain([], features=size))
    flow.base.initialize(torch.zeros(size), 0.04 * torch.eye(size))
    return flow


@pytest.mark.parametrize("posterior", [full, "flow"], ids=["full covariance", "flow"])
def test_the_posterior_of_a_linear_model_is_exact(posterior: Any) -> None:
    x, y = linear_data()
    model = BayesianRegression(posterior, **LINEAR, predictive_samples=100_000).fit(x, y)
    mean, covariance, evidence = exact(x, y)
    sd = np.sqrt(np.diag(covariance))
    weights = model.weights_.double().numpy()
    np.testing.assert_allclose((weights.mean(0) - mean) / sd, 0.0, atol=0.05)
    np.testing.assert_allclose(np.cov(weights.T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.06)
    bound = model.evidence_bound(x, y)
    assert evidence - 0.02 < bound.value < evidence + 0.005 + 4 * bound.se


def test_the_mean_field_of_a_linear_model_has_its_mean_and_conditional_variances() -> None:
    x, y = linear_data()
    model = BayesianRegression("mean-field", **LINEAR, predictive_samples=50_000).fit(x, y)
    mean, covariance, evidence = exact(x, y)
    conditional = 1.0 / np.diag(np.linalg.inv(covariance))
    weights = model.weights_.double().numpy()
    np.testing.assert_allclose((weights.mean(0) - mean) / np.sqrt(np.diag(covariance)), 0.0, atol=0.1)
    np.testing.assert_allclose(weights.var(0) / conditional, 1.0, atol=0.06)
    # The gap of a factorised posterior is known: the KL divergence of a Gaussian from its product of conditionals.
    gap = 0.5 * (np.linalg.slogdet(covariance)[1] - np.log(conditional).sum())
    bound = model.evidence_bound(x, y)
    assert gap > 0.3
    assert abs(evidence - bound.value - gap) < 0.02 + 4 * bound.se


def test_predictions_of_a_linear_model_are_exact() -> None:
    x, y = linear_data()
    model = BayesianRegression(full, **LINEAR, predictive_samples=50_000).fit(x, y)
    mean, covariance, _ = exact(x, y)
    new = np.array([[3.0, 5.0], [9.0, 1.0], [4.0, 4.0]])
    design = np.column_stack([(new - x.mean(0)) / x.std(0) / math.sqrt(2), np.ones(3)])
    expected = design @ mean * y.std() + y.mean()
    spread = np.sqrt(np.einsum("ni,ij,nj->n", design, covariance, design) * y.var() + NOISE**2)
    found, sd = model.predict(new)
    np.testing.assert_allclose(found, expected, atol=0.04 * spread.max())
    np.testing.assert_allclose(sd, spread, rtol=0.03)
    at = expected + 0.5 * spread
    density = -0.5 * 0.25 - np.log(spread) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(model.predictive_log_prob(new, at), density, atol=0.04)
    draws = model.sample(new, 20_000)
    np.testing.assert_allclose(draws.mean(0), found, atol=0.05 * spread.max())
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.05)


def curve(rows: int = 60) -> tuple[Array, Array]:
    random = np.random.default_rng(1)
    x = random.uniform(-2, 2, size=(rows, 1))
    return x, np.sin(2 * x[:, 0]) + 0.1 * (1 + np.abs(x[:, 0])) * random.normal(size=rows) + 5.0


QUICK: dict[str, Any] = {"hidden": (10,), "steps": 60, "samples": 4, "predictive_samples": 60}


@pytest.mark.parametrize(("posterior", "noise"), [("mean-field", "learned"), ("flow", "heteroscedastic")])
def test_the_predictive_density_integrates_to_one(posterior: str, noise: str) -> None:
    x, y = curve()
    options: dict[str, Any] = QUICK | {"noise": noise}
    model = BayesianRegression(posterior, **options).fit(x, y)
    grid = np.linspace(-95.0, 105.0, 40_001)
    for point in (-1.5, 0.3, 1.9):
        density = np.exp(model.predictive_log_prob(np.full((len(grid), 1), point), grid))
        assert trapezoid(density, grid) == pytest.approx(1.0, abs=1e-6)
        mean, sd = model.predict([[point]])
        assert trapezoid(density * grid, grid) == pytest.approx(mean[0], abs=1e-5)
        assert trapezoid(density * (grid - mean[0]) ** 2, grid) == pytest.approx(sd[0] ** 2, rel=1e-4)


@pytest.mark.parametrize("noise", ["learned", "heteroscedastic", 0.2])
def test_results_scale_with_the_units_of_the_targets(noise: Any) -> None:
    x, y = curve()
    scaled = noise if isinstance(noise, str) else 1_000.0 * noise
    options: dict[str, Any] = QUICK | {"noise": noise}
    scaled_options: dict[str, Any] = QUICK | {"noise": scaled}
    model = BayesianRegression("flow", **options).fit(x, y)
    other = BayesianRegression("flow", **scaled_options).fit(3.0 * x - 7.0, 1_000.0 * y + 50.0)
    shifted = other.predictive_log_prob(3.0 * x - 7.0, 1_000.0 * y + 50.0) + math.log(1_000.0)
    np.testing.assert_allclose(shifted, model.predictive_log_prob(x, y), atol=0.02)
    mean, sd = model.predict(x)
    mean_of_other, sd_of_other = other.predict(3.0 * x - 7.0)
    np.testing.assert_allclose(mean_of_other, 1_000.0 * mean + 50.0, rtol=1e-3)
    np.testing.assert_allclose(sd_of_other, 1_000.0 * sd, rtol=1e-2)
    assert other.noise_ == pytest.approx(1_000.0 * model.noise_, rel=1e-2)


def test_the_network_equals_linear_layers_of_torch() -> None:
    network = WeightedNetwork(3, (4, 5), 2)
    weights, x = torch.randn(6, network.size, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    outputs = network(x, weights)
    assert outputs.shape == (6, 7, 2)
    for row, output in zip(weights, outputs, strict=True):
        h, position = x, 0
        for a, b in ((3, 4), (4, 5), (5, 2)):
            layer = nn.Linear(a, b).double()
            with torch.no_grad():
                layer.weight.copy_(row[position : position + a * b].reshape(a, b).T / math.sqrt(a))
                layer.bias.copy_(row[position + a * b : position + (a + 1) * b])
            position += (a + 1) * b
            h = layer(h if a == 3 else h.relu())
        torch.testing.assert_close(output, h)


def test_groups_of_weights_for_the_prior_scales() -> None:
    network = WeightedNetwork(3, (2,), 1)
    assert network.groups(each_input=False).tolist() == [0] * 6 + [1] * 2 + [2] * 2 + [3]
    assert network.groups(each_input=True).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_an_irrelevant_input_gets_a_small_prior_scale() -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(200, 2))
    y = 2.0 * x[:, 0] + 0.1 * random.normal(size=200)
    model = BayesianRegression(
        "mean-field", prior="inputs", prior_scale=1.0, hidden=(8,), steps=500, predictive_samples=10
    ).fit(x, y)
    assert model.prior_scales_[1] < 0.3 * model.prior_scales_[0]


def test_the_flow_starts_as_the_mean_field() -> None:
    location, scale, points = torch.randn(7), torch.rand(7) + 0.1, torch.randn(20, 7)
    torch.testing.assert_close(
        coupled(location, scale).log_prob(points), mean_field(location, scale).log_prob(points), rtol=1e-4, atol=1e-3
    )


def perturbed_posterior(perturb: Callable[[nn.Module], nn.Module]) -> Flow:
    flow = perturb(coupled(torch.zeros(4), torch.full((4,), 0.8), rank=2, hidden=6)).double()
    assert isinstance(flow, Flow)
    return flow


def gradients(posterior: Flow, gradient: Gradient, target: Callable[[Tensor], Tensor], repeats: int) -> Tensor:
    """Gradients ``(repeats, parameters)`` of E[log q - target], of 500 samples each."""
    found = []
    for _ in range(repeats):
        posterior.zero_grad()
        weights, log_q = posterior.rsample_and_log_prob(500, path=gradient == "path")
        (log_q - target(weights)).mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in posterior.parameters() if p.grad is not None]))
    return torch.stack(found)


def test_both_gradients_agree_in_the_mean(perturb: Callable[[nn.Module], nn.Module]) -> None:
    posterior = perturbed_posterior(perturb)

    def target(weights: Tensor) -> Tensor:
        return -0.5 * (weights - 0.3).square().sum(-1) + torch.sin(weights).sum(-1)

    torch.manual_seed(1)
    path = gradients(posterior, "path", target, 100)
    path_wise = gradients(posterior, "path-wise", target, 100)
    error = (path.var(0) / len(path) + path_wise.var(0) / len(path_wise)).sqrt()
    assert path.mean(0).norm() > 20 * error.norm() / math.sqrt(len(error))  # the gradient is not zero
    assert float(((path.mean(0) - path_wise.mean(0)).abs() / error.clamp_min(1e-6)).max()) < 4.5


def test_the_path_gradient_has_no_noise_where_the_posterior_is_exact(
    perturb: Callable[[nn.Module], nn.Module],
) -> None:
    posterior = perturbed_posterior(perturb)
    exact_posterior = copy.deepcopy(posterior).requires_grad_(False)
    path = gradients(posterior, "path", exact_posterior.log_prob, 2)
    assert float(path.abs().max()) < 1e-9
    assert float(gradients(posterior, "path-wise", exact_posterior.log_prob, 2).abs().max()) > 1e-3


def test_the_seed_decides_everything_and_the_global_random_state_is_unchanged() -> None:
    x, y = curve()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = BayesianRegression(**QUICK, batch_size=20, seed=4).fit(x, y)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    copied: Any = clone(first)
    again = copied.fit(x, y)
    np.testing.assert_array_equal(first.predictive_log_prob(x, y), again.predictive_log_prob(x, y))
    np.testing.assert_array_equal(first.sample(x, 3), again.sample(x, 3))
    other = BayesianRegression(**QUICK, batch_size=20, seed=5).fit(x, y)
    assert not np.allclose(first.predictive_log_prob(x, y), other.predictive_log_prob(x, y))
    assert not np.allclose(first.sample(x, 3), first.sample(x, 3, seed=9))


def test_a_flow_given_as_posterior_is_not_changed() -> None:
    x, y = curve()
    flow = full(WeightedNetwork(1, (10,), 1).size)
    before = copy.deepcopy(dict(flow.named_parameters()))
    model = BayesianRegression(flow, **QUICK).fit(x, y)
    after = dict(model.posterior_.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in flow.named_parameters())
    assert not any(torch.equal(after[name], before[name]) for name in before)


def test_two_hidden_layers_and_minibatches_learn_a_curve() -> None:
    x, y = curve(200)
    options: dict[str, Any] = {"hidden": (20, 20), "steps": 300, "batch_size": 64, "samples": 4}
    model = BayesianRegression("flow", noise="heteroscedastic", **options).fit(x, y)
    linear = -0.5 * math.log(2 * math.pi * y.var()) - 0.5
    assert model.predictive_log_prob(x, y).mean() > linear + 0.5
    assert model.loss_[-100:].mean() < model.loss_[:100].mean()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(5), np.arange(5), r"expected inputs of shape \(n, features\); got \(5,\)"),
        (np.zeros((5, 0)), np.arange(5), r"expected inputs of shape \(n, features\); got \(5, 0\)"),
        (np.zeros((5, 2)), np.arange(4), r"expected targets of shape \(5,\), one a row; got \(4,\)"),
        (np.zeros((5, 2)), np.zeros((5, 1)), r"expected targets of shape \(5,\), one a row; got \(5, 1\)"),
        (np.zeros((5, 2)), [1, 2, np.nan, 4, 5], r"expected finite targets; got nan at \(2,\)"),
        ([[0.0, 1.0], [np.inf, 2.0]], [1, 2], r"expected finite inputs; got inf at \(1, 0\)"),
        ([["a"], ["b"]], [1, 2], "expected inputs that are numbers"),
        (np.zeros((5, 2)), np.full(5, 3.0), "expected targets that differ; got 5 of one value"),
        (np.zeros((1, 2)), [3.0], "expected targets that differ"),
    ],
)
def test_invalid_data_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"BayesianRegression: {message}"):
        BayesianRegression(**QUICK).fit(x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "flwo"}, "unknown posterior 'flwo'; did you mean 'flow'"),
        ({"noise": "heteroskedastic"}, "unknown noise 'heteroskedastic'; did you mean 'heteroscedastic'"),
        ({"prior": "layer"}, "did you mean 'layers'"),
        ({"gradient": "paths"}, "did you mean 'path'"),
        ({"noise": 0.0}, "expected noise above 0 and finite; got 0.0"),
        ({"hidden": (10, 0)}, r"expected hidden\[1\] of at least 1; got 0"),
        ({"steps": 0}, "expected steps of at least 1; got 0"),
        ({"kl_warmup": 1.0}, "expected kl_warmup of at least 0 and below 1; got 1.0"),
        ({"posterior": full(3)}, "expected a posterior of 31 features without context; got 3 and a context of 0"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    x, y = curve(10)
    with pytest.raises(ValueError, match=f"BayesianRegression: .*{message}"):
        BayesianRegression(**(QUICK | options)).fit(x, y)


def test_a_model_before_its_fit_and_with_other_columns() -> None:
    x, y = curve(10)
    model = BayesianRegression(**QUICK)
    with pytest.raises(NotFittedError, match="expected a fitted model"):
        model.predict(x)
    model.fit(x, y)
    with pytest.raises(ValueError, match="expected 1 columns; got 2"):
        model.predictive_log_prob(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="expected n of at least 1; got 0"):
        model.sample(x, 0)


def test_a_constant_input_is_allowed() -> None:
    x, y = curve(20)
    model = BayesianRegression(**QUICK).fit(np.column_stack([x, np.full(20, 3.0)]), y)
    assert np.isfinite(model.predict(np.column_stack([x, np.full(20, 3.0)]))[0]).all()
