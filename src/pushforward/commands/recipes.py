"""``pushforward recipes``: list and print configurations from the literature."""

import json

import click

from pushforward.commands.common import common_options, format_value, print_table


@click.command
@click.argument("name", required=False)
@common_options("json")
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or print the one called NAME.

    A recipe is a configuration from the literature: `pushforward fit -c recipe:NAME` fits it to its data; keys after
    it, such as train.seconds=60, take precedence. Its comments say what is as published and what differs.
    """
    from pushforward.config.recipe import read_recipe
    from pushforward.config.recipe_list import list_recipes

    if name is not None:
        text = read_recipe(name)
        click.echo(json.dumps({"name": name, "text": text}) if as_json else text, nl=as_json)
        return
    found = list_recipes()
    if as_json:
        click.echo(json.dumps({"recipes": [recipe._asdict() for recipe in found]}))
        return
    print_table([("name", "data", "flow", "steps", "description")] + [tuple(format_value(v) for v in r) for r in found])
