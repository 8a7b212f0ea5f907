"""Torch's and NumPy's defaults: those that a fit and its density need, whatever the caller's are."""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import torch

_LOCK = threading.Lock()
_callers: list[torch.dtype] = []
"""The caller's default dtype, once for each thread within a block: the default belongs to the whole process."""


@contextlib.contextmanager
def usual_defaults() -> Iterator[None]:
    """Context with gradients, float32 and the CPU as torch's defaults; the caller's hold again at its end.

    Fits, scores and samples are then the same within ``torch.no_grad``, ``torch.inference_mode``, ``torch.autocast``, a
    default device or another default dtype, and ``numpy.errstate``. Cost: about 20 microseconds.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32())
        yield


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    with _LOCK:
        _callers.append(_callers[0] if _callers else torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _LOCK:
            dtype = _callers.pop()
            if not _callers:
                torch.set_default_dtype(dtype)
