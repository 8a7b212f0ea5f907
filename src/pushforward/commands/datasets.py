"""``pushforward datasets``: list and download data sets."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import common_options, format_value, print_message, print_table
from pushforward.commands.group import CommandGroup

if TYPE_CHECKING:
    from rich.progress import Progress

    from pushforward.datasets.sources.fetch import Fetched

_folder_option = click.option(
    "--data-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of downloaded data sets; default: PUSHFORWARD_DATA, or a folder in the user's cache.",
)


@click.group(cls=CommandGroup, invoke_without_command=True)
@_folder_option
@common_options("json")
@click.pass_context
def datasets(ctx: click.Context, data_folder: Path | None, as_json: bool) -> None:
    """List toy densities, data sets and target densities; files (CSV, Parquet, Excel, ...) are data sets too."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = (data_folder, as_json)
        return
    from pushforward.common.plugins import load_plugins
    from pushforward.datasets import names
    from pushforward.datasets.sources.data_folder import data_folder as chosen

    load_plugins(print_message)
    entries = names(data_folder)
    if as_json:
        listed = [entry._asdict() for entry in entries]
        click.echo(json.dumps({"datasets": listed, "data_folder": str(chosen(data_folder))}))
        return
    header = ("name", "kind", "rows", "columns", "where", "description")
    print_table([header] + [tuple(format_value(v) for v in e) for e in entries])


@datasets.command(short_help="Download data sets.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_folder_option
@click.option("--force", is_flag=True, help="Download existing data sets again.")
@click.option(
    "--remove-archive", is_flag=True, help="Remove the archive of the literature data sets (0.9 GB) afterwards."
)
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
    """Put data sets into the data folder: from a local copy if there is one, else from the publisher.

    NAME is a data set listed by `pushforward datasets`, or literature, uci or all. The five literature data sets are in
    one archive of 857 MB, which is kept for the others. The same command resumes an interrupted download.
    """
    from pushforward.common.errors import DataError
    from pushforward.datasets.sources.checksums import forget_checksum
    from pushforward.datasets.sources.data_folder import data_folder as chosen
    from pushforward.datasets.sources.download import DownloadError
    from pushforward.datasets.sources.fetch import fetch, resolve_names
    from pushforward.datasets.sources.literature_sets import ARCHIVE, LITERATURE

    group_folder, group_json = ctx.obj or (None, False)  # options before the subcommand
    as_json = as_json or group_json
    folder = chosen(data_folder or group_folder)
    ready: list[Fetched] = []
    failed: dict[str, str] = {}
    for name in resolve_names(list(names)):
        with _progress() as progress:
            try:
                new = any(got.downloaded and got.name in LITERATURE for got in ready)
                found = fetch(
                    name, folder, force=force, archive_is_new=new, report=_report(progress), notify=print_message
                )
            except (DownloadError, DataError) as error:
                failed[name] = str(error)
                print_message(f"{name}: {error}" if not str(error).startswith(f"{name}:") else str(error))
                continue
        ready.append(found)
        for note in found.notes:
            print_message(note)
        if not as_json:
            click.echo(f"{name}: {found.rows:,} rows, {found.columns} columns, {found.path}")
    archive = folder / ARCHIVE
    if archive.exists() and remove_archive and not failed:
        archive.unlink()
        forget_checksum(archive)
    elif archive.exists():
        size = archive.stat().st_size / 1e6
        print_message(f"kept {archive} ({size:,.0f} MB) for the other data sets; --remove-archive removes it")
    if as_json:
        listed = [{**vars(found), "path": str(found.path), "notes": list(found.notes)} for found in ready]
        click.echo(json.dumps({"data_folder": str(folder), "ready": listed, "failed": failed}))
    elif ready and folder != chosen():
        print_message(f"set PUSHFORWARD_DATA={folder} so that other commands find it")
    if failed:
        ctx.exit(1)


def _progress() -> Any:
    """Return a progress bar on stderr if it is a terminal; else a context manager that yields None."""
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
    """Return a function that adds a bar for a file, and returns the function that updates it; None without a bar."""
    if progress is None:
        return None

    def start(description: str) -> Callable[[int, int | None], None]:
        task = progress.add_task(description, total=None)

        def report(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        return report

    return start
