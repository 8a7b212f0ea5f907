"""The predictive density of a Bayesian network: a base like any other, and what only it can do."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.evaluate.conditional import cdf, quantiles
from pushforward.flows import Chain, Flow, Standardize, build, load, save
from pushforward.flows.bayesian.density import BayesianNetwork, build_bayesian_network
from pushforward.train.objectives.evidence import network_of
from tests.fixtures.bayesian import NOISE, design, exact_posterior, gaussian_posterior, linear_data, linear_model

Perturb = Callable[[nn.Module], nn.Module]
SMALL: dict[str, Any] = {"hidden": (6,), "samples": 20, "prior_scale": 1.0}


def network(features: int = 1, context: int = 2, **options: Any) -> BayesianNetwork:
    """A network in float64 whose posterior is wide enough for the responses to depend on each other."""
    torch.manual_seed(0)
    made = build_bayesian_network(features, context, "mean-field", **(SMALL | options)).double().requires_grad_(False)
    base: Any = made.posterior.base
    with torch.no_grad():
        base.log_scale.fill_(math.log(0.4))
        made.location.fill_(0.5)
        made.log_scale.fill_(math.log(2.0))
    made.draw_weights(1)
    return made


@pytest.mark.parametrize("noise", ["learned", "heteroscedastic", 0.2])
def test_the_density_of_one_response_integrates_to_one(noise: Any) -> None:
    base = network(noise=noise)
    grid = torch.linspace(-60.0, 60.0, 40_001, dtype=torch.float64)[:, None]
    for given in torch.randn(3, 2, dtype=torch.float64):
        total = torch.trapezoid(base.log_prob(grid, given).exp(), grid[:, 0])
        assert float(total) == pytest.approx(1.0, abs=1e-6)


def test_the_density_of_two_responses_integrates_to_one_and_is_not_a_product() -> None:
    base = network(2)
    axis = torch.linspace(-12.0, 13.0, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = base.log_prob(grid, torch.tensor([0.3, -1.0]).double()).exp().reshape(501, 501)
    assert float(torch.trapezoid(torch.trapezoid(density, axis), axis)) == pytest.approx(1.0, abs=1e-6)
    product = torch.trapezoid(density, axis)[:, None] * torch.trapezoid(density.T, axis)
    assert float((density - product).abs().max()) > 0.05 * float(density.max())  # independent given the weights only


def test_predictions_of_a_linear_model_with_its_exact_posterior_are_exact() -> None:
    x, y = linear_data()
    mean, covariance, _ = exact_posterior(x, y)
    flow = linear_model("full", 4_000)
    posterior: Any = network_of(flow).posterior
    posterior.base.initialize(torch.from_numpy(mean), torch.from_numpy(covariance))
    network_of(flow).draw_weights()
    new = np.array([[-1.0, 2.0], [2.5, -1.5], [0.0, 0.0]])
    expected = design(new) @ mean
    spread = np.sqrt(np.einsum("ni,ij,nj->n", design(new), covariance, design(new)) + NOISE**2)
    given = torch.from_numpy(new).float()
    for distance in (0.0, 0.5, 2.0):
        at = torch.from_numpy(expected + distance * spread)[:, None].float()
        density = -0.5 * distance**2 - np.log(spread) - 0.5 * math.log(2 * math.pi)
        with torch.no_grad():
            np.testing.assert_allclose(flow.log_prob(at, given).numpy(), density, atol=0.06)
    torch.manual_seed(1)
    draws = network_of(flow).sample(10_000, given).double().numpy()[..., 0]
    np.testing.assert_allclose(draws.mean(0), expected, atol=0.05 * spread.max())
    np.testing.assert_allclose(draws.std(0), spread, rtol=0.05)
    inside = np.abs(draws - expected) < stats.norm.ppf(0.95) * spread
    np.testing.assert_allclose(inside.mean(0), 0.9, atol=0.02)


def test_the_density_is_the_mean_over_the_stored_weights() -> None:
    base = network(2, noise="heteroscedastic")
    z, given = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    expected = torch.zeros(5).double()
    for w in base.weights:
        outputs = base.network(given, w[None])[0]
        mean, sd = 0.5 + 2.0 * outputs[:, :2], 2.0 * (base.log_noise + outputs[:, 2:]).exp()
        expected += torch.distributions.Normal(mean, sd).log_prob(z).sum(-1).exp() / len(base.weights)
    assert_close(base.log_prob(z, given), expected.log())
    # In one pass for all weights, or in many.
    rows = torch.randn(40_000, 2).double()
    with torch.no_grad():
        assert_close(base.log_prob(rows, rows)[:10], base.log_prob(rows[:10], rows[:10]))


def test_points_and_context_broadcast() -> None:
    base = network(2)
    z, given = torch.randn(4, 3, 2).double(), torch.randn(3, 2).double()
    each = torch.stack([base.log_prob(points, given) for points in z])
    assert_close(base.log_prob(z, given), each)
    assert_close(base.log_prob(z[0, 0], given), torch.stack([base.log_prob(z[0, 0], row) for row in given]))
    assert_close(base.latents(z, given), torch.stack([base.latents(points, given) for points in z]))
    assert base.log_prob(z[0, 0], given[0]).shape == ()
    assert base.log_prob(z[0, :0], given[:0]).shape == (0,)
    assert base.sample((2, 4), given).shape == (2, 4, 3, 2)
    assert base.sample((), given[0]).shape == (2,)
    assert base.sample(0, given).shape == (0, 3, 2)


def test_latents_of_samples_are_standard_normal_and_independent() -> None:
    base = network(2, noise="heteroscedastic")
    given = torch.randn(3, 2).double()
    torch.manual_seed(3)
    latents = base.latents(base.sample(3_000, given), given)
    for row in latents.unbind(1):
        for column in row.T:
            assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
        assert abs(float(torch.corrcoef(row.T)[0, 1])) < 0.07


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_latents_far_outside_are_those_of_the_tail_of_the_mixture(dtype: torch.dtype) -> None:
    base = network(noise=0.05)
    given = torch.tensor([0.3, -1.0], dtype=torch.float64)
    mean, sd = 0.5 + 2.0 * base.network(given[None], base.weights)[:, 0, 0], 2.0 * base.log_noise.exp()
    points = torch.cat([torch.linspace(-8.0, 8.0, 65), torch.tensor([-1e4, -200.0, 300.0, 1e4])]).double()
    found = base.to(dtype).latents(points[:, None].to(dtype), given.to(dtype)).squeeze(-1).double()
    for point, latent in zip(points, found.tolist(), strict=True):
        sign = -1.0 if latent < 0 else 1.0  # the smaller tail
        expected = np.logaddexp.reduce(stats.norm.logcdf(-sign * ((point - mean) / sd).numpy())) - math.log(len(mean))
        accuracy = 1e-12 if dtype == torch.float64 else 1e-5
        assert stats.norm.logcdf(-sign * latent) == pytest.approx(expected, rel=accuracy, abs=accuracy)
    assert float(found.abs().max()) > 1e4
    ends = base.latents(torch.tensor([[-math.inf], [math.inf]], dtype=dtype), given.to(dtype))
    assert ends.squeeze(-1).tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize("noise", ["learned", "heteroscedastic"])
def test_latents_and_density_agree_by_the_change_of_variables(noise: Any) -> None:
    base = network(3, noise=noise)
    for point, given in zip(torch.randn(4, 3).double(), torch.randn(4, 2).double(), strict=True):
        latents = base.latents(point, given)
        step = 1e-5 * torch.eye(3).double()
        slopes = (base.latents(point + step, given) - base.latents(point - step, given)).T / 2e-5
        assert_close(slopes.triu(1), torch.zeros(3, 3).double(), rtol=0, atol=1e-9)  # each given the ones before it
        expected = slopes.diagonal().log().sum() - 0.5 * (latents.square() + math.log(2 * math.pi)).sum()
        assert_close(base.log_prob(point, given), expected, rtol=1e-7, atol=1e-7)


def test_samples_have_the_moments_of_the_mixture() -> None:
    base = network(2)
    given = torch.randn(2, 2).double()
    outputs = 0.5 + 2.0 * base.network(given, base.weights)
    mean, variance = outputs.mean(0), outputs.var(0, correction=0) + (2.0 * base.log_noise.exp()).square()
    torch.manual_seed(5)
    drawn = base.sample(40_000, given)
    assert_close((drawn.mean(0) - mean) / variance.sqrt(), torch.zeros(2, 2).double(), atol=0.025, rtol=0)
    assert_close(drawn.var(0), variance, rtol=0.04, atol=0)


def test_a_flow_on_it_has_cdf_and_quantiles_in_the_units_of_the_data() -> None:
    flow = Flow(network(), Standardize([5.0], [3.0]), embedding=Standardize([1.0, 0.0], [2.0, 1.0])).eval()
    given = np.array([[1.0, 0.3], [2.0, -1.0]])
    found = quantiles(flow, given, [0.05, 0.5, 0.9], (-10.0, 10.0))
    for i in range(3):
        np.testing.assert_allclose(cdf(flow, found[:, i], given), [0.05, 0.5, 0.9][i], atol=1e-9)
    torch.manual_seed(1)
    drawn = flow.sample(20_000, torch.from_numpy(given)).numpy()[..., 0]
    np.testing.assert_allclose((drawn < found[:, 2]).mean(0), 0.9, atol=0.01)
    grid = torch.linspace(-150.0, 160.0, 20_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        density = flow.log_prob(grid, torch.from_numpy(given[0])).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("posterior", ["mean-field", "flow"])
def test_a_saved_model_has_the_same_densities(posterior: str, tmp_path: Path, perturb: Perturb) -> None:
    torch.manual_seed(0)
    base = build_bayesian_network(2, 3, posterior, noise="heteroscedastic", prior="inputs", **SMALL)
    perturb(base)
    base.initialize(torch.tensor([1.0, -2.0]), torch.tensor([[4.0, 0.5], [0.5, 1.0]]))
    base.draw_weights()
    flow = Flow(base, Standardize([0.0, 1.0], [1.0, 2.0]), embedding=Standardize([0.0] * 3, [2.0] * 3))
    save(flow, tmp_path)
    loaded: Any = load(tmp_path)
    x, given = torch.randn(9, 2), torch.randn(9, 3)
    assert_close(loaded.log_prob(x, given), flow.log_prob(x, given), rtol=0, atol=0)
    weights = torch.randn(2, base.network.size)
    assert_close(loaded.base.log_prior(weights), base.log_prior(weights), rtol=0, atol=0)
    assert_close(loaded.base.posterior.log_prob(weights), base.posterior.log_prob(weights), rtol=0, atol=0)
    loaded.base.draw_weights()
    assert_close(loaded.base.weights, base.weights, rtol=0, atol=0)


def test_weights_are_those_of_the_seed_and_the_random_state_is_unchanged() -> None:
    base = network()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    base.draw_weights(3)
    assert torch.equal(torch.get_rng_state(), before)
    first = base.weights.clone()
    base.draw_weights(4)
    assert not torch.equal(base.weights, first)
    base.draw_weights(3)
    assert torch.equal(base.weights, first)


def test_the_prior_has_a_scale_for_each_group() -> None:
    base = network(context=2, prior="inputs", hidden=(3,))
    with torch.no_grad():
        base.log_prior_scales.copy_(
            torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).log()
        )  # two inputs, biases; two of the last
    scale = torch.tensor([0.1] * 3 + [0.2] * 3 + [0.3] * 3 + [0.4] * 3 + [0.5]).double()
    weights = torch.randn(4, base.network.size).double()
    expected = torch.distributions.Normal(torch.zeros_like(scale), scale).log_prob(weights).sum(-1)
    assert_close(base.log_prior(weights), expected)


def test_single_precision_and_converted_inputs() -> None:
    exact = network(2)
    z, given = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    expected = exact.log_prob(z, given)
    flow = Flow(exact.float(), Chain([], features=2))
    found = flow.log_prob(z, given)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "flwo"}, "unknown posterior 'flwo'; did you mean 'flow'"),
        ({"noise": "heteroskedastic"}, "unknown noise 'heteroskedastic'; did you mean 'heteroscedastic'"),
        ({"prior": "layer"}, "did you mean 'layers'"),
        ({"noise": 0.0}, "expected noise above 0 and finite; got 0.0"),
        ({"prior_scale": math.inf}, "expected prior_scale above 0 and finite; got inf"),
        ({"hidden": (10, 0)}, r"expected hidden\[1\] of at least 1; got 0"),
        ({"samples": 0}, "expected samples of at least 1; got 0"),
        ({"context": 0}, "expected context of at least 1; got 0"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"features": 1, "context": 2} | options
    with pytest.raises(ValueError, match=message):
        build_bayesian_network(**arguments)


def test_a_posterior_of_another_size_and_a_missing_context_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a posterior of 31 features without context; got 3 and a context of"):
        BayesianNetwork(1, 1, gaussian_posterior(3), hidden=(10,))
    with pytest.raises(
        ValueError, match="expected a posterior of 3 features without context; got 3 and a context of 1"
    ):
        BayesianNetwork(1, 2, build("gaussian", 3, 1), hidden=())
    wrong: list[tuple[Tensor, Tensor | None]] = [(torch.zeros(3, 1), None), (torch.zeros(3, 1), torch.zeros(3, 4))]
    for z, given in wrong:
        with pytest.raises(ValueError, match=r"BayesianNetwork: expected context of shape \(..., 2\)"):
            network().float().log_prob(z, given)
