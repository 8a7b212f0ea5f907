"""The kernel of the optimiser against the three operations of torch."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows.kernels import native
from pushforward.train.optimizer import ClippedAdamW

SHAPES = [(7,), (64, 33), (), (130, 129), (1,)]


def made(dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    matrices = [p for p in parameters if p.dim() > 1]
    return [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def differentiate(parameters: list[nn.Parameter], size: float) -> None:
    for p in parameters:
        p.grad = size * torch.randn_like(p)


def torch_step(optimizer: torch.optim.AdamW, parameters: list[nn.Parameter], average: list[Tensor]) -> Tensor:
    norm = torch.nn.utils.clip_grad_norm_(parameters, 3.0)
    optimizer.step()
    for a, p in zip(average, parameters, strict=True):
        a.lerp_(p.detach(), 0.25)
    return norm


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1e-3, 1.0])  # one gradient below the clip, one far above
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_clipping_adamw_and_averaging(dtype: torch.dtype, size: float, threads: int) -> None:
    ours = made(dtype)
    theirs = copy.deepcopy(ours)
    our_average, their_average = ([p.detach().clone() for p in ps] for ps in (ours, theirs))
    optimizer = ClippedAdamW(groups(ours), 0.01)
    peer = torch.optim.AdamW(groups(theirs), lr=0.01)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rate in (0.01, 0.02, 0.005):
            differentiate(ours, size)
            for p, q in zip(ours, theirs, strict=True):
                assert p.grad is not None
                q.grad = p.grad.clone()
            for group in (*optimizer.param_groups, *peer.param_groups):
                group["lr"] = rate
            norm = optimizer.clipped_step(ours, 3.0, our_average, 0.75)
            assert_close(norm.to(dtype), torch_step(peer, theirs, their_average))
    finally:
        torch.set_num_threads(before)
    assert_close(ours, theirs)
    assert_close(our_average, their_average)
    assert all(state["step"] == 3 for state in optimizer.state_dict()["state"].values())


def test_kernel_and_torch_continue_from_the_same_state() -> None:
    parameters = made(torch.float32)
    optimizer = ClippedAdamW(groups(parameters), 0.01)
    differentiate(parameters, 1.0)
    optimizer.clipped_step(parameters, 3.0)
    saved = copy.deepcopy((parameters, optimizer.state_dict()))
    gradients = [torch.randn_like(p) for p in parameters]
    found = []
    for kernels in (True, False):
        parameters, state = copy.deepcopy(saved)
        optimizer = ClippedAdamW(groups(parameters), 0.5)
        optimizer.load_state_dict(state)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        if kernels:
            optimizer.clipped_step(parameters, 3.0)
        else:
            with native.disabled():
                optimizer.clipped_step(parameters, 3.0)
        steps = [float(s["step"]) for s in optimizer.state_dict()["state"].values()]
        assert steps == [2.0] * len(SHAPES)
        found.append(parameters)
    assert_close(*found)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(broken: float) -> None:
    parameters = made(torch.float32)
    average = [torch.zeros_like(p) for p in parameters]
    before = copy.deepcopy(parameters)
    optimizer = ClippedAdamW(groups(parameters), 0.01)
    differentiate(parameters, 1.0)
    assert parameters[1].grad is not None
    parameters[1].grad[3, 3] = broken
    norm = optimizer.clipped_step(parameters, 3.0, average, 0.5)
    assert not bool(torch.isfinite(norm))
    assert_close(parameters, before, rtol=0, atol=0)
    assert all(not bool(a.any()) for a in average)


def test_parameters_without_a_gradient_are_left_to_torch() -> None:
    parameters = made(torch.float32)
    before = parameters[2].detach().clone()
    optimizer = ClippedAdamW(groups(parameters), 0.01)
    differentiate(parameters, 1.0)
    parameters[2].grad = None
    optimizer.clipped_step(parameters, 3.0)
    assert_close(parameters[2].detach(), before, rtol=0, atol=0)


def engine(kernels: bool) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if kernels else native.disabled()


@pytest.mark.parametrize("kernels", [True, False])
def test_a_cleared_state_starts_again(kernels: bool) -> None:
    """As after a rollback: the bias correction starts again at the first step."""
    parameters = made(torch.float32)
    optimizer = ClippedAdamW(groups(parameters), 0.01)
    with engine(kernels):
        for _ in range(20):
            differentiate(parameters, 1.0)
            optimizer.clipped_step(parameters, 3.0)
        optimizer.state.clear()
        theirs = copy.deepcopy(parameters)
        peer = torch.optim.AdamW(groups(theirs), lr=0.01)
        for _ in range(2):
            differentiate(parameters, 1.0)
            for p, q in zip(parameters, theirs, strict=True):
                assert p.grad is not None
                q.grad = p.grad.clone()
            optimizer.clipped_step(parameters, 3.0)
            torch_step(peer, theirs, [torch.zeros_like(p) for p in theirs])
    assert_close(parameters, theirs)


def test_without_kernels_a_gradient_that_is_not_finite_changes_nothing_either() -> None:
    parameters = made(torch.float32)
    before = copy.deepcopy(parameters)
    optimizer = ClippedAdamW(groups(parameters), 0.01)
    differentiate(parameters, 1.0)
    assert parameters[0].grad is not None
    parameters[0].grad[0] = float("nan")
    with native.disabled():
        assert not bool(torch.isfinite(optimizer.clipped_step(parameters, 3.0)))
    assert_close(parameters, before, rtol=0, atol=0)


def test_a_step_invalidates_older_graphs() -> None:
    parameters = made(torch.float32)
    optimizer = ClippedAdamW(groups(parameters), 0.01)
    loss = torch.stack([p.square().sum() for p in parameters]).sum()
    differentiate(parameters, 1.0)
    optimizer.clipped_step(parameters, 3.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_copy_continues_like_the_original() -> None:
    parameters = made(torch.float32)
    optimizer = ClippedAdamW(groups(parameters), 0.01)
    for _ in range(3):
        differentiate(parameters, 1.0)
        optimizer.clipped_step(parameters, 3.0)
    gradients = [torch.randn_like(p) for p in parameters]
    copies, other = copy.deepcopy((parameters, optimizer))
    for ps, o in ((parameters, optimizer), (copies, other)):
        for p, g in zip(ps, gradients, strict=True):
            p.grad = g.clone()
        o.clipped_step(ps, 3.0)
        assert all(state["step"] == 4 for state in o.state_dict()["state"].values())
    assert_close(parameters, copies, rtol=0, atol=0)


def test_gradients_that_come_late_and_mixed_dtypes_are_left_to_torch() -> None:
    parameters = [*made(torch.float32), nn.Parameter(torch.randn(5, dtype=torch.float64))]
    theirs = copy.deepcopy(parameters)
    optimizer, peer = ClippedAdamW(groups(parameters), 0.01), torch.optim.AdamW(groups(theirs), lr=0.01)
    for late in (True, False, False):
        differentiate(parameters, 1e-2)
        if late:
            parameters[1].grad = None
        for p, q in zip(parameters, theirs, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.clipped_step(parameters, 1e9)
        peer.step()
    # Torch counts the steps of a late parameter separately; here it shares the count of the others.
    for i in (0, 2, 3, 4, 5):
        assert_close(parameters[i], theirs[i])


def test_groups_that_differ_in_more_than_decay_are_left_to_torch() -> None:
    parameters = made(torch.float32)
    theirs = copy.deepcopy(parameters)
    optimizer, peer = ClippedAdamW(groups(parameters), 0.01), torch.optim.AdamW(groups(theirs), lr=0.01)
    for one in (optimizer, peer):
        one.param_groups[1]["lr"] = 0.1
    differentiate(parameters, 1e-3)
    for p, q in zip(parameters, theirs, strict=True):
        assert p.grad is not None
        q.grad = p.grad.clone()
    optimizer.clipped_step(parameters, 3.0)
    peer.step()
    assert_close(parameters, theirs)
