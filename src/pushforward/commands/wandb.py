"""``pushforward wandb``: upload runs to Weights & Biases, and create dashboards."""

import json
from pathlib import Path

import click

from pushforward.commands.common import common_options, open_run, print_message
from pushforward.commands.group import CommandGroup

_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=20.0,
    show_default=True,
    help="Seconds to wait for an answer of the server.",
)


@click.group(cls=CommandGroup)
def wandb() -> None:
    """Upload offline runs to Weights & Biases, and create a dashboard there."""


@wandb.command(short_help="Upload offline runs.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--entity", help="User or team of the run; default: the recorded one, or you.")
@click.option("--project", help="Project of the run; default: the recorded one.")
@click.option("--force", is_flag=True, help="Upload records again.")
@_timeout
@common_options("json")
def sync(run: Path, entity: str | None, project: str | None, force: bool, timeout: float, as_json: bool) -> None:
    """Upload the W&B records of RUN that were made offline or without network, and check that the server has them.

    Every artifact file is located before the upload, even if the run folder was moved, and checked on the server after
    it. Records that were uploaded before are only checked. Log in first, with `wandb login` or WANDB_API_KEY.
    """
    from pushforward.runs.folder import RunFolder

    # The folder of a benchmark is not a run folder, but has W&B records in the same place.
    folder = RunFolder(run) if (run / "benchmark.json").is_file() else open_run(run)
    from pushforward.tracking.wandb.sync import sync_run

    report = sync_run(folder, notify=print_message, entity=entity, project=project, force=force, timeout=timeout)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        for line in report.lines():
            click.echo(line)


@wandb.command(short_help="Create a W&B workspace.")
@click.option("--entity", help="User or team; default: you.")
@click.option("--project", default="pushforward", show_default=True, help="Project whose runs are shown.")
@click.option("--name", default="pushforward", show_default=True, help="Name of the workspace.")
@click.option("--tag", "tags", multiple=True, help="Show runs with this tag, such as a data set or a flow; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the workspace as JSON; needs no account and no network.")
@_timeout
@common_options("json")
def dashboard(
    entity: str | None, project: str, name: str, tags: tuple[str, ...], dry_run: bool, timeout: float, as_json: bool
) -> None:
    """Save a W&B workspace for the runs of a project: outcome, curves, loss terms, layers, figures, comparisons.

    Every call saves a new workspace. Needs pushforward[workspaces].
    """
    from pushforward.tracking.wandb import workspace as wandb_dashboard

    if dry_run:
        click.echo(wandb_dashboard.dashboard_json(entity or "", project, name, tags=tags))
        return
    url = wandb_dashboard.save_dashboard(entity, project, name, tags=tags, timeout=timeout)
    click.echo(json.dumps({"project": project, "name": name, "url": url}) if as_json else url)
