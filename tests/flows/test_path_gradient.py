"""Path gradients, and the score function that is carried along with samples."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from nflows.transforms.permutations import RandomPermutation, ReversePermutation
from torch import Tensor
from torch.func import functional_call

from pushforward.flows import (
    NAMED,
    Base,
    Bijection,
    Chain,
    Coupling,
    Flow,
    Gaussian,
    MaskedAutoregressive,
    MaskedResidualNet,
    ResidualNet,
    Uniform,
    Univariate,
    build,
    make_base,
)
from pushforward.flows.kernels import native
from pushforward.train.objectives.gradient_estimators import forward_kl
from tests.fixtures.bijections import CASES
from tests.fixtures.path_gradients import gradients, path_gradients_agree

FLOWS = ("realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "made-mog")
Perturb = Callable[[Flow], Flow]


def built(name: str, perturb: Perturb, features: int = 5, context: int = 0, base: str = "diagonal") -> Flow:
    """A flow in float64, away from the identity."""
    flow = build(name, features, context, layers=3, hidden=16, base=base)
    return perturb(flow).double().eval()


def by_definition(bijection: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, score: Tensor) -> Tensor:
    """J^-T (s - grad log|det J|) at one point, from the full Jacobian."""
    jacobian = torch.func.jacrev(lambda p: bijection(p)[0])(z)
    log_det = torch.func.grad(lambda p: bijection(p)[1])(z)
    exact: Tensor = torch.linalg.solve(jacobian.T, score - log_det)
    return exact


@pytest.mark.parametrize("native_kernels", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_every_bijection_transforms_score_functions(
    name: str, native_kernels: bool, perturb: Callable[..., torch.nn.Module]
) -> None:
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
    if "NflowsTransform" in name:
        return  # nflows does not support functorch
    for i in range(3):
        row = None if given is None else given[i]
        with native.disabled():
            exact = by_definition(lambda p, row=row: bijection(p, row), x[i], score[i])  # type: ignore[misc]
        assert torch.allclose(mapped[i], exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("native_kernels", [True, False])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", FLOWS)
def test_the_path_gradient_in_one_pass_equals_that_in_two(
    name: str, context: int, native_kernels: bool, perturb: Perturb
) -> None:
    flow = built(name, perturb, context=context, base="full")
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
def test_path_option_without_gradients_and_in_float32(name: str, perturb: Perturb) -> None:
    flow = built(name, perturb)
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


@pytest.mark.parametrize("native_kernels", [True, False])
@pytest.mark.parametrize("name", ["nsf-c", "maf", "iaf"])
def test_path_gradients_are_without_dropout(name: str, native_kernels: bool, perturb: Perturb) -> None:
    """In training mode too, samples and score functions are those of evaluation; dropout is on again afterwards."""
    flow = perturb(build(name, 4, layers=2, hidden=16, dropout=0.5)).double().train()
    flow(torch.randn(8, 4, dtype=torch.float64))  # initializes ActNorm
    x, score = torch.randn(2, 8, 4, dtype=torch.float64).unbind()

    def passes() -> list[Tensor]:
        found = [*flow.bijection.forward_and_score(x, score), *flow.bijection.inverse_and_score(x, score)]
        with torch.random.fork_rng():
            points, log_prob = flow.rsample_and_log_prob(8, path=True)
        return [*found, points, log_prob, flow.frozen_log_prob(x), flow.score_function(x)]

    with contextlib.nullcontext() if native_kernels else native.disabled():
        trained = passes()
        assert all(m.training for m in flow.modules())
        if name != "iaf":  # its log_prob runs the inverse, which never applies dropout
            with torch.random.fork_rng():
                assert not torch.allclose(flow.log_prob(x), flow.log_prob(x))
        flow.eval()
        for a, b in zip(trained, passes(), strict=True):
            assert torch.allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_frozen_parameters_stay_frozen_and_nothing_is_accumulated(name: str, perturb: Perturb) -> None:
    flow = built(name, perturb)
    for parameter in list(flow.parameters())[::2]:
        parameter.requires_grad_(False)
    flags = [p.requires_grad for p in flow.parameters()]
    x, log_prob = flow.rsample_and_log_prob(5, path=True)
    flow.frozen_log_prob(x)
    flow.score_function(x)
    assert all(p.grad is None for p in flow.parameters())
    (log_prob.mean() + x.mean()).backward()
    assert flags == [p.requires_grad for p in flow.parameters()]
    assert all(p.grad is None for p, trained in zip(flow.parameters(), flags, strict=True) if not trained)
    assert any(p.grad is not None for p, trained in zip(flow.parameters(), flags, strict=True) if trained)


@pytest.mark.parametrize("name", FLOWS)
def test_score_function_is_the_gradient_of_the_log_density(name: str, perturb: Perturb) -> None:
    flow = built(name, perturb)
    x = torch.randn(5, 5, dtype=torch.float64)
    with native.disabled():
        exact = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    assert torch.allclose(flow.score_function(x), exact, atol=1e-9)
    x.requires_grad_()
    (frozen,) = torch.autograd.grad(flow.frozen_log_prob(x).sum(), x)
    assert torch.allclose(frozen, exact, atol=1e-9)


@pytest.mark.parametrize("native_kernels", [True, False])
def test_context_is_a_constant_in_the_density(native_kernels: bool, perturb: Perturb) -> None:
    """The score term by the context is dropped too: an encoder gets the path gradient only."""
    flow = built("nsf-c", perturb, context=2)
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
    """The path gradient of KL(q || q) is zero for every sample, the path-wise gradient only on average."""
    flow = built("nsf-ar", perturb, features=3)
    target = copy.deepcopy(flow)
    largest = []
    for path in (True, False):
        x, log_prob = flow.rsample_and_log_prob(1, path=path)
        found = gradients(flow, (log_prob - target.log_prob(x)).mean())
        largest.append(max(float(g.abs().max()) for g in found))
    assert largest[0] < 1e-9
    assert largest[1] > 1e-3


@dataclass(frozen=True)
class Shift(Univariate):
    """An additive map, whose log-derivative is constant."""

    @property
    def size(self) -> int:
        return 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z = x + parameters[..., 0]
        return z, z.new_zeros(z.shape)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x = z - parameters[..., 0]
        return x, x.new_zeros(x.shape)


class Shear(Bijection):
    """A volume-preserving shear: its log-determinant is a constant tensor, without a graph."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.slope = torch.nn.Parameter(torch.full((features - 1,), 0.7))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, others = x[..., :1], x[..., 1:]
        return torch.cat([first, others + self.slope * first.sin()], -1), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, others = z[..., :1], z[..., 1:]
        return torch.cat([first, others - self.slope * first.sin()], -1), z.new_zeros(z.shape[:-1])


class Constant(Bijection):
    """Not a bijection: neither value nor log-determinant depend on the points."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.ones_like(x), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(z)


def shifted_coupling() -> Coupling:
    return Coupling(ResidualNet(2, 3, hidden=8), Shift(), transformed=[True, False, True, False, True])


FLAT: dict[str, Callable[[], torch.nn.Module]] = {
    "random permutation": lambda: RandomPermutation(5),
    "reverse permutation": lambda: ReversePermutation(5),
    "shear": lambda: Shear(5),
    "additive coupling": shifted_coupling,
    "additive autoregressive": lambda: MaskedAutoregressive(MaskedResidualNet(5, 1, hidden=8), Shift()),
}


@pytest.mark.parametrize("name", FLAT)
def test_constant_log_determinants(name: str, perturb: Perturb) -> None:
    inner = build("nsf-c", 5, layers=2, hidden=16)
    flow = Flow(inner.base, Chain([FLAT[name](), inner.bijection, FLAT[name]()]))
    path_gradients_agree(perturb(flow).double().eval())
    only = perturb(Flow(Gaussian(5), FLAT[name]())).double().eval()
    path_gradients_agree(only)
    x, log_prob = only.rsample_and_log_prob(0, path=True)
    assert (x.shape, log_prob.shape) == ((0, 5), (0,))


def test_a_map_that_ignores_the_points_gives_a_zero_score_function() -> None:
    x, score = torch.randn(2, 4, 3).unbind()
    assert torch.equal(Constant(3).forward_and_score(x, score)[2], torch.zeros(4, 3))


@pytest.mark.parametrize("name", [*NAMED, "raw uniform", "constant uniform"])
def test_path_gradients_with_every_base(name: str, perturb: Perturb) -> None:
    if "uniform" in name and name not in NAMED:
        base: Base = Uniform(2, low=-1.0, width=3.0, trainable=name == "raw uniform")
    else:
        base = make_base(name, 2)
    flow = Flow(base, build("nsf-c", 2, layers=2, hidden=8).bijection)
    path_gradients_agree(perturb(flow).double().eval())


def test_forward_kl_with_a_flat_base(perturb: Perturb) -> None:
    """A base of constant density has a zero score function; the target's, pulled back, remains."""
    for trainable in (True, False):
        base = Uniform(2, low=-50.0, width=100.0, trainable=trainable)
        flow = perturb(Flow(base, build("nsf-c", 2, layers=2, hidden=8).bijection)).double().eval()
        x = torch.randn(7, 2, dtype=torch.float64)
        value = forward_kl(flow, x, target_score=-x)
        assert torch.allclose(value, -flow.log_prob(x).mean())
        z, _, pulled = flow.bijection.forward_and_score(x, -x)
        layers = list(flow.bijection.parameters())
        exact = torch.autograd.grad((z * pulled).sum(-1).mean(), layers, allow_unused=True)
        found = torch.autograd.grad(value, layers, allow_unused=True)
        for a, b in zip(found, exact, strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.allclose(a, b)


def test_second_derivatives_are_an_error(perturb: Perturb) -> None:
    flow = built("maf", perturb)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    for weight in (torch.ones(4, dtype=torch.float64), x[:, 0]):  # the second weight has its own graph
        (first,) = torch.autograd.grad((weight * flow.frozen_log_prob(x)).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad((first + x**2).sum(), x)
    _, log_prob = flow.rsample_and_log_prob(4, path=True)
    parameters = list(flow.parameters())
    firsts = torch.autograd.grad(log_prob.sum(), parameters, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.stack([g.square().sum() for g in firsts if g is not None]).sum().backward()


def test_a_flow_without_layers() -> None:
    flow = Flow(Gaussian(2), Chain([], features=2)).double()
    x, log_prob = flow.rsample_and_log_prob(3, path=True)
    assert torch.allclose(flow.score_function(x), -x)
    assert torch.allclose(log_prob, flow.log_prob(x))
