"""Export names from a package without importing their modules before they are asked for."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its whole name. (Not its ``__name__``: in the repository's root ``import flows`` finds the folder, and
            must give the same classes.)
        modules: For each module below the package, the names that the package exports from it, between blanks. A
            name that is the module's own exports the module.

    Example:
        >>> __getattr__, __dir__ = lazy("pushforward.common", {"files": "write_whole json_safe"})
        >>> __dir__()
        ['json_safe', 'write_whole']
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted(homes)
