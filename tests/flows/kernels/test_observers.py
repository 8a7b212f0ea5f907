"""Tracing, compiling, batching, counting and hooks: they see an operator, or torch's operations in its place."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pushforward.flows import Flow, build
from pushforward.flows.kernels import buffers, native
from tests.fixtures.kernels import (
    DOUBLE,
    LAYERS,
    Perturb,
    autoregressive,
    both_layers,
    coupling,
    evaluated,
    kernels_in,
    second_derivatives,
)

# torch itself uses it when it first differentiates in forward mode
scripting = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture
def flow(perturb: Perturb) -> Flow:
    return perturb(build("nsf-ar", features=3, context=2, layers=2, hidden=16, bins=4).double(), 0.2)  # type: ignore[no-any-return]


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)


@scripting
def test_functorch(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    def derivatives() -> list[Any]:
        one = torch.func.jacrev(flow.log_prob)
        inverse = functools.partial(flow.bijection.inverse)
        return [
            torch.vmap(flow.log_prob)(*rows),
            torch.vmap(torch.func.grad(flow.log_prob))(*rows),
            one(*rows),
            torch.func.jacfwd(flow.log_prob)(*rows),
            torch.func.jvp(flow.log_prob, rows, (torch.ones_like(rows[0]), torch.ones_like(rows[1]))),
            torch.vmap(torch.func.jacrev(inverse))(*rows)[0],
            torch.func.hessian(flow.log_prob)(rows[0][0], rows[1][0]),
        ]

    plain = flow.log_prob(*rows)
    assert kernels_in(plain) == {"chain"}
    found = derivatives()
    assert_close(found[0], plain)
    with native.disabled():
        assert_close(found, derivatives())


def test_functional_call(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    doubled = {name: (2.0 * p).detach().requires_grad_() for name, p in flow.named_parameters()}
    found = torch.func.functional_call(flow, doubled, rows)
    assert kernels_in(found) == {"chain"}
    gradients = torch.autograd.grad(found.sum(), list(doubled.values()))
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0)
    with native.disabled():
        expected = twin(*rows)
        assert_close(found, expected)
        assert_close(gradients, torch.autograd.grad(expected.sum(), list(twin.parameters())))
    stacked = {name: torch.stack([p, 2.0 * p]).detach() for name, p in flow.named_parameters()}
    outputs = torch.vmap(lambda p: torch.func.functional_call(flow, p, rows))(stacked)
    assert_close(outputs[1], expected)


@scripting
def test_forward_mode(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = flow.log_prob(forward_ad.make_dual(rows[0], torch.ones_like(rows[0])), rows[1])
        tangent = forward_ad.unpack_dual(dual).tangent
    x = rows[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(x, rows[1]).sum(), x)
    assert_close(tangent, gradient.sum(-1))


def test_traces_contain_the_operator(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    graph = make_fx(lambda x, context: flow.log_prob(x, context))(*rows)
    assert torch.ops.pushforward.chain.default in {node.target for node in graph.graph.nodes}
    fresh = torch.randn_like(rows[0])
    assert_close(graph(fresh, rows[1]), flow.log_prob(fresh, rows[1]))


def test_fake_tensors(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = flow.log_prob(*(mode.from_tensor(t) for t in rows))
    assert fake.shape == (6,)
    assert type(fake).__name__ == "FakeTensor"


def test_operations_are_counted(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    loss = flow.log_prob(*rows).sum()
    with FlopCounterMode(display=False) as counter:
        flow.log_prob(*rows)
    assert counter.get_total_flops() > 1000
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() > 1000


@pytest.mark.parametrize("name", ["nsf-ar", "realnvp", "iaf"])
def test_compiled_and_exported(name: str, rows: tuple[Tensor, Tensor], perturb: Perturb) -> None:
    """Values and gradients are those of the eager flow, and both graphs call the kernels."""
    torch.compiler.reset()
    flow = perturb(build(name, features=3, context=2, layers=2, hidden=16, bins=4).double(), 0.2)
    flow.log_prob(*rows)
    expected = flow.eval().log_prob(*rows)
    calls: list[Any] = []

    def recorded(graph: Any, _: Any) -> Any:
        calls.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch.compile(flow, backend=recorded, fullgraph=True)(*rows)
    assert torch.ops.pushforward.chain.default in calls
    torch.compiler.reset()
    compiled: Any = torch.compile(flow, backend="aot_eager", fullgraph=True)
    found, parameters = compiled(*rows), list(flow.parameters())
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found.sum(), parameters), torch.autograd.grad(expected.sum(), parameters))
    program = torch.export.export(flow, rows)
    assert_close(program.module()(*rows), expected)


def test_autocast_leaves_the_kernels_exact(flow: Flow, rows: tuple[Tensor, Tensor]) -> None:
    flow, rows = flow.float(), (rows[0].float(), rows[1].float())
    exact = flow.bijection(*rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = flow.bijection(*rows)
        assert kernels_in(*found) == {"chain"}
        assert_close(found, exact, rtol=0, atol=0)
        with native.disabled():
            assert not torch.equal(flow.bijection(*rows)[0], exact[0])


def test_autocast_around_the_backward_pass_only(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3)).float()
    points, weights = torch.randn(9, 3), list(layer.parameters())
    for create_graph in (False, True):
        loss = layer(points)[0].square().sum()
        expected = torch.autograd.grad(loss, weights, create_graph=True)
        with torch.autocast("cpu", torch.bfloat16):  # the forward pass was in float32
            assert_close(torch.autograd.grad(loss, weights, create_graph=create_graph), expected)


@both_layers
def test_another_default_device(kind: str, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](3))
    buffers.POOL.clear()
    x = torch.randn(5, 3, dtype=DOUBLE)
    with torch.device("meta"):
        found = evaluated(layer, "forward", x), second_derivatives(layer, x)
    assert_close(found, (evaluated(layer, "forward", x), second_derivatives(layer, x)))


@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "backward pre", "global"])
@pytest.mark.parametrize("part", ["net", "first", "block", "linear", "last"])
def test_hooks_are_called(part: str, kind: str, perturb: Perturb) -> None:
    layer = perturb(coupling(3))
    net = layer.conditioner
    module: nn.Module = {
        "net": net,
        "first": net.first,
        "block": net.body[0],
        "linear": net.body[1].second,
        "last": net.last,
    }[part]
    calls = []

    def hook(called: nn.Module, *rest: Any) -> None:
        if called is module:
            calls.append(called)

    handle = {
        "forward": lambda: module.register_forward_hook(hook),
        "pre": lambda: module.register_forward_pre_hook(hook),
        "backward": lambda: module.register_full_backward_hook(hook),
        "backward pre": lambda: module.register_full_backward_pre_hook(hook),
        "global": lambda: nn.modules.module.register_module_forward_hook(hook),
    }[kind]()
    x = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    try:
        layer(x)[0].sum().backward()
        assert calls == [module]
    finally:
        handle.remove()
    assert kernels_in(layer(x)[0]) == {"chain"}
