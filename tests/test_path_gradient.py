"""The score that is carried along with samples, and the path gradient that it gives."""

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from pushforward.flows import Chain, Flow, Gaussian, build, native
from tests.test_bijections import CASES

FLOWS = ("realnvp", "maf", "iaf", "nsf-c", "nsf-ar")
Perturb = Callable[[Flow], Flow]


def made(name: str, perturb: Perturb, features: int = 5, context: int = 0, base: str = "diagonal") -> Flow:
    """A flow in float64, away from the identity."""
    flow = build(name, features, context, layers=3, hidden=16, base=base)
    return perturb(flow).double().eval()


def gradients(flow: Flow, loss: Tensor) -> list[Tensor]:
    """The gradients of a loss by all parameters; zeros where there is none."""
    found = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, flow.parameters(), strict=True)]


def by_definition(bijection: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, score: Tensor) -> Tensor:
    """J^-T (s - grad log|det J|) of one point, with the whole Jacobian."""
    jacobian = torch.func.jacrev(lambda p: bijection(p)[0])(z)
    log_det = torch.func.grad(lambda p: bijection(p)[1])(z)
    exact: Tensor = torch.linalg.solve(jacobian.T, score - log_det)
    return exact


@pytest.mark.parametrize("native_kernels", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_score_of_every_bijection(name: str, native_kernels: bool, perturb: Callable[..., torch.nn.Module]) -> None:
    bijection = CASES[name]().double().eval()
    perturb(bijection, 0.1)
    features, context = bijection.features, bijection.context
    x = 0.5 * torch.randn(6, features, dtype=torch.float64)
    if "Logit" in name:
        x = 0.05 + 0.9 * torch.rand_like(x)
    if "Log" in name:
        x = x.exp()
    given = torch.randn(6, context, dtype=torch.float64) if context else None
    score = torch.randn_like(x)
    with contextlib.nullcontext() if native_kernels else native.disabled():
        z, log_det, mapped = bijection.forward_and_score(x, score, given)
        back, log_det_back, score_back = bijection.inverse_and_score(z.detach(), mapped, given)
    assert not mapped.requires_grad
    assert torch.allclose(back, x, atol=1e-8)
    assert torch.allclose(log_det, -log_det_back, atol=1e-8)
    assert torch.allclose(score_back, score, atol=1e-7)
    if "Foreign" in name:
        return  # nflows does not run under functorch
    for i in range(3):
        row = None if given is None else given[i]
        with native.disabled():
            exact = by_definition(lambda p, row=row: bijection(p, row), x[i], score[i])  # type: ignore[misc]
        assert torch.allclose(mapped[i], exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("native_kernels", [True, False])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", FLOWS)
def test_one_pass_is_two_passes(name: str, context: int, native_kernels: bool, perturb: Perturb) -> None:
    flow = made(name, perturb, context=context, base="full")
    given = torch.randn(9, context, dtype=torch.float64) if context else None
    n = () if context else 9
    weight = torch.randn(9, 5, dtype=torch.float64)

    def loss(x: Tensor, log_prob: Tensor) -> Tensor:
        return (log_prob.exp() + log_prob + (x * weight).sum(-1)).mean()

    with contextlib.nullcontext() if native_kernels else native.disabled():
        with torch.random.fork_rng():
            x, log_prob = flow.rsample_and_log_prob(n, given, path=True)
        one = gradients(flow, loss(x, log_prob))
        with torch.random.fork_rng():
            x, total = flow.rsample_and_log_prob(n, given)
        two = gradients(flow, loss(x, flow.frozen_log_prob(x, given)))
    with torch.random.fork_rng():
        x = flow.rsample(n, given)
    frozen = {name: p.detach() for name, p in flow.named_parameters()}
    reference = gradients(flow, loss(x, functional_call(flow, frozen, (x, given))))
    assert torch.allclose(log_prob, total, atol=1e-10)
    for a, b, c in zip(one, two, reference, strict=True):
        assert torch.allclose(a, b, atol=1e-8)
        assert torch.allclose(a, c, atol=1e-8)
    assert max(float(g.abs().max()) for g in one) > 1e-3


@pytest.mark.parametrize("name", FLOWS)
def test_without_gradients_and_in_float32(name: str, perturb: Perturb) -> None:
    flow = made(name, perturb)
    with torch.no_grad(), torch.random.fork_rng():
        x, log_prob = flow.rsample_and_log_prob(4, path=True)
    with torch.random.fork_rng():
        same, total = flow.rsample_and_log_prob(4)
    assert torch.allclose(x, same)
    assert torch.allclose(log_prob, total, atol=1e-10)
    x, log_prob = flow.float().rsample_and_log_prob((2, 3), path=True)
    assert (x.shape, log_prob.shape, log_prob.dtype) == ((2, 3, 5), (2, 3), torch.float32)
    x, log_prob = flow.rsample_and_log_prob(0, path=True)
    assert (x.shape, log_prob.shape) == ((0, 5), (0,))


def test_dropout_does_not_come_between_the_directions(perturb: Perturb) -> None:
    for name in ("nsf-c", "maf", "iaf"):
        flow = perturb(build(name, 4, layers=2, hidden=16, dropout=0.5)).double().train()
        flow(torch.randn(8, 4, dtype=torch.float64))  # ActNorm sets itself
        x = torch.randn(8, 4, dtype=torch.float64)
        score = torch.randn_like(x)
        z, _, mapped = flow.bijection.forward_and_score(x, score)
        flow.eval()
        exact_z, _, exact = flow.bijection.forward_and_score(x, score)
        if name == "maf":
            assert torch.allclose(z, exact_z)
        assert mapped.isfinite().all()
        assert exact.isfinite().all()


@pytest.mark.parametrize("name", FLOWS)
def test_frozen_parameters_stay_frozen_and_nothing_is_accumulated(name: str, perturb: Perturb) -> None:
    flow = made(name, perturb)
    for parameter in list(flow.parameters())[::2]:
        parameter.requires_grad_(False)
    flags = [p.requires_grad for p in flow.parameters()]
    x, log_prob = flow.rsample_and_log_prob(5, path=True)
    flow.frozen_log_prob(x)
    flow.score(x)
    assert all(p.grad is None for p in flow.parameters())
    (log_prob.mean() + x.mean()).backward()
    assert flags == [p.requires_grad for p in flow.parameters()]
    assert all(p.grad is None for p, trained in zip(flow.parameters(), flags, strict=True) if not trained)
    assert any(p.grad is not None for p, trained in zip(flow.parameters(), flags, strict=True) if trained)


@pytest.mark.parametrize("name", FLOWS)
def test_score_is_the_gradient_of_the_density(name: str, perturb: Perturb) -> None:
    flow = made(name, perturb)
    x = torch.randn(5, 5, dtype=torch.float64)
    with native.disabled():
        exact = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    assert torch.allclose(flow.score(x), exact, atol=1e-9)
    x.requires_grad_()
    (frozen,) = torch.autograd.grad(flow.frozen_log_prob(x).sum(), x)
    assert torch.allclose(frozen, exact, atol=1e-9)


@pytest.mark.parametrize("native_kernels", [True, False])
def test_context_is_a_constant_in_the_density(native_kernels: bool, perturb: Perturb) -> None:
    """Of a conditional flow the score term by the context is dropped too: an encoder gets the path gradient alone."""
    flow = made("nsf-c", perturb, context=2)
    context = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    with contextlib.nullcontext() if native_kernels else native.disabled():
        with torch.random.fork_rng():
            _, log_prob = flow.rsample_and_log_prob((), context, path=True)
        (one,) = torch.autograd.grad(log_prob.sum(), context)
    with torch.random.fork_rng():
        x = flow.rsample((), context)
    (reference,) = torch.autograd.grad(flow.log_prob(x, context.detach()).sum(), context)
    assert torch.allclose(one, reference, atol=1e-9)


def test_variance_vanishes_where_the_flow_fits(perturb: Perturb) -> None:
    """The path gradient of KL(q || q) is zero point by point, that of the total one only in the mean."""
    flow = made("nsf-ar", perturb, features=3)
    target = copy.deepcopy(flow)
    largest = []
    for path in (True, False):
        x, log_prob = flow.rsample_and_log_prob(1, path=path)
        found = gradients(flow, (log_prob - target.log_prob(x)).mean())
        largest.append(max(float(g.abs().max()) for g in found))
    assert largest[0] < 1e-9
    assert largest[1] > 1e-3


def test_a_flow_without_layers() -> None:
    flow = Flow(Gaussian(2), Chain([], features=2)).double()
    x, log_prob = flow.rsample_and_log_prob(3, path=True)
    assert torch.allclose(flow.score(x), -x)
    assert torch.allclose(log_prob, flow.log_prob(x))
