"""The Gaussian bases: their densities, and the gradients of their samples."""

import copy
import pickle
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pushforward.flows import Gaussian

Covariance = Literal["diagonal", "low-rank", "full"]
COVARIANCES: tuple[Covariance, ...] = ("diagonal", "low-rank", "full")
SQUARE: tuple[Covariance, ...] = ("diagonal", "full")


def random_gaussian(features: int, covariance: Covariance, context: int = 0) -> Gaussian:
    base = Gaussian(features, context, covariance).double()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(0, 0.5)
    return base


def moments(base: Gaussian, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and scale matrix of a Gaussian, from the map ``from_noise``."""
    size = base.features + base.rank
    mean = base.from_noise(torch.zeros(size, dtype=torch.float64), context)
    columns = [base.from_noise(e, context) - mean for e in torch.eye(size, dtype=torch.float64)]
    return mean, torch.stack(columns, -1)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("features", [1, 3])
def test_log_prob_equals_torch_distributions(features: int, covariance: Covariance, context: int) -> None:
    base = random_gaussian(features, covariance, context)
    given = torch.randn(context, dtype=torch.float64) if context else None
    mean, factor = moments(base, given)
    z = torch.randn(4, 5, features, dtype=torch.float64)
    assert_close(base.log_prob(z, given), MultivariateNormal(mean, factor @ factor.T).log_prob(z))


def test_starts_as_the_standard_gaussian() -> None:
    z = torch.randn(7, 3)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    for covariance in SQUARE:
        assert_close(Gaussian(3, covariance=covariance).log_prob(z), standard)
        assert_close(Gaussian(3, 2, covariance).log_prob(z, torch.randn(7, 2)), standard)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("covariance", SQUARE)
def test_latents_are_the_noise_of_a_sample(covariance: Covariance, context: int) -> None:
    base = random_gaussian(3, covariance, context)
    given = torch.randn(5, context, dtype=torch.float64) if context else None
    noise = torch.randn(4, 5, 3, dtype=torch.float64)
    assert_close(base.latents(base.from_noise(noise, given), given), noise)


def test_a_low_rank_gaussian_starts_with_variances_of_one_and_gradients_for_its_factors() -> None:
    base = Gaussian(5, covariance="low-rank", rank=2)
    _, factor = moments(base.double())
    assert_close((factor @ factor.T).diagonal().detach(), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)
    base.log_prob(torch.randn(9, 5, dtype=torch.float64)).sum().backward()
    for name, parameter in base.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.all()), name


@pytest.mark.parametrize("context", [0, 2])
def test_low_rank_latents_are_whitened(context: int) -> None:
    base = random_gaussian(4, "low-rank", context)
    given = torch.randn(context, dtype=torch.float64) if context else None
    mean, factor = moments(base, given)
    assert_close(base.latents(mean, given), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    whitened = base.latents(mean + factor.T, given)  # linear, so these are the columns of the whitened factor
    assert_close(whitened.T @ whitened, torch.eye(4, dtype=torch.float64))


def test_low_rank_density_is_accurate_for_large_factors() -> None:
    base = Gaussian(40, covariance="low-rank", rank=3)
    with torch.no_grad():
        base.factors.normal_().mul_(1e3)
    z = base.sample(100)
    exact = copy.deepcopy(base).double().log_prob(z.double())
    assert_close(base.log_prob(z).double(), exact, rtol=1e-3, atol=1e-3)


def test_low_rank_initialize_finds_the_factors_and_keeps_the_variances() -> None:
    mean = torch.arange(6.0, dtype=torch.float64)
    loadings = torch.randn(6, 2, dtype=torch.float64)
    base = Gaussian(6, covariance="low-rank", rank=2).double()
    matrix = loadings @ loadings.T + torch.rand(6, dtype=torch.float64).add(0.5).diag()
    base.initialize(mean, matrix)
    got_mean, factor = moments(base)
    assert_close(got_mean.detach(), mean)
    assert_close((factor @ factor.T).detach(), matrix, rtol=0, atol=0.02 * float(matrix.max()))
    everything = torch.ones(6, 6, dtype=torch.float64) + 1e-9 * torch.eye(6, dtype=torch.float64)
    base.initialize(mean, everything)  # perfectly correlated columns
    _, factor = moments(base)
    assert_close((factor @ factor.T).diagonal().detach(), everything.diagonal())
    assert bool(base.log_prob(base.rsample(5)).isfinite().all())


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_does_not_fit_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"expected a rank of 1 to 3 features, with covariance 'low-rank'; got {rank}"):
        Gaussian(3, covariance="low-rank", rank=rank)


@pytest.mark.parametrize("covariance", SQUARE)
def test_initialize_matches_mean_and_covariance(covariance: Covariance) -> None:
    mean = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    root = torch.randn(3, 3, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(3, dtype=torch.float64)
    base = Gaussian(3, covariance=covariance).double()
    base.initialize(mean, matrix)
    got_mean, factor = moments(base)
    assert_close(got_mean.detach(), mean)
    assert_close((factor @ factor.T).detach(), matrix if covariance == "full" else matrix.diagonal().diag())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_sample_gradients_equal_finite_differences(covariance: Covariance, context: int) -> None:
    base = random_gaussian(2, covariance, context)
    given = torch.randn(context, dtype=torch.float64) if context else None
    names = [name for name, _ in base.named_parameters()]
    values = tuple(value.detach().clone().requires_grad_() for value in base.parameters())

    def sample(*parameters: Tensor) -> Tensor:
        torch.manual_seed(7)  # common random numbers
        points = torch.func.functional_call(base, dict(zip(names, parameters, strict=True)), (), {"given": given})
        assert isinstance(points, Tensor)
        return points

    base.forward = lambda given: base.rsample(3, given)
    assert torch.autograd.gradcheck(sample, values)


def test_rsample_carries_gradients_and_sample_does_not() -> None:
    base = Gaussian(2)
    base.rsample(5).sum().backward()
    assert base.location.grad is not None
    assert_close(base.location.grad, torch.full((2,), 5.0))
    assert not base.sample(5).requires_grad


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_samples_have_the_mean_and_covariance_of_the_gaussian(covariance: Covariance) -> None:
    base = random_gaussian(3, covariance)
    mean, factor = moments(base)
    points = base.sample(200_000)
    # Five standard errors of a mean and of a covariance, with standard deviations of about 1.
    assert_close(points.mean(0), mean.detach(), rtol=0, atol=0.03)
    assert_close(torch.cov(points.T), (factor @ factor.T).detach(), rtol=0, atol=0.1)


def test_sample_shapes_and_dtype() -> None:
    base, conditional = Gaussian(3).double(), Gaussian(3, 2)
    assert base.sample().shape == (3,)
    assert base.sample(4).shape == (4, 3)
    assert base.sample((4, 5)).shape == (4, 5, 3)
    assert base.sample(0).shape == (0, 3)
    assert base.sample(4).dtype == torch.float64
    assert conditional.sample(4, torch.zeros(2)).shape == (4, 3)
    assert conditional.sample(4, torch.zeros(5, 2)).shape == (4, 5, 3)
    assert conditional.sample((), torch.zeros(5, 2)).shape == (5, 3)


def test_context_moves_location_and_scale_a_row_at_a_time() -> None:
    base = random_gaussian(2, "diagonal", 1)
    context = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    z = torch.randn(3, 2, dtype=torch.float64)
    together = base.log_prob(z, context)
    assert_close(together, torch.stack([base.log_prob(z[i], context[i]) for i in range(3)]))
    assert len(set(base.from_noise(torch.zeros(2, dtype=torch.float64), context)[:, 0].tolist())) == 3


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("context", [0, 2])
def test_copies_compute_the_same(context: int, trainable: bool, how: str) -> None:
    base = Gaussian(2, context, "full", trainable).double()
    base.initialize(torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    twin = Gaussian(2, context, "full", trainable).double()
    if how == "state_dict":
        twin.load_state_dict(base.state_dict())
    else:
        twin = copy.deepcopy(base) if how == "deepcopy" else pickle.loads(pickle.dumps(base))
    z, given = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64) if context else None
    assert_close(twin.log_prob(z, given), base.log_prob(z, given), rtol=0, atol=0)
    assert (len(list(base.parameters())) > 0) is (trainable or context > 0)


@pytest.mark.parametrize("covariance", ["low-rank", "full"])
def test_dense_covariance_under_autocast(covariance: Covariance) -> None:
    base = Gaussian(3, covariance=covariance)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(base.log_prob(base.rsample(5)).isfinite().all())
        assert bool(base.log_prob(torch.randn(5, 3, dtype=torch.bfloat16)).isfinite().all())
