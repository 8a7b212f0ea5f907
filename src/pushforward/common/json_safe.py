"""Reports as JSON can hold them: plain numbers, and null where a number is not finite."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def json_safe(value: Any) -> Any:
    """Turn dataclasses, mappings, arrays, tensors and paths into what :mod:`json` writes strictly.

    NaN and infinities become ``None``: JSON has no word for them, and readers other than Python's refuse them.

    Args:
        value: Any nesting of dataclasses, mappings, sequences, sets, arrays, tensors, paths, numbers, strings,
            booleans, ``None``.

    Returns:
        The same nesting of dicts, lists and scalars.

    Raises:
        TypeError: When something in it has no plain form.

    Example:
        >>> json_safe({"nll": float("inf"), "rows": np.int64(3)})
        {'nll': None, 'rows': 3}
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.ndarray | np.generic) or _is_tensor(value):
        return json_safe(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_safe(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    raise TypeError(f"json_safe: expected numbers, text and containers of them; got {type(value).__name__}")


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # where nobody has imported it, nothing is a tensor
    return torch is not None and isinstance(value, torch.Tensor)
