"""Autoregressive mixtures: the kernel, the density, its samples and their gradients, and flows that stand on one."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    AutoregressiveMixture,
    Flow,
    Gaussian,
    MaskedResidualNet,
    MaskedTransformer,
    build,
    load_model,
    save,
)
from pushforward.flows.bases.made_mog import MOST_COMPONENTS, MixtureConditional
from pushforward.flows.bijections import fused
from pushforward.flows.kernels import elementwise, native
from tests.fixtures.integrals import AREA, GRID, bend
from tests.fixtures.kernels import kernels_in, second_derivatives
from tests.fixtures.path_gradients import path_gradients_agree

Perturb = Callable[..., nn.Module]
Engine = Literal["kernels", "torch"]
F64 = torch.float64

both_engines = pytest.mark.parametrize("engine", ["kernels", "torch"])
with_and_without_context = pytest.mark.parametrize("context", [0, 2])


def made(
    features: int = 2,
    context: int = 0,
    *,
    components: int = 4,
    network: str = "residual",
    hidden: int = 16,
    size: float = 0.7,
    least_scale: float = 1e-3,
    **options: Any,
) -> AutoregressiveMixture:
    """A law in float64, away from where it starts: every conditional has another shape at every point."""
    generator = torch.Generator().manual_seed(3)
    kind = MaskedTransformer if network == "transformer" else MaskedResidualNet
    net: Any = kind(features, 3 * components, context=context, hidden=hidden, **options)
    law = AutoregressiveMixture(net, Gaussian(features, context, "full"), least_scale).double().eval()
    with torch.no_grad():
        for parameter in law.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=F64)
            parameter.add_(size * noise / (parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 2.0))
    return law


def by(engine: Engine) -> contextlib.AbstractContextManager[None]:
    return native.disabled() if engine == "torch" else contextlib.nullcontext()


def numbers(
    law: AutoregressiveMixture, z: Tensor, context: Tensor | None, *, kernel: bool | None = None
) -> dict[str, Tensor]:
    """Log-densities, and the gradients of a weighted sum of them by everything."""
    z = z.detach().requires_grad_()
    context = None if context is None else context.detach().requires_grad_()
    value = law.log_prob(z, context)
    if kernel is not None:
        assert kernels_in(value) == ({"_LayerBackward"} if kernel else set())
    weight = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    sources = {"points": z, **dict(law.named_parameters())} | ({} if context is None else {"context": context})
    found = torch.autograd.grad((value * weight).sum(), list(sources.values()))
    return {"value": value.detach(), **dict(zip(sources, found, strict=True))}


# The kernel and torch's operations


@pytest.mark.parametrize(
    ("points", "features", "context", "components", "blocks"),
    [(1, 1, 0, 1, 0), (0, 3, 0, 4, 1), (65, 3, 2, 4, 2), (130, 1, 1, 20, 1), (64, 12, 0, 10, 2), (7, 5, 0, 2, 0)],
)
def test_engines_agree(points: int, features: int, context: int, components: int, blocks: int) -> None:
    law = made(features, context, components=components, blocks=blocks, hidden=12)
    z = 2.0 * torch.randn(points, features, dtype=F64)
    given = torch.randn(points, context, dtype=F64) if context else None
    ours = numbers(law, z, given, kernel=True)
    with native.disabled():
        expected = numbers(law, z, given, kernel=False)
    for name, tensor in expected.items():
        assert_close(ours[name], tensor, rtol=1e-9, atol=1e-10, msg=functools.partial("{}: {}".format, name))
    with torch.no_grad():
        assert_close(law.log_prob(z, given), ours["value"], rtol=0, atol=0)


def test_kernel_in_float32() -> None:
    law = made(4, 1)
    z, given = 2.0 * torch.randn(100, 4, dtype=F64), torch.randn(100, 1, dtype=F64)
    exact = numbers(law, z, given)
    ours = numbers(law.float(), z.float(), given.float(), kernel=True)
    for name, tensor in exact.items():
        scale = float(tensor.abs().max())
        assert_close(
            ours[name].double(), tensor, rtol=1e-4, atol=2e-5 * scale, msg=functools.partial("{}: {}".format, name)
        )


def test_second_derivatives_are_those_of_the_formulas() -> None:
    law = made(3)
    z = torch.randn(9, 3, dtype=F64)
    parameters = list(law.parameters())

    def apply(points: Tensor) -> tuple[Tensor, Tensor]:
        return points, law.log_prob(points)

    found = second_derivatives(apply, z, *parameters)
    with native.disabled():
        expected = second_derivatives(apply, z, *parameters)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    assert max(float(b.detach().abs().max()) for b in expected) > 1e-3


@both_engines
def test_gradcheck(engine: Engine) -> None:
    law = made(2, 1, components=3, hidden=4, blocks=1)
    z, given = torch.randn(3, 2, dtype=F64, requires_grad=True), torch.randn(3, 1, dtype=F64, requires_grad=True)
    law.requires_grad_(True)
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in law.named_parameters()), strict=True)

    def density(z: Tensor, given: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(law, dict(zip(names, parameters, strict=True)), (z, given))

    law.forward = law.log_prob
    with by(engine):
        assert torch.autograd.gradcheck(density, (z, given, *values))


def test_functorch_and_compiling_see_the_formulas() -> None:
    flow = Flow(made(3, blocks=0), build("gaussian", 3).bijection)
    x = torch.randn(4, 3, dtype=F64)
    assert_close(torch.func.vmap(torch.func.grad(flow.log_prob))(x), flow.score(x))
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    assert_close(compiled(x), flow.log_prob(x))


@both_engines
def test_a_missing_value_stays_alone_and_visible(engine: Engine) -> None:
    law = made(3)
    z = torch.randn(70, 3, dtype=F64)
    z[[5, 66], [1, 2]] = math.nan
    with by(engine):
        found = law.log_prob(z)
        for bad in (torch.inf, -torch.inf):
            assert not law.log_prob(z.index_fill(0, torch.tensor([3]), bad))[3] > -1e300
    expected = torch.zeros(70, dtype=torch.bool)
    expected[[5, 66]] = True
    assert torch.equal(found.isnan(), expected)
    with by(engine), torch.no_grad():
        for parameter in (law.conditioner.last.bias[i] for i in (0, 4, 8)):  # a logit, a location, a scale
            before = parameter.clone()
            parameter.fill_(math.nan)
            assert bool(law.log_prob(torch.zeros(5, 3, dtype=F64)).isnan().all())
            parameter.copy_(before)


# The density


@with_and_without_context
@both_engines
def test_density_integrates_to_one(engine: Engine, context: int) -> None:
    given = torch.tensor([0.7, -0.4], dtype=F64)[:context] if context else None
    with by(engine), torch.no_grad():
        line = torch.linspace(-60, 60, 60_001, dtype=F64)
        one = made(1, context).log_prob(line[:, None], given).exp()
        assert float(torch.trapezoid(one, line)) == pytest.approx(1.0, abs=1e-8)
        two = made(2, context, least_scale=0.1).log_prob(GRID, given).exp()
        assert float((two * AREA).sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("components", [1, 5])
@both_engines
def test_density_is_the_product_of_mixtures(engine: Engine, components: int) -> None:
    """Each conditional by torch.distributions, its numbers by the network; in the frame and then outside of it."""
    law = made(3, 2, components=components)
    z, given = 2.0 * torch.randn(50, 3, dtype=F64), torch.randn(50, 2, dtype=F64)
    frame = law.frame
    y = frame.standardize(z, given)
    logits, locations, raw = law.conditioner(y, given).chunk(3, -1)
    normals = torch.distributions.Normal(locations, raw.exp() + 1e-3)
    joint = normals.log_prob(y[..., None]) + logits.log_softmax(-1)
    _, log_scale = frame.location_and_log_scale(given)
    with by(engine):
        assert_close(law.log_prob(z, given), joint.logsumexp(-1).sum(-1) - log_scale.sum(-1))


def test_a_feature_sees_those_before_it_only() -> None:
    law = made(3)
    y = torch.randn(3, dtype=F64)
    parameters = torch.func.jacrev(law.conditioner)(y)
    for d in range(3):
        seen = parameters[d].abs().amax(0) > 0
        assert seen.tolist() == [i < d for i in range(3)]


@both_engines
def test_far_out_the_density_is_that_of_the_widest_tail(engine: Engine) -> None:
    law = made(1, components=3, blocks=0)
    logits, locations, raw = law.conditioner.last.bias.detach().view(3, 3)
    with torch.no_grad():
        law.conditioner.last.weight.zero_()
        law.frame.log_scale.zero_()
        law.frame.location.zero_()
    for x in (-1e6, -300.0, 40.0, 1e4):
        terms = stats.norm.logpdf(x, locations.numpy(), raw.exp().numpy() + 1e-3) + special.log_softmax(logits.numpy())
        with by(engine):
            ours = numbers(law, torch.tensor([[x]], dtype=F64), None)
            single = numbers(copy.deepcopy(law).float(), torch.tensor([[x]]), None)
        assert float(ours["value"]) == pytest.approx(special.logsumexp(terms), rel=1e-12)
        assert float(single["value"]) == pytest.approx(special.logsumexp(terms), rel=1e-5)
        assert all(bool(g.isfinite().all()) for found in (ours, single) for g in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@both_engines
def test_no_network_is_too_extreme(engine: Engine, dtype: torch.dtype) -> None:
    """A network is a line far from the data: its numbers grow without bound, and the exponential of them must not."""
    law = made(3)
    z = torch.tensor([[1e3, -1e3, 1e3], [1e9, 1e9, -1e9], [-1e9, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=F64)
    exact = law.log_prob(z)
    assert bool(exact.isfinite().all())
    with by(engine):
        found = numbers(law.to(dtype), z.to(dtype), None)
    assert_close(found["value"].double(), exact, rtol=1e-3, atol=1e-3)
    assert all(bool(g.isfinite().all()) for g in found.values())
    for raw in (-1e4, 29.0, 31.0, 1e4):
        conditional = MixtureConditional(1)
        parameters = torch.tensor([[0.0, 1.0, raw]], dtype=dtype, requires_grad=True)
        _, log_density = conditional.forward(torch.tensor([2.0], dtype=dtype), parameters)
        (slope,) = torch.autograd.grad(log_density, parameters)
        expected = stats.norm.logpdf(2.0, 1.0, math.exp(min(raw, 30.0)) + 1e-3)
        assert float(log_density.detach()) == pytest.approx(expected, rel=1e-5)
        assert bool(slope.isfinite().all())
        assert (slope[0, 2] == 0.0) == (raw in (-1e4, 31.0, 1e4))


@both_engines
def test_scales_stop_at_both_ends(engine: Engine) -> None:
    law = AutoregressiveMixture(MaskedResidualNet(1, 3, hidden=4), Gaussian(1), least_scale=0.2).double()
    for raw, scale in ((-1e4, 0.2), (math.log(0.5), 0.7), (1e4, math.exp(30.0) + 0.2)):
        with torch.no_grad():
            law.conditioner.last.bias[2] = raw
        with by(engine):
            found = numbers(law, torch.tensor([[0.3]], dtype=F64), None)
        assert float(found["value"]) == pytest.approx(stats.norm.logpdf(0.3, 0.0, scale), rel=1e-12)
        slope = float(found["conditioner.last.bias"][2])
        assert (abs(slope) > 1e-9) == (abs(raw) < 1e3)


def test_starts_nearly_as_the_gaussian_of_its_frame() -> None:
    mean, root = torch.tensor([1.0, -200.0], dtype=F64), torch.tensor([[2.0, 0.0], [0.5, 0.1]], dtype=F64)
    exact = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    z = exact.sample((4_000,))
    for components, most in ((1, 1e-12), (4, 0.03), (10, 0.01), (20, 0.01)):
        net = MaskedResidualNet(2, 3 * components, hidden=4)
        law = AutoregressiveMixture(net, Gaussian(2, covariance="full")).double()
        law.initialize(mean, root @ root.T)
        lost = (exact.log_prob(z) - law.log_prob(z)).mean().item()
        assert -1e-12 < lost < most, components


# Samples


def share_of(engine: Engine, law: AutoregressiveMixture, share: Tensor) -> Tensor:
    """The points that numbers between 0 and 1 stand for."""
    if engine == "torch":
        return law.conditioner.incremental(share).solve(law.conditional, share)[0].detach()
    done = fused.layer(law.conditioner, law.conditional, share, None, inverse=True)
    assert done is not None
    return done[0].detach()


def test_engines_draw_the_same() -> None:
    for context in (0, 2):
        law = made(5, context, components=6)
        given = torch.randn(3, context, dtype=F64) if context else None
        torch.manual_seed(1)
        ours = law.sample(700, given)
        torch.manual_seed(1)
        with native.disabled():
            expected = law.sample(700, given)
        assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", ["residual", "transformer"])
@with_and_without_context
def test_samples_are_standardised_to_normals(context: int, network: str) -> None:
    law = made(3, context, network=network)
    given = torch.tensor([0.5, -1.0], dtype=F64) if context else None
    for engine in ("kernels", "torch") if network == "residual" else ("torch",):
        with by(engine):
            z = law.sample(5_000, given)
        noise = law.standardize(z, given).detach()
        for column in noise.T:
            assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
        assert float((torch.corrcoef(noise.T) - torch.eye(3, dtype=F64)).abs().max()) < 0.07
        wrong = law.standardize(z + 0.1 * z.std(0)).detach() if given is None else law.standardize(z, given + 0.5)
        assert min(stats.kstest(column.detach().numpy(), "norm").pvalue for column in wrong.T) < 1e-4


@both_engines
def test_samples_have_the_density(engine: Engine) -> None:
    """Counts in cells of about equal mass against the integral of the density over them."""
    law = made(2, least_scale=0.1)
    with by(engine), torch.no_grad():
        z = law.sample(20_000)
        nodes = GRID[:, 1].unique()
        between = 0.5 * (nodes[1:] + nodes[:-1])
        quantiles = torch.quantile(z, torch.linspace(0, 1, 9, dtype=F64)[1:-1], dim=0)
        edges = between[
            torch.bucketize(quantiles.contiguous(), between)
        ]  # where no node's share of the integral is cut

        def cell(points: Tensor) -> Tensor:
            first, second = (torch.bucketize(points[:, d].contiguous(), edges[:, d].contiguous()) for d in (0, 1))
            return 8 * first + second

        mass = torch.zeros(64, dtype=F64).index_add_(0, cell(GRID), law.log_prob(GRID).exp() * AREA)
    counts = torch.bincount(cell(z), minlength=64).double()
    assert float(((counts - 20_000 * mass).square() / (20_000 * mass)).sum()) < stats.chi2(63).isf(1e-5) + 10
    assert float(mass.max()) > 2 * float(mass.min())  # the two features have to do with each other


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_component_alone_draws_by_the_normal_quantile(dtype: torch.dtype) -> None:
    """Algorithm AS 241 against SciPy, in all of its three ranges."""
    law = AutoregressiveMixture(MaskedResidualNet(1, 3, hidden=4), Gaussian(1), least_scale=1e-9).to(dtype)
    with torch.no_grad():
        law.conditioner.last.bias.zero_()
    step = torch.finfo(dtype).eps / 2
    small = torch.logspace(math.log10(step), -0.4, 400, dtype=F64)
    u = torch.cat([small, torch.linspace(0.07, 0.93, 500, dtype=F64), 1.0 - small]).to(dtype)[:, None]
    exact = special.ndtri(u.double().numpy()) * (1.0 + 1e-9)
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(share_of("kernels", law, u).double().numpy(), exact, rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(share_of("torch", law, u).double().numpy(), exact, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@both_engines
def test_no_random_number_stands_for_a_point_far_out(engine: Engine, dtype: torch.dtype) -> None:
    """Random numbers are multiples of a step: 0 is one of them, and so are the ends of components of equal weights."""
    most = 5.5 if dtype == torch.float32 else 8.4
    step = torch.finfo(dtype).eps / 2
    for components in (1, 4, 5):
        law = AutoregressiveMixture(MaskedResidualNet(1, 3 * components, hidden=4), Gaussian(1)).to(dtype)
        with torch.no_grad():
            law.conditioner.last.bias.view(3, components)[1].zero_()
            law.conditioner.last.bias.view(3, components)[2].fill_(math.log(1.0 - 1e-3))
        ends = torch.arange(components + 1, dtype=F64) / components
        u = torch.cat([ends - step, ends, ends + step]).clamp(0.0, 1.0 - step).to(dtype)
        z = share_of(engine, law, u[:, None])
        assert float(z.abs().max()) < most
        assert float(z.abs().max()) > 0.75 * most
    # A last component without weight is chosen by nobody, also where the others do not quite add up to one.
    logits = torch.full((1, 7), math.log(1 / 7), dtype=dtype)
    logits[0, -1] = -300.0
    locations = torch.arange(7, dtype=dtype)[None]
    with torch.no_grad():
        last = torch.cat([logits, locations, torch.zeros_like(logits)], -1)
        law = AutoregressiveMixture(MaskedResidualNet(1, 21, hidden=4), Gaussian(1)).to(dtype)
        law.conditioner.last.bias.copy_(last.reshape(-1))
    z = share_of(engine, law, torch.tensor([[1.0 - step]], dtype=dtype))
    assert float(z) == pytest.approx(5.0 + special.ndtri(1.0 - 3 * step), abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@both_engines
def test_next_to_the_ends_of_components_nothing_is_infinite(engine: Engine, dtype: torch.dtype) -> None:
    """Where one component ends and the next begins, rounding decides: a share may come out as 0, as 1 or beyond."""
    conditional = MixtureConditional(6)
    logits = torch.randn(5_000, 6, dtype=dtype)
    parameters = torch.cat([logits, torch.zeros(5_000, 12, dtype=dtype)], -1)
    ends = logits.softmax(-1).cumsum(-1)[:, :-1]
    for towards in (0.0, 1.0):
        z = ends.clone()
        for _ in range(3):
            for d in range(5):
                drawn, minus_log_density = drawn_by(engine, conditional, z[:, d].contiguous(), parameters)
                assert float(drawn.abs().max()) < 8.6  # of the largest number below 1
                assert bool(minus_log_density.isfinite().all())
            z = torch.nextafter(z, torch.tensor(towards, dtype=dtype))


def drawn_by(engine: Engine, conditional: MixtureConditional, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The map alone, with parameters of their own for every value."""
    if engine == "torch":
        return conditional.inverse(z, parameters)
    kernel = conditional.kernel()
    return elementwise.apply_map(conditional.inverse, kernel, conditional.size, z, parameters, inverse=True)


@both_engines
def test_samples_in_float32_are_many_and_right(engine: Engine) -> None:
    law = made(2, least_scale=0.01).float()
    with by(engine):
        z = law.sample(100_000)
    assert bool(z.isfinite().all())
    assert all(len(column.unique()) > 90_000 for column in z.T)
    noise = law.double().standardize(z.double()).detach()
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    assert float(noise.abs().max()) < 6.0


def test_standardised_tails_keep_their_digits() -> None:
    law = AutoregressiveMixture(MaskedResidualNet(1, 3, hidden=4), Gaussian(1)).double()
    far = torch.tensor([[-35.0], [-9.0], [0.0], [9.0], [35.0]], dtype=F64)
    assert_close(law.standardize(far).detach(), far)
    assert_close(law.float().standardize(far[1:4].float()).detach(), far[1:4].float())


# Gradients of samples


@pytest.mark.parametrize("network", ["residual", "transformer"])
@both_engines
def test_sample_gradients_are_those_of_the_implicit_function(engine: Engine, network: str) -> None:
    """What keeps the noise behind a point where it is while parameters and context move: dz = -J^-1 dS."""
    law = made(3, 2, network=network, hidden=8, blocks=1)
    given = torch.randn(2, dtype=F64, requires_grad=True)
    weight = torch.randn(3, dtype=F64)
    sources = [given, *law.parameters()]
    for seed in range(3):
        torch.manual_seed(seed)
        with by(engine):
            z = law.rsample((), given)
            found = torch.autograd.grad((z * weight).sum(), sources)
        z = z.detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: law.standardize(z, given), z)
        pulled = torch.linalg.solve(jacobian.T, weight)
        expected = torch.autograd.grad(-(law.standardize(z, given) * pulled).sum(), sources)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol=1e-7, atol=1e-9)
        assert max(float(b.abs().max()) for b in expected) > 1e-2


def test_gradients_of_one_feature_have_a_closed_form() -> None:
    """E z and E z² of a mixture in one dimension, by autograd of the formulas."""
    law = made(1, components=3, blocks=0)
    with torch.no_grad():
        law.conditioner.last.weight.zero_()
        law.frame.log_scale.zero_()
        law.frame.location.zero_()
    bias = law.conditioner.last.bias
    logits, m, raw = bias.view(3, 3)
    s = raw.exp() + 1e-3
    for power, exact in ((1, logits.softmax(-1) @ m), (2, logits.softmax(-1) @ (m**2 + s**2))):
        (slopes,) = torch.autograd.grad(exact, bias, retain_graph=True)
        found = torch.stack([torch.autograd.grad((law.rsample(500) ** power).mean(), bias)[0] for _ in range(40)])
        error = (found.mean(0) - slopes).abs()
        assert bool((error < 5 * found.std(0) / 40**0.5 + 1e-9).all()), power
        assert float(found.std(0).max()) / 40**0.5 < 0.2 * float(slopes.abs().max())


def test_expectations_and_their_gradients_equal_integrals() -> None:
    law = made(2, hidden=8, blocks=1, least_scale=0.1)
    parameters = list(law.parameters())
    expected = (bend(GRID) * law.log_prob(GRID).exp() * AREA).sum()
    slopes = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected, parameters)])
    values, gradients = [], []
    for _ in range(30):
        value = bend(law.rsample(1_000)).mean()
        values.append(value.detach())
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]))
    for found, exact in ((torch.stack(values)[:, None], expected[None]), (torch.stack(gradients), slopes)):
        error = (found.mean(0) - exact).abs()
        # The network has kinks, where a grid is not exact.
        slack = 0.01 * float(exact.detach().abs().max())
        assert bool((error <= 6 * found.std(0) / 30**0.5 + slack).all()), float(error.detach().max())
    assert float(torch.stack(gradients).std(0).norm() / 30**0.5) < 0.2 * float(slopes.norm())


def test_gradients_reach_the_context_past_frozen_parameters() -> None:
    law = made(2, 1).requires_grad_(False)
    given = torch.randn(4, 1, dtype=F64, requires_grad=True)
    z = law.rsample((), given)
    (found,) = torch.autograd.grad(z.sum(), given)
    assert bool(found.ne(0).all())
    assert not law.rsample((), given.detach()).requires_grad
    assert not law.sample((), given).requires_grad


# Shapes, copies, mistakes


@pytest.mark.parametrize("network", ["residual", "transformer"])
@with_and_without_context
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_shapes_and_dtype(dtype: torch.dtype, context: int, network: str) -> None:
    law = made(3, context, network=network, hidden=8).to(dtype)
    for n, lead in (((), ()), (4, (4,)), ((2, 5), (2, 5)), (0, (0,))):
        for rows in ((), (6,), (0,)) if context else ((),):
            given = torch.randn(*rows, context, dtype=dtype) if context else None
            z = law.rsample(n, given)
            assert (z.shape, z.dtype) == ((*lead, *rows, 3), dtype)
            assert (law.log_prob(z, given).shape, law.log_prob(z, given).dtype) == ((*lead, *rows), dtype)
            assert bool(law.log_prob(z, given).isfinite().all())
            assert law.standardize(z, given).shape == z.shape
            assert law.sample(n, given).shape == z.shape
    if context:  # points and contexts that broadcast, against the same a pair at a time
        z, given = torch.randn(5, 1, 3, dtype=dtype), torch.randn(4, context, dtype=dtype)
        together = law.log_prob(z, given)
        assert together.shape == (5, 4)
        assert law.standardize(z, given).shape == (5, 4, 3)
        pairs = torch.stack([law.log_prob(z[i, 0], given[j]) for i in range(5) for j in range(4)])
        assert_close(together, pairs.view(5, 4), rtol=1e-4, atol=1e-4)
        assert len(set(together[0].tolist())) == 4


@pytest.mark.parametrize("frame_sees", [True, False])
@both_engines
def test_a_missing_context_is_named(engine: Engine, frame_sees: bool) -> None:
    law = made(3, 2)
    if not frame_sees:
        law = AutoregressiveMixture(law.conditioner, Gaussian(3).double())
    z = torch.zeros(4, 3, dtype=F64)
    calls: list[Callable[[], Tensor]] = [
        lambda: law.log_prob(z),
        lambda: law.rsample(4),
        lambda: law.sample(4),
        lambda: law.standardize(z),
    ]
    for call in calls:
        with by(engine), pytest.raises(ValueError, match=r"^AutoregressiveMixture: expected context of shape"):
            call()
    with pytest.raises(ValueError, match=r"expected context of shape \(\.\.\., 2\); got \(4, 3\)"):
        law.log_prob(z, z)
    with pytest.raises(ValueError, match=r"expected points of shape \(\.\.\., 3\); got \(4, 2\)"):
        law.log_prob(z[:, :2], z[:, :2])


@pytest.mark.parametrize(
    ("outputs", "frame", "least_scale", "said"),
    [
        (7, Gaussian(2), 1e-3, "expected a conditioner with three outputs a component and feature; got 7 outputs a"),
        (6, Gaussian(3), 1e-3, "expected a frame of 2 features, full or diagonal; got 3 features, diagonal"),
        (6, Gaussian(2, 1), 1e-3, "expected a frame of 2 features"),
        (6, Gaussian(2, covariance="low-rank"), 1e-3, "got 2 features, low-rank"),
        (6, Gaussian(2), 0.0, "expected least_scale above 0 and below 0.7; got 0.0"),
        (6, Gaussian(2), 0.7, "expected least_scale above 0 and below 0.7; got 0.7"),
        (6, Gaussian(2), math.nan, "expected least_scale above 0 and below 0.7; got nan"),
    ],
)
def test_mistakes_are_named(outputs: int, frame: Gaussian, least_scale: float, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        AutoregressiveMixture(MaskedResidualNet(2, outputs, hidden=4), frame, least_scale)
    assert str(error.value).startswith("AutoregressiveMixture: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["made-mog", "nsf-ar"])
@pytest.mark.parametrize("conditioner", ["residual", "transformer"])
@with_and_without_context
def test_what_is_read_is_what_was_written(
    context: int, conditioner: Literal["residual", "transformer"], name: str, tmp_path: Path, perturb: Perturb
) -> None:
    base = "full" if name == "made-mog" else "made-mog"
    sizes: dict[str, Any] = {"layers": 1, "hidden": 8, "blocks": 1, "components": 3, "base": base}
    flow = build(name, 3, context, conditioner=conditioner, **sizes).eval()
    perturb(flow)
    assert isinstance(flow.base, AutoregressiveMixture)
    flow.base.conditional = MixtureConditional(3, 0.125)
    save(flow, tmp_path)
    twin = load_model(tmp_path, Flow)
    x, given = torch.randn(8, 3), torch.randn(8, context) if context else None
    assert_close(twin(x, given), flow(x, given), rtol=0, atol=0)
    assert_close(twin.state_dict(), flow.state_dict(), rtol=0, atol=0)
    assert isinstance(twin.base, AutoregressiveMixture)
    assert twin.base.conditional == flow.base.conditional
    assert type(twin.base.conditioner) is type(flow.base.conditioner)
    assert_close(copy.deepcopy(flow)(x, given), flow(x, given), rtol=0, atol=0)


def test_more_components_than_a_kernel_has_room_for_are_refused() -> None:
    law = made(1, components=MOST_COMPONENTS, blocks=0)
    z = torch.randn(3, 1, dtype=F64)
    with native.disabled():
        expected = law.log_prob(z)
    assert_close(law.log_prob(z), expected)
    for components in (0, MOST_COMPONENTS + 1):
        with pytest.raises(ValueError, match=f"^MixtureConditional: expected 1 to {MOST_COMPONENTS} components; got "):
            MixtureConditional(components)
    with pytest.raises(ValueError, match=r"^MixtureConditional: expected least_scale above 0; got 0.0$"):
        MixtureConditional(2, 0.0)


def test_sizes_reach_the_law() -> None:
    flow = build("made-mog", 4, 2, hidden=7, blocks=3, components=6, dropout=0.25, base="full")
    law = flow.base
    assert isinstance(law, AutoregressiveMixture)
    assert law.conditional == MixtureConditional(6)
    assert law.frame.config() == {"features": 4, "context": 2, "covariance": "full", "trainable": True}
    sizes = {"features": 4, "outputs_per_feature": 18, "context": 2, "hidden": 7, "blocks": 3, "dropout": 0.25}
    assert law.conditioner.config() == sizes
    with pytest.raises(ValueError, match=r"expected base full or diagonal for made-mog.*; got student-t$"):
        build("made-mog", 4, base="student-t")
    with pytest.raises(ValueError, match=r"^build: expected components of at least 1; got 0$"):
        build("made-mog", 4, components=0)
    with pytest.raises(
        ValueError, match=r"^unknown base 'made-mgo'; did you mean 'made-mog'\? known: diagonal, .*mog$"
    ):
        build("maf", 4, base="made-mgo")
    with pytest.raises(ValueError, match=r"^unknown conditioner 'transform'; did you mean 'transformer'\?"):
        build("made-mog", 4, conditioner="transform")  # type: ignore[arg-type]


# Flows that stand on one


def on_mixtures(name: str, features: int, perturb: Perturb, context: int = 0, **options: Any) -> Flow:
    base = "diagonal" if name == "made-mog" else "made-mog"
    flow = build(name, features, context, layers=2, hidden=8, bins=4, components=3, base=base, **options)
    perturb(flow.double(), 0.5)
    return flow.eval()


def test_a_flow_on_it_integrates_to_one(perturb: Perturb) -> None:
    flow = on_mixtures("nsf-ar", 2, perturb)
    with torch.no_grad():
        assert float((flow.log_prob(GRID).exp() * AREA).sum()) == pytest.approx(1.0, abs=4e-3)


@both_engines
@pytest.mark.parametrize("name", ["made-mog", "nsf-ar", "nsf-c"])
def test_path_gradient(name: str, engine: Engine, perturb: Perturb) -> None:
    with by(engine):
        path_gradients_agree(on_mixtures(name, 3, perturb))


def test_score_is_the_gradient_of_the_density(perturb: Perturb) -> None:
    flow = on_mixtures("nsf-ar", 3, perturb, 2)
    x, given = torch.randn(5, 3, dtype=F64), torch.randn(5, 2, dtype=F64)
    with native.disabled():
        exact = torch.func.vmap(torch.func.grad(flow.log_prob))(x, given)
    assert_close(flow.score(x, given), exact)


@pytest.mark.parametrize("path", [True, False])
def test_log_densities_of_samples_are_without_dropout(path: bool, perturb: Perturb) -> None:
    """Rows are drawn without, so what is said of them is the density that drew them, also while training."""
    for name in ("made-mog", "nsf-ar"):
        flow = on_mixtures(name, 3, perturb, dropout=0.5).train()
        x, log_prob = flow.rsample_and_log_prob(20, path=path)
        assert not torch.allclose(flow.log_prob(x), flow.log_prob(x))  # it is on again
        assert all(module.training for module in flow.modules())
        assert_close(log_prob.detach(), flow.eval().log_prob(x).detach())


def test_likelihood_learns_what_a_gaussian_cannot() -> None:
    """A cross: the second conditional has two modes, whose places depend on the first feature."""
    x = torch.randn(512, 2)
    x[:, 1] = torch.randint(2, (512,)).sub(0.5).sign() * x[:, 0] + 0.1 * x[:, 1]
    flow = build("made-mog", 2, hidden=32, blocks=1, components=5)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    before = -flow.log_prob(x).mean()
    for _ in range(80):
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(p.grad is not None for p in flow.parameters())
    assert (before + flow.log_prob(x).mean()).item() > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_lives_on_a_gpu() -> None:
    law = made(3)
    z = torch.randn(7, 3, dtype=F64)
    expected, noise = law.log_prob(z), law.standardize(z)
    law.cuda()
    assert_close(law.log_prob(z.cuda()).cpu(), expected)
    assert_close(law.standardize(z.cuda()).cpu(), noise)
    points = law.rsample((2, 3))
    assert points.device.type == law.device.type == "cuda"
    points.sum().backward()
