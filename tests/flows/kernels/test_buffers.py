"""Memory for backward passes: shared by no two graphs that are alive, reused, and bounded."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import Chain
from pushforward.flows.kernels.buffers import POOL, BufferPool
from tests.fixtures.kernels import DOUBLE, Perturb, autoregressive


def in_use() -> list[int]:
    """Addresses of all memory of the pool that a tensor uses."""
    gc.collect()
    return [int(o.ctypes.data) for o in gc.get_objects() if isinstance(o, np.ndarray) and hasattr(o, "pool")]


@pytest.fixture
def _empty_pool() -> Iterator[None]:
    gc.freeze()  # objects of other tests are left out, because walking through them is slow
    POOL.clear()
    yield
    gc.collect()
    gc.unfreeze()


@pytest.mark.usefixtures("_empty_pool")
def test_graphs_alive_share_no_memory(perturb: Perturb) -> None:
    chain = perturb(Chain([autoregressive(3), autoregressive(3)]))
    points = torch.randn(70, 3, dtype=DOUBLE, requires_grad=True)
    alone = torch.autograd.grad(chain(points)[0].sum(), points)
    first, second = chain(points)[0], chain(points + 1.0)[0]
    addresses = in_use()
    assert len(set(addresses)) == len(addresses) == 2
    torch.autograd.grad(second.sum(), points)
    assert_close(torch.autograd.grad(first.sum(), points), alone, rtol=0, atol=0)
    # The backward pass gave the memory back, although both graphs are alive.
    assert {int(memory.ctypes.data) for memory in POOL.unused()} == set(addresses)
    third = chain(points)[0]
    assert set(in_use()) < set(addresses)
    del first, second, third


def test_the_pool_is_bounded_and_drops_old_sizes() -> None:
    pool = BufferPool(most_bytes=10_000)
    for numbers in range(1, 2000, 7):
        pool.take(numbers, torch.float32)
        assert pool.nbytes == sum(t.nbytes for t in pool.unused()) <= 10_000
    for _ in range(3):  # old sizes make room for new ones
        tensor = pool.take(1000, DOUBLE)
        address = tensor.data_ptr()
        assert tensor.dtype == DOUBLE
        part = tensor[:10]  # the memory is in use as long as any tensor uses it
        del tensor
        assert address not in {memory.ctypes.data for memory in pool.unused()}
        del part
        assert address in {memory.ctypes.data for memory in pool.unused()}
    pool.take(20_000, DOUBLE)
    assert pool.nbytes == sum(t.nbytes for t in pool.unused()) <= 10_000


@pytest.mark.usefixtures("_empty_pool")
def test_graphs_never_used_give_their_memory_back(perturb: Perturb) -> None:
    layer = perturb(autoregressive(3))
    for _ in range(5):
        layer(torch.randn(70, 3, dtype=DOUBLE))
        with torch.no_grad():
            layer(torch.randn(70, 3, dtype=DOUBLE))
    assert len(POOL.unused()) == 1
    assert in_use() == []
