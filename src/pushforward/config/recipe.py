"""Recipes: configurations from the literature as YAML files in the package, used by ``-c recipe:NAME``.

The first line of a file says what it is; its comments give the source, what is as published, and what differs.
"""

from pathlib import Path

from pushforward.common.errors import ConfigError
from pushforward.common.text import did_you_mean
from pushforward.config.text_files import read_text

RECIPE_PREFIX = "recipe:"
_FOLDER = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """Names of all recipes, such as ``nsf-ar/power``, in alphabetical order."""
    return sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.glob("*/*.yaml"))


def recipe_file(name: str) -> Path:
    """Path of a recipe.

    Args:
        name: Its name, with or without ``recipe:``.

    Raises:
        ConfigError: If there is no such recipe; the message names the nearest one.
    """
    name = name.removeprefix(RECIPE_PREFIX)
    known = recipe_names()
    if name in known:
        return _FOLDER / f"{name}.yaml"
    hint = did_you_mean(name, known, 0.5).strip() or f"known: {', '.join(known)}"
    raise ConfigError(f"unknown recipe '{name}'; {hint} (pushforward recipes lists them)")


def read_recipe(name: str) -> str:
    """The text of a recipe, comments included.

    Raises:
        ConfigError: If there is no such recipe, or it cannot be read.
    """
    return read_text(recipe_file(name), "the recipe")
