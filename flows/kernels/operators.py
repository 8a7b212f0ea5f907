"""The kernels as operators of torch: ``pushforward::chain``, ``pushforward::map`` and ``pushforward::network``.

Each takes points or values, the tensors that the layers depend on, and a text that describes the layers (see
``layers``). It has a gradient and a shape for fake tensors, so it compiles, exports and traces as one node. Where the
kernel cannot be (second derivatives, forward mode, batched gradients) torch's operations take its place, see
``flows.formulas``.
"""

import ctypes
import functools
import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pushforward.flows.kernels import layers, native
from pushforward.flows.kernels.buffers import POOL

_LIBRARY = torch.library.Library("pushforward", "DEF")

NAMES = ("chain", "map", "network")
"""Names of the operators.

- ``chain``: points ``(n, D)`` through all layers, to points ``(n, D)`` and log-determinants ``(n,)``;
- ``map``: values ``(n,)`` with parameters ``(n, size)``, to values and log-derivatives ``(n,)``;
- ``network``: points ``(n, inputs)`` to parameters ``(n, outputs)``, and an empty tensor.
"""


def evaluate(
    name: str, text: str, x: Tensor, tensors: Sequence[Tensor], *, inverse: bool = False, save: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Call an operator.

    Args:
        name: One of ``NAMES``.
        text: The layers.
        x: Points or values.
        tensors: All tensors that the layers depend on; see ``Layer.tensors`` for their order.
        inverse: Whether to invert the layers, from the last to the first.
        save: Whether to save what a backward pass needs, also where nothing needs a gradient.

    Returns:
        The two results of the operator, and what was saved, an empty tensor if nothing was.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any([t.requires_grad for t in tensors])):
        if not torch.compiler.is_compiling():  # the operator's own gradient works too, but takes longer to call
            return _Operation.apply(name, text, inverse, x, *tensors)  # type: ignore[no-untyped-call, no-any-return]
        save = True
    return _OPERATORS[name](x, list(tensors), text, inverse, save)  # type: ignore[no-any-return]


def score(text: str, tensors: Sequence[Tensor], saved: Tensor, gradient: Tensor, *, inverse: bool) -> Tensor:
    """The score ``(n, D)`` of a mapped density from that at the points, ``gradient``, and what ``chain`` saved.

    It is the backward pass of the other direction at the mapped points. Both directions evaluate the networks on the
    side of the data, so the activations saved by one serve the other.
    """
    with torch.no_grad():
        ones = gradient.new_ones(len(gradient))
        found: list[Tensor] = _BACKWARDS["chain"](
            gradient, list(tensors), saved, gradient, ones, text, not inverse, False
        )
    return found[0]


class _Operation(torch.autograd.Function):
    """An operator in eager mode."""

    @staticmethod
    def forward(name: str, text: str, inverse: bool, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _OPERATORS[name](x, list(tensors), text, inverse, True)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.operator, ctx.text, ctx.inverse, x, *tensors = inputs
        ctx.shapes = output[0].shape, output[1].shape
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)  # zeros as large as what was saved would take a tenth of a step
        # The inverse of a map is differentiated at its result.
        ctx.save_for_backward(output[0] if ctx.operator == "map" and ctx.inverse else output[2], x, *tensors)
        ctx.save_for_forward(x, *tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return None, None, None, *_gradients(ctx, ctx.needs_input_grad[3:], gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        x, *tensors = ctx.saved_tensors
        formula = _formulas().formula(ctx.operator, ctx.text, ctx.inverse)
        return *_formulas().tangents(formula, (x, *tensors), tangents[3:]), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, name: str, text: str, inverse: bool, x: Tensor, *tensors: Tensor) -> Any:
        return _batched(name, info, (in_dims[3], list(in_dims[4:])), x, list(tensors), text, inverse)


# torch asks for it at every call, and would find it anew each time.
_Operation.forward.__signature__ = inspect.signature(_Operation.forward)  # type: ignore[attr-defined]


def _batched(name: str, info: Any, in_dims: Any, x: Tensor, tensors: list[Tensor], text: str, inverse: bool) -> Any:
    """Evaluate an operator under ``torch.vmap``: rows of all examples at once, or one example of weights at a time."""
    size, batched = info.batch_size, [d is not None for d in in_dims[1]]
    of_rows = [i for i, (_, tensor) in enumerate(layers.tensors_of(text)) if name == "map" or tensor != "weight"]
    x = x.expand(size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
    tensors = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims[1], strict=True)]
    if any(b and i not in of_rows for i, b in enumerate(batched)):
        each = []
        for k in range(size):
            own = [t[k] if b else t for t, b in zip(tensors, batched, strict=True)]
            each.append(_OPERATORS[name](x[k], own, text, inverse, False)[:2])
        return (*[torch.stack(many) for many in zip(*each, strict=True)], x.new_empty(0)), (0, 0, None)
    for i in of_rows:
        tensors[i] = (tensors[i] if batched[i] else tensors[i].expand(size, *tensors[i].shape)).flatten(0, 1)
    first, second, saved = _OPERATORS[name](x.flatten(0, 1), tensors, text, inverse, False)
    if name == "network":
        return (first.unflatten(0, x.shape[:2]), second, saved), (0, None, None)
    return (first.unflatten(0, x.shape[:2]), second.unflatten(0, x.shape[:2]), saved), (0, 0, None)


def _formulas() -> Any:
    return importlib.import_module("pushforward.flows.formulas")  # which needs maps and networks, and they operators


def _gradients(ctx: Any, needed: Sequence[bool], outer: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of the points and of each tensor, None where the tensor is."""
    saved, x, *tensors = ctx.saved_tensors
    shapes = ctx.shapes
    g, g_log = [x.new_zeros(s) if g is None else g for g, s in zip(outer[:2], shapes, strict=True)]
    if torch.is_grad_enabled():  # to be differentiated again
        formula = _formulas().formula(ctx.operator, ctx.text, ctx.inverse)
        return _formulas().differentiate(formula, (x, *tensors), (g, g_log), needed)  # type: ignore[no-any-return]
    wanted = any(needed[1:])
    # Besides the gradient of the points, a kernel computes the gradients of all tensors or of none.
    found = _BACKWARDS[ctx.operator](x, tensors, saved, g, g_log, ctx.text, ctx.inverse, wanted)
    gradients: list[Tensor | None] = [None] * len(tensors)
    if wanted:
        for i, gradient in zip(_differentiable(ctx.text), found[1:], strict=True):
            gradients[i] = gradient
    return [found[0], *gradients]


def _differentiable(text: str) -> list[int]:
    """Positions among the tensors of a chain of those that have a gradient: dropout factors have none."""
    return [i for i, (_, tensor) in enumerate(layers.tensors_of(text)) if tensor != "factors"]


def _saved_numbers(name: str, text: str, x: Tensor) -> Any:
    """How many numbers a kernel saves for the backward pass."""
    if name == "map":
        return 0
    tile = native.points_of_tile(x.dtype)
    each = sum(layer.saved_by_a_point(x.shape[1]) for layer in layers.read(text))
    return (x.shape[0] + tile - 1) // tile * tile * each


def _call(text: str, x: Tensor, features: int, inverse: bool, tensors: Sequence[Tensor]) -> native.Chain:
    """The arguments of a kernel; it holds addresses, so the tensors must outlive it."""
    array = layers.in_c(text)
    return native.Chain(
        points=x.shape[0],
        features=features,
        layers=len(array),
        inverse=inverse,
        layer=ctypes.addressof(array),
        tensors=_addresses(layers.in_places(text, tensors)),
    )


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    return ctypes.cast(_array(len(tensors))(*[None if t is None else t.data_ptr() for t in tensors]), ctypes.c_void_p)


@functools.lru_cache
def _array(length: int) -> Any:
    return ctypes.c_void_p * length  # cached, because ctypes creates a new type each time


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t if t.is_contiguous() else t.contiguous() for t in tensors]


def _empty_results(name: str, text: str, x: Tensor) -> tuple[Tensor, Tensor]:
    if name == "chain":
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[0])
    if name == "map":
        return x.new_empty(x.shape), x.new_empty(x.shape)
    (layer,) = layers.read(text)
    return x.new_empty(x.shape[0], layer.values * layer.size), x.new_empty(0)


def _forward(
    name: str, x: Tensor, tensors: list[Tensor], text: str, inverse: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, tensors = x.contiguous(), _contiguous(tensors)
    first, second = _empty_results(name, text, x)
    saved = POOL.take(_saved_numbers(name, text, x), x.dtype) if save and name != "map" else None
    features = layers.read(text)[0].inputs if name == "network" else x.shape[-1]
    call = _call(text, x, features, inverse, tensors)
    if name == "map":
        native.run("map_forward", call, x, tensors[0], first, second)
    elif name == "network":
        native.run("network_forward", call, x, first, saved)
    else:
        native.run("chain_forward", call, x, first, second, saved)
    return first, second, x.new_empty(0) if saved is None else saved


def _backward(
    name: str,
    x: Tensor,
    tensors: list[Tensor],
    saved: Tensor,
    gz: Tensor,
    g_log: Tensor,
    text: str,
    inverse: bool,
    wanted: bool,
) -> list[Tensor]:
    x, gz, g_log, tensors = x.contiguous(), gz.contiguous(), g_log.contiguous(), _contiguous(tensors)
    gx = torch.empty_like(x)
    features = layers.read(text)[0].inputs if name == "network" else x.shape[-1]
    call = _call(text, x, features, inverse, tensors)
    if name == "map":
        (parameters,) = tensors
        of_parameters = torch.empty_like(parameters)
        native.run("map_backward", call, saved.contiguous() if inverse else x, parameters, gz, g_log, gx, of_parameters)
        return [gx, of_parameters] if wanted else [gx]
    gradients = [torch.empty_like(tensors[i]) for i in _differentiable(text)] if wanted else []
    if wanted:
        placed: list[Tensor | None] = [None] * layers.places_of(text)
        for i, gradient in zip(_differentiable(text), gradients, strict=True):
            placed[layers.tensors_of(text)[i][0]] = gradient
        call.g_tensors = _addresses(placed)
    if name == "network":
        native.run("network_backward", call, x, gz, saved, gx)
    else:
        native.run("chain_backward", call, gz, g_log, saved, gx)
    return [gx, *gradients]


def _define(name: str) -> tuple[Any, Any]:
    """Define an operator and its backward pass: on a CPU, for fake tensors, with gradients."""
    _LIBRARY.define(
        f"{name}(Tensor x, Tensor[] tensors, str layers, bool inverse, bool save) -> (Tensor, Tensor, Tensor)"
    )
    _LIBRARY.define(
        f"{name}_backward(Tensor x, Tensor[] tensors, Tensor saved, Tensor g, Tensor g_log, str layers, bool inverse, "
        "bool wanted) -> Tensor[]"
    )
    _LIBRARY.impl(name, functools.partial(_forward, name), "CPU")
    _LIBRARY.impl(f"{name}_backward", functools.partial(_backward, name), "CPU")

    def shapes(x: Tensor, tensors: Any, text: str, inverse: bool, save: bool) -> Any:
        return *_empty_results(name, text, x), x.new_empty(_saved_numbers(name, text, x) if save else 0)

    def shapes_backward(
        x: Tensor, tensors: Any, saved: Any, g: Any, g_log: Any, text: str, _: bool, wanted: bool
    ) -> Any:
        own = [tensors[i] for i in _differentiable(text)] if wanted else []
        return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *own)]

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        x, tensors, text, inverse, _ = inputs
        _Operation.setup_context(ctx, (name, text, inverse, x, *tensors), output)

    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        found = _gradients(ctx, (ctx.needs_input_grad[0], *ctx.needs_input_grad[1]), gradients)
        return found[0], found[1:], None, None, None

    def rule(info: Any, in_dims: Any, x: Tensor, tensors: Any, text: str, inverse: bool, save: bool) -> Any:
        return _batched(name, info, in_dims, x, list(tensors), text, inverse)

    # torch.autograd.functional batches in an older way, which knows no rules.
    def batched(x: Tensor, tensors: Any, text: str, inverse: bool, save: bool) -> Any:
        return *_formulas().formula(name, text, inverse)(x, *tensors), x.new_empty(0)

    def batched_backward(
        x: Tensor, tensors: Any, saved: Any, g: Tensor, g_log: Tensor, text: str, inverse: bool, wanted: bool
    ) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            own = [t.detach() for t in tensors]
            inputs = [x, *([own[i].requires_grad_() for i in _differentiable(text)] if wanted else [])]
            outputs = _formulas().formula(name, text, inverse)(x, *own)
            pairs = [(o, h) for o, h in zip(outputs, (g, g_log), strict=True) if o.requires_grad]
            return list(
                torch.autograd.grad([o for o, _ in pairs], inputs, [h for _, h in pairs], materialize_grads=True)
            )

    qualified = f"pushforward::{name}"
    torch.library.register_fake(qualified, shapes, lib=_LIBRARY)
    torch.library.register_fake(f"{qualified}_backward", shapes_backward, lib=_LIBRARY)
    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_LIBRARY)

    torch.library.register_vmap(qualified, rule, lib=_LIBRARY)
    _LIBRARY.impl(name, batched, "Batched")
    _LIBRARY.impl(f"{name}_backward", batched_backward, "Batched")
    forward, back = getattr(torch.ops.pushforward, name), getattr(torch.ops.pushforward, f"{name}_backward")

    # Those of the dense products; a product more for each gradient.
    @register_flop_formula(forward)
    def flops(x: Any, tensors: Any, text: str, *_: Any, **__: Any) -> int:
        kinds = [kind for _, kind in layers.tensors_of(text)]
        weights = [shape for shape, kind in zip(tensors, kinds, strict=True) if kind == "weight" and len(shape) == 2]
        return 0 if name == "map" else 2 * x[0] * sum(rows * columns for rows, columns in weights)

    @register_flop_formula(back)
    def flops_backward(x: Any, tensors: Any, saved: Any, g: Any, g_log: Any, text: str, *rest: Any, **__: Any) -> int:
        return int(flops(x, tensors, text)) * (2 if rest[-1] else 1)

    return forward.default, back.default


_DEFINED = {name: _define(name) for name in NAMES}
_OPERATORS = {name: forward for name, (forward, _) in _DEFINED.items()}
_BACKWARDS = {name: backward for name, (_, backward) in _DEFINED.items()}
