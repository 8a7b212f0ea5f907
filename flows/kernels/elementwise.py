"""Univariate maps as single autograd operations, computed by the kernels in C."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.kernels import native

Formula = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def usable(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called with these tensors: ordinary CPU tensors of one dtype, in ordinary autograd.

    Tracing, compilation, batching and operation counters need to see torch's own operations.
    """
    return not (
        is_observed() or torch.is_autocast_enabled("cpu") or not are_plain(*tensors) or native.library() is None
    )


def is_observed() -> bool:
    """Whether operations are being traced, compiled, batched or counted, or differentiated in forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors of one dtype, so that a kernel can read their memory."""
    dtype = None
    for tensor in tensors:
        if tensor is None:
            continue
        dtype = dtype or tensor.dtype
        if (
            tensor.dtype != dtype
            or dtype not in native.KINDS
            or type(tensor) not in PLAIN
            or tensor.device.type != "cpu"
        ):
            return False
        if tensor.is_neg() or tensor._is_zerotensor() or torch._C._functorch.is_legacy_batchedtensor(tensor):
            return False
    return True


PLAIN = (Tensor, torch.nn.Parameter)


def apply_map(
    formula: Formula, kernel: native.Map, size: int, values: Tensor, parameters: Tensor, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Evaluate a univariate map by a kernel.

    Args:
        formula: The same map in torch's operations, for second derivatives.
        kernel: Description of the map for the kernel.
        size: Number of parameters of one map.
        values: Values ``(...)``.
        parameters: Parameters ``(..., size)``, broadcasting against the values.
        inverse: Whether to invert the map.

    Returns:
        The mapped values and the log-derivatives of the map just applied, ``(...)``.
    """
    lead = torch.broadcast_shapes(values.shape, parameters.shape[:-1])
    values, parameters = values.expand(lead), parameters.expand(*lead, size)
    if torch.is_grad_enabled() and (values.requires_grad or parameters.requires_grad):
        out: tuple[Tensor, Tensor] = _Map.apply(values, parameters, formula, kernel, size, inverse)  # type: ignore[no-untyped-call]
        return out
    return _forward(values.contiguous(), parameters.contiguous(), kernel, size, inverse)


def _forward(values: Tensor, parameters: Tensor, kernel: native.Map, size: int, inverse: bool) -> tuple[Tensor, Tensor]:
    z, log_derivative = torch.empty_like(values), torch.empty_like(values)
    call = native.Call(points=values.numel(), size=size, values=1, inverse=inverse, map=kernel)
    native.run("map_forward", native.KINDS[values.dtype], call, values, parameters, z, log_derivative)
    return z, log_derivative


class _Map(torch.autograd.Function):
    """A univariate map evaluated by a kernel; second derivatives use the formula."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, parameters: Tensor, formula: Formula, kernel: native.Map, size: int, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        z, log_derivative = _forward(values.contiguous(), parameters.contiguous(), kernel, size, inverse)
        ctx.save_for_backward(values, parameters, z if inverse else None)
        ctx.formula, ctx.kernel, ctx.size, ctx.inverse = formula, kernel, size, inverse
        return z, log_derivative

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, parameters, result = ctx.saved_tensors
        if needs_formula(gradients):
            return (*differentiate(ctx.formula, (values, parameters), gradients), None, None, None, None)
        gz, gl = (g.contiguous() for g in gradients)
        points, parameters = (result if ctx.inverse else values).contiguous(), parameters.contiguous()
        g_values, g_parameters = torch.empty_like(points), torch.empty_like(parameters)
        call = native.Call(points=points.numel(), size=ctx.size, values=1, inverse=ctx.inverse, map=ctx.kernel)
        kind = native.KINDS[points.dtype]
        native.run("map_backward", kind, call, points, parameters, gz, gl, g_values, g_parameters)
        return g_values, g_parameters, None, None, None, None


def needs_formula(gradients: tuple[Tensor, ...]) -> bool:
    """Whether a backward pass must use torch's operations: it will be differentiated again, or is observed."""
    return torch.is_grad_enabled() or is_observed() or not are_plain(*gradients)


def differentiate(
    formula: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor | None, ...], gradients: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """Gradients of a formula in torch's operations; None for inputs that need none.

    If gradients are enabled the result can be differentiated again.

    Args:
        formula: A function of the inputs.
        inputs: Its arguments.
        gradients: Gradients with respect to its outputs.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # Views, because one input may be the same tensor as another, or computed from it: gradients must stay apart.
        own = [None if t is None else t.view_as(t) for t in inputs]
        outputs = [(o, g) for o, g in zip(formula(*own), gradients, strict=True) if o.requires_grad]
        wanted = [t for t in own if t is not None and t.requires_grad]
        if not outputs:
            return [None] * len(inputs)
        values, cotangents = zip(*outputs, strict=True)
        found = iter(torch.autograd.grad(values, wanted, cotangents, create_graph=create_graph, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]
