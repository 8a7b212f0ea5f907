"""Whole layers as single operations of autograd, computed by the kernels in C.

What a kernel computes is defined elsewhere: by the univariate maps, the conditioners and the incremental pass. Those
are used for everything the kernels do not know: other devices and dtypes, tracing and compiling, functorch, maps and
networks of one's own, and derivatives of derivatives.
"""

import ctypes
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.flows.kernels import native
from pushforward.flows.kernels.elementwise import PLAIN, differentiate, must_be_formula, usable
from pushforward.flows.networks.incremental import Affinity, IncrementalPass
from pushforward.flows.networks.masked import MaskedResidualNet
from pushforward.flows.networks.residual import MaskedLinear, ResidualBlock, ResidualNet
from pushforward.flows.univariate.base import Univariate

_MOST_BLOCKS = 16  # as in kernels.c
_MOST_POOLED_BYTES = 128 * 2**20


class _Lease:
    """Memory for what a backward pass needs, given back to a pool when nobody needs it any more.

    Fresh memory of this size comes from the system and goes back there each time, a page fault every 4 KiB: on small
    layers that takes as long as the products.
    """

    _pool: ClassVar[dict[tuple[int, torch.dtype], list[Tensor]]] = {}
    _bytes: ClassVar[int] = 0
    _lock: ClassVar[Any] = threading.RLock()
    _busy: ClassVar[bool] = False
    """Whether the pool is being changed: a collection in the midst of it may find another lease to give back."""

    def __init__(self, numbers: int, dtype: torch.dtype) -> None:
        kind, key, found = type(self), (numbers, dtype), None
        with kind._lock:
            if not kind._busy:
                kind._busy = True
                free = kind._pool.get(key)
                if free:
                    found = kind._taken(key)
                kind._busy = False
        # The device is said because another one may be the default.
        self.tensor = torch.empty(numbers, dtype=dtype, device="cpu") if found is None else found

    def __del__(self) -> None:
        kind, tensor = type(self), getattr(self, "tensor", None)
        if tensor is None or tensor.nbytes > _MOST_POOLED_BYTES:
            return
        with kind._lock:
            if kind._busy:
                return
            kind._busy = True
            key = tensor.numel(), tensor.dtype
            free = kind._pool.pop(key, [])
            free.append(tensor)
            kind._pool[key] = free  # the sizes that were in use last come last
            kind._bytes += tensor.nbytes
            while kind._bytes > _MOST_POOLED_BYTES:
                kind._taken(next(iter(kind._pool)))
            kind._busy = False

    @classmethod
    def _taken(cls, key: tuple[int, torch.dtype]) -> Tensor:
        free = cls._pool[key]
        tensor = free.pop()
        if not free:
            del cls._pool[key]
        cls._bytes -= tensor.nbytes
        return tensor


@dataclass(frozen=True)
class _Plan:
    """What a layer computes, besides its tensors."""

    net: ResidualNet | MaskedResidualNet
    univariate: Univariate
    kernel: native.Map
    blocks: int
    known: tuple[int, ...] | None
    identity_features: tuple[int, ...] | None
    transformed_features: tuple[int, ...] | None
    inverse: bool
    sequential: bool


def layer(
    net: object,
    univariate: Univariate,
    points: Tensor,
    context: Tensor | None,
    *,
    inverse: bool = False,
    identity_features: tuple[int, ...] | None = None,
    transformed_features: tuple[int, ...] | None = None,
    score: Tensor | None = None,
) -> tuple[Tensor, ...] | None:
    """Evaluate an autoregressive or a coupling layer.

    The inverse of an autoregressive one is solved feature by feature; its gradient is that of the implicit function,
    for the cost of one backward pass.

    Args:
        net: The conditioner, masked or not; the kernels know the residual networks.
        univariate: The map it steers.
        points: Points ``(..., features)``.
        context: ``(..., context)`` or None.
        inverse: Whether the map is inverted.
        identity_features: Of a coupling, the features that the network reads and that stay as they are.
        transformed_features: Of a coupling, the features that are mapped.
        score: Score ``(..., features)`` of a density at the points; dropout is not applied then, for the activations
            serve both directions.

    Returns:
        The mapped points ``(..., features)``, the log-determinants ``(...)``, and if a score was given that of the
        mapped density; None if the kernels do not know this layer or must not be used here.
    """
    if not isinstance(net, (ResidualNet, MaskedResidualNet)):
        return None
    if not usable(points, context, score) or not _speaks_for_itself(type(univariate)):
        return None
    kernel = univariate.kernel()
    if kernel is None:
        return None
    features = points.shape[-1]
    inputs = features if identity_features is None else len(identity_features)
    values = features if transformed_features is None else len(transformed_features)
    weights = _weights(net, points, inputs, values * univariate.size)
    if weights is None:
        return None
    sequential = inverse and net.known is not None
    lead = points.shape[:-1]
    if context is not None:
        lead = torch.broadcast_shapes(lead, context.shape[:-1])
    rows = points.expand(*lead, points.shape[-1]).reshape(-1, points.shape[-1])
    tensors = (
        _placed(weights)
        if context is None and not (net.training and net.dropout and score is None)
        else net.tensors(lead, context, dropout=not sequential and score is None)
    )
    plan = _Plan(
        net, univariate, kernel, net.blocks, net.known, identity_features, transformed_features, inverse, sequential
    )
    if score is not None:
        score = score.detach().expand(*lead, score.shape[-1]).reshape(-1, score.shape[-1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, *tensors)):
        z, log_det, *mapped = _Layer.apply(plan, score, rows, *tensors)  # type: ignore[no-untyped-call]
    else:
        z, log_det, saved = _forward(plan, rows, tensors, save=score is not None)
        mapped = [] if saved is None or score is None else [_map_score(plan, rows, z, tensors, saved, score)]
    return z.reshape(*lead, z.shape[-1]), log_det.reshape(lead), *(s.reshape(*lead, s.shape[-1]) for s in mapped)


@functools.lru_cache
def _speaks_for_itself(kind: type[Univariate]) -> bool:
    """Whether what a map says of its kernel holds: a subclass may have changed the formulas and said nothing new."""
    if not issubclass(kind, Univariate):
        return False
    depth = {name: next(i for i, c in enumerate(kind.__mro__) if name in vars(c)) for name in _FORMULAS}
    return depth["kernel"] == min(depth.values())


_FORMULAS = ("kernel", "size", "forward", "inverse")
_LINEAR: dict[type, Any] = {ResidualNet: nn.Linear, MaskedResidualNet: MaskedLinear}


def _weights(net: ResidualNet | MaskedResidualNet, points: Tensor, inputs: int, outputs: int) -> list[Tensor] | None:
    """Weight and bias of each layer, if the network is still what its class makes, so that they say everything.

    People replace layers, hook or parametrize them, and switch dropout on and off; that somebody has changed a mask in
    place is not seen. The sizes are those of the call, not what the network says of itself. This is asked at every
    call, so it reads the dictionaries of the modules: ``module.name`` takes ten times as long.
    """
    linear = _LINEAR.get(type(net))
    if linear is None or net.blocks > _MOST_BLOCKS or nn.modules.module._has_any_global_hook():
        return None
    known = net.known
    if known is not None and (len(known) != inputs + 1 or known[-1] != net.hidden):
        return None
    hidden, members = net.hidden, net._modules
    body: Any = members["body"]
    whole: list[Any] = [net]
    layers: list[tuple[Any, int, int]] = [(members["first"], hidden, inputs)]
    for block in body._modules.values():
        if type(block) is not ResidualBlock:
            return None
        parts = block._modules
        dropout: Any = parts["dropout"]
        if type(dropout) is not nn.Dropout or dropout.p != net.dropout or dropout.training != net.training:
            return None
        layers += [(parts["first"], hidden, hidden), (parts["second"], hidden, hidden)]
        whole += [block, dropout]
    layers.append((members["last"], outputs, hidden))
    if not inputs or len(layers) != 2 + 2 * net.blocks:
        return None
    found: list[Tensor] = []
    for affine, rows, columns in layers:
        if type(affine) is not linear:
            return None
        weight, bias = affine._parameters.get("weight"), affine._parameters.get("bias")
        if not _is_plain(weight, points, (rows, columns)) or not _is_plain(bias, points, (rows,)):
            return None
        found += [weight, bias]
        whole.append(affine)
    for module in whole:
        own = module.__dict__
        if "forward" in own or any(own[hooks] for hooks in _HOOKS):
            return None
    return found


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_plain(weight: Tensor | None, points: Tensor, shape: tuple[int, ...]) -> bool:
    if weight is None or type(weight) not in PLAIN:
        return False
    return weight.is_cpu and weight.dtype is points.dtype and weight.shape == shape


def _call(plan: _Plan, rows: Tensor, tensors: Sequence[Tensor | None]) -> native.Call:
    bias = tensors[1]
    assert bias is not None
    features = rows.shape[1]
    call = native.Call(
        points=len(rows),
        features=features,
        inputs=features if plan.identity_features is None else len(plan.identity_features),
        hidden=len(bias),
        blocks=plan.blocks,
        values=features if plan.transformed_features is None else len(plan.transformed_features),
        size=plan.univariate.size,
        inverse=plan.inverse,
        sequential=plan.sequential,
        map=plan.kernel,
        tensors=_addresses(tensors),
    )
    if plan.identity_features is not None and plan.transformed_features is not None:
        call.identity_features, call.transformed_features = (
            _integers(plan.identity_features),
            _integers(plan.transformed_features),
        )
    if plan.known is not None:
        call.known = _integers(plan.known)
    return call


def _forward(
    plan: _Plan, rows: Tensor, tensors: Sequence[Tensor | None], *, save: bool
) -> tuple[Tensor, Tensor, _Lease | None]:
    rows, tensors = rows.contiguous(), [None if t is None else t.contiguous() for t in tensors]
    call = _call(plan, rows, tensors)
    kind = native.KINDS[rows.dtype]
    saved = None
    if save:
        tile = native.points_of_tile(kind)
        a_point = (1 + 2 * plan.blocks) * call.hidden + call.values * call.size
        saved = _Lease(-(-len(rows) // tile) * tile * a_point, rows.dtype)
    z, log_det = torch.empty_like(rows), rows.new_empty(len(rows))
    native.run("layer_forward", kind, call, rows, z, log_det, None if saved is None else saved.tensor)
    return z, log_det, saved


def _map_score(
    plan: _Plan, rows: Tensor, z: Tensor, tensors: Sequence[Tensor | None], saved: _Lease, score: Tensor
) -> Tensor:
    """The score of the mapped density: what the other direction, at its point, makes of the score and its own term.

    Its activations are those that are saved: both directions evaluate the network at the data end.
    """
    x = z if plan.inverse else rows
    other = replace(plan, inverse=not plan.inverse, sequential=plan.known is not None and not plan.inverse)
    return _backward(other, x, tensors, saved, score, score.new_ones(len(score)), [None] * len(tensors))


def _backward(
    plan: _Plan,
    x: Tensor,
    tensors: Sequence[Tensor | None],
    saved: _Lease,
    gz: Tensor,
    gl: Tensor,
    found: Sequence[Tensor | None],
) -> Tensor:
    """Gradient of the points; those of the tensors are written where there is a tensor to be found."""
    x, gz, gl = x.contiguous(), gz.contiguous(), gl.contiguous()
    tensors = [None if t is None else t.contiguous() for t in tensors]
    call = _call(plan, x, tensors)
    gx = torch.empty_like(x)
    terms, _, weights = _places(plan.blocks)
    call.g_terms = _addresses([found[i] for i in terms])
    if any(t is not None for t in found):
        call.g_tensors = _addresses([found[i] for i in weights])
    native.run("layer_backward", native.KINDS[x.dtype], call, x, gz, gl, saved.tensor, gx)
    return gx


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, score: Tensor | None, rows: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        z, log_det, saved = _forward(plan, rows, tensors, save=True)
        assert saved is not None
        ctx.plan, ctx.saved = plan, saved
        ctx.save_for_backward(z if plan.inverse else None, rows, *tensors)
        if score is None:
            return z, log_det
        mapped = _map_score(plan, rows, z, tensors, saved, score)
        ctx.mark_non_differentiable(mapped)
        return z, log_det, mapped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        gradients = gradients[:2]  # a score has none
        result, rows, *tensors = ctx.saved_tensors
        if must_be_formula(gradients):
            return (None, None, *differentiate(functools.partial(_formula, plan), (rows, *tensors), gradients))
        x = rows if result is None else result
        keeps = _places(plan.blocks)[1]
        # The kernel computes all gradients but those of the points, or none of them.
        some = any(ctx.needs_input_grad[3:])
        found = [None if t is None or i in keeps or not some else t.new_empty(t.shape) for i, t in enumerate(tensors)]
        gx = _backward(plan, x, tensors, ctx.saved, gradients[0], gradients[1], found)
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.saved = None  # nobody can come back: the next layer may have the memory
        return (None, None, gx, *found)


def _formula(plan: _Plan, rows: Tensor, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in torch's operations, as a function of every tensor it depends on."""
    given: Any = tensors
    weights = [given[0], *(w for b in range(plan.blocks) for w in (given[3 + 6 * b], given[7 + 6 * b])), given[-2]]
    masks = plan.net.masks()
    if masks is not None:
        weights = [w * m for w, m in zip(weights, masks, strict=True)]
    if plan.sequential:
        return _incremental(plan, rows, weights, given).solve(plan.univariate, rows)
    inputs = moved = rows
    if plan.identity_features is not None:
        inputs, moved = rows[:, list(plan.identity_features)], rows[:, list(plan.transformed_features or ())]
    h = F.linear(inputs, weights[0], given[1])
    if given[2] is not None:
        h = h + given[2]
    for b in range(plan.blocks):
        bias, term, keep, _, last_bias = given[4 + 6 * b : 9 + 6 * b]
        g = F.linear(F.relu(h), weights[1 + 2 * b], bias)
        g = F.relu(g if term is None else g + term)
        h = h + F.linear(g if keep is None else g * keep, weights[2 + 2 * b], last_bias)
    parameters = F.linear(F.relu(h), weights[-1], given[-1]).unflatten(-1, (-1, plan.univariate.size))
    with native.disabled():
        z, log_derivative = (plan.univariate.inverse if plan.inverse else plan.univariate.forward)(moved, parameters)
    if plan.transformed_features is not None:
        z = rows.index_copy(1, torch.tensor(plan.transformed_features, device=z.device), z)
    return z, log_derivative.sum(-1)


def _incremental(plan: _Plan, rows: Tensor, weights: list[Tensor], given: Any) -> IncrementalPass:
    def transposed(term: Tensor | None) -> Tensor | None:
        return None if term is None else term.t()

    blocks = []
    for b in range(plan.blocks):
        one = Affinity(weights[1 + 2 * b], given[4 + 6 * b], transposed(given[5 + 6 * b]))
        blocks.append((one, Affinity(weights[2 + 2 * b], given[8 + 6 * b])))
    first = Affinity(weights[0], given[1], transposed(given[2]))
    assert plan.known is not None
    return IncrementalPass(plan.known, first, blocks, Affinity(weights[-1], given[-1]), rows)


def _placed(weights: list[Tensor]) -> tuple[Tensor | None, ...]:
    """As ``net.tensors`` does, where neither context nor dropout adds anything."""
    tensors: list[Tensor | None] = [*weights[:2], None]
    for i in range(2, len(weights) - 2, 4):
        tensors += [*weights[i : i + 2], None, None, *weights[i + 2 : i + 4]]
    return (*tensors, *weights[-2:])


@functools.lru_cache
def _places(blocks: int) -> tuple[list[int], list[int], list[int]]:
    """Positions among the tensors: of what the context adds, of dropout's factors, of weights and biases."""
    terms, keeps = [2, *(5 + 6 * b for b in range(blocks))], [6 + 6 * b for b in range(blocks)]
    return terms, keeps, [i for i in range(5 + 6 * blocks) if i not in terms and i not in keeps]


@functools.lru_cache(maxsize=4096)
def _integers(values: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


@functools.lru_cache
def _array(length: int) -> Any:
    return ctypes.c_void_p * length  # a new type each time, unless somebody keeps it


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    return _array(len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])
