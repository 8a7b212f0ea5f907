"""Recipes: configurations of the literature as YAML files of the package, read like any other by ``-c recipe:NAME``.

A file's comments say where it comes from, what is as published and what differs; its first line says what it is.
"""

from pathlib import Path

from pushforward.common.errors import ConfigError
from pushforward.common.text import did_you_mean
from pushforward.config.text_files import read_text

RECIPE_PREFIX = "recipe:"
_FOLDER = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """The names of all recipes, such as ``nsf-ar/power``, in alphabetical order."""
    return sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.glob("*/*.yaml"))


def recipe_file(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: Its name, with or without ``recipe:``.

    Raises:
        ConfigError: If there is none of that name; the nearest is named.
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
        ConfigError: If there is none of that name, or it cannot be read.
    """
    return read_text(recipe_file(name), "the recipe")
