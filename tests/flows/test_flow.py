"""Flows: densities integrate to one, samples follow the density, shapes are right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import NAMES, Chain, Flow, Gaussian, Standardize, build, check_bijection

Perturb = Callable[[nn.Module], nn.Module]
SMALL: dict[str, Any] = {"layers": 3, "hidden": 8, "blocks": 1, "bins": 4}


def built(name: str, perturb: Perturb, features: int = 2, context: int = 0, **options: Any) -> Flow:
    flow = build(name, features, context, **(SMALL | options)).double()
    perturb(flow)
    flow(torch.randn(64, features, dtype=torch.float64) * 0.9 + 0.1, context_rows(flow, 64))  # initializes ActNorm
    return flow.eval()


def context_rows(flow: Flow, *lead: int) -> Tensor | None:
    return torch.randn(*lead, flow.context, dtype=torch.float64) if flow.context else None


def integral(flow: Flow, context: Tensor | None = None, half_width: float = 16.0, cells: int = 320) -> float:
    """The density integrated by the midpoint rule on a square."""
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * half_width - half_width
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        return float(flow.log_prob(grid, context).exp().sum()) * (2 * half_width / cells) ** 2


@pytest.mark.parametrize("base", ["diagonal", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name: str, base: str, perturb: Perturb) -> None:
    assert integral(built(name, perturb, base=base)) == pytest.approx(1.0, abs=4e-3)


@pytest.mark.parametrize("name", NAMES)
def test_conditional_density_integrates_to_one(name: str, perturb: Perturb) -> None:
    flow = built(name, perturb, context=3)
    assert integral(flow, torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)) == pytest.approx(1.0, abs=4e-3)


def test_density_is_in_the_units_of_the_data(perturb: Perturb) -> None:
    inner = built("nsf-ar", perturb)
    flow = Flow(inner.base, Chain([Standardize([1.0, -2.0], [0.5, 3.0]), inner.bijection]))
    assert integral(flow) == pytest.approx(1.0, abs=4e-3)
    x = torch.randn(5, 2, dtype=torch.float64)
    shift, scale = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    assert_close(flow.log_prob(x), inner.log_prob((x - shift) / scale) - scale.log().sum())


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_log_densities_of_samples_agree_with_log_prob(name: str, features: int, context: int, perturb: Perturb) -> None:
    flow = built(name, perturb, features, context)
    given = context_rows(flow, 6)
    x, log_prob = flow.rsample_and_log_prob(4, given)
    assert x.shape == (4, 6, features)[: None if context else 1] + (() if context else (features,))
    assert_close(flow.log_prob(x, given), log_prob, rtol=1e-8, atol=1e-8)
    points = torch.randn(3, features, dtype=torch.float64)
    check_bijection(flow.bijection, points, context_rows(flow, 3), tolerance=1e-7)  # several layers deep


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name: str, perturb: Perturb) -> None:
    flow = built(name, perturb)
    # The mean of q/p over samples of p is 1 for any density q: a wrong sampler or a wrong density breaks it.
    x, log_prob = flow.sample_and_log_prob(20_000)
    other = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T) * 0.5)
    ratio = (other.log_prob(x) - log_prob).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / 20_000**0.5)


@pytest.mark.parametrize("name", NAMES)
def test_sample_shapes(name: str, perturb: Perturb) -> None:
    flow, conditional = built(name, perturb), built(name, perturb, context=3)
    shared, rows = torch.zeros(3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    assert flow.sample().shape == (2,)
    assert flow.sample(0).shape == (0, 2)
    assert flow.sample(4).shape == (4, 2)
    assert flow.sample((4, 6)).shape == (4, 6, 2)
    assert flow.sample(4).dtype == torch.float64
    assert conditional.sample((), shared).shape == (2,)
    assert conditional.sample((), rows).shape == (5, 2)
    assert conditional.sample(4, shared).shape == (4, 2)
    assert conditional.sample(4, rows).shape == (4, 5, 2)
    assert conditional.sample((4, 6), rows).shape == (4, 6, 5, 2)
    assert [t.shape for t in conditional.sample_and_log_prob(4, rows)] == [(4, 5, 2), (4, 5)]


@pytest.mark.parametrize("conditional_base", [True, False])
def test_sample_shapes_if_only_base_or_bijection_uses_the_context(conditional_base: bool, perturb: Perturb) -> None:
    conditional = build("nsf-ar", 2, 3, **SMALL)
    plain = build("nsf-ar", 2, **SMALL)
    flow = Flow(conditional.base, plain.bijection) if conditional_base else Flow(plain.base, conditional.bijection)
    perturb(flow.double())
    rows = torch.randn(5, 3, dtype=torch.float64)
    x, log_prob = flow.rsample_and_log_prob(4, rows)
    assert x.shape == (4, 5, 2)
    assert_close(flow.log_prob(x, rows), log_prob)
    assert len(set(flow.log_prob(torch.zeros(2, dtype=torch.float64), rows).tolist())) == 5


def test_forward_is_log_prob_and_the_sum_of_its_terms(perturb: Perturb) -> None:
    flow = built("realnvp", perturb)
    x = torch.randn(7, 2, dtype=torch.float64)
    base_term, log_det = flow.log_prob_terms(x)
    assert_close(flow(x), flow.log_prob(x), rtol=0, atol=0)
    assert_close(base_term + log_det, flow.log_prob(x), rtol=0, atol=0)
    assert_close(flow.base.log_prob(flow.transform_to_base(x)), base_term, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_rsample_carries_gradients(name: str, perturb: Perturb) -> None:
    flow = built(name, perturb)
    (flow.rsample(32).square().sum()).backward()
    for parameter_name, parameter in flow.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name
        assert bool(parameter.grad.any()), parameter_name
    assert not flow.sample(3).requires_grad


def test_rsample_gradient_equals_finite_differences(perturb: Perturb) -> None:
    flow = built("nsf-ar", perturb, layers=1, hidden=3, bins=2)
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in flow.named_parameters()), strict=True)
    noise = torch.randn(2, 2, dtype=torch.float64)

    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = flow

        def forward(self) -> Tensor:
            assert isinstance(self.flow.base, Gaussian)
            return self.flow.bijection.inverse(self.flow.base.from_noise(noise))[0]

    sampler = Sampler()

    def sample(*parameters: Tensor) -> Any:
        return torch.func.functional_call(
            sampler, {f"flow.{name}": p for name, p in zip(names, parameters, strict=True)}, ()
        )

    assert torch.autograd.gradcheck(sample, values)


def test_seeded_samples_repeat(perturb: Perturb) -> None:
    flow = built("maf", perturb)
    torch.manual_seed(3)
    first = flow.sample(10)
    torch.manual_seed(3)
    assert_close(flow.sample(10), first, rtol=0, atol=0)
    assert not torch.equal(flow.sample(10), first)


@pytest.mark.parametrize("name", ["realnvp", "maf", "nsf-c", "nsf-ar"])
def test_dropout_is_off_in_evaluation(name: str, perturb: Perturb) -> None:
    flow = built(name, perturb, dropout=0.5)
    x = torch.randn(16, 2, dtype=torch.float64)
    assert_close(flow(x), flow(x), rtol=0, atol=0)
    flow.train()
    assert not torch.equal(flow(x), flow(x))


def test_log_densities_of_samples_do_not_change_the_flow(perturb: Perturb) -> None:
    flow = built("realnvp", perturb)
    for parameter in flow.base.parameters():
        parameter.requires_grad_(False)
    before = {name: (value.clone(), value.requires_grad) for name, value in flow.named_parameters()}
    flow.rsample_and_log_prob(4)[1].sum().backward()
    for name, value in flow.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad is before[name][1]


def test_context_embedding_is_applied_everywhere(perturb: Perturb) -> None:
    inner = built("nsf-ar", perturb, context=1)
    flow = Flow(inner.base, inner.bijection, Standardize([10.0], [2.0]))
    x = torch.randn(4, 2, dtype=torch.float64)
    raw = torch.tensor([[12.0]], dtype=torch.float64)
    scaled = torch.tensor([[1.0]], dtype=torch.float64)
    assert_close(flow.log_prob(x, raw), inner.log_prob(x, scaled))
    assert_close(flow.transform_to_base(x, raw), inner.transform_to_base(x, scaled))
    torch.manual_seed(0)
    got = flow.sample(3, raw)
    torch.manual_seed(0)
    assert_close(got, inner.sample(3, scaled))


def test_compiled_flow_equals_eager(perturb: Perturb) -> None:
    torch.compiler.reset()
    flow = built("nsf-c", perturb, layers=1, blocks=0)
    x = torch.randn(8, 2, dtype=torch.float64)
    compiled: Any = torch.compile(flow, fullgraph=True, backend="eager")
    assert_close(compiled(x), flow(x))


def test_a_gaussian_flow_learns_the_maximum_likelihood_gaussian() -> None:
    # The maximum-likelihood Gaussian has a closed form.
    data = torch.randn(500, 2, dtype=torch.float64) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    flow = Flow(Gaussian(2, covariance="full"), Chain([], features=2)).double()
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = -flow(data).mean()
        value.backward()
        return value

    optimizer.step(loss)
    exact = torch.distributions.MultivariateNormal(data.mean(0), torch.cov(data.T, correction=0))
    assert_close(flow(data).mean().detach(), exact.log_prob(data).mean(), rtol=0, atol=1e-6)
