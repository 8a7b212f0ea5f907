"""``pushforward datasets``."""

import json

import click

from pushforward.commands.common import cell, common_options, print_table


@click.command
@common_options("json")
def datasets(as_json: bool) -> None:
    """List the toys, the embedded data sets and the target densities; a CSV, Parquet or .npy file is a data set too."""
    from pushforward.datasets import names

    entries = names()
    if as_json:
        click.echo(json.dumps({"datasets": [entry._asdict() for entry in entries]}))
        return
    print_table([("name", "kind", "rows", "columns", "what it is")] + [tuple(cell(v) for v in e) for e in entries])
