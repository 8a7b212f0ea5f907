"""Plugins: modules of others that register flows, maps, objectives, problems and more when they are imported."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from pushforward.common.errors import ConfigError
from pushforward.common.text import one_line

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
    for point in metadata.entry_points(group=GROUP):
        if point.value in _loaded:
            continue
        _loaded.add(point.value)
        try:
            point.load()
        except Exception as error:  # of somebody else's module
            warn(f"warning: the plugin {point.name} ({point.value}) cannot be loaded: {one_line(error)}")


def _load(plugin: str) -> None:
    path = Path(plugin)
    try:
        if plugin.endswith(".py"):
            if not path.is_file():
                raise ConfigError(f"--plugin: {plugin}: no such file")
            # A name that no other file of this name takes.
            name = f"{path.stem}_{hashlib.sha256(plugin.encode()).hexdigest()[:8]}"
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None:
                raise ConfigError(f"--plugin: {plugin}: expected a file of Python")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
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
    except Exception as error:
        raise ConfigError(f"--plugin: {plugin}: {type(error).__name__}: {one_line(error)}") from error
