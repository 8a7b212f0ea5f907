"""The Gaussian bases: their laws, and the gradients their samples carry."""

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


def drawn(features: int, covariance: Covariance, context: int = 0) -> Gaussian:
    law = Gaussian(features, context, covariance).double()
    with torch.no_grad():
        for parameter in law.parameters():
            parameter.normal_(0, 0.5)
    return law


def moments(law: Gaussian, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and scale matrix of a law, read off the map ``push`` itself."""
    noises = law.features + law.rank
    mean = law.push(torch.zeros(noises, dtype=torch.float64), context)
    columns = [law.push(e, context) - mean for e in torch.eye(noises, dtype=torch.float64)]
    return mean, torch.stack(columns, -1)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("features", [1, 3])
def test_log_prob_equals_torch_distributions(features: int, covariance: Covariance, context: int) -> None:
    law = drawn(features, covariance, context)
    given = torch.randn(context, dtype=torch.float64) if context else None
    mean, factor = moments(law, given)
    z = torch.randn(4, 5, features, dtype=torch.float64)
    assert_close(law.log_prob(z, given), MultivariateNormal(mean, factor @ factor.T).log_prob(z))


def test_starts_as_the_standard_gaussian() -> None:
    z = torch.randn(7, 3)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    for covariance in SQUARE:
        assert_close(Gaussian(3, covariance=covariance).log_prob(z), standard)
        assert_close(Gaussian(3, 2, covariance).log_prob(z, torch.randn(7, 2)), standard)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("covariance", SQUARE)
def test_standardize_undoes_push(covariance: Covariance, context: int) -> None:
    law = drawn(3, covariance, context)
    given = torch.randn(5, context, dtype=torch.float64) if context else None
    noise = torch.randn(4, 5, 3, dtype=torch.float64)
    assert_close(law.standardize(law.push(noise, given), given), noise)


def test_a_low_rank_law_starts_with_variances_of_one_and_factors_that_learn() -> None:
    law = Gaussian(5, covariance="low-rank", rank=2)
    _, factor = moments(law.double())
    assert_close((factor @ factor.T).diagonal().detach(), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)
    law.log_prob(torch.randn(9, 5, dtype=torch.float64)).sum().backward()
    for name, parameter in law.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.all()), name


@pytest.mark.parametrize("context", [0, 2])
def test_low_rank_standardize_whitens(context: int) -> None:
    law = drawn(4, "low-rank", context)
    given = torch.randn(context, dtype=torch.float64) if context else None
    mean, factor = moments(law, given)
    assert_close(law.standardize(mean, given), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    whitened = law.standardize(mean + factor.T, given)  # linear, so these are the columns of the whitened factor
    assert_close(whitened.T @ whitened, torch.eye(4, dtype=torch.float64))


def test_low_rank_density_keeps_its_digits_beside_large_factors() -> None:
    law = Gaussian(40, covariance="low-rank", rank=3)
    with torch.no_grad():
        law.factors.normal_().mul_(1e3)
    z = law.sample(100)
    exact = copy.deepcopy(law).double().log_prob(z.double())
    assert_close(law.log_prob(z).double(), exact, rtol=1e-3, atol=1e-3)


def test_low_rank_initialize_finds_the_factors_and_keeps_the_variances() -> None:
    mean = torch.arange(6.0, dtype=torch.float64)
    loadings = torch.randn(6, 2, dtype=torch.float64)
    law = Gaussian(6, covariance="low-rank", rank=2).double()
    matrix = loadings @ loadings.T + torch.rand(6, dtype=torch.float64).add(0.5).diag()
    law.initialize(mean, matrix)
    got_mean, factor = moments(law)
    assert_close(got_mean.detach(), mean)
    assert_close((factor @ factor.T).detach(), matrix, rtol=0, atol=0.02 * float(matrix.max()))
    everything = torch.ones(6, 6, dtype=torch.float64) + 1e-9 * torch.eye(6, dtype=torch.float64)
    law.initialize(mean, everything)  # columns that determine each other
    _, factor = moments(law)
    assert_close((factor @ factor.T).diagonal().detach(), everything.diagonal())
    assert bool(law.log_prob(law.rsample(5)).isfinite().all())


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_does_not_fit_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"expected a rank of 1 to 3 features, with covariance 'low-rank'; got {rank}"):
        Gaussian(3, covariance="low-rank", rank=rank)


@pytest.mark.parametrize("covariance", SQUARE)
def test_initialize_reproduces_a_law(covariance: Covariance) -> None:
    mean = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    root = torch.randn(3, 3, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(3, dtype=torch.float64)
    law = Gaussian(3, covariance=covariance).double()
    law.initialize(mean, matrix)
    got_mean, factor = moments(law)
    assert_close(got_mean.detach(), mean)
    assert_close((factor @ factor.T).detach(), matrix if covariance == "full" else matrix.diagonal().diag())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_sample_gradients_equal_finite_differences(covariance: Covariance, context: int) -> None:
    law = drawn(2, covariance, context)
    given = torch.randn(context, dtype=torch.float64) if context else None
    names = [name for name, _ in law.named_parameters()]
    values = tuple(value.detach().clone().requires_grad_() for value in law.parameters())

    def sample(*parameters: Tensor) -> Tensor:
        torch.manual_seed(7)  # common noise
        points = torch.func.functional_call(law, dict(zip(names, parameters, strict=True)), (), {"given": given})
        assert isinstance(points, Tensor)
        return points

    law.forward = lambda given: law.rsample(3, given)
    assert torch.autograd.gradcheck(sample, values)


def test_sample_carries_gradients_and_sample_does_not() -> None:
    law = Gaussian(2)
    law.rsample(5).sum().backward()
    assert law.location.grad is not None
    assert_close(law.location.grad, torch.full((2,), 5.0))
    assert not law.sample(5).requires_grad


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_sample_has_the_moments_of_the_law(covariance: Covariance) -> None:
    law = drawn(3, covariance)
    mean, factor = moments(law)
    points = law.sample(200_000)
    # Five standard errors of a mean and of a covariance, with standard deviations of about 1.
    assert_close(points.mean(0), mean.detach(), rtol=0, atol=0.03)
    assert_close(torch.cov(points.T), (factor @ factor.T).detach(), rtol=0, atol=0.1)


def test_sample_shapes_and_dtype() -> None:
    law, conditional = Gaussian(3).double(), Gaussian(3, 2)
    assert law.sample().shape == (3,)
    assert law.sample(4).shape == (4, 3)
    assert law.sample((4, 5)).shape == (4, 5, 3)
    assert law.sample(0).shape == (0, 3)
    assert law.sample(4).dtype == torch.float64
    assert conditional.sample(4, torch.zeros(2)).shape == (4, 3)
    assert conditional.sample(4, torch.zeros(5, 2)).shape == (4, 5, 3)
    assert conditional.sample((), torch.zeros(5, 2)).shape == (5, 3)


def test_context_moves_location_and_scale_a_row_at_a_time() -> None:
    law = drawn(2, "diagonal", 1)
    context = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    z = torch.randn(3, 2, dtype=torch.float64)
    together = law.log_prob(z, context)
    assert_close(together, torch.stack([law.log_prob(z[i], context[i]) for i in range(3)]))
    assert len(set(law.push(torch.zeros(2, dtype=torch.float64), context)[:, 0].tolist())) == 3


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("context", [0, 2])
def test_copies_compute_the_same(context: int, trainable: bool, how: str) -> None:
    law = Gaussian(2, context, "full", trainable).double()
    law.initialize(torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    twin = Gaussian(2, context, "full", trainable).double()
    if how == "state_dict":
        twin.load_state_dict(law.state_dict())
    else:
        twin = copy.deepcopy(law) if how == "deepcopy" else pickle.loads(pickle.dumps(law))
    z, given = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64) if context else None
    assert_close(twin.log_prob(z, given), law.log_prob(z, given), rtol=0, atol=0)
    assert (len(list(law.parameters())) > 0) is (trainable or context > 0)


@pytest.mark.parametrize("covariance", ["low-rank", "full"])
def test_dense_covariance_under_autocast(covariance: Covariance) -> None:
    law = Gaussian(3, covariance=covariance)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(law.log_prob(law.rsample(5)).isfinite().all())
        assert bool(law.log_prob(torch.randn(5, 3, dtype=torch.bfloat16)).isfinite().all())
