"""Every base law: its density, its samples and the gradients they carry, and what a flow does with it."""

import copy
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward import flows
from pushforward.config import schema as config
from pushforward.flows import (
    BASES,
    Base,
    Beta,
    Flow,
    Gamma,
    GaussianMixture,
    Laplace,
    LocationScale,
    Logistic,
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


def drawn(name: str, perturb: Perturb, features: int = 2, context: int = 0) -> Base:
    law = make_base(name, features, context)
    perturb(law.double())
    if isinstance(law, Laplace):
        with torch.no_grad():
            law.location.zero_()  # where the grid has a point for the edge of its density
    return law.eval()


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("name", BASES)
def test_density_integrates_to_one(name: str, context: int, perturb: Perturb) -> None:
    given = torch.tensor([0.7], dtype=F64) if context else None
    with torch.no_grad():
        total = float((drawn(name, perturb, 2, context).log_prob(GRID, given).exp() * AREA).sum())
    assert total == pytest.approx(1.0, abs=2e-3 if name == "laplace" else 1e-6)  # an edge on the grid


@pytest.mark.parametrize("name", BASES)
def test_flow_density_integrates_to_one(name: str, perturb: Perturb) -> None:
    flow = build("nsf-ar", 2, layers=2, hidden=8, bins=4, base=name).double().eval()
    perturb(flow)
    with torch.no_grad():
        total = float((flow.log_prob(GRID).exp() * AREA).sum())
    assert total == pytest.approx(1.0, abs=2e-2 if name == "laplace" else 4e-3)


@pytest.mark.parametrize("name", BASES)
def test_expectations_and_their_gradients_equal_integrals(name: str, perturb: Perturb) -> None:
    # The law's own density on a grid says what an expectation is and how it moves with each parameter.
    law = drawn(name, perturb)
    parameters = list(law.parameters())
    expected = (bend(GRID) * law.log_prob(GRID).exp() * AREA).sum()
    slopes = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected, parameters)])
    slack = 2e-3 if name == "laplace" else 1e-4  # of the integral over an edge, and of torch's Gamma variates
    values, gradients = [], []
    for _ in range(30):
        value = bend(law.rsample(2_000)).mean()
        values.append(value.detach())
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]))
    for found, exact in ((torch.stack(values)[:, None], expected[None]), (torch.stack(gradients), slopes)):
        error = (found.mean(0) - exact).abs()
        # Six standard errors, because there are up to thousands of parameters.
        assert bool((error <= 6 * found.std(0) / 30**0.5 + slack * exact.abs() + 1e-9).all()), float(error.max())
    # The comparison has a meaning: the noise is small beside the whole gradient.
    assert float(torch.stack(gradients).std(0).norm() / 30**0.5) < 0.2 * float(slopes.norm())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", ["low-rank", "laplace", "logistic", "uniform"])
def test_sample_gradients_equal_finite_differences(name: str, context: int, perturb: Perturb) -> None:
    law = drawn(name, perturb, 2, context)
    given = torch.randn(context, dtype=F64) if context else None
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in law.named_parameters()), strict=True)

    def sample(*parameters: Tensor) -> Any:
        torch.manual_seed(7)  # common noise
        return torch.func.functional_call(law, dict(zip(names, parameters, strict=True)), (), {"given": given})

    law.forward = lambda given: law.rsample(3, given)
    assert torch.autograd.gradcheck(sample, values)


@pytest.mark.parametrize("name", BASES)
def test_samples_are_standardised_to_normals(name: str, perturb: Perturb) -> None:
    law = drawn(name, perturb)
    noise = law.standardize(law.sample(4_000)).detach()
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 0.07
    assert law.standardize(law.sample(0)).shape == (0, 2)


def test_standardised_tails_keep_their_digits() -> None:
    far = torch.tensor([[-12.0], [-3.0], [3.0], [12.0]], dtype=F64)
    mixture = GaussianMixture(1, 1).double()
    assert_close(mixture.standardize(far).detach(), far)


@pytest.mark.parametrize("name", BASES)
def test_likelihood_trains_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    law = make_base(name, 2)
    data = torch.randn(256, 2) * torch.tensor([2.0, 0.3]) + torch.tensor([1.0, -1.0])
    optimizer = torch.optim.Adam(law.parameters(), lr=0.03)
    losses = []
    moved = {parameter_name: False for parameter_name, _ in law.named_parameters()}
    for _ in range(12):
        optimizer.zero_grad()
        loss = -law.log_prob(data).mean()
        loss.backward()
        for parameter_name, parameter in law.named_parameters():
            assert parameter.grad is not None, parameter_name
            moved[parameter_name] |= bool(parameter.grad.any())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2
    assert all(moved.values()), moved


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", BASES)
def test_shapes_and_dtype(name: str, dtype: torch.dtype, context: int) -> None:
    law = make_base(name, 3, context).to(dtype).eval()
    for n, lead in (((), ()), (4, (4,)), ((2, 5), (2, 5)), (0, (0,))):
        for rows in ((), (6,)) if context else ((),):
            given = torch.randn(*rows, context, dtype=dtype) if context else None
            z = law.rsample(n, given)
            assert (z.shape, z.dtype) == ((*lead, *rows, 3), dtype)
            assert law.log_prob(z, given).shape == (*lead, *rows)
            assert law.log_prob(z, given).dtype == dtype
            assert bool(law.log_prob(z, given).isfinite().all())
            assert law.standardize(z, given).shape == z.shape
            assert not law.sample(n, given).requires_grad
    assert (law.dtype, law.device) == (dtype, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"expected points of shape \(\.\.\., 3\); got \(5, 2\)"):
        law.log_prob(torch.zeros(5, 2, dtype=dtype), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", BASES)
def test_laws_live_on_a_gpu(name: str, perturb: Perturb) -> None:
    law = drawn(name, perturb)
    z = torch.randn(7, 2, dtype=F64)
    expected, noise = law.log_prob(z), law.standardize(z)
    law.cuda()
    assert_close(law.log_prob(z.cuda()).cpu(), expected)
    assert_close(law.standardize(z.cuda()).cpu(), noise)
    law.initialize(z.mean(0).cuda(), torch.cov(z.T).cuda())
    points = law.rsample((2, 3))
    assert points.device.type == law.device.type == "cuda"
    points.sum().backward()


@pytest.mark.parametrize("name", BASES)
def test_context_moves_location_and_scale_a_row_at_a_time(name: str, perturb: Perturb) -> None:
    law = drawn(name, perturb, 2, 1)
    context = torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)
    z = torch.randn(3, 2, dtype=F64)
    together = law.log_prob(z, context)
    assert_close(together, torch.stack([law.log_prob(z[i], context[i]) for i in range(3)]))
    assert len(set(law.log_prob(z[0], context).tolist())) == 3
    with pytest.raises(ValueError, match="expected context of shape"):
        law.log_prob(z)


@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", BASES)
def test_what_is_read_is_what_was_written(
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


@pytest.mark.parametrize("name", BASES)
def test_initialize_matches_mean_and_deviation(name: str) -> None:
    mean = torch.tensor([1.0, -2.0, 300.0], dtype=F64)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-3.0, 9.0, 5.0]], dtype=F64)
    law = make_base(name, 3).double().eval()
    law.initialize(mean, root @ root.T)
    points = law.sample(40_000)
    scale = root.square().sum(-1).sqrt()
    assert_close((points.mean(0) - mean) / scale, torch.zeros(3, dtype=F64), rtol=0, atol=0.04)
    assert_close(points.std(0) / scale, torch.ones(3, dtype=F64), rtol=0, atol=0.05)
    if name in ("low-rank", "full"):
        assert_close(torch.corrcoef(points.T), torch.cov(points.T) / scale.outer(scale), rtol=0, atol=0.05)
        assert_close(torch.cov(points.T)[0, 1], (root @ root.T)[0, 1], rtol=0, atol=0.05)
    if name == "mixture":
        assert float(torch.corrcoef(points.T)[0, 1]) > 0.1  # the components lie along the data


@pytest.mark.parametrize("name", BASES)
def test_a_named_base_starts_standardised(name: str) -> None:
    points = make_base(name, 2).sample(40_000)
    assert_close(points.mean(0), torch.zeros(2), rtol=0, atol=0.04)
    assert_close(points.std(0), torch.ones(2), rtol=0, atol=0.05)


def test_every_law_is_tested() -> None:
    """Here, in files of their own, or as parts of others."""
    exported = (getattr(flows, name) for name in dir(flows))
    laws = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Base)} - {Base, LocationScale}
    elsewhere = {flows.AutoregressiveMixture, flows.KernelDensity}
    assert laws == {type(make_base(name, 2)) for name in BASES} | {Uniform, Gamma, Beta} | elsewhere


def test_names_of_bases() -> None:
    assert get_args(config.Base) == ("auto", *BASES, "made-mog")  # the last one by build, which knows the sizes
    with pytest.raises(
        ValueError, match="unknown base 'student'; did you mean 'student-t'\\? known: diagonal, low-rank"
    ):
        build("maf", 2, base="student")
    law = StudentT(2, degrees=3.0)
    assert build("maf", 2, layers=1, hidden=4, base=law).base is law


# Each law against scipy


def test_student_t() -> None:
    law = StudentT(2, degrees=2.5).double()
    law.initialize(torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([4.0, 9.0], dtype=F64).diag())
    z = torch.tensor([[0.3, -7.0], [1e6, 1e-6], [1.0, -1.0]], dtype=F64)
    deviation = math.sqrt(2.5 / 0.5)
    exact = stats.t.logpdf(z.numpy(), 2.5, loc=[1.0, -1.0], scale=[2 / deviation, 3 / deviation]).sum(-1)
    np.testing.assert_allclose(law.log_prob(z).detach().numpy(), exact, rtol=1e-7)  # degrees were float32 once


def test_student_t_with_many_degrees_keeps_its_digits() -> None:
    z = torch.tensor([[-3.0], [0.0], [1e-3], [30.0]], dtype=F64)
    for degrees in (59.0, 61.0, 1e3, 1e6):
        law = StudentT(1, degrees=degrees).double()
        exact = stats.t.logpdf(z.numpy(), float(law.degrees.detach())).sum(-1)
        np.testing.assert_allclose(law.log_prob(z).detach().numpy(), exact, rtol=1e-9)


@pytest.mark.parametrize("degrees", [0.51, 2.0, 29.0, 59.9, 60.1, 1e4, 1e7])
def test_student_t_in_float32_is_that_of_float64(degrees: float) -> None:
    z = torch.tensor([-1e30, -1e4, -3.0, 0.0, 1e-3, 30.0])[:, None].requires_grad_()
    law = StudentT(1, degrees=degrees)
    found = law.log_prob(z)
    found.sum().backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert law.raw_degrees.grad is not None
    assert bool(law.raw_degrees.grad.isfinite().all())
    exact = stats.t.logpdf(z.detach().double().numpy(), law.double().degrees.item()).sum(-1)
    np.testing.assert_allclose(found.detach().numpy(), exact, rtol=2e-5, atol=2e-6)


def test_laplace_and_logistic() -> None:
    z = torch.tensor([[0.3, -7.0], [-80.0, 300.0], [1.0, 0.0]], dtype=F64)
    laplace, logistic = Laplace(2).double(), Logistic(2).double()
    np.testing.assert_allclose(laplace.log_prob(z).detach(), stats.laplace.logpdf(z.numpy()).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(logistic.log_prob(z).detach(), stats.logistic.logpdf(z.numpy()).sum(-1), rtol=1e-12)
    for law in (Laplace(1), Logistic(1)):
        points = torch.tensor([[-1e4], [1e4]], requires_grad=True)
        law.log_prob(points).sum().backward()
        assert points.grad is not None
        assert_close(points.grad, torch.tensor([[1.0], [-1.0]]))


def test_uniform() -> None:
    law = Uniform(2, low=-1.0, width=4.0)
    z = torch.tensor([[0.0, 2.9], [-1.1, 0.0], [0.0, 3.1]])
    assert_close(law.log_prob(z).detach(), torch.tensor([-2 * math.log(4.0), -torch.inf, -torch.inf]))
    assert bool(law.log_prob(law.sample(100_000)).isfinite().all())
    assert_close(law.standardize(torch.ones(2)).detach(), torch.zeros(2))


def test_gamma() -> None:
    law = Gamma(2, 2.5, 0.7).double()
    z = torch.tensor([[0.3, 7.0], [1e-8, 40.0], [-1.0, 1.0], [0.0, 1.0]], dtype=F64)
    np.testing.assert_allclose(
        law.log_prob(z).detach(), stats.gamma.logpdf(z.numpy(), 2.5, scale=1 / 0.7).sum(-1), rtol=1e-6
    )
    np.testing.assert_allclose(
        law.standardize(z[:2]), stats.norm.ppf(stats.gamma.cdf(z[:2].numpy(), 2.5, scale=1 / 0.7)), rtol=1e-5
    )
    law.initialize(torch.tensor([2.0, 5.0], dtype=F64), torch.tensor([3.0, 0.5], dtype=F64).diag())
    points = law.rsample(200_000)
    assert_close(points.mean(0).detach(), torch.tensor([2.0, 5.0], dtype=F64), rtol=0, atol=0.02)
    assert_close(points.var(0).detach(), torch.tensor([3.0, 0.5], dtype=F64), rtol=0.03, atol=0)
    # E x = k / r: its slope in log k and in -log r is itself.
    points.mean(0).sum().backward()
    for parameter, sign in ((law.log_concentration, 1), (law.log_rate, -1)):
        assert parameter.grad is not None
        assert_close(sign * parameter.grad, torch.tensor([2.0, 5.0], dtype=F64), rtol=0, atol=0.03)
    with pytest.raises(ValueError, match=r"Gamma: expected means above 0; got \[-1"):
        law.initialize(-torch.ones(2), torch.eye(2))


def test_beta() -> None:
    law = Beta(2, 2.5, 0.7).double()
    z = torch.tensor([[0.3, 0.9], [1e-8, 1 - 1e-8], [-0.1, 0.5], [0.5, 1.0]], dtype=F64)
    found = law.log_prob(z).detach()
    np.testing.assert_allclose(found[:2], stats.beta.logpdf(z[:2].numpy(), 2.5, 0.7).sum(-1), rtol=1e-6)
    assert_close(found[2:], torch.full((2,), -torch.inf, dtype=F64))
    np.testing.assert_allclose(
        law.standardize(z[:2]), stats.norm.ppf(stats.beta.cdf(z[:2].numpy(), 2.5, 0.7)), rtol=1e-4
    )
    law.initialize(torch.tensor([0.2, 0.5], dtype=F64), torch.tensor([0.01, 0.2], dtype=F64).diag())
    points = law.rsample(200_000)
    assert_close(points.mean(0).detach(), torch.tensor([0.2, 0.5], dtype=F64), rtol=0, atol=0.005)
    assert_close(points.var(0).detach(), torch.tensor([0.01, 0.2], dtype=F64), rtol=0.03, atol=0)
    # E x = a / (a + b): its slope in log a is a b / (a + b)², that in log b its negative.
    points.mean(0).sum().backward()
    a, b = law.log_a.exp().detach(), law.log_b.exp().detach()
    assert law.log_a.grad is not None
    assert law.log_b.grad is not None
    assert_close(law.log_a.grad, a * b / (a + b) ** 2, rtol=0, atol=0.005)
    assert_close(law.log_b.grad, -a * b / (a + b) ** 2, rtol=0, atol=0.005)
    with pytest.raises(ValueError, match="variances below mean"):
        law.initialize(torch.full((2,), 0.5), torch.eye(2))


@pytest.mark.parametrize(
    "make", [lambda: Gamma(3, 1e-3), lambda: Beta(3, 1e-3, 1e-3), lambda: StudentT(3, degrees=0.51)]
)
def test_tiny_concentrations_give_numbers(make: Callable[[], Base]) -> None:
    law = make()
    points = law.rsample(2_000)
    assert bool(points.isfinite().all())
    assert bool(law.log_prob(points.detach()).isfinite().all())
    torch.tanh(points).sum().backward()
    for name, parameter in law.named_parameters():
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


# The mixture


def test_mixture_density_is_the_sum_of_its_components(perturb: Perturb) -> None:
    law = GaussianMixture(3, 4).double()
    perturb(law)
    z = torch.randn(7, 3, dtype=F64)
    components = torch.distributions.Normal(
        law.location + law.locations * law.log_scale.exp(), (law.log_scales + law.log_scale).exp()
    )
    joint = components.log_prob(z[:, None]).sum(-1) + law.logits.log_softmax(-1)
    assert_close(law.log_prob(z), torch.logsumexp(joint, -1))


def test_mixture_gradients_have_closed_forms() -> None:
    # E z1, E z1² and E z1 z2 in terms of weights, locations and scales, by autograd of the formulas.
    law = GaussianMixture(2, 3).double()
    with torch.no_grad():
        law.logits.copy_(torch.tensor([0.5, -0.5, 0.0]))
        law.locations.copy_(torch.tensor([[-2.0, 1.0], [0.5, -1.0], [2.0, 2.0]]))
        law.log_scales.copy_(torch.tensor([[-0.5, 0.2], [0.1, -0.3], [-1.0, 0.0]]))
    own = [law.logits, law.locations, law.log_scales]
    weights, m = law.logits.softmax(-1), law.locations
    exact = [
        weights @ m[:, 0],
        weights @ (m[:, 0] ** 2 + (2 * law.log_scales[:, 0]).exp()),
        weights @ (m[:, 0] * m[:, 1]),
    ]
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda z: z[:, 0],
        lambda z: z[:, 0] ** 2,
        lambda z: z[:, 0] * z[:, 1],
    ]
    for formula, function in zip(exact, functions, strict=True):
        formulas = torch.autograd.grad(formula, own, materialize_grads=True, retain_graph=True)
        slopes = torch.cat([g.reshape(-1) for g in formulas])
        found = []
        for _ in range(40):
            value = function(law.rsample(1_000)).mean()
            found.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, own)]))
        estimates = torch.stack(found)
        error = (estimates.mean(0) - slopes).abs()
        assert bool((error < 5 * estimates.std(0) / 40**0.5 + 1e-9).all())
        assert bool((estimates.std(0) / 40**0.5 < 0.2).all())


def test_mixture_gradient_of_a_component_alone_is_the_path() -> None:
    law = GaussianMixture(2, 1).double()
    torch.manual_seed(0)
    z = law.rsample(50)
    z.sum().backward()
    assert law.locations.grad is not None
    assert law.log_scales.grad is not None
    assert_close(law.locations.grad, torch.full((1, 2), 50.0, dtype=F64))
    assert_close(law.log_scales.grad, z.detach().sum(0, keepdim=True))


# A table with heavy tails


def heavy_table(path: Path, rows: int, columns: int = 3) -> Path:
    """Correlated columns of Student-t noise with two degrees of freedom."""
    rng = np.random.default_rng(0)
    mixing = np.eye(columns) + 0.5 * np.tri(columns, k=-1)
    table = rng.standard_t(2.0, (rows, columns)) @ mixing.T
    np.savetxt(path, table, delimiter=",", header=",".join("abcdef"[:columns]), comments="")
    return path


# Single rows far out decide the mean, so many of them are held out.
SPLIT = ("data.validation_fraction=0.3", "data.test_fraction=0.4")


def gain_of_student_t(tmp_path: Path, *overrides: str) -> tuple[float, float]:
    """How much better a flow with a Student-t base is on the test rows, in nats, with its standard error."""
    from pushforward.config.read import load_config
    from pushforward.evaluate.likelihood import paired_difference
    from pushforward.experiment.rows import fit, plan

    source = str(heavy_table(tmp_path / "heavy.csv", 30_000))
    scores = []
    for base in ("student-t", "full"):
        told = load_config(
            source,
            overrides=(f"flow.base={base}", "wandb=off", "train.evaluate=false", *SPLIT, *overrides),
        )
        done = fit(told, out=tmp_path / base, quiet=True)
        scores.append(torch.from_numpy(done.density.log_prob(plan(told).prepared.test.rows)))
    return paired_difference(*scores)


def test_a_student_t_base_is_better_on_heavy_tails(tmp_path: Path) -> None:
    gain, se = gain_of_student_t(
        tmp_path, "flow=nsf-ar", "flow.layers=1", "flow.hidden=16", "flow.blocks=1", "train.steps=100"
    )
    assert gain > 2 * se


@pytest.mark.slow
def test_a_student_t_base_is_better_on_heavy_tails_with_more_of_everything(tmp_path: Path) -> None:
    gain, se = gain_of_student_t(tmp_path, "flow.layers=2", "flow.hidden=32", "train.steps=1000")
    assert gain > 2 * se
