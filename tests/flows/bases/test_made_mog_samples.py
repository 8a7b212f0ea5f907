"""Autoregressive mixtures: samples follow the density, and their gradients are right."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import (
    AutoregressiveMixture,
    Gaussian,
    MaskedResidualNet,
)
from pushforward.flows.bases.made_mog import MixtureConditional
from pushforward.flows.kernels import elementwise, native
from pushforward.flows.kernels.description import description_of, evaluate
from tests.fixtures.autoregressive_mixtures import (
    Engine,
    both_engines,
    perturbed_mixture,
    using,
    with_and_without_context,
)
from tests.fixtures.integrals import AREA, GRID, bend

F64 = torch.float64


def from_uniform(engine: Engine, base: AutoregressiveMixture, uniform: Tensor) -> Tensor:
    """The samples that uniform numbers are mapped to."""
    if engine == "torch":
        return base.conditioner.incremental(uniform).solve(base.conditional, uniform)[0].detach()
    done = evaluate(description_of(base), uniform, inverse=True)
    assert done is not None
    return done[0].detach()


def test_engines_draw_the_same() -> None:
    for context in (0, 2):
        base = perturbed_mixture(5, context, components=6)
        given = torch.randn(3, context, dtype=F64) if context else None
        torch.manual_seed(1)
        ours = base.sample(700, given)
        torch.manual_seed(1)
        with native.disabled():
            expected = base.sample(700, given)
        assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", ["residual", "transformer"])
@with_and_without_context
def test_latents_of_samples_are_standard_normal(context: int, network: str) -> None:
    base = perturbed_mixture(3, context, network=network)
    given = torch.tensor([0.5, -1.0], dtype=F64) if context else None
    for engine in ("kernels", "torch") if network == "residual" else ("torch",):
        with using(engine):
            z = base.sample(5_000, given)
        latents = base.latents(z, given).detach()
        for column in latents.T:
            assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
        assert float((torch.corrcoef(latents.T) - torch.eye(3, dtype=F64)).abs().max()) < 0.07
        wrong = base.latents(z + 0.1 * z.std(0)).detach() if given is None else base.latents(z, given + 0.5)
        assert min(stats.kstest(column.detach().numpy(), "norm").pvalue for column in wrong.T) < 1e-4


@both_engines
def test_samples_have_the_density(engine: Engine) -> None:
    """Counts in cells of about equal probability against integrals of the density over the cells."""
    base = perturbed_mixture(2, least_scale=0.1)
    with using(engine), torch.no_grad():
        z = base.sample(20_000)
        nodes = GRID[:, 1].unique()
        between = 0.5 * (nodes[1:] + nodes[:-1])
        quantiles = torch.quantile(z, torch.linspace(0, 1, 9, dtype=F64)[1:-1], dim=0)
        edges = between[torch.bucketize(quantiles.contiguous(), between)]  # edges between nodes of the integral's grid

        def cell(points: Tensor) -> Tensor:
            first, second = (torch.bucketize(points[:, d].contiguous(), edges[:, d].contiguous()) for d in (0, 1))
            return 8 * first + second

        mass = torch.zeros(64, dtype=F64).index_add_(0, cell(GRID), base.log_prob(GRID).exp() * AREA)
    counts = torch.bincount(cell(z), minlength=64).double()
    assert float(((counts - 20_000 * mass).square() / (20_000 * mass)).sum()) < stats.chi2(63).isf(1e-5) + 10
    assert float(mass.max()) > 2 * float(mass.min())  # the two features are dependent


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_single_component_samples_by_the_normal_quantile(dtype: torch.dtype) -> None:
    """Algorithm AS 241 against SciPy, in all of its three ranges."""
    base = AutoregressiveMixture(MaskedResidualNet(1, 3, hidden=4), Gaussian(1), least_scale=1e-9).to(dtype)
    with torch.no_grad():
        base.conditioner.last.bias.zero_()
    step = torch.finfo(dtype).eps / 2
    small = torch.logspace(math.log10(step), -0.4, 400, dtype=F64)
    u = torch.cat([small, torch.linspace(0.07, 0.93, 500, dtype=F64), 1.0 - small]).to(dtype)[:, None]
    exact = special.ndtri(u.double().numpy()) * (1.0 + 1e-9)
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(from_uniform("kernels", base, u).double().numpy(), exact, rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(from_uniform("torch", base, u).double().numpy(), exact, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@both_engines
def test_no_random_number_gives_an_extreme_sample(engine: Engine, dtype: torch.dtype) -> None:
    """Random numbers are multiples of a step: 0 is one of them, and so are the boundaries of equal components."""
    most = 5.5 if dtype == torch.float32 else 8.4
    step = torch.finfo(dtype).eps / 2
    for components in (1, 4, 5):
        base = AutoregressiveMixture(MaskedResidualNet(1, 3 * components, hidden=4), Gaussian(1)).to(dtype)
        with torch.no_grad():
            base.conditioner.last.bias.view(3, components)[1].zero_()
            base.conditioner.last.bias.view(3, components)[2].fill_(math.log(1.0 - 1e-3))
        ends = torch.arange(components + 1, dtype=F64) / components
        u = torch.cat([ends - step, ends, ends + step]).clamp(0.0, 1.0 - step).to(dtype)
        z = from_uniform(engine, base, u[:, None])
        assert float(z.abs().max()) < most
        assert float(z.abs().max()) > 0.75 * most
    # A last component of weight 0 is never chosen, also where rounding makes the others add up to less than 1.
    logits = torch.full((1, 7), math.log(1 / 7), dtype=dtype)
    logits[0, -1] = -300.0
    locations = torch.arange(7, dtype=dtype)[None]
    with torch.no_grad():
        last = torch.cat([logits, locations, torch.zeros_like(logits)], -1)
        base = AutoregressiveMixture(MaskedResidualNet(1, 21, hidden=4), Gaussian(1)).to(dtype)
        base.conditioner.last.bias.copy_(last.reshape(-1))
    z = from_uniform(engine, base, torch.tensor([[1.0 - step]], dtype=dtype))
    assert float(z) == pytest.approx(5.0 + special.ndtri(1.0 - 3 * step), abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@both_engines
def test_samples_are_finite_at_the_boundaries_of_components(engine: Engine, dtype: torch.dtype) -> None:
    """At the boundary of two components, rounding may give a quantile of 0, of 1 or beyond."""
    conditional = MixtureConditional(6)
    logits = torch.randn(5_000, 6, dtype=dtype)
    parameters = torch.cat([logits, torch.zeros(5_000, 12, dtype=dtype)], -1)
    ends = logits.softmax(-1).cumsum(-1)[:, :-1]
    for towards in (0.0, 1.0):
        z = ends.clone()
        for _ in range(3):
            for d in range(5):
                drawn, minus_log_density = sample_conditional(engine, conditional, z[:, d].contiguous(), parameters)
                assert float(drawn.abs().max()) < 8.6  # the quantile of the largest number below 1
                assert bool(minus_log_density.isfinite().all())
            z = torch.nextafter(z, torch.tensor(towards, dtype=dtype))


def sample_conditional(
    engine: Engine, conditional: MixtureConditional, z: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """Samples of the conditional alone, with different parameters for every value."""
    if engine == "torch":
        return conditional.inverse(z, parameters)
    done = elementwise.apply_map(conditional.kernel(), conditional.size, z, parameters, inverse=True)
    assert done is not None
    return done


@both_engines
def test_samples_in_float32_are_distinct_and_follow_the_distribution(engine: Engine) -> None:
    base = perturbed_mixture(2, least_scale=0.01).float()
    with using(engine):
        z = base.sample(100_000)
    assert bool(z.isfinite().all())
    assert all(len(column.unique()) > 90_000 for column in z.T)
    latents = base.double().latents(z.double()).detach()
    for column in latents.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    assert float(latents.abs().max()) < 6.0


def test_latents_are_accurate_in_the_tails() -> None:
    base = AutoregressiveMixture(MaskedResidualNet(1, 3, hidden=4), Gaussian(1)).double()
    far = torch.tensor([[-35.0], [-9.0], [0.0], [9.0], [35.0]], dtype=F64)
    assert_close(base.latents(far).detach(), far)
    assert_close(base.float().latents(far[1:4].float()).detach(), far[1:4].float())


@pytest.mark.parametrize("network", ["residual", "transformer"])
@both_engines
def test_sample_gradients_are_implicit_gradients(engine: Engine, network: str) -> None:
    """Implicit differentiation: latents S stay constant while parameters and context change, dz = -J^-1 dS."""
    base = perturbed_mixture(3, 2, network=network, hidden=8, blocks=1)
    given = torch.randn(2, dtype=F64, requires_grad=True)
    weight = torch.randn(3, dtype=F64)
    sources = [given, *base.parameters()]
    for seed in range(3):
        torch.manual_seed(seed)
        with using(engine):
            z = base.rsample((), given)
            found = torch.autograd.grad((z * weight).sum(), sources)
        z = z.detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: base.latents(z, given), z)
        pulled = torch.linalg.solve(jacobian.T, weight)
        expected = torch.autograd.grad(-(base.latents(z, given) * pulled).sum(), sources)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol=1e-7, atol=1e-9)
        assert max(float(b.abs().max()) for b in expected) > 1e-2


def test_gradients_of_one_feature_have_a_closed_form() -> None:
    """E z and E z² of a mixture in one dimension, by autograd of the formulas."""
    base = perturbed_mixture(1, components=3, blocks=0)
    with torch.no_grad():
        base.conditioner.last.weight.zero_()
        base.frame.log_scale.zero_()
        base.frame.location.zero_()
    bias = base.conditioner.last.bias
    logits, m, raw = bias.view(3, 3)
    s = raw.exp() + 1e-3
    for power, exact in ((1, logits.softmax(-1) @ m), (2, logits.softmax(-1) @ (m**2 + s**2))):
        (slopes,) = torch.autograd.grad(exact, bias, retain_graph=True)
        found = torch.stack([torch.autograd.grad((base.rsample(500) ** power).mean(), bias)[0] for _ in range(40)])
        error = (found.mean(0) - slopes).abs()
        assert bool((error < 5 * found.std(0) / 40**0.5 + 1e-9).all()), power
        assert float(found.std(0).max()) / 40**0.5 < 0.2 * float(slopes.abs().max())


def test_expectations_and_their_gradients_equal_integrals() -> None:
    base = perturbed_mixture(2, hidden=8, blocks=1, least_scale=0.1)
    parameters = list(base.parameters())
    expected = (bend(GRID) * base.log_prob(GRID).exp() * AREA).sum()
    slopes = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected, parameters)])
    values, gradients = [], []
    for _ in range(30):
        value = bend(base.rsample(1_000)).mean()
        values.append(value.detach())
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]))
    for found, exact in ((torch.stack(values)[:, None], expected[None]), (torch.stack(gradients), slopes)):
        error = (found.mean(0) - exact).abs()
        # The network has kinks, where the integral on a grid is not exact.
        slack = 0.01 * float(exact.detach().abs().max())
        assert bool((error <= 6 * found.std(0) / 30**0.5 + slack).all()), float(error.detach().max())
    assert float(torch.stack(gradients).std(0).norm() / 30**0.5) < 0.2 * float(slopes.norm())


def test_gradients_reach_the_context_when_parameters_are_frozen() -> None:
    base = perturbed_mixture(2, 1).requires_grad_(False)
    given = torch.randn(4, 1, dtype=F64, requires_grad=True)
    z = base.rsample((), given)
    (found,) = torch.autograd.grad(z.sum(), given)
    assert bool(found.ne(0).all())
    assert not base.rsample((), given.detach()).requires_grad
    assert not base.sample((), given).requires_grad
