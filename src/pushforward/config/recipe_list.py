"""The list of recipes with their data, flow and description."""

from typing import NamedTuple

from pushforward.config.read import load_config
from pushforward.config.recipe import read_recipe, recipe_file, recipe_names


class Recipe(NamedTuple):
    """A recipe in the list."""

    name: str
    data: str
    flow: str
    steps: int | None
    about: str


def list_recipes() -> list[Recipe]:
    """All recipes, in alphabetical order."""
    recipes = []
    for name in recipe_names():
        about = read_recipe(name).partition("\n")[0].removeprefix("#").strip()
        config = load_config(files=[recipe_file(name)])
        steps = None if config.train.steps == "auto" else config.train.steps
        recipes.append(Recipe(name, config.data.source, config.flow.name, steps, about))
    return recipes
