"""Plugins: modules of others that register flows, maps, objectives, problems and more when they are imported."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pushforward.common.errors import ConfigError
from pushforward.common.text import one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

VARIABLE = "PUSHFORWARD_PLUGINS"
"""Environment variable with the plugins of ``--plugin``, so that processes that are started load them, too."""

GROUP = "pushforward.plugins"
"""Group of entry points; each names a module."""

_loaded: set[str] = set()


def name_plugins(plugins: Sequence[str]) -> None:
    """Add plugins to the environment, for this process and those that it starts; files by their absolute paths."""
    named = [str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin for plugin in plugins]
    before = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    if named:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*before, *named]))


def load_plugins(warn: Callable[[str], object] = lambda text: None) -> None:
    """Import the plugins that the environment and the entry points name, each once.

    Args:
        warn: Called with one line about an entry point that cannot be imported; the others still are.

    Raises:
        ConfigError: If a plugin of the environment is not there, or fails.
    """
    for plugin in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        if plugin not in _loaded:
            _load(plugin)
            _loaded.add(plugin)
    for point in _entry_points():
        if point.value in _loaded:
            continue
        _loaded.add(point.value)
        try:
            point.load()
        except Exception as error:  # of somebody else's module
            warn(f"warning: the plugin {point.name} ({point.value}) cannot be loaded: {one_line(error)}")


@cache
def _entry_points() -> "tuple[EntryPoint, ...]":
    from importlib.metadata import entry_points  # takes 20 ms, which `--help` need not wait for

    return tuple(entry_points(group=GROUP))


def _load(plugin: str) -> None:
    try:
        if plugin.endswith(".py"):
            _import_file(Path(plugin))
        elif not all(map(str.isidentifier, plugin.split("."))):
            raise ConfigError(f"--plugin: expected the name of a module, or a file that ends in .py; got {plugin}")
        else:
            sys.path.insert(0, str(Path.cwd()))  # as for `python -m`
            try:
                importlib.import_module(plugin)
            finally:
                sys.path.remove(str(Path.cwd()))
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name == plugin.partition(".")[0] or error.name == plugin:
            raise ConfigError(f"--plugin: no module named {plugin!r}; give its file, as in ./{plugin}.py") from None
        raise ConfigError(f"--plugin: {plugin}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--plugin: {plugin}: {type(error).__name__}: {one_line(error)}") from error


def _import_file(path: Path) -> None:
    from hashlib import sha256
    from importlib.util import module_from_spec, spec_from_file_location

    name = f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"  # no other file of this name takes it
    spec = spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--plugin: {path}: no such file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses look themselves up there
    spec.loader.exec_module(module)
