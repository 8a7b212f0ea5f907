"""What is done with runs that are there: list them, evaluate them."""

import json
from pathlib import Path

import click

from pushforward.commands.common import cell, common_options, finite, open_run, print_table, say


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@common_options("device", "json")
def evaluate(run: Path, data: str | None, device: str | None, as_json: bool) -> None:
    """Compare RUN with baselines, its samples with held-out data, its latents with a Gaussian; check its Jacobian.

    DATA takes the place of the run's own test rows; baselines are fitted to the run's training rows either way.
    """
    from pushforward.train import evaluate_run

    report = evaluate_run(open_run(run), data, device=device or "cpu", tell=say)
    if as_json:
        click.echo(json.dumps({"run": str(run)} | report.to_dict()))
    else:
        for line in report.lines():
            click.echo(line)


@click.command
@click.option("--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where to look.")
@common_options("json")
def runs(root: Path, as_json: bool) -> None:
    """List the runs below a folder, oldest first."""
    from pushforward.train.runs import list_runs

    found = list_runs(root)
    fields = ("name", "status", "dataset", "flow", "steps", "val_nll", "test_nll", "started")
    rows = [tuple(getattr(run, field) for field in fields) for run in found]
    if as_json:
        click.echo(json.dumps({"runs": [finite(dict(zip(fields, row, strict=True))) for row in rows]}))
        return
    if not rows:
        say(f"no runs below {root}")
        return
    print_table([fields] + [tuple(cell(value) for value in row) for row in rows])
