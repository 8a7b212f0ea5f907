"""``pushforward datasets``: what there is, and how to get it."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import cell, common_options, print_table, say
from pushforward.commands.group import CommandGroup

if TYPE_CHECKING:
    from rich.progress import Progress

    from pushforward.datasets.sources.fetch import Fetched

_folder_option = click.option(
    "--data-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where downloaded data sets are kept; PUSHFORWARD_DATA, else a folder in the user's cache.",
)


@click.group(cls=CommandGroup, invoke_without_command=True)
@_folder_option
@common_options("json")
@click.pass_context
def datasets(ctx: click.Context, data_folder: Path | None, as_json: bool) -> None:
    """List the toys, the data sets and the target densities; a CSV, Parquet or .npy file is a data set too."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = (data_folder, as_json)
        return
    from pushforward.datasets import names
    from pushforward.datasets.sources.data_folder import data_folder as chosen

    entries = names(data_folder)
    if as_json:
        listed = [entry._asdict() for entry in entries]
        click.echo(json.dumps({"datasets": listed, "data_folder": str(chosen(data_folder))}))
        return
    head = ("name", "kind", "rows", "columns", "where", "what it is")
    print_table([head] + [tuple(cell(v) for v in e) for e in entries])


@datasets.command
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_folder_option
@click.option("--force", is_flag=True, help="Download again what is there.")
@click.option("--remove-archive", is_flag=True, help="Remove the archive of the literature's sets (0.9 GB) afterwards.")
@common_options("json")
@click.pass_context
def download(
    ctx: click.Context,
    names: tuple[str, ...],
    data_folder: Path | None,
    force: bool,
    remove_archive: bool,
    as_json: bool,
) -> None:
    """Put data sets into the data folder, from local copies where there are any, else from where they are published.

    NAME is a data set that `pushforward datasets` lists, or literature, uci or all. The five sets of the literature
    are in one archive of 857 MB, which is kept for the others. A download that breaks off goes on where it stopped
    when the command is given again.
    """
    from pushforward.common.errors import DataError
    from pushforward.datasets.sources.checksums import forget
    from pushforward.datasets.sources.data_folder import data_folder as chosen
    from pushforward.datasets.sources.download import DownloadError
    from pushforward.datasets.sources.fetch import fetch, wanted
    from pushforward.datasets.sources.literature_sets import ARCHIVE, LITERATURE

    above, above_json = ctx.obj or (None, False)
    as_json = as_json or above_json
    folder = chosen(data_folder or above)
    ready: list[Fetched] = []
    failed: dict[str, str] = {}
    for name in wanted(list(names)):
        with _progress() as progress:
            try:
                new = any(got.downloaded and got.name in LITERATURE for got in ready)
                found = fetch(name, folder, force=force, archive_is_new=new, report=_report(progress), tell=say)
            except (DownloadError, DataError) as error:
                failed[name] = str(error)
                say(f"{name}: {error}" if not str(error).startswith(f"{name}:") else str(error))
                continue
        ready.append(found)
        for note in found.notes:
            say(note)
        if not as_json:
            click.echo(f"{name}: {found.rows:,} rows, {found.columns} columns, {found.path}")
    archive = folder / ARCHIVE
    if archive.exists() and remove_archive and not failed:
        archive.unlink()
        forget(archive)
    elif archive.exists():
        size = archive.stat().st_size / 1e6
        say(f"kept {archive} ({size:,.0f} MB) for the other sets; --remove-archive removes it")
    if as_json:
        listed = [{**vars(found), "path": str(found.path), "notes": list(found.notes)} for found in ready]
        click.echo(json.dumps({"data_folder": str(folder), "ready": listed, "failed": failed}))
    elif ready and folder != chosen():
        say(f"commands find it with PUSHFORWARD_DATA={folder}")
    if failed:
        ctx.exit(1)


def _progress() -> Any:
    """A bar on stderr where somebody looks at it; nothing in a pipe or a log."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _report(progress: "Progress | None") -> Callable[[str], Callable[[int, int | None], None]] | None:
    """What tells the bar of one file after the other."""
    if progress is None:
        return None

    def start(description: str) -> Callable[[int, int | None], None]:
        task = progress.add_task(description, total=None)

        def report(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        return report

    return start
