"""Every named base: its density, its samples and their gradients, and flows on it."""

import copy
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward import flows
from pushforward.flows import (
    NAMED,
    Base,
    Beta,
    Flow,
    Gamma,
    GaussianMixture,
    Laplace,
    LocationScale,
    StudentT,
    Uniform,
    build,
    load_model,
    make_base,
    save,
)
from tests.fixtures.integrals import AREA, GRID, bend

Perturb = Callable[[nn.Module], nn.Module]
F64 = torch.float64


def perturbed_base(name: str, perturb: Perturb, features: int = 2, context: int = 0) -> Base:
    base = make_base(name, features, context)
    perturb(base.double())
    if isinstance(base, Laplace):
        with torch.no_grad():
            base.location.zero_()  # the grid has a point there, at the kink of the density
    return base.eval()


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("name", NAMED)
def test_density_integrates_to_one(name: str, context: int, perturb: Perturb) -> None:
    given = torch.tensor([0.7], dtype=F64) if context else None
    with torch.no_grad():
        total = float((perturbed_base(name, perturb, 2, context).log_prob(GRID, given).exp() * AREA).sum())
    assert total == pytest.approx(1.0, abs=2e-3 if name == "laplace" else 1e-6)  # a kink on the grid


@pytest.mark.parametrize("name", NAMED)
def test_flow_density_integrates_to_one(name: str, perturb: Perturb) -> None:
    flow = build("nsf-ar", 2, layers=2, hidden=8, bins=4, base=name).double().eval()
    perturb(flow)
    with torch.no_grad():
        total = float((flow.log_prob(GRID).exp() * AREA).sum())
    assert total == pytest.approx(1.0, abs=2e-2 if name == "laplace" else 4e-3)


@pytest.mark.parametrize("name", NAMED)
def test_expectations_and_their_gradients_equal_integrals(name: str, perturb: Perturb) -> None:
    # Integrals of the density on a grid give the exact expectation and its gradient.
    base = perturbed_base(name, perturb)
    parameters = list(base.parameters())
    expected = (bend(GRID) * base.log_prob(GRID).exp() * AREA).sum()
    slopes = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected, parameters)])
    slack = 2e-3 if name == "laplace" else 1e-4  # errors of the integral at a kink, and of torch's Gamma gradients
    values, gradients = [], []
    for _ in range(30):
        value = bend(base.rsample(2_000)).mean()
        values.append(value.detach())
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]))
    for found, exact in ((torch.stack(values)[:, None], expected[None]), (torch.stack(gradients), slopes)):
        error = (found.mean(0) - exact).abs()
        # Six standard errors, because there are up to thousands of parameters.
        assert bool((error <= 6 * found.std(0) / 30**0.5 + slack * exact.abs() + 1e-9).all()), float(error.max())
    # The comparison is sharp: the noise is small relative to the gradient.
    assert float(torch.stack(gradients).std(0).norm() / 30**0.5) < 0.2 * float(slopes.norm())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", ["low-rank", "laplace", "logistic", "uniform"])
def test_sample_gradients_equal_finite_differences(name: str, context: int, perturb: Perturb) -> None:
    base = perturbed_base(name, perturb, 2, context)
    given = torch.randn(context, dtype=F64) if context else None
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in base.named_parameters()), strict=True)

    def sample(*parameters: Tensor) -> Any:
        torch.manual_seed(7)  # common random numbers
        return torch.func.functional_call(base, dict(zip(names, parameters, strict=True)), (), {"given": given})

    base.forward = lambda given: base.rsample(3, given)
    assert torch.autograd.gradcheck(sample, values)


@pytest.mark.parametrize("name", NAMED)
def test_latents_of_samples_are_standard_normal(name: str, perturb: Perturb) -> None:
    base = perturbed_base(name, perturb)
    latents = base.latents(base.sample(4_000)).detach()
    for column in latents.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    assert abs(float(torch.corrcoef(latents.T)[0, 1])) < 0.07
    assert base.latents(base.sample(0)).shape == (0, 2)


def test_latents_are_accurate_in_the_tails() -> None:
    far = torch.tensor([[-12.0], [-3.0], [3.0], [12.0]], dtype=F64)
    mixture = GaussianMixture(1, 1).double()
    assert_close(mixture.latents(far).detach(), far)


@pytest.mark.parametrize("name", NAMED)
def test_likelihood_trains_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    base = make_base(name, 2)
    data = torch.randn(256, 2) * torch.tensor([2.0, 0.3]) + torch.tensor([1.0, -1.0])
    optimizer = torch.optim.Adam(base.parameters(), lr=0.03)
    losses = []
    has_gradient = {parameter_name: False for parameter_name, _ in base.named_parameters()}
    for _ in range(12):
        optimizer.zero_grad()
        loss = -base.log_prob(data).mean()
        loss.backward()
        for parameter_name, parameter in base.named_parameters():
            assert parameter.grad is not None, parameter_name
            has_gradient[parameter_name] |= bool(parameter.grad.any())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2
    assert all(has_gradient.values()), has_gradient


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", NAMED)
def test_shapes_and_dtype(name: str, dtype: torch.dtype, context: int) -> None:
    base = make_base(name, 3, context).to(dtype).eval()
    for n, lead in (((), ()), (4, (4,)), ((2, 5), (2, 5)), (0, (0,))):
        for rows in ((), (6,)) if context else ((),):
            given = torch.randn(*rows, context, dtype=dtype) if context else None
            z = base.rsample(n, given)
            assert (z.shape, z.dtype) == ((*lead, *rows, 3), dtype)
            assert base.log_prob(z, given).shape == (*lead, *rows)
            assert base.log_prob(z, given).dtype == dtype
            assert bool(base.log_prob(z, given).isfinite().all())
            assert base.latents(z, given).shape == z.shape
            assert not base.sample(n, given).requires_grad
    assert (base.dtype, base.device) == (dtype, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"expected points of shape \(\.\.\., 3\); got \(5, 2\)"):
        base.log_prob(torch.zeros(5, 2, dtype=dtype), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMED)
def test_bases_work_on_a_gpu(name: str, perturb: Perturb) -> None:
    base = perturbed_base(name, perturb)
    z = torch.randn(7, 2, dtype=F64)
    expected, latents = base.log_prob(z), base.latents(z)
    base.cuda()
    assert_close(base.log_prob(z.cuda()).cpu(), expected)
    assert_close(base.latents(z.cuda()).cpu(), latents)
    base.initialize(z.mean(0).cuda(), torch.cov(z.T).cuda())
    points = base.rsample((2, 3))
    assert points.device.type == base.device.type == "cuda"
    points.sum().backward()


@pytest.mark.parametrize("name", NAMED)
def test_context_moves_location_and_scale_a_row_at_a_time(name: str, perturb: Perturb) -> None:
    base = perturbed_base(name, perturb, 2, 1)
    context = torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)
    z = torch.randn(3, 2, dtype=F64)
    together = base.log_prob(z, context)
    assert_close(together, torch.stack([base.log_prob(z[i], context[i]) for i in range(3)]))
    assert len(set(base.log_prob(z[0], context).tolist())) == 3
    with pytest.raises(ValueError, match="expected context of shape"):
        base.log_prob(z)


@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", NAMED)
def test_a_saved_flow_is_loaded_unchanged(
    name: str, context: int, features: int, tmp_path: Path, perturb: Perturb
) -> None:
    flow = build("realnvp", features, context, layers=1, hidden=4, base=name)
    perturb(flow)
    flow.eval()
    save(flow, tmp_path)
    twin = load_model(tmp_path, Flow)
    x, given = torch.randn(8, features), torch.randn(8, context) if context else None
    assert_close(twin(x, given), flow(x, given), rtol=0, atol=0)
    assert_close(twin.state_dict(), flow.state_dict(), rtol=0, atol=0)
    assert list(twin.base.state_dict()) == list(flow.base.state_dict())
    assert_close(copy.deepcopy(flow)(x, given), flow(x, given), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMED)
def test_initialize_matches_mean_and_deviation(name: str) -> None:
    mean = torch.tensor([1.0, -2.0, 300.0], dtype=F64)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-3.0, 9.0, 5.0]], dtype=F64)
    base = make_base(name, 3).double().eval()
    base.initialize(mean, root @ root.T)
    points = base.sample(40_000)
    scale = root.square().sum(-1).sqrt()
    assert_close((points.mean(0) - mean) / scale, torch.zeros(3, dtype=F64), rtol=0, atol=0.04)
    assert_close(points.std(0) / scale, torch.ones(3, dtype=F64), rtol=0, atol=0.05)
    if name in ("low-rank", "full"):
        assert_close(torch.corrcoef(points.T), torch.cov(points.T) / scale.outer(scale), rtol=0, atol=0.05)
        assert_close(torch.cov(points.T)[0, 1], (root @ root.T)[0, 1], rtol=0, atol=0.05)
    if name == "mixture":
        assert float(torch.corrcoef(points.T)[0, 1]) > 0.1  # the components spread along the data


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("name", NAMED)
def test_initialize_refuses_moments_that_no_base_has(name: str, bad: float) -> None:
    base = make_base(name, 2)
    before = copy.deepcopy(base.state_dict())
    covariance = torch.eye(2)
    covariance[1, 1] = bad
    calls = [(torch.zeros(2), covariance)]
    if not math.isfinite(bad):
        calls.append((torch.tensor([0.0, bad]), torch.eye(2)))
    for moments in calls:
        with pytest.raises(ValueError, match="expected a finite mean and covariance with variances above 0; got"):
            base.initialize(*moments)
    assert_close(base.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_base_starts_with_mean_0_and_variance_1(name: str) -> None:
    points = make_base(name, 2).sample(40_000)
    assert_close(points.mean(0), torch.zeros(2), rtol=0, atol=0.04)
    assert_close(points.std(0), torch.ones(2), rtol=0, atol=0.05)


def test_every_base_is_tested() -> None:
    """By name in this file, or in a file of its own."""
    exported = (getattr(flows, name) for name in dir(flows))
    bases = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Base)} - {Base, LocationScale}
    elsewhere = {flows.AutoregressiveMixture, flows.KernelDensity}
    assert bases == {type(make_base(name, 2)) for name in NAMED} | {Uniform, Gamma, Beta} | elsewhere


def test_names_of_bases() -> None:
    with pytest.raises(
        ValueError, match="unknown base 'student'; did you mean 'student-t'\\? known: diagonal, low-rank"
    ):
        build("maf", 2, base="student")
    base = StudentT(2, degrees=3.0)
    assert build("maf", 2, layers=1, hidden=4, base=base).base is base


@pytest.mark.parametrize(
    "make", [lambda: Gamma(3, 1e-3), lambda: Beta(3, 1e-3, 1e-3), lambda: StudentT(3, degrees=0.51)]
)
def test_tiny_concentrations_give_finite_samples_and_gradients(make: Callable[[], Base]) -> None:
    base = make()
    points = base.rsample(2_000)
    assert bool(points.isfinite().all())
    assert bool(base.log_prob(points.detach()).isfinite().all())
    torch.tanh(points).sum().backward()
    for name, parameter in base.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentT(2, degrees=0.5), "StudentT: expected finite degrees above 0.5; got 0.5"),
        (lambda: Uniform(2, width=0.0), "Uniform: expected a finite low and a finite width above 0; got 0.0, 0.0"),
        (lambda: Gamma(2, rate=-1.0), "Gamma: expected finite concentration and rate above 0; got 1.0, -1.0"),
        (lambda: Beta(2, b=math.inf), "Beta: expected finite a and b above 0; got 1.0, inf"),
        (lambda: GaussianMixture(2, 0), "GaussianMixture: expected components of at least 1; got 0"),
        (lambda: Laplace(0), "Laplace: expected features of at least 1 and context of at least 0; got 0, 0"),
    ],
)
def test_message(make: Callable[[], Base], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert str(error.value) == message
