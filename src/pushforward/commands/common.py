"""What the commands share: common options, tables, messages, progress bars, opening runs and densities."""

import contextlib
import os
import re
import shutil
import stat
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pushforward.evaluate.density import FittedDensity
    from pushforward.runs.folder import RunFolder


_NUMBER = re.compile(r"[-+\u2212]?[\d,.]+( %)?|[-\u2013]?")

_MIN_TEXT_WIDTH = 36
"""Minimum width of a wrapped last column beside the other columns."""


class WholeNumber(click.ParamType[int]):
    """A whole number of at least ``least``, as an option.

    Args:
        least: The least that is allowed.
        example: One that is allowed, for the message.
    """

    name = "integer"

    def __init__(self, least: int, example: int | None = None) -> None:
        self.least = least
        self.example = "" if example is None else f", such as {example}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.least - 1
        if number < self.least:
            self.fail(f"expected a whole number of at least {self.least}{self.example}; got '{value}'", param, ctx)
        return number


def common_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds options to a command: ``seed``, ``device``, ``json``."""
    options: dict[str, Callable[..., Any]] = {
        "seed": click.option("--seed", type=WholeNumber(0), help="Random seed."),
        "device": click.option("--device", help="auto, cpu, cuda, cuda:N or mps."),
        "json": click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, everything else on stderr."
        ),
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            command = options[name](command)
        return command

    return decorate


def split_data(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Separate the optional DATA from the KEY=VALUE arguments; a file name may contain an equals sign."""
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).exists()):
        return arguments[0], arguments[1:]
    return None, arguments


def readable_again(source: str) -> str:
    """Return the path of a copy in ``runs/data`` if a source is stdin or a pipe, else the source itself.

    For commands that read their data in several processes, and again when they continue.
    """
    from pushforward.datasets.tables.files.local_file import STDIN, LocalFile, is_stream

    if not is_stream(source):
        return source
    file = LocalFile(source)
    if file.source != STDIN:  # stdin is redirected from a file
        return file.source
    path = file.keep(Path("runs") / "data")
    print_message(f"{source}: saved as {path}")
    return str(path)


def open_run(path: Path) -> "RunFolder":
    """Open a run by its path, or by its name below runs/."""
    from pushforward.runs.folder import RunFolder

    return RunFolder.open(path)


def check_output(out: Path | None, run: Path, data: str | None = None) -> None:
    """Refuse an output that would replace rows that are read or were fitted, or a file of the run.

    Files are compared, not their names: links and other spellings of a path are found.

    Args:
        out: The file to write; None for stdout, which may be a file as well.
        run: The run folder; its folder for samples may be written to.
        data: The data that are read.

    Raises:
        ConfigError: If ``out`` is such a file.
    """
    from pushforward.common.errors import ConfigError
    from pushforward.datasets.tables.files.local_file import file_status
    from pushforward.runs.record import read_run

    target = _output_status(out)
    if target is None:
        return
    name = "stdout" if out is None else str(out)
    folder = open_run(run)
    fitted = read_run(folder).config.get("data.source")
    for source, what in ((data, "the file that is read"), (fitted, f"the file that {run} was fitted to")):
        status = None if source is None else file_status(str(source))
        if status is not None and os.path.samestat(target, status):
            raise ConfigError(f"--out: {name} is {what}; write to another file")
    files = (path for path in folder.path.rglob("*") if path.is_file() and folder.samples not in path.parents)
    if any(os.path.samestat(target, path.stat()) for path in files):
        raise ConfigError(f"--out: {name} is a file of the run {run}; write to another file")


def _output_status(out: Path | None) -> os.stat_result | None:
    """Return the status of an existing regular file that will be written; None for a pipe, a device or a new file."""
    try:
        status = os.fstat(sys.stdout.fileno()) if out is None else out.stat()
    except (AttributeError, OSError, ValueError):  # no such file; a stdout that is no file, or closed
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def load_density(run: Path, device: str | None) -> "FittedDensity":
    """Load the density of a run on a device, the CPU by default."""
    folder = open_run(run)
    from pushforward.runs.folder import check_model

    check_model(folder)
    from pushforward.common.plugins import load_plugins
    from pushforward.evaluate.density import FittedDensity
    from pushforward.train.device import choose_device

    load_plugins(print_message)  # the parts that they add may be in the model
    chosen = choose_device(device or "cpu")
    if chosen.type == "mps":
        from pushforward.common.errors import ConfigError

        raise ConfigError("--device: scores and samples need float64, which mps does not have; use cpu")
    return FittedDensity.load(folder.model, device=str(chosen))


def terminal_width() -> int | None:
    """Return the width of the terminal; None if stdout is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text as a table with aligned columns; the first row is the header.

    Numbers are right-aligned. If the terminal is too narrow, a long last column is wrapped, or moved to lines of its
    own; otherwise the table is split into blocks of columns, each with the first column.
    """
    for line in table_lines(rows, terminal_width()):
        click.echo(line)


def table_lines(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return the lines of a table, if possible with at most ``width`` characters."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    is_number = [len(rows) > 1 and all(_NUMBER.fullmatch(row[i]) for row in rows[1:]) for i in range(len(widths))]

    def line(row: Sequence[str], columns: Sequence[int]) -> str:
        texts = [row[i].rjust(widths[i]) if is_number[i] else row[i].ljust(widths[i]) for i in columns]
        return "  ".join(texts).rstrip()

    columns = range(len(widths))
    table_width = sum(widths) + 2 * (len(widths) - 1)
    if width is None or table_width <= width:
        return [line(row, columns) for row in rows]
    last_start = table_width - widths[-1]
    if widths[-1] > _MIN_TEXT_WIDTH and last_start - 2 <= width:  # the last column is a long text
        indent = last_start if width - last_start >= _MIN_TEXT_WIDTH else 4
        out = []
        for row in rows:
            wrapped = textwrap.wrap(row[-1], width - indent, break_on_hyphens=False, break_long_words=False)
            first = line(row, columns[:-1])
            if indent == last_start:
                first = f"{first.ljust(last_start)}{''.join(wrapped[:1])}".rstrip()
            out += [first, *(" " * indent + text for text in wrapped[indent == last_start :])]
        return out
    blocks: list[list[int]] = [[0]]
    for i in columns[1:]:
        if len(blocks[-1]) > 1 and sum(widths[k] + 2 for k in [*blocks[-1], i]) - 2 > width:
            blocks.append([0])
        blocks[-1].append(i)
    lines = [[line(row, block) for row in rows] for block in blocks]
    return [text for number, block in enumerate(lines) for text in (["", *block] if number else block)]


def format_value(value: Any) -> str:
    """Format a value for a table cell."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def print_message(text: str) -> None:
    """Print a line to the user on stderr; stdout is for the results."""
    click.echo(text, err=True)


@contextlib.contextmanager
def progress_bar(total: float | None) -> Iterator[tuple[Callable[[str], None], Callable[..., None]]]:
    """Show a bar on stderr if it is a terminal.

    Args:
        total: Final value of ``completed``; None while unknown.

    Yields:
        A function that prints a line above the bar, and one that updates the bar: ``completed=``, ``total=``,
        ``description=``.
    """
    from pushforward.tracking.terminal_bar import is_terminal, open_bar

    if not is_terminal(sys.stderr):
        yield print_message, lambda **_: None
        return
    bar, task = open_bar(sys.stderr, total=total)
    try:
        yield (
            lambda text: bar.console.print(text, markup=False, highlight=False, soft_wrap=True),
            lambda **state: bar.update(task, **state),
        )
    finally:
        bar.stop()
