"""Mappings with dotted keys."""

from collections.abc import Mapping
from typing import Any


def flatten(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Write the names inside a group as ``group.name``; keys that are no group stay as they are.

    Example:
        >>> flatten({"flow": {"name": "maf", "layers": 5}, "seed": 0})
        {'flow.name': 'maf', 'flow.layers': 5, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in groups.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[str(key)] = value
    return flat
