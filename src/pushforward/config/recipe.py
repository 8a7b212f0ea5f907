"""Recipes: configurations of the literature as YAML files of the package, read like any other by ``-c recipe:NAME``.

A file's comments say where it comes from, what is as published and what differs; its first line says what it is.
"""

import difflib
from pathlib import Path
from typing import NamedTuple

from pushforward.config.read import ConfigError, load_config, read_text

PREFIX = "recipe:"
_FOLDER = Path(__file__).with_name("recipes")


class Recipe(NamedTuple):
    """One line of the list of recipes."""

    name: str
    data: str
    flow: str
    steps: int | None
    about: str


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
    name = name.removeprefix(PREFIX)
    known = recipe_names()
    if name in known:
        return _FOLDER / f"{name}.yaml"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"unknown recipe '{name}'; {hint} (pushforward recipes lists them)")


def read_recipe(name: str) -> str:
    """The text of a recipe, comments included.

    Raises:
        ConfigError: If there is none of that name, or it cannot be read.
    """
    return read_text(recipe_file(name), "the recipe")


def list_recipes() -> list[Recipe]:
    """All recipes with what they are, in alphabetical order."""
    recipes = []
    for name in recipe_names():
        about = read_recipe(name).partition("\n")[0].removeprefix("#").strip()
        config = load_config(files=[recipe_file(name)])
        steps = None if config.train.steps == "auto" else config.train.steps
        recipes.append(Recipe(name, config.data.source, config.flow.name, steps, about))
    return recipes
