"""Where ``score`` and ``sample`` write their rows: a file, stdout as CSV, or the JSON object of ``--json``."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from pushforward.common.files import json_safe

if TYPE_CHECKING:
    import pyarrow as pa


class TableOutput(Protocol):
    """Takes the parts of a table, in order."""

    def write(self, table: "pa.Table") -> None:
        """Append a part."""
        ...


class JsonColumns:
    """Keeps the parts of a table in memory.

    Attributes:
        columns: The values of each column so far, as JSON can hold them.
    """

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}

    def write(self, table: "pa.Table") -> None:
        """Append a part."""
        for name in table.column_names:
            self.columns.setdefault(name, []).extend(json_safe(table[name].to_pylist()))


def _check_ending(context: click.Context, option: click.Parameter, out: Path | None) -> Path | None:
    if out is None or out == Path("-"):
        return None
    from pushforward.datasets.tables.table_file import WRITABLE_SUFFIXES, written_kind

    if out.is_dir():
        raise click.BadParameter(f"expected a file; {out} is a folder")
    if written_kind(out) is None:
        raise click.BadParameter(f"expected a file that ends in {', '.join(WRITABLE_SUFFIXES)}; got {out}")
    return out


out_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=_check_ending,
    help="File to write, .csv, .csv.gz or .parquet; default, or -: CSV on stdout.",
)


@contextlib.contextmanager
def table_output(
    out: Path | None, schema: "pa.Schema", kept: JsonColumns | None, *, rows: int | None = None
) -> Iterator[TableOutput]:
    """Open the output; a file appears at the end of the block, and not after an error or a signal.

    Args:
        out: The file; None for stdout.
        schema: Names and types of the columns.
        kept: Takes the rows in place of stdout.
        rows: Number of rows that will come, if known, to check the free disk space.
    """
    from pushforward.datasets.tables.table_file import TableFile

    if kept is not None:
        yield kept
        return
    with TableFile(out or sys.stdout.buffer, schema, rows=rows) as file:
        yield file


@contextlib.contextmanager
def row_progress(out: Path | None) -> Iterator[Callable[..., None]]:
    """Show the number of processed rows on stderr, unless the rows go to the terminal.

    Yields:
        A function of the number of rows since its last call and, if known, of all rows.
    """
    from pushforward.tracking.row_progress import RowProgress

    with RowProgress(shown=out is not None or not sys.stdout.isatty()) as progress:
        yield progress.add
