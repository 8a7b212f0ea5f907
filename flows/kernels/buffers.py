"""Reused memory for what a backward pass needs."""

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class _Loan(np.ndarray):
    """Memory from a ``BufferPool``; it goes back to the pool when the last tensor that uses it is deleted."""

    pool: "BufferPool | None" = None

    def __del__(self) -> None:
        if self.pool is not None and self.base is not None:
            self.pool.give_back(self.base)


Memory = NDArray[Any]
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


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
        """Begin with no unused memory and a new lock, whatever another thread was doing with the old one."""
        self.nbytes = 0
        """Total size of the unused memory in bytes."""
        self._free: dict[tuple[int, Any], list[Memory]] = {}
        self._lock: Any = threading.RLock()
        # Whether the pool is being changed: garbage collection during a change may delete another buffer.
        self._busy = False

    def take(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """Return a tensor of so many numbers on the CPU, with arbitrary content, whose memory comes back by itself."""
        if not numbers:
            return torch.empty(0, dtype=dtype, device="cpu")
        kind = _DTYPES[dtype]
        key, found = (numbers, np.dtype(kind)), None
        with self._lock:
            if not self._busy:
                self._busy = True
                if self._free.get(key):
                    found = self._pop(key)
                self._busy = False
        loan = (np.empty(numbers, kind) if found is None else found).view(_Loan)
        loan.pool = self
        return torch.frombuffer(loan, dtype=dtype)

    def give_back(self, memory: Memory) -> None:
        """Keep memory for reuse, unless it is larger than the whole pool."""
        if memory.nbytes > self.most_bytes:
            return
        with self._lock:
            if self._busy:
                return
            self._busy = True
            key = memory.size, memory.dtype
            free = self._free.pop(key, [])
            free.append(memory)
            self._free[key] = free  # the size used last comes last
            self.nbytes += memory.nbytes
            while self.nbytes > self.most_bytes:
                self._pop(next(iter(self._free)))
            self._busy = False

    def unused(self) -> list[Memory]:
        """The arrays that wait for reuse."""
        return [memory for free in self._free.values() for memory in free]

    def clear(self) -> None:
        """Drop all unused memory."""
        with self._lock:
            self._free.clear()
            self.nbytes = 0

    def _pop(self, key: tuple[int, Any]) -> Memory:
        free = self._free[key]
        memory = free.pop()
        if not free:
            del self._free[key]
        self.nbytes -= memory.nbytes
        return memory


POOL = BufferPool(most_bytes=128 * 2**20)
"""The pool of all layers."""
