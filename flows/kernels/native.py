"""Calls of the kernels in C, which compute a whole layer at once.

The library is compiled once per machine, by ``build.py``, and loaded when it is first needed. As torch operations a
layer of a flow is a few hundred small ones, and takes torch's compiler a minute; here it is one call. Without a C
compiler everything still works, several times slower, with the same results.
"""

import contextlib
import ctypes
import functools
import os
import subprocess
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pushforward.flows.kernels import buffers
from pushforward.flows.kernels.build import build, cache_folder

KINDS = {torch.float32: "f32", torch.float64: "f64"}
"""Dtypes of the kernels, and the suffix of their names."""


class NativeWarning(UserWarning):
    """The kernels in C are not available; torch's own operations are used."""


class Chain(ctypes.Structure):
    """Sizes and addresses of one call (``chain`` in kernels.c)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("points", "features", "threads", "layers", "inverse")),
        ("layer", ctypes.c_void_p),
        ("tensors", ctypes.c_void_p),
        ("g_tensors", ctypes.c_void_p),
    )


class _Switch(threading.local):
    """Whether this thread uses the kernels."""

    on = os.environ.get("PUSHFORWARD_NATIVE", "1") != "0"


_switch = _Switch()


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Use torch's own operations within this block, in this thread.

    The environment variable ``PUSHFORWARD_NATIVE=0`` does the same for a whole process.
    """
    before, _switch.on = _switch.on, False
    try:
        yield
    finally:
        _switch.on = before


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_on() -> bool:
    """Whether the kernels are available and not switched off in this thread; see ``library``."""
    return library() is not None


def library() -> ctypes.CDLL | None:
    """The loaded kernels; None if they are switched off or not available.

    The first call on a machine takes some seconds, the first one in a process a few milliseconds. If there is no
    compiler, or it fails, one ``NativeWarning`` says so.
    """
    return _loaded() if _switch.on else None


_loading = threading.Lock()  # only one thread builds, and warns


def _after_fork() -> None:
    """Prepare the child of a fork, where only the thread that forked lives on.

    A computation that called on the other threads of OpenMP, torch's own too, would wait for ever, and so would one for
    a lock that another thread held.
    """
    global _loading
    torch.set_num_threads(1)
    _loading = threading.Lock()
    buffers.POOL.restart()


if hasattr(os, "register_at_fork"):  # there are no forks on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _loaded() -> ctypes.CDLL | None:
    with _loading:
        return _built_or_warned()


@functools.cache
def _built_or_warned() -> ctypes.CDLL | None:
    try:
        return _declared(build(cache_folder()))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"flows run without the kernels in C, several times slower: {reason} "
            "(install a C compiler such as gcc, or set PUSHFORWARD_NATIVE=0 to silence this)",
            NativeWarning,
            stacklevel=2,
        )
        return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the signatures of the kernels."""
    pointers = {"chain": (4, 4), "network": (3, 4), "map": (4, 6)}
    for name, (forward, backward) in pointers.items():
        for kind in KINDS.values():
            for direction, count in (("forward", forward), ("backward", backward)):
                function = getattr(loaded, f"{name}_{direction}_{kind}")
                # ctypes passes a Chain by reference
                function.argtypes = [ctypes.POINTER(Chain), *[ctypes.c_void_p] * count]
                function.restype = ctypes.c_int
    for kind in KINDS.values():
        function = getattr(loaded, f"adamw_{kind}")
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_double] * 7, ctypes.c_int64]
        function.restype = ctypes.c_double
    loaded.points_of_tile.argtypes = [ctypes.c_int]
    loaded.points_of_tile.restype = ctypes.c_int64
    return loaded


@functools.cache
def points_of_tile(dtype: torch.dtype) -> int:
    """Number of points that the kernels for a dtype process together."""
    return int(_loaded_or_raise().points_of_tile(dtype == torch.float64))


def run(name: str, chain: Chain, *tensors: Tensor | None) -> None:
    """Call a kernel; its tensors are contiguous and of one dtype.

    Raises:
        MemoryError: If there is not enough memory for the kernel's buffers.
    """
    kind = KINDS[tensors[0].dtype]  # type: ignore[union-attr]
    chain.threads = torch.get_num_threads()
    function = getattr(_loaded_or_raise(), f"{name}_{kind}")
    if function(chain, *[None if t is None else t.data_ptr() for t in tensors]):
        raise MemoryError(f"{name}: not enough memory for {chain.points} points")


def _loaded_or_raise() -> ctypes.CDLL:
    loaded = _loaded()
    if loaded is None:  # a graph that was recorded elsewhere
        raise RuntimeError("the kernels in C are not available on this machine")
    return loaded


def adamw(table: np.ndarray[Any, np.dtype[np.int64]], kind: str, *numbers: float) -> float:
    """Call the optimizer's kernel ``adamw`` of optimizer.h.

    Args:
        table: One row per tensor, the fields of ``parameter`` in optimizer.h.
        kind: ``f32`` or ``f64``.
        *numbers: The kernel's arguments from ``rate`` on, except the number of threads.

    Returns:
        The norm of the gradient. If it is not finite, nothing was changed.
    """
    threads = torch.get_num_threads()
    return float(getattr(_loaded_or_raise(), f"adamw_{kind}")(table.ctypes.data, len(table), *numbers, threads))
