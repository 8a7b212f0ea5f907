"""Whole layers as single autograd operations, computed by the kernels in C.

The univariate maps, the conditioners and the incremental pass define in torch's operations what a kernel computes. They
are used wherever the kernels are not: on other devices and dtypes, in tracing, compiling and functorch, for maps and
networks that the kernels do not implement, and for second derivatives.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.flows.kernels import buffers, native
from pushforward.flows.kernels.buffers import Buffer
from pushforward.flows.kernels.elementwise import PLAIN, differentiate, needs_formula, usable
from pushforward.flows.networks.incremental import IncrementalPass, LinearWeights
from pushforward.flows.networks.masked import MaskedResidualNet
from pushforward.flows.networks.residual import MaskedLinear, ResidualBlock, ResidualNet
from pushforward.flows.univariate.base import Univariate

_MOST_BLOCKS = 16  # as in kernels.c


@dataclass(frozen=True)
class _LayerCall:
    """Everything that defines one evaluation of a layer, except its tensors."""

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
    """Evaluate an autoregressive or a coupling layer by the kernels.

    The inverse of an autoregressive layer is solved feature by feature; its gradient follows from the implicit function
    theorem, for the cost of one backward pass.

    Args:
        net: The conditioner; the kernels implement the residual networks, masked or not.
        univariate: The map whose parameters the conditioner computes.
        points: Points ``(..., features)``.
        context: Context ``(..., context)`` or None.
        inverse: Whether to invert the map.
        identity_features: In a coupling, the features that the network reads and that are unchanged.
        transformed_features: In a coupling, the features that are mapped.
        score: Score ``(..., features)`` of a density at the points. Dropout is not applied then, because both
            directions use the same activations.

    Returns:
        The mapped points ``(..., features)``, the log-determinants ``(...)``, and the score of the mapped density if a
        score was given; None if the kernels do not implement this layer or cannot be used here.
    """
    if not isinstance(net, (ResidualNet, MaskedResidualNet)):
        return None
    if not usable(points, context, score) or not _kernel_matches(type(univariate)):
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
        _without_terms(weights)
        if context is None and not (net.training and net.dropout and score is None)
        else net.tensors(lead, context, dropout=not sequential and score is None)
    )
    layer_call = _LayerCall(
        net, univariate, kernel, net.blocks, net.known, identity_features, transformed_features, inverse, sequential
    )
    if score is not None:
        score = score.detach().expand(*lead, score.shape[-1]).reshape(-1, score.shape[-1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, *tensors)):
        z, log_det, *scores = _Layer.apply(layer_call, score, rows, *tensors)  # type: ignore[no-untyped-call]
    else:
        z, log_det, saved = _forward(layer_call, rows, tensors, save=score is not None)
        scores = [] if saved is None or score is None else [_map_score(layer_call, rows, z, tensors, saved, score)]
    return z.reshape(*lead, z.shape[-1]), log_det.reshape(lead), *(s.reshape(*lead, s.shape[-1]) for s in scores)


@functools.lru_cache
def _kernel_matches(kind: type[Univariate]) -> bool:
    """Whether ``kernel()`` describes this class: a subclass may have overridden formulas but not ``kernel()``."""
    if not issubclass(kind, Univariate):
        return False
    depth = {name: next(i for i, c in enumerate(kind.__mro__) if name in vars(c)) for name in _FORMULAS}
    return depth["kernel"] == min(depth.values())


_FORMULAS = ("kernel", "size", "forward", "inverse")
_LINEAR: dict[type, Any] = {ResidualNet: nn.Linear, MaskedResidualNet: MaskedLinear}


def _weights(net: ResidualNet | MaskedResidualNet, points: Tensor, inputs: int, outputs: int) -> list[Tensor] | None:
    """Weight and bias of each layer, or None if the network is not as its class builds it.

    Users replace layers, add hooks or parametrizations, and switch dropout on and off. A mask changed in place is not
    noticed. The expected sizes are those of the call, not the network's own attributes. This runs at every call, so it
    reads the modules' dictionaries: ``module.name`` takes ten times as long.
    """
    linear = _LINEAR.get(type(net))
    if linear is None or net.blocks > _MOST_BLOCKS or nn.modules.module._has_any_global_hook():
        return None
    known = net.known
    if known is not None and (len(known) != inputs + 1 or known[-1] != net.hidden):
        return None
    hidden, members = net.hidden, net._modules
    body: Any = members["body"]
    modules: list[Any] = [net]
    layers: list[tuple[Any, int, int]] = [(members["first"], hidden, inputs)]
    for block in body._modules.values():
        if type(block) is not ResidualBlock:
            return None
        parts = block._modules
        dropout: Any = parts["dropout"]
        if type(dropout) is not nn.Dropout or dropout.p != net.dropout or dropout.training != net.training:
            return None
        layers += [(parts["first"], hidden, hidden), (parts["second"], hidden, hidden)]
        modules += [block, dropout]
    layers.append((members["last"], outputs, hidden))
    if not inputs or len(layers) != 2 + 2 * net.blocks:
        return None
    found: list[Tensor] = []
    for candidate, rows, columns in layers:
        if type(candidate) is not linear:
            return None
        weight, bias = candidate._parameters.get("weight"), candidate._parameters.get("bias")
        if not _is_plain(weight, points, (rows, columns)) or not _is_plain(bias, points, (rows,)):
            return None
        found += [weight, bias]
        modules.append(candidate)
    for module in modules:
        attributes = module.__dict__
        if "forward" in attributes or any(attributes[hooks] for hooks in _HOOKS):
            return None
    return found


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_plain(weight: Tensor | None, points: Tensor, shape: tuple[int, ...]) -> bool:
    if weight is None or type(weight) not in PLAIN:
        return False
    return weight.is_cpu and weight.dtype is points.dtype and weight.shape == shape


def _native_call(layer_call: _LayerCall, rows: Tensor, tensors: Sequence[Tensor | None]) -> native.Call:
    """The arguments of a kernel; it holds addresses, so the tensors must outlive it."""
    bias = cast(Tensor, tensors[1])
    features = rows.shape[1]
    call = native.Call(
        points=len(rows),
        features=features,
        inputs=features if layer_call.identity_features is None else len(layer_call.identity_features),
        hidden=len(bias),
        blocks=layer_call.blocks,
        values=features if layer_call.transformed_features is None else len(layer_call.transformed_features),
        size=layer_call.univariate.size,
        inverse=layer_call.inverse,
        sequential=layer_call.sequential,
        map=layer_call.kernel,
        tensors=_addresses(tensors),
    )
    if layer_call.identity_features is not None and layer_call.transformed_features is not None:
        call.identity_features = _integers(layer_call.identity_features)
        call.transformed_features = _integers(layer_call.transformed_features)
    if layer_call.known is not None:
        call.known = _integers(layer_call.known)
    return call


def _forward(
    layer_call: _LayerCall, rows: Tensor, tensors: Sequence[Tensor | None], *, save: bool
) -> tuple[Tensor, Tensor, Buffer | None]:
    rows, tensors = rows.contiguous(), [None if t is None else t.contiguous() for t in tensors]
    call = _native_call(layer_call, rows, tensors)
    kind = native.KINDS[rows.dtype]
    saved = None
    if save:
        tile = native.points_of_tile(kind)
        per_point = (1 + 2 * layer_call.blocks) * call.hidden + call.values * call.size
        saved = buffers.POOL.take(-(-len(rows) // tile) * tile * per_point, rows.dtype)
    z, log_det = torch.empty_like(rows), rows.new_empty(len(rows))
    native.run("layer_forward", kind, call, rows, z, log_det, None if saved is None else saved.tensor)
    return z, log_det, saved


def _map_score(
    layer_call: _LayerCall, rows: Tensor, z: Tensor, tensors: Sequence[Tensor | None], saved: Buffer, score: Tensor
) -> Tensor:
    """The score of the mapped density, from the backward pass of the other direction at the mapped points.

    Both directions evaluate the network on the data side, so the activations saved by one serve the other.
    """
    x = z if layer_call.inverse else rows
    other = replace(
        layer_call, inverse=not layer_call.inverse, sequential=layer_call.known is not None and not layer_call.inverse
    )
    return _backward(other, x, tensors, saved, score, score.new_ones(len(score)), [None] * len(tensors))


def _backward(
    layer_call: _LayerCall,
    x: Tensor,
    tensors: Sequence[Tensor | None],
    saved: Buffer,
    gz: Tensor,
    gl: Tensor,
    g_tensors: Sequence[Tensor | None],
) -> Tensor:
    """Return the gradient of the points; write those of the tensors to ``g_tensors`` where it is not None."""
    x, gz, gl = x.contiguous(), gz.contiguous(), gl.contiguous()
    tensors = [None if t is None else t.contiguous() for t in tensors]
    call = _native_call(layer_call, x, tensors)
    gx = torch.empty_like(x)
    terms, _, weights = _positions(layer_call.blocks)
    call.g_terms = _addresses([g_tensors[i] for i in terms])
    if any(t is not None for t in g_tensors):
        call.g_tensors = _addresses([g_tensors[i] for i in weights])
    native.run("layer_backward", native.KINDS[x.dtype], call, x, gz, gl, saved.tensor, gx)
    return gx


class _Layer(torch.autograd.Function):
    """A layer evaluated by the kernels; second derivatives use ``_formula``."""

    @staticmethod
    def forward(
        ctx: Any, layer_call: _LayerCall, score: Tensor | None, rows: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        z, log_det, saved = _forward(layer_call, rows, tensors, save=True)
        assert saved is not None
        ctx.layer_call, ctx.saved = layer_call, saved
        ctx.save_for_backward(z if layer_call.inverse else None, rows, *tensors)
        if score is None:
            return z, log_det
        mapped = _map_score(layer_call, rows, z, tensors, saved, score)
        ctx.mark_non_differentiable(mapped)
        return z, log_det, mapped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layer_call: _LayerCall = ctx.layer_call
        gradients = gradients[:2]  # the score is not differentiable
        result, rows, *tensors = ctx.saved_tensors
        if needs_formula(gradients):
            return (None, None, *differentiate(functools.partial(_formula, layer_call), (rows, *tensors), gradients))
        x = rows if result is None else result
        factors = _positions(layer_call.blocks)[1]
        # Besides the gradient of the points, the kernel computes the gradients of all tensors or of none.
        wanted = any(ctx.needs_input_grad[3:])
        g_tensors = [
            None if t is None or i in factors or not wanted else t.new_empty(t.shape) for i, t in enumerate(tensors)
        ]
        gx = _backward(layer_call, x, tensors, ctx.saved, gradients[0], gradients[1], g_tensors)
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.saved = None  # the graph is freed, so the next layer may use this memory
        return (None, None, gx, *g_tensors)


def _formula(layer_call: _LayerCall, rows: Tensor, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """The layer in torch's operations, as a function of all tensors it depends on."""
    given: Any = tensors
    weights = [
        given[0],
        *(w for b in range(layer_call.blocks) for w in (given[3 + 6 * b], given[7 + 6 * b])),
        given[-2],
    ]
    masks = layer_call.net.masks()
    if masks is not None:
        weights = [w * m for w, m in zip(weights, masks, strict=True)]
    if layer_call.sequential:
        return _incremental(layer_call, rows, weights, given).solve(layer_call.univariate, rows)
    inputs = values = rows
    if layer_call.identity_features is not None:
        inputs, values = (
            rows[:, list(layer_call.identity_features)],
            rows[:, list(layer_call.transformed_features or ())],
        )
    h = F.linear(inputs, weights[0], given[1])
    if given[2] is not None:
        h = h + given[2]
    for b in range(layer_call.blocks):
        bias, context_term, factors, _, last_bias = given[4 + 6 * b : 9 + 6 * b]
        g = F.linear(F.relu(h), weights[1 + 2 * b], bias)
        g = F.relu(g if context_term is None else g + context_term)
        h = h + F.linear(g if factors is None else g * factors, weights[2 + 2 * b], last_bias)
    parameters = F.linear(F.relu(h), weights[-1], given[-1]).unflatten(-1, (-1, layer_call.univariate.size))
    with native.disabled():
        z, log_derivative = (layer_call.univariate.inverse if layer_call.inverse else layer_call.univariate.forward)(
            values, parameters
        )
    if layer_call.transformed_features is not None:
        z = rows.index_copy(1, torch.tensor(layer_call.transformed_features, device=z.device), z)
    return z, log_derivative.sum(-1)


def _incremental(layer_call: _LayerCall, rows: Tensor, weights: list[Tensor], given: Any) -> IncrementalPass:
    def transposed(term: Tensor | None) -> Tensor | None:
        return None if term is None else term.t()

    blocks = []
    for b in range(layer_call.blocks):
        one = LinearWeights(weights[1 + 2 * b], given[4 + 6 * b], transposed(given[5 + 6 * b]))
        blocks.append((one, LinearWeights(weights[2 + 2 * b], given[8 + 6 * b])))
    first = LinearWeights(weights[0], given[1], transposed(given[2]))
    assert layer_call.known is not None
    return IncrementalPass(layer_call.known, first, blocks, LinearWeights(weights[-1], given[-1]), rows)


def _without_terms(weights: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The result of ``net.tensors`` without context and dropout."""
    tensors: list[Tensor | None] = [*weights[:2], None]
    for i in range(2, len(weights) - 2, 4):
        tensors += [*weights[i : i + 2], None, None, *weights[i + 2 : i + 4]]
    return (*tensors, *weights[-2:])


@functools.lru_cache
def _positions(blocks: int) -> tuple[list[int], list[int], list[int]]:
    """Positions in ``net.tensors`` of the context terms, of the dropout factors, and of the weights and biases."""
    terms, factors = [2, *(5 + 6 * b for b in range(blocks))], [6 + 6 * b for b in range(blocks)]
    return terms, factors, [i for i in range(5 + 6 * blocks) if i not in terms and i not in factors]


@functools.lru_cache(maxsize=4096)
def _integers(values: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


@functools.lru_cache
def _array(length: int) -> Any:
    return ctypes.c_void_p * length  # cached, because ctypes creates a new type each time


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    return _array(len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])
