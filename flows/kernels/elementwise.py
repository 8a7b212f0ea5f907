"""Univariate maps alone, computed by the kernels."""

import torch
from torch import Tensor

from pushforward.flows.kernels import native, operators
from pushforward.flows.kernels.layers import Layer, Map


def apply_map(
    kernel: Map, size: int, values: Tensor, parameters: Tensor, *, inverse: bool
) -> tuple[Tensor, Tensor] | None:
    """Evaluate a univariate map by a kernel.

    Args:
        kernel: The map.
        size: Number of parameters of one map.
        values: Values ``(...)``.
        parameters: Parameters ``(..., size)``, broadcasting against the values.
        inverse: Whether to invert the map.

    Returns:
        The mapped values and the log-derivatives of the map just applied, ``(...)``; None if the kernels cannot be
        used here.
    """
    if not values.is_cpu or values.dtype not in native.KINDS or not native.is_on():
        return None
    if parameters.dtype is not values.dtype or not parameters.is_cpu:
        return None
    if not torch.compiler.is_compiling() and not (type(values) in _PLAIN and type(parameters) in _PLAIN):
        return None
    lead = torch.broadcast_shapes(values.shape, parameters.shape[:-1])
    rows, text = values.expand(lead).reshape(-1), Layer("map", values=1, size=size, map=kernel).text()
    z, log_derivative, _ = operators.evaluate(
        "map", text, rows, [parameters.expand(*lead, size).reshape(-1, size)], inverse=inverse
    )
    return z.reshape(lead), log_derivative.reshape(lead)


_PLAIN = (Tensor, torch.nn.Parameter)
