"""Chains of layers in one call: the same numbers as layer by layer, and what is left to the members themselves."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Elementwise,
    Inverse,
    LULinear,
    Permutation,
    build,
)
from pushforward.flows.kernels import buffers, native
from pushforward.flows.kernels.layers import Layer, Map, read
from tests.fixtures.bijections import SPLINE
from tests.fixtures.kernels import (
    DOUBLE,
    Perturb,
    assert_engines_agree,
    autoregressive,
    both_directions,
    coupling,
    evaluated,
    kernels_in,
    second_derivatives,
)


def chain_of_all(context: int = 0, **options: Any) -> Chain:
    """One layer of each kind that the kernels know, in float64."""
    return Chain(
        [
            ActNorm(4),
            coupling(4, SPLINE, context, **options),
            Permutation([2, 0, 3, 1]),
            LULinear(4),
            autoregressive(4, Affine(), context, **options),
            Inverse(autoregressive(4, SPLINE, 0, **options)),
            LULinear(4),
        ]
    ).double()


def calls_in(*outputs: Tensor) -> int:
    """How many calls of kernels the autograd graphs of some tensors have."""
    todo: list[Any] = [t.grad_fn for t in outputs]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return sum(type(node).__name__ == "_OperationBackward" for node in seen)


@pytest.fixture
def chain(perturb: Perturb) -> Chain:
    made = perturb(chain_of_all(context=2), 0.3)
    made.bijections[0].mark_initialized()
    return made  # type: ignore[no-any-return]


@both_directions
@pytest.mark.parametrize("points", [0, 1, 70, 1100])
def test_a_chain_is_one_call(chain: Chain, points: int, direction: str) -> None:
    rows, context = torch.randn(points, 4, dtype=DOUBLE), torch.randn(points, 2, dtype=DOUBLE)
    assert calls_in(*getattr(chain, direction)(rows, context)) == 1
    assert_engines_agree(chain, direction, rows, context)


@both_directions
def test_any_number_of_threads(chain: Chain, direction: str) -> None:
    """Also where the tiles cannot be shared out evenly."""
    rows, context = torch.randn(1171, 4, dtype=DOUBLE), torch.randn(1171, 2, dtype=DOUBLE)
    alone = evaluated(chain, direction, rows, context)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        found = evaluated(chain, direction, rows, context)
        assert torch.equal(found["value"], alone["value"])
        for name, tensor in alone.items():
            assert_close(found[name], tensor, rtol=1e-10, atol=1e-10)


@both_directions
def test_the_score_of_a_chain(chain: Chain, direction: str) -> None:
    rows, context = torch.randn(70, 4, dtype=DOUBLE), torch.randn(70, 2, dtype=DOUBLE)
    score = torch.randn_like(rows)
    apply = getattr(chain, f"{direction}_and_score")
    value, log_det, found = apply(rows, score, context)
    assert calls_in(value, log_det) == 1
    with native.disabled():
        assert_close((value, log_det, found), apply(rows, score, context))
        assert_close(getattr(chain, direction)(rows, context)[0], value)


@both_directions
def test_second_derivatives_of_a_chain(chain: Chain, direction: str) -> None:
    rows, context = torch.randn(3, 4, dtype=DOUBLE), torch.randn(3, 2, dtype=DOUBLE)

    def apply(x: Tensor) -> Any:
        return getattr(chain, direction)(x, context)

    found = second_derivatives(apply, rows, *chain.parameters())
    with native.disabled():
        assert_close(found, second_derivatives(apply, rows, *chain.parameters()), rtol=1e-6, atol=1e-8)


def test_dropout_is_that_of_the_members(perturb: Perturb) -> None:
    chain = perturb(chain_of_all(dropout=0.5), 0.3).train()
    chain.bijections[0].mark_initialized()
    rows = torch.randn(70, 4, dtype=DOUBLE)
    with native.disabled():
        expected = evaluated(chain, "forward", rows, seed=3)
    found = evaluated(chain, "forward", rows, seed=3, kernel=True)
    for name, tensor in expected.items():
        assert_close(found[name], tensor)
    assert not torch.equal(evaluated(chain, "forward", rows, seed=4)["value"], expected["value"])
    chain.bijections[4].eval()  # one layer of two: no call can do that
    assert_close(evaluated(chain, "forward", rows, seed=3)["value"], chain_by_members(chain, rows, seed=3))


def chain_by_members(chain: Chain, rows: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with native.disabled():
        return chain(rows)[0]  # type: ignore[no-any-return]


def test_an_activation_normalisation_sees_its_first_batch() -> None:
    torch.manual_seed(0)
    normalization = ActNorm(3)
    chain = Chain([LULinear(3), normalization, autoregressive(3)]).double().train()
    rows = 5.0 + 3.0 * torch.randn(200, 3, dtype=DOUBLE)
    z, _ = chain(rows)
    assert_close(normalization.shift.detach(), rows.mean(0))
    assert calls_in(z) > 1
    assert calls_in(chain(rows)[0]) == 1


class Doubling(LULinear):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        z, log_det = super().forward(x, context)
        return 2.0 * z, log_det + 3 * torch.tensor(2.0).log()


def hooked(chain: Any, calls: list[str]) -> None:
    chain.bijections[2].register_forward_hook(lambda *_: calls.append("hook"))


def hooked_inside(chain: Any, calls: list[str]) -> None:
    chain.bijections[1].conditioner.last.register_forward_hook(lambda *_: calls.append("hook"))


def patched(chain: Any, calls: list[str]) -> None:
    def forward(x: Tensor, context: Tensor | None = None) -> Any:
        calls.append("patched")
        return type(member).forward(member, x, context)

    member = chain.bijections[0]
    member.forward = forward


def replaced(chain: Any, calls: list[str]) -> None:
    chain.bijections[0] = Doubling(3).double()
    calls.append("replaced")


def reordered(chain: Any, calls: list[str]) -> None:
    chain.bijections[2].adopt(order=[1, 2, 0])
    calls.append("reordered")


def appended(chain: Any, calls: list[str]) -> None:
    chain.bijections.append(Permutation([1, 0, 2]))
    calls.append("appended")


def remapped(chain: Any, calls: list[str]) -> None:
    chain.bijections[1].univariate = type(SPLINE)(SPLINE.bins, 2.0 * SPLINE.bound)
    calls.append("remapped")


@pytest.mark.parametrize(
    "change", [hooked, hooked_inside, patched, replaced, reordered, appended, remapped], ids=lambda f: f.__name__
)
def test_changed_members_are_noticed(change: Callable[[Any, list[str]], None], perturb: Perturb) -> None:
    """After a call that was made with the old ones, and without any further notice."""
    chain = perturb(Chain([LULinear(3), autoregressive(3), Permutation([2, 0, 1])]).double(), 0.3)
    rows = torch.randn(9, 3, dtype=DOUBLE)
    calls: list[str] = []
    chain(rows)
    change(chain, calls)
    found = chain(rows)
    assert len(calls) == 1
    with native.disabled():
        assert_close(found, copy.deepcopy(chain)(rows))


def test_members_that_the_kernels_do_not_know_stay_apart(perturb: Perturb) -> None:
    chain = perturb(
        Chain([autoregressive(3), Elementwise(3, SPLINE).double(), autoregressive(3), LULinear(3).double()])
    )
    rows = torch.randn(9, 3, dtype=DOUBLE)
    assert calls_in(chain(rows)[0]) == 3
    for direction in ("forward", "inverse"):
        assert_engines_agree_in_parts(chain, direction, rows)


def assert_engines_agree_in_parts(chain: Bijection, direction: str, rows: Tensor) -> None:
    found = evaluated(chain, direction, rows)
    with native.disabled():
        for name, tensor in evaluated(chain, direction, rows).items():
            assert_close(found[name], tensor)


def test_a_member_used_twice(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    chain = Chain([layer, Permutation([2, 0, 1]), layer])
    assert_engines_agree(chain, "forward", torch.randn(9, 3, dtype=DOUBLE))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("points", [1, 64, 65, 1000])
def test_no_kernel_writes_beyond_what_it_saves(
    points: int, dtype: torch.dtype, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python and C compute the size of that memory apart."""
    lent: list[Tensor] = []

    def take(numbers: int, kind: torch.dtype) -> Tensor:
        lent.append(torch.full((numbers + 4096,), 123.0, dtype=kind))
        return lent[-1][:numbers]

    monkeypatch.setattr(buffers.POOL, "take", take)
    chain = chain.to(dtype)
    net = autoregressive(4).to(dtype).conditioner
    for module in (chain, net):
        module(torch.randn(points, 4, dtype=dtype), torch.randn(points, 2, dtype=dtype) if module is chain else None)
        assert bool((lent[-1][-4096:] == 123.0).all())
        # The last numbers are written, except for a permutation, which saves nothing.
        assert not bool((lent[-1][-4096 - 64 : -4096] == 123.0).all())
    assert len(lent) == 2


@pytest.mark.parametrize(
    "layer",
    [
        Layer("normalize"),
        Layer("linear", inverse=True),
        Layer("permute", order=(2, 0, 1)),
        Layer("permute", order=()),
        Layer("network", False, 3, 8, 2, 3, 2, Map("affine", bound=3.0), known=(0, 3, 5, 8)),
        Layer("network", True, 0, 8, 0, 3, 14, Map("spline", 5, 0.1, True), (), (0, 1, 2), has_factors=True),
        Layer("network", False, 1, 8, 16, 1, 30, Map("mixture", 10, 1e-3), (1,), (0,), has_terms=True),
        Layer("network", inputs=3, hidden=4, values=1, size=7),
        Layer("map", values=1, size=2, map=Map("affine", bound=1 / 3)),
    ],
    ids=lambda layer: layer.kind,
)
def test_texts_of_layers_read_back(layer: Layer) -> None:
    assert read(layer.text()) == (layer,)
    assert read(f"{layer.text()};{layer.text()}") == (layer, layer)


@pytest.mark.parametrize("name", ["realnvp", "maf", "iaf", "nsf-c", "nsf-ar"])
def test_named_flows_are_one_call(name: str) -> None:
    flow = build(name, features=5, layers=3, hidden=8).eval()
    rows = torch.randn(9, 5)
    z, log_det = flow.bijection(rows)
    assert (calls_in(z, log_det), kernels_in(z)) == (1, {"chain"})


def test_global_hooks_see_every_layer(chain: Chain) -> None:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        chain(torch.randn(3, 4, dtype=DOUBLE), torch.randn(3, 2, dtype=DOUBLE))
    finally:
        handle.remove()
    assert {chain.bijections[1], chain.bijections[3], chain.bijections[4]} <= set(seen)
