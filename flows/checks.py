"""Checks of shapes and arguments that the modules of flows share."""

import math

from torch import Tensor


def check_shape(where: str, what: str, value: Tensor, size: int) -> None:
    """Raise a ``ValueError`` unless the last dimension of ``value`` is ``size``."""
    if value.dim() < 1 or value.shape[-1] != size:
        raise ValueError(f"{where}: expected {what} of shape (..., {size}); got {tuple(value.shape)}")


def check_at_least(where: str, least: int, **sizes: int) -> None:
    """Raise a ``ValueError`` unless every size is at least ``least``."""
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{where}: expected {name} of at least {least}; got {size}")


def check_dropout(where: str, dropout: float) -> None:
    """Raise a ``ValueError`` unless dropout is a probability below 1."""
    if not 0.0 <= dropout < 1.0 or math.isnan(dropout):
        raise ValueError(f"{where}: expected dropout in [0, 1); got {dropout}")
