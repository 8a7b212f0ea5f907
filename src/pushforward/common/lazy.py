"""Export names from a package without importing their modules before first use."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package that imports its modules on first use.

    Args:
        package: Full name of the package. (Not its ``__name__``: in the repository's root ``import flows`` finds the
            folder ``flows``, and must give the same classes as ``pushforward.flows``.)
        modules: For each module of the package, the names that the package exports from it, separated by spaces.

    Example:
        >>> __getattr__, __dir__ = lazy("pushforward.common", {"files": "atomic_write json_safe"})
        >>> __dir__()
        ['atomic_write', 'json_safe']
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return get, lambda: sorted(module_of)
