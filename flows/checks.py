"""Checks of shapes and arguments that the modules of flows share."""

import math
import operator
from typing import Any

import torch
from torch import Tensor

ANY_CONTEXT = -1
"""Number of context features where only a module of the user knows it."""


def check_tensor(where: str, what: str, value: object) -> None:
    """Raise a ``TypeError`` unless a value is a dense tensor."""
    if not isinstance(value, Tensor):
        kind = type(value)
        found = "none" if value is None else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
        is_array = isinstance(value, list) or hasattr(kind, "__array__")
        hint = " (torch.as_tensor(x) makes one; pushforward.fit takes arrays and frames)" if is_array else ""
        raise TypeError(f"{where}: expected {what} as a torch tensor; got {found.removeprefix('builtins.')}{hint}")
    if value.layout is not torch.strided:
        raise TypeError(f"{where}: expected {what} as a dense tensor; got {value.layout} (.to_dense() makes one)")


def check_shape(where: str, what: str, value: Tensor, size: int) -> None:
    """Raise an error unless ``value`` is a dense tensor whose last dimension is ``size``."""
    check_tensor(where, what, value)
    if value.dim() < 1 or value.shape[-1] != size:
        raise ValueError(f"{where}: expected {what} of shape (..., {size}); got {tuple(value.shape)}")


def check_context(where: str, context: Tensor | None, size: int) -> None:
    """Raise an error unless a context has the expected size; 0 stands for no context, ``ANY_CONTEXT`` any size."""
    expected = f"context of shape (..., {'any' if size == ANY_CONTEXT else size})" if size else "no context"
    if context is None:
        if size:
            raise ValueError(f"{where}: expected {expected}; got none")
        return
    check_tensor(where, "context", context)
    if not size or context.dim() < 1 or size not in (ANY_CONTEXT, context.shape[-1]):
        found = "" if size else "one of shape "
        raise ValueError(f"{where}: expected {expected}; got {found}{tuple(context.shape)}")


def check_rows(where: str, points: Tensor, context: Tensor) -> None:
    """Raise a ``ValueError`` unless the leading dimensions of points and context broadcast."""
    rows, given = points.shape[:-1], context.shape[:-1]
    if rows == given or all(a == b or 1 in (a, b) for a, b in zip(reversed(rows), reversed(given), strict=False)):
        return
    raise ValueError(
        f"{where}: expected one row of context for all points, or one for each; "
        f"got points of shape {tuple(points.shape)} and context of shape {tuple(context.shape)}"
    )


def as_input(where: str, what: str, value: Tensor, like: Tensor) -> Tensor:
    """Return a tensor of a user in the dtype of a model's parameter ``like``.

    Integers, truth values and all floating dtypes are converted, with gradients; float64 is rounded to the dtype of the
    model.

    Raises:
        TypeError: If it is not a dense tensor, or complex.
        ValueError: If it is on another device.
    """
    check_tensor(where, what, value)
    if value.device != like.device:
        raise ValueError(
            f"{where}: expected {what} on {like.device}, the device of the parameters; got {value.device}: "
            f"move the {what} with .to('{like.device}'), or the model"
        )
    if value.dtype == like.dtype:
        return value
    if value.is_complex():
        raise TypeError(f"{where}: expected real {what}; got {value.dtype}")
    return value.to(like.dtype)


def check_dtype(where: str, what: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raise a ``TypeError`` unless a tensor has a dtype; under autocast, any floating one will do."""
    if value.dtype == dtype or (value.is_floating_point() and torch.is_autocast_enabled(value.device.type)):
        return
    raise TypeError(f"{where}: expected {what} of {dtype}, as the parameters; got {value.dtype}")


def check_floating(where: str, what: str, value: Tensor) -> None:
    """Raise a ``TypeError`` unless a tensor has a floating dtype."""
    if not value.is_floating_point():
        raise TypeError(f"{where}: expected {what} of a floating dtype; got {value.dtype}")


def sample_shape(where: str, n: int | tuple[int, ...]) -> tuple[int, ...]:
    """Leading dimensions of samples from their number or shape.

    Raises:
        TypeError: If it is neither.
        ValueError: If a dimension is negative.
    """
    if isinstance(n, int):
        shape: tuple[int, ...] = (n,)
    elif isinstance(n, tuple | list):
        shape = tuple(n)
    else:
        shape = (_index(where, n),)
    if not all(isinstance(size, int) for size in shape):
        shape = tuple(_index(where, size) for size in shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"{where}: expected a number of samples of at least 0; got {n}")
    return shape


def _index(where: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        found = type(value).__name__
        raise TypeError(f"{where}: expected the number of samples as an integer or a shape; got {found}") from error


HALF = (torch.float16, torch.bfloat16)


def at_least_single(value: Tensor) -> Tensor:
    """Return half precision as float32: torch solves no linear systems and has no quantile functions in it."""
    return value.float() if value.dtype in HALF else value


def check_at_least(where: str, least: int, **sizes: int) -> None:
    """Raise a ``ValueError`` unless every size is at least ``least``."""
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{where}: expected {name} of at least {least}; got {size}")


def check_dropout(where: str, dropout: float) -> None:
    """Raise a ``ValueError`` unless dropout is a probability below 1."""
    if not 0.0 <= dropout < 1.0 or math.isnan(dropout):
        raise ValueError(f"{where}: expected dropout in [0, 1); got {dropout}")
