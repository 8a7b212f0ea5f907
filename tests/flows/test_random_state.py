"""Random states of their own: what is drawn within a block, and what the caller finds afterwards."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from pushforward.flows.random_state import RandomState, kept, seeded

CPU = torch.device("cpu")


def test_the_state_of_the_caller_is_restored_also_after_an_error() -> None:
    before = torch.get_rng_state()
    state = RandomState(3)

    def fail(block: Callable[[], AbstractContextManager[None]]) -> None:
        with block():
            torch.rand(3)
            raise ArithmeticError

    for block in (lambda: seeded(3), kept, state.active):
        with pytest.raises(ArithmeticError):
            fail(block)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_gives_the_numbers_of_torch_and_a_state_goes_on() -> None:
    with kept():
        torch.manual_seed(3)
        expected = torch.rand(6)
    state, drawn = RandomState(3), []
    for _ in range(2):
        with state.active():
            drawn.append(torch.rand(3))
        torch.rand(10)
    with seeded(3):
        assert torch.equal(torch.rand(6), expected)
    assert torch.equal(torch.cat(drawn), expected)


def test_other_devices_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the states of the CPU and of the device of the computation are restored."""
    for module in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed_all", "manual_seed"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda seed: pytest.fail("a device was seeded"))
    with seeded(3), RandomState(4).active():
        torch.rand(3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_the_state_of_a_gpu_is_as_before(device: torch.device) -> None:
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()
    with seeded(3, device), RandomState(4, device).active():
        torch.rand(3, device=device)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_thread_waits_for_the_block_of_another() -> None:
    def drawn(seed: int) -> torch.Tensor:
        with RandomState(seed).active():
            return torch.rand(3)

    expected, found = [drawn(0), drawn(1)], dict[int, torch.Tensor]()
    inside, also_inside, done = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with RandomState(0).active():
            inside.set()
            also_inside.wait(0.3)
            found[0] = torch.rand(3)
            done.set()

    def second() -> None:
        inside.wait(10)
        with RandomState(1).active():
            also_inside.set()
            done.wait(0.3)
            found[1] = torch.rand(3)

    before = torch.get_rng_state()
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(torch.get_rng_state(), before)
