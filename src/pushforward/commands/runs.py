"""What is done with runs that are there: list them, evaluate them."""

import json
from pathlib import Path
from typing import Any

import click

from pushforward.commands.common import cell, common_options, finite, open_run, print_table, say


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@common_options("device", "json")
def evaluate(run: Path, data: str | None, device: str | None, as_json: bool) -> None:
    """Compare RUN with baselines, its samples with held-out data, its latents with a Gaussian; check its Jacobian.

    DATA, a file or the name of a data set, takes the place of the run's own test rows; baselines are fitted to the
    run's training rows either way.
    """
    from pushforward.experiment.evaluation import evaluate_run

    report = evaluate_run(open_run(run), data, device=device or "cpu", tell=say)
    if as_json:
        click.echo(json.dumps({"run": str(run)} | report.to_dict()))
    else:
        for line in report.lines():
            click.echo(line)


_EXAMPLES = """\b
Examples:
  the five best fits of moons by flows of five layers
    pushforward runs --dataset moons --where flow.layers=5 --sort test_nll --limit 5
  trials of all sweeps with a large learning rate
    pushforward runs --root sweeps --where 'train.learning_rate>=1e-3'
"""


@click.command(epilog=_EXAMPLES)
@click.option("--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where to look.")
@click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Fitted to this data set.")
@click.option("--flow", "flows", multiple=True, metavar="NAME", help="With this flow, such as nsf-ar or 'nsf-*'.")
@click.option("--status", "statuses", multiple=True, metavar="STATUS", help="finished, running, killed, failed, ...")
@click.option("--where", "conditions", multiple=True, metavar="KEY=VALUE", help="With this value; also != < <= > >=.")
@click.option("--sort", default="started", show_default=True, metavar="KEY", help="Lowest or oldest first.")
@click.option("--reverse", is_flag=True, help="Highest or latest first.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N only.")
@common_options("json")
def runs(
    root: Path,
    datasets: tuple[str, ...],
    flows: tuple[str, ...],
    statuses: tuple[str, ...],
    conditions: tuple[str, ...],
    sort: str,
    reverse: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the runs below a folder, oldest first; folders of folders count, such as the trials of a sweep.

    KEY is a column of the list, a number of results.json (test_nll_se, kl_to_truth, ...) or a key of the
    configuration. Options that may be given again mean one of these; every --where must hold. Names may have * and ?.
    """
    from pushforward.runs.listing import list_runs
    from pushforward.runs.query import Condition, select, value_of

    asked = [Condition.read(text) for text in conditions]
    one_of = {"dataset": datasets, "flow": flows, "status": statuses}
    found = select(list_runs(root), asked, one_of=one_of, sort=sort, reverse=reverse, limit=limit)
    fields = ["name", "status", "dataset", "flow", "steps", "val_nll", "test_nll", "started"]
    if as_json:
        objects = [
            run.facts
            | {field: getattr(run, field) for field in fields}
            | {"path": str(run.path), "config": run.configuration}
            for run in found
        ]
        click.echo(json.dumps({"runs": [finite(facts) for facts in objects]}))
        return
    if not found:
        say(f"no runs below {root}" + (" match" if asked or any(one_of.values()) else ""))
        return
    # What was asked for is shown.
    fields += list(dict.fromkeys(key for key in [sort, *(c.key for c in asked)] if key not in fields))
    print_table([fields] + [[_shown(field, value_of(run, field)) for field in fields] for run in found])


def _shown(field: str, value: Any) -> str:
    """A value in the list; times to the minute, in UTC as they are recorded."""
    return cell(value).replace("T", " ")[:16] if field == "started" else cell(value)
