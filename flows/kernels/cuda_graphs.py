"""Fast sampling on a GPU: an inverse is recorded as a CUDA graph and replayed.

An autoregressive inverse is thousands of small operations, and launching one takes longer than computing it. A graph
launches all of them at once. It reads the weights from their memory, so it follows an optimizer's steps; if weights are
moved or replaced, or constants such as those of ``Standardize`` are, the graph is dropped. A change of a layer's other
attributes by hand is not noticed.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

MIN_POINTS, MAX_POINTS = 256, 16_384
"""Points of one graph. With more points the launches take little beside the computation."""

ValueAndLogDet = tuple[Tensor, Tensor]


class Invertible(Protocol):
    """The interface that a graph needs; the class ``Bijection`` itself imports this package."""

    context: int

    def inverse(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        """Map base to data."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """The bijection and all modules inside it."""
        ...


def inverse(bijection: Invertible, z: Tensor, context: Tensor | None) -> ValueAndLogDet:
    """Evaluate ``bijection.inverse(z, context)``, by a graph if possible.

    The second call with a number of points, rounded up to a power of two, records the graph: that takes as long as a
    few calls.
    """
    if not is_possible(z, context):
        return bijection.inverse(z, context)
    graphs = GRAPHS.setdefault(bijection, BijectionGraphs())
    found = None
    if graphs.lock.acquire(blocking=False):  # otherwise another thread is using the buffers
        try:
            found = graphs.find(bijection, z, context)
        finally:
            graphs.lock.release()
    return bijection.inverse(z, context) if found is None else found


def is_possible(z: Tensor, context: Tensor | None) -> bool:
    """Whether these are ordinary GPU tensors, and the operations are neither observed nor differentiated."""
    return not (
        z.device.type != "cuda"
        or _is_observed()
        or z.numel() == 0
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cuda")
        or any(type(t) is not Tensor for t in (z, context) if t is not None)
        or torch.cuda.is_current_stream_capturing()
    )


def _is_observed() -> bool:
    """Whether operations are being traced, compiled, batched or counted, or differentiated in forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


class BijectionGraphs:
    """The graphs of one bijection, valid for one state of its modules.

    ``graphs`` maps sizes and dtypes to graphs; None marks one that could not be recorded.
    """

    def __init__(self) -> None:
        self.lock, self.seen = threading.Lock(), set[Any]()
        self.state: tuple[Any, ...] | None = None
        self.graphs: dict[Any, _Graph | None] = {}

    def find(self, bijection: Invertible, z: Tensor, context: Tensor | None) -> ValueAndLogDet | None:
        """Evaluate the inverse by a graph; None if there is none, or not yet."""
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
        size = min(MAX_POINTS, max(MIN_POINTS, 1 << (len(rows) - 1).bit_length()))
        key = (size, *_kind(rows), *(() if context is None else _kind(context)))
        if key not in self.seen:
            self.seen.add(key)
            return None
        if key not in self.graphs:
            try:
                self.graphs[key] = _Graph(bijection, rows, context, size)
            except RuntimeError:  # includes CUDA errors and out of memory
                self.graphs[key] = None
        graph = self.graphs[key]
        if graph is None:
            return None
        x, log_det = torch.empty_like(rows), rows.new_empty(len(rows))
        for i in range(0, len(rows), size):
            given = None if context is None else context[i : i + size]
            graph(rows[i : i + size], given, x[i : i + size], log_det[i : i + size])
        return x.reshape(*lead, x.shape[-1]), log_det.reshape(lead)


GRAPHS: weakref.WeakKeyDictionary[Invertible, BijectionGraphs] = weakref.WeakKeyDictionary()
"""The graphs of all bijections that are alive."""


class _Graph:
    """A graph for a fixed number of points, with buffers for its inputs and outputs."""

    def __init__(self, bijection: Invertible, rows: Tensor, context: Tensor | None, size: int) -> None:
        # Later calls write the buffers, which would fail for tensors made in inference mode.
        with torch.inference_mode(False), torch.no_grad(), constants_on(bijection, rows.device) as self.constants:
            self.z = rows.new_zeros(size, rows.shape[-1])
            self.context = None if context is None else context.new_zeros(size, context.shape[-1])
            self.replay, (self.x, self.log_det) = record_graph(
                lambda: bijection.inverse(self.z, self.context), rows.device
            )

    def __call__(self, rows: Tensor, context: Tensor | None, x: Tensor, log_det: Tensor) -> None:
        """Write the inverse of at most ``size`` rows; the buffers' other rows keep old values and are ignored."""
        self.z[: len(rows)] = rows
        if self.context is not None and context is not None:
            self.context[: len(rows)] = context
        self.replay()
        x.copy_(self.x[: len(rows)])
        log_det.copy_(self.log_det[: len(rows)])


def record_graph(
    work: Callable[[], ValueAndLogDet], device: torch.device
) -> tuple[Callable[[], object], ValueAndLogDet]:
    """Record work as a CUDA graph; return the function that replays it, and the tensors that hold its results."""
    with torch.cuda.device(device):
        (stream := torch.cuda.Stream()).wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # one-time work, such as creating cuBLAS's workspace, must not be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads, such as one that logs the memory in use, may call CUDA meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = work()
    return graph.replay, results


@contextlib.contextmanager
def constants_on(bijection: Invertible, device: torch.device) -> Iterator[list[Tensor]]:
    """Move the plain tensor attributes of all modules to the device within the block, and yield the moved ones.

    A copy from CPU memory cannot be recorded.
    """
    found = [(vars(m), k, v) for m in bijection.modules() for k, v in vars(m).items() if isinstance(v, Tensor)]
    moved = [value.to(device) for *_, value in found]
    for (attributes, name, _), value in zip(found, moved, strict=True):
        attributes[name] = value
    try:
        yield moved
    finally:
        for attributes, name, value in found:
            attributes[name] = value


def _state(bijection: Invertible) -> tuple[Any, ...] | None:
    """Everything a graph depends on besides its inputs; None if there are hooks, which a graph would not call."""
    modules = list(bijection.modules())
    if any(m._forward_hooks or m._forward_pre_hooks for m in modules):
        return None
    tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    places = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors]
    constants = [_Same(value) for m in modules for value in vars(m).values() if isinstance(value, Tensor)]
    return (*places, *((id(m), m.training) for m in modules), *constants)


class _Same:
    """An object that equals itself only; it is kept alive, so that no other object gets its address."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """What buffers and operations depend on; each stream has its own graph, as two must not share buffers."""
    products = torch.backends.cuda.matmul
    precision = getattr(products, "fp32_precision", None) or products.allow_tf32
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
    return tensor.shape[-1], tensor.dtype, tensor.device, stream, precision
