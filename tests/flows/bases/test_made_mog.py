"""Autoregressive mixtures: the kernel against torch, the density, shapes and errors."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import (
    AutoregressiveMixture,
    Flow,
    Gaussian,
    MaskedResidualNet,
    build,
)
from pushforward.flows.bases.made_mog import MOST_COMPONENTS, MixtureConditional
from pushforward.flows.kernels import native
from tests.fixtures.autoregressive_mixtures import (
    Engine,
    both_engines,
    perturbed_mixture,
    using,
    values_and_gradients,
    with_and_without_context,
)
from tests.fixtures.integrals import AREA, GRID
from tests.fixtures.kernels import second_derivatives

F64 = torch.float64


@pytest.mark.parametrize(
    ("points", "features", "context", "components", "blocks"),
    [(1, 1, 0, 1, 0), (0, 3, 0, 4, 1), (65, 3, 2, 4, 2), (130, 1, 1, 20, 1), (64, 12, 0, 10, 2), (7, 5, 0, 2, 0)],
)
def test_engines_agree(points: int, features: int, context: int, components: int, blocks: int) -> None:
    base = perturbed_mixture(features, context, components=components, blocks=blocks, hidden=12)
    z = 2.0 * torch.randn(points, features, dtype=F64)
    given = torch.randn(points, context, dtype=F64) if context else None
    ours = values_and_gradients(base, z, given, kernel=True)
    with native.disabled():
        expected = values_and_gradients(base, z, given, kernel=False)
    for name, tensor in expected.items():
        assert_close(ours[name], tensor, rtol=1e-9, atol=1e-10, msg=functools.partial("{}: {}".format, name))
    with torch.no_grad():
        assert_close(base.log_prob(z, given), ours["value"], rtol=0, atol=0)


def test_kernel_in_float32() -> None:
    base = perturbed_mixture(4, 1)
    z, given = 2.0 * torch.randn(100, 4, dtype=F64), torch.randn(100, 1, dtype=F64)
    exact = values_and_gradients(base, z, given)
    ours = values_and_gradients(base.float(), z.float(), given.float(), kernel=True)
    for name, tensor in exact.items():
        scale = float(tensor.abs().max())
        assert_close(
            ours[name].double(), tensor, rtol=1e-4, atol=2e-5 * scale, msg=functools.partial("{}: {}".format, name)
        )


def test_second_derivatives_agree_with_torch() -> None:
    base = perturbed_mixture(3)
    z = torch.randn(9, 3, dtype=F64)
    parameters = list(base.parameters())

    def apply(points: Tensor) -> tuple[Tensor, Tensor]:
        return points, base.log_prob(points)

    found = second_derivatives(apply, z, *parameters)
    with native.disabled():
        expected = second_derivatives(apply, z, *parameters)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    assert max(float(b.detach().abs().max()) for b in expected) > 1e-3


@both_engines
def test_gradcheck(engine: Engine) -> None:
    base = perturbed_mixture(2, 1, components=3, hidden=4, blocks=1)
    z, given = torch.randn(3, 2, dtype=F64, requires_grad=True), torch.randn(3, 1, dtype=F64, requires_grad=True)
    base.requires_grad_(True)
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in base.named_parameters()), strict=True)

    def density(z: Tensor, given: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(base, dict(zip(names, parameters, strict=True)), (z, given))

    base.forward = base.log_prob
    with using(engine):
        assert torch.autograd.gradcheck(density, (z, given, *values))


def test_functorch_and_compile_work() -> None:
    flow = Flow(perturbed_mixture(3, blocks=0), build("gaussian", 3).bijection)
    x = torch.randn(4, 3, dtype=F64)
    assert_close(torch.func.vmap(torch.func.grad(flow.log_prob))(x), flow.score_function(x))
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    assert_close(compiled(x), flow.log_prob(x))


@both_engines
def test_a_missing_value_makes_its_own_row_nan_and_no_other(engine: Engine) -> None:
    base = perturbed_mixture(3)
    z = torch.randn(70, 3, dtype=F64)
    z[[5, 66], [1, 2]] = math.nan
    with using(engine):
        found = base.log_prob(z)
        for bad in (torch.inf, -torch.inf):
            assert not base.log_prob(z.index_fill(0, torch.tensor([3]), bad))[3] > -1e300
    expected = torch.zeros(70, dtype=torch.bool)
    expected[[5, 66]] = True
    assert torch.equal(found.isnan(), expected)
    with using(engine), torch.no_grad():
        for parameter in (base.conditioner.last.bias[i] for i in (0, 4, 8)):  # a logit, a location, a scale
            before = parameter.clone()
            parameter.fill_(math.nan)
            assert bool(base.log_prob(torch.zeros(5, 3, dtype=F64)).isnan().all())
            parameter.copy_(before)


@with_and_without_context
@both_engines
def test_density_integrates_to_one(engine: Engine, context: int) -> None:
    given = torch.tensor([0.7, -0.4], dtype=F64)[:context] if context else None
    with using(engine), torch.no_grad():
        line = torch.linspace(-60, 60, 60_001, dtype=F64)
        one = perturbed_mixture(1, context).log_prob(line[:, None], given).exp()
        assert float(torch.trapezoid(one, line)) == pytest.approx(1.0, abs=1e-8)
        two = perturbed_mixture(2, context, least_scale=0.1).log_prob(GRID, given).exp()
        assert float((two * AREA).sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("components", [1, 5])
@both_engines
def test_density_is_the_product_of_mixtures(engine: Engine, components: int) -> None:
    """Against torch.distributions with the parameters of the network, and the log-determinant of the frame."""
    base = perturbed_mixture(3, 2, components=components)
    z, given = 2.0 * torch.randn(50, 3, dtype=F64), torch.randn(50, 2, dtype=F64)
    frame = base.frame
    y = frame.latents(z, given)
    logits, locations, raw = base.conditioner(y, given).chunk(3, -1)
    normals = torch.distributions.Normal(locations, raw.exp() + 1e-3)
    joint = normals.log_prob(y[..., None]) + logits.log_softmax(-1)
    _, log_scale = frame.location_and_log_scale(given)
    with using(engine):
        assert_close(base.log_prob(z, given), joint.logsumexp(-1).sum(-1) - log_scale.sum(-1))


def test_a_feature_depends_only_on_those_before_it() -> None:
    base = perturbed_mixture(3)
    y = torch.randn(3, dtype=F64)
    parameters = torch.func.jacrev(base.conditioner)(y)
    for d in range(3):
        seen = parameters[d].abs().amax(0) > 0
        assert seen.tolist() == [i < d for i in range(3)]


@both_engines
def test_the_density_is_exact_and_finite_far_from_the_data(engine: Engine) -> None:
    base = perturbed_mixture(1, components=3, blocks=0)
    logits, locations, raw = base.conditioner.last.bias.detach().view(3, 3)
    with torch.no_grad():
        base.conditioner.last.weight.zero_()
        base.frame.log_scale.zero_()
        base.frame.location.zero_()
    for x in (-1e6, -300.0, 40.0, 1e4):
        terms = stats.norm.logpdf(x, locations.numpy(), raw.exp().numpy() + 1e-3) + special.log_softmax(logits.numpy())
        with using(engine):
            ours = values_and_gradients(base, torch.tensor([[x]], dtype=F64), None)
            single = values_and_gradients(copy.deepcopy(base).float(), torch.tensor([[x]]), None)
        assert float(ours["value"]) == pytest.approx(special.logsumexp(terms), rel=1e-12)
        assert float(single["value"]) == pytest.approx(special.logsumexp(terms), rel=1e-5)
        assert all(bool(g.isfinite().all()) for found in (ours, single) for g in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@both_engines
def test_extreme_network_outputs_stay_finite(engine: Engine, dtype: torch.dtype) -> None:
    """Far from the data the outputs of a network grow without bound; their exponential must not overflow."""
    base = perturbed_mixture(3)
    z = torch.tensor([[1e3, -1e3, 1e3], [1e9, 1e9, -1e9], [-1e9, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=F64)
    exact = base.log_prob(z)
    assert bool(exact.isfinite().all())
    with using(engine):
        found = values_and_gradients(base.to(dtype), z.to(dtype), None)
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
def test_scales_are_bounded_at_both_ends(engine: Engine) -> None:
    base = AutoregressiveMixture(MaskedResidualNet(1, 3, hidden=4), Gaussian(1), least_scale=0.2).double()
    for raw, scale in ((-1e4, 0.2), (math.log(0.5), 0.7), (1e4, math.exp(30.0) + 0.2)):
        with torch.no_grad():
            base.conditioner.last.bias[2] = raw
        with using(engine):
            found = values_and_gradients(base, torch.tensor([[0.3]], dtype=F64), None)
        assert float(found["value"]) == pytest.approx(stats.norm.logpdf(0.3, 0.0, scale), rel=1e-12)
        slope = float(found["conditioner.last.bias"][2])
        assert (abs(slope) > 1e-9) == (abs(raw) < 1e3)


def test_starts_nearly_as_the_gaussian_of_its_frame() -> None:
    mean, root = torch.tensor([1.0, -200.0], dtype=F64), torch.tensor([[2.0, 0.0], [0.5, 0.1]], dtype=F64)
    exact = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    z = exact.sample((4_000,))
    for components, most in ((1, 1e-12), (4, 0.03), (10, 0.01), (20, 0.01)):
        net = MaskedResidualNet(2, 3 * components, hidden=4)
        base = AutoregressiveMixture(net, Gaussian(2, covariance="full")).double()
        base.initialize(mean, root @ root.T)
        lost = (exact.log_prob(z) - base.log_prob(z)).mean().item()
        assert -1e-12 < lost < most, components


@pytest.mark.parametrize("network", ["residual", "transformer"])
@with_and_without_context
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_shapes_and_dtype(dtype: torch.dtype, context: int, network: str) -> None:
    base = perturbed_mixture(3, context, network=network, hidden=8).to(dtype)
    for n, lead in (((), ()), (4, (4,)), ((2, 5), (2, 5)), (0, (0,))):
        for rows in ((), (6,), (0,)) if context else ((),):
            given = torch.randn(*rows, context, dtype=dtype) if context else None
            z = base.rsample(n, given)
            assert (z.shape, z.dtype) == ((*lead, *rows, 3), dtype)
            assert (base.log_prob(z, given).shape, base.log_prob(z, given).dtype) == ((*lead, *rows), dtype)
            assert bool(base.log_prob(z, given).isfinite().all())
            assert base.latents(z, given).shape == z.shape
            assert base.sample(n, given).shape == z.shape
    if context:  # points and contexts that broadcast, against one pair at a time
        z, given = torch.randn(5, 1, 3, dtype=dtype), torch.randn(4, context, dtype=dtype)
        together = base.log_prob(z, given)
        assert together.shape == (5, 4)
        assert base.latents(z, given).shape == (5, 4, 3)
        pairs = torch.stack([base.log_prob(z[i, 0], given[j]) for i in range(5) for j in range(4)])
        assert_close(together, pairs.view(5, 4), rtol=1e-4, atol=1e-4)
        assert len(set(together[0].tolist())) == 4


@pytest.mark.parametrize("frame_sees", [True, False])
@both_engines
def test_a_missing_context_is_an_error_that_names_the_shape(engine: Engine, frame_sees: bool) -> None:
    base = perturbed_mixture(3, 2)
    if not frame_sees:
        base = AutoregressiveMixture(base.conditioner, Gaussian(3).double())
    z = torch.zeros(4, 3, dtype=F64)
    calls: list[Callable[[], Tensor]] = [
        lambda: base.log_prob(z),
        lambda: base.rsample(4),
        lambda: base.sample(4),
        lambda: base.latents(z),
    ]
    for call in calls:
        with using(engine), pytest.raises(ValueError, match=r"^AutoregressiveMixture: expected context of shape"):
            call()
    with pytest.raises(ValueError, match=r"expected context of shape \(\.\.\., 2\); got \(4, 3\)"):
        base.log_prob(z, z)
    with pytest.raises(ValueError, match=r"expected points of shape \(\.\.\., 3\); got \(4, 2\)"):
        base.log_prob(z[:, :2], z[:, :2])


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


def test_more_components_than_a_kernel_supports_are_an_error() -> None:
    base = perturbed_mixture(1, components=MOST_COMPONENTS, blocks=0)
    z = torch.randn(3, 1, dtype=F64)
    with native.disabled():
        expected = base.log_prob(z)
    assert_close(base.log_prob(z), expected)
    for components in (0, MOST_COMPONENTS + 1):
        with pytest.raises(ValueError, match=f"^MixtureConditional: expected 1 to {MOST_COMPONENTS} components; got "):
            MixtureConditional(components)
    with pytest.raises(ValueError, match=r"^MixtureConditional: expected least_scale above 0; got 0.0$"):
        MixtureConditional(2, 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_works_on_a_gpu() -> None:
    base = perturbed_mixture(3)
    z = torch.randn(7, 3, dtype=F64)
    expected, latents = base.log_prob(z), base.latents(z)
    base.cuda()
    assert_close(base.log_prob(z.cuda()).cpu(), expected)
    assert_close(base.latents(z.cuda()).cpu(), latents)
    points = base.rsample((2, 3))
    assert points.device.type == base.device.type == "cuda"
    points.sum().backward()
