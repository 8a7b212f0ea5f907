"""Reused memory for what a backward pass needs."""

import threading
from typing import Any

import torch
from torch import Tensor


class Buffer:
    """Memory from a ``BufferPool``; it goes back to the pool when this object is deleted."""

    def __init__(self, pool: "BufferPool", tensor: Tensor) -> None:
        self.tensor = tensor
        self._pool = pool

    def __del__(self) -> None:
        self._pool.give_back(self.tensor)


class BufferPool:
    """Memory that is kept for reuse, up to a number of bytes.

    New memory of this size comes from the system and goes back to it each time, with a page fault every 4 KiB: on
    small layers that takes as long as the products.

    Args:
        most_bytes: Largest total size of the unused tensors; beyond it the sizes used least recently are dropped.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.restart()

    def restart(self) -> None:
        """Begin with no unused tensors and a new lock, whatever another thread was doing with the old one."""
        self.nbytes = 0
        """Total size of the unused tensors in bytes."""
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._lock: Any = threading.RLock()
        # Whether the pool is being changed: garbage collection during a change may delete another buffer.
        self._busy = False

    def take(self, numbers: int, dtype: torch.dtype) -> Buffer:
        """Return a buffer of so many numbers, with arbitrary content."""
        key, found = (numbers, dtype), None
        with self._lock:
            if not self._busy:
                self._busy = True
                if self._free.get(key):
                    found = self._pop(key)
                self._busy = False
        # The device is given because the default one may be another.
        return Buffer(self, torch.empty(numbers, dtype=dtype, device="cpu") if found is None else found)

    def give_back(self, tensor: Tensor) -> None:
        """Keep a tensor for reuse, unless it is larger than the whole pool."""
        if tensor.nbytes > self.most_bytes:
            return
        with self._lock:
            if self._busy:
                return
            self._busy = True
            key = tensor.numel(), tensor.dtype
            free = self._free.pop(key, [])
            free.append(tensor)
            self._free[key] = free  # the size used last comes last
            self.nbytes += tensor.nbytes
            while self.nbytes > self.most_bytes:
                self._pop(next(iter(self._free)))
            self._busy = False

    def unused(self) -> list[Tensor]:
        """The tensors that wait for reuse."""
        return [tensor for free in self._free.values() for tensor in free]

    def clear(self) -> None:
        """Drop all unused tensors."""
        with self._lock:
            self._free.clear()
            self.nbytes = 0

    def _pop(self, key: tuple[int, torch.dtype]) -> Tensor:
        free = self._free[key]
        tensor = free.pop()
        if not free:
            del self._free[key]
        self.nbytes -= tensor.nbytes
        return tensor


POOL = BufferPool(most_bytes=128 * 2**20)
"""The pool of all layers."""
