"""``pushforward runs`` and ``pushforward evaluate``: list and evaluate existing runs."""

import json
from pathlib import Path
from typing import Any

import click

from pushforward.commands.common import WholeNumber, common_options, format_value, open_run, print_message, print_table
from pushforward.common.files import json_safe


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@common_options("device", "json")
def evaluate(run: Path, data: str | None, device: str | None, as_json: bool) -> None:
    """Evaluate RUN: NLL beside baselines, samples against held-out rows, latents against a Gaussian, inversion errors.

    DATA, a file, - for stdin, or the name of a data set, replaces the test rows of the run; baselines are always fitted
    to the training rows of the run.
    """
    from pushforward.experiment.evaluation import evaluate_run

    report = evaluate_run(open_run(run), data, device=device or "cpu", notify=print_message)
    if as_json:
        click.echo(json.dumps({"run": str(run)} | report.to_dict()))
    else:
        for line in report.lines:
            click.echo(line)


_EXAMPLES = """\b
Examples:
  the five best fits of moons by flows of five layers
    pushforward runs --dataset moons --where flow.layers=5 --sort test_nll --limit 5
  trials of all sweeps with a large learning rate
    pushforward runs sweeps --where 'train.learning_rate>=1e-3'
"""


@click.command(epilog=_EXAMPLES)
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Only runs on this data set.")
@click.option(
    "--flow", "flows", multiple=True, metavar="NAME", help="Only runs with this flow, such as nsf-ar or 'nsf-*'."
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    metavar="STATUS",
    help="Only runs with this status: finished, running, killed, failed, ...",
)
@click.option(
    "--where", "conditions", multiple=True, metavar="KEY=VALUE", help="Only runs with this value; also != < <= > >=."
)
@click.option(
    "--sort", default="started", show_default=True, metavar="KEY", help="Sort by this key, lowest or oldest first."
)
@click.option("--reverse", is_flag=True, help="Highest or latest first.")
@click.option("--limit", type=WholeNumber(1), metavar="N", help="List only the first N.")
@common_options("json")
def runs(
    folder: Path | None,
    datasets: tuple[str, ...],
    flows: tuple[str, ...],
    statuses: tuple[str, ...],
    conditions: tuple[str, ...],
    sort: str,
    reverse: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the runs below FOLDER (runs/ by default), oldest first, nested folders included, such as trials of a sweep.

    The headline is the number that sums up a fit: the test NLL of rows, log Z of a target, the divergence in a gradient
    study. KEY is a column of the list, a number in results.json (test_nll_se, kl_to_truth, ...) or a configuration key.
    Several --dataset, --flow or --status match any of them; every --where must hold. NAME may contain * and ?.
    """
    from pushforward.runs.listing import check_folder_of_runs, list_runs
    from pushforward.runs.query import Condition, select, value_of

    filters = [Condition.read(text) for text in conditions]
    one_of = {"dataset": datasets, "flow": flows, "status": statuses}
    root = check_folder_of_runs(folder) if folder is not None else Path("runs")
    found = select(list_runs(root), filters, one_of=one_of, sort=sort, reverse=reverse, limit=limit)
    fields = ["name", "status", "dataset", "flow", "steps", "val_nll", "headline", "started"]
    if as_json:
        values = [field for field in fields if field != "headline"] + ["test_nll"]
        objects = [
            run.facts
            | {field: getattr(run, field) for field in values}
            | {"path": str(run.path), "config": run.configuration}
            for run in found
        ]
        click.echo(json.dumps({"runs": [json_safe(facts) for facts in objects]}))
        return
    if not found:
        print_message(f"no runs below {root}" + (" match" if filters or any(one_of.values()) else ""))
        return
    # Keys of --sort and --where become columns.
    fields += list(dict.fromkeys(key for key in [sort, *(c.key for c in filters)] if key not in fields))
    print_table([fields] + [[_format_field(field, value_of(run, field)) for field in fields] for run in found])


def _format_field(field: str, value: Any) -> str:
    """Format a value of the list; times to the minute."""
    return format_value(value).replace("T", " ")[:16] if field == "started" else format_value(value)
