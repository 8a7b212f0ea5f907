"""Checks of shapes and arguments that the modules of flows share."""

import math

import torch
from torch import Tensor

ANY_CONTEXT = -1
"""Number of context features where only a module of the user knows it."""


def check_shape(where: str, what: str, value: Tensor, size: int) -> None:
    """Raise a ``ValueError`` unless the last dimension of ``value`` is ``size``."""
    if value.dim() < 1 or value.shape[-1] != size:
        raise ValueError(f"{where}: expected {what} of shape (..., {size}); got {tuple(value.shape)}")


def check_context(where: str, context: Tensor | None, size: int) -> None:
    """Raise an error unless a context has the expected size; 0 is no context, ``ANY_CONTEXT`` any size."""
    expected = f"context of shape (..., {'any' if size == ANY_CONTEXT else size})" if size else "no context"
    if context is None:
        if size:
            raise ValueError(f"{where}: expected {expected}; got none")
        return
    _check_tensor(where, "context", context)
    if not size or context.dim() < 1 or size not in (ANY_CONTEXT, context.shape[-1]):
        found = "" if size else "one of shape "
        raise ValueError(f"{where}: expected {expected}; got {found}{tuple(context.shape)}")


def as_dtype(where: str, what: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return integers in a floating dtype; raise a ``TypeError`` for another floating dtype, which would lose digits.

    Under autocast, any floating dtype is left as it is.
    """
    _check_tensor(where, what, value)
    if not value.is_floating_point():
        return value.to(dtype)
    if value.dtype != dtype and not torch.is_autocast_enabled(value.device.type):
        raise TypeError(
            f"{where}: expected {what} of {dtype}, the dtype of the parameters; got {value.dtype}: "
            f"convert the {what} with .to({dtype}), or the model with .to({value.dtype})"
        )
    return value


def _check_tensor(where: str, what: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected {what} as a tensor; got {type(value).__name__}: use torch.as_tensor")


def check_at_least(where: str, least: int, **sizes: int) -> None:
    """Raise a ``ValueError`` unless every size is at least ``least``."""
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{where}: expected {name} of at least {least}; got {size}")


def check_dropout(where: str, dropout: float) -> None:
    """Raise a ``ValueError`` unless dropout is a probability below 1."""
    if not 0.0 <= dropout < 1.0 or math.isnan(dropout):
        raise ValueError(f"{where}: expected dropout in [0, 1); got {dropout}")
