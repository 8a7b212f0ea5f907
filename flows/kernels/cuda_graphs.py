"""Sampling on a GPU as CUDA graphs: an inverse is recorded once and replayed.

An autoregressive inverse is thousands of small operations, and launching one takes longer than computing it. A graph
launches all of them at once. It reads the weights where they lie, so an optimiser's steps are seen; one whose weights
have been moved or replaced is thrown away. A Python attribute of a layer that is changed by hand is not seen.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pushforward.flows.kernels.elementwise import is_observed

_LEAST, _MOST = 256, 16_384  # points of a graph; beyond, a GPU is busy enough for launches not to matter

Points = tuple[Tensor, Tensor]


class Bijection(Protocol):
    """What a graph asks of a bijection; the class itself is built on this package."""

    context: int

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Points:
        """Map base to data."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """The bijection and everything inside."""
        ...


def inverse(bijection: Bijection, z: Tensor, context: Tensor | None) -> Points:
    """Evaluate ``bijection.inverse(z, context)``, by a graph where that is possible and pays.

    The second call for a number of points, rounded up to a power of two, is recorded: that takes as long as a few.
    """
    if not _possible(z, context):
        return bijection.inverse(z, context)
    graphs = _graphs.setdefault(bijection, _Graphs())
    found = None
    if graphs.lock.acquire(blocking=False):  # or another thread is at the buffers
        try:
            found = graphs.find(bijection, z, context)
        finally:
            graphs.lock.release()
    return bijection.inverse(z, context) if found is None else found


def _possible(z: Tensor, context: Tensor | None) -> bool:
    """Whether these are plain tensors on a GPU, and nobody follows the operations."""
    return not (
        is_observed()
        or z.device.type != "cuda"
        or z.numel() == 0
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cuda")
        or any(type(t) is not Tensor for t in (z, context) if t is not None)
        or torch.cuda.is_current_stream_capturing()
    )


class _Graphs:  # of one bijection, valid for one state of its modules
    def __init__(self) -> None:
        self.lock, self.seen = threading.Lock(), set[Any]()
        self.state: tuple[Any, ...] | None = None
        self.graphs: dict[Any, _Graph | None] = {}  # None: it cannot be recorded

    def find(self, bijection: Bijection, z: Tensor, context: Tensor | None) -> Points | None:
        """The inverse by a graph; None if there is no graph, or not yet."""
        state = _state(bijection)
        if state != self.state:
            self.state, self.graphs, self.seen = state, {}, set()
        if state is None:
            return None
        lead = z.shape[:-1]
        if not bijection.context:
            context = None
        if context is not None:
            lead = torch.broadcast_shapes(lead, context.shape[:-1])
            context = context.expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
        rows = z.expand(*lead, z.shape[-1]).reshape(-1, z.shape[-1])
        size = min(_MOST, max(_LEAST, 1 << (len(rows) - 1).bit_length()))
        key = (size, *_kind(rows), *(() if context is None else _kind(context)))
        if key not in self.seen:
            self.seen.add(key)
            return None
        if key not in self.graphs:
            try:
                self.graphs[key] = _Graph(bijection, rows, context, size)
            except RuntimeError:  # also the errors of the device, and of its memory
                self.graphs[key] = None
        graph = self.graphs[key]
        if graph is None:
            return None
        x, log_det = torch.empty_like(rows), rows.new_empty(len(rows))
        for i in range(0, len(rows), size):
            given = None if context is None else context[i : i + size]
            graph(rows[i : i + size], given, x[i : i + size], log_det[i : i + size])
        return x.reshape(*lead, x.shape[-1]), log_det.reshape(lead)


_graphs: weakref.WeakKeyDictionary[Bijection, _Graphs] = weakref.WeakKeyDictionary()


class _Graph:  # of a fixed number of points, with buffers for what goes in and what comes out
    def __init__(self, bijection: Bijection, rows: Tensor, context: Tensor | None, size: int) -> None:
        # The buffers are written in later calls too, which tensors of inference mode would not allow.
        with torch.inference_mode(False), torch.no_grad(), _constants_on(bijection, rows.device) as self.constants:
            self.z = rows.new_zeros(size, rows.shape[-1])
            self.context = None if context is None else context.new_zeros(size, context.shape[-1])
            self.replay, (self.x, self.log_det) = _record(lambda: bijection.inverse(self.z, self.context), rows.device)

    def __call__(self, rows: Tensor, context: Tensor | None, x: Tensor, log_det: Tensor) -> None:
        """Write the inverse of at most as many rows; what an earlier call has left behind them is padding."""
        self.z[: len(rows)] = rows
        if self.context is not None and context is not None:
            self.context[: len(rows)] = context
        self.replay()
        x.copy_(self.x[: len(rows)])
        log_det.copy_(self.log_det[: len(rows)])


def _record(work: Callable[[], Points], device: torch.device) -> tuple[Callable[[], object], Points]:
    """Record work into a graph: what replays it, and where its results will lie."""
    with torch.cuda.device(device):
        (stream := torch.cuda.Stream()).wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # what happens once in a process, such as making cuBLAS's workspace, must not be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as a logger that asks for the memory in use, may go on meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = work()
    return graph.replay, results


@contextlib.contextmanager
def _constants_on(bijection: Bijection, device: torch.device) -> Iterator[list[Tensor]]:
    """Have the plain tensors of all modules on the device: a copy from main memory cannot be recorded."""
    found = [(vars(m), k, v) for m in bijection.modules() for k, v in vars(m).items() if isinstance(v, Tensor)]
    moved = [value.to(device) for *_, value in found]
    for (attributes, name, _), value in zip(found, moved, strict=True):
        attributes[name] = value
    try:
        yield moved
    finally:
        for attributes, name, value in found:
            attributes[name] = value


def _state(bijection: Bijection) -> tuple[Any, ...] | None:
    """What a graph depends on besides its inputs; None if there are hooks, which a graph would not call."""
    modules = list(bijection.modules())
    if any(m._forward_hooks or m._forward_pre_hooks for m in modules):
        return None
    tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    places = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors]
    return (*places, *((id(m), m.training) for m in modules))


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """What buffers and kernels depend on; a stream has its own graph, or two would share the buffers."""
    products = torch.backends.cuda.matmul
    precision = getattr(products, "fp32_precision", None) or products.allow_tf32
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
    return tensor.shape[-1], tensor.dtype, tensor.device, stream, precision
