"""What the commands share: options, tables, numbers as JSON has them, opening a run."""

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pushforward.evaluate.density import FittedDensity
    from pushforward.runs.folder import RunFolder


_NUMBER = re.compile(r"[-+\u2212]?[\d,.]+( %)?|[-\u2013]?")

_LEAST_TEXT = 36
"""Characters in which a text is broken into lines beside the other columns; in fewer it would be a column of words."""


def common_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that several commands have: ``seed``, ``device``, ``json``."""
    options: dict[str, Callable[..., Any]] = {
        "seed": click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random."),
        "device": click.option("--device", help="auto, cpu, cuda, cuda:N or mps."),
        "json": click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr."
        ),
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            command = options[name](command)
        return command

    return decorate


def split_data(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Tell DATA from the KEY=VALUE that follow it; DATA is optional, and a file's name may have an equals sign."""
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).exists()):
        return arguments[0], arguments[1:]
    return None, arguments


def open_run(path: Path) -> "RunFolder":
    """Open a run by its folder, or by its name below runs/."""
    from pushforward.runs.folder import RunFolder

    return RunFolder.open(path)


def load_density(run: Path, device: str | None) -> "FittedDensity":
    """Load the density of a run, for scores and samples."""
    folder = open_run(run)
    if not (folder.model / "config.json").exists() and folder.status == "running":
        from pushforward.common.errors import RunError

        raise RunError(
            f"{run}: is still being fitted and has no model yet; `pushforward report {run}` shows how it goes"
        )
    from pushforward.evaluate.density import FittedDensity
    from pushforward.train.device import choose_device

    chosen = choose_device(device or "cpu")
    if chosen.type == "mps":
        from pushforward.common.errors import ConfigError

        raise ConfigError("--device: scores and samples are computed in float64, which mps does not have; use cpu")
    return FittedDensity.load(folder.model, device=str(chosen))


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is a file or a pipe, which has no end of the line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns that are as wide as they need to be; the first row is the head.

    Numbers stand right. On a terminal that is too narrow a text in the last column is broken between words, or stands
    on lines of its own; else columns follow in blocks below each other, each with the first column.
    """
    for line in table_lines(rows, terminal_width()):
        click.echo(line)


def table_lines(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The lines of a table, of at most so many characters as far as that can be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [len(rows) > 1 and all(_NUMBER.fullmatch(row[i]) for row in rows[1:]) for i in range(len(widths))]

    def line(row: Sequence[str], places: Sequence[int]) -> str:
        return "  ".join(row[i].rjust(widths[i]) if right[i] else row[i].ljust(widths[i]) for i in places).rstrip()

    every = range(len(widths))
    whole = sum(widths) + 2 * (len(widths) - 1)
    if width is None or whole <= width:
        return [line(row, every) for row in rows]
    left = whole - widths[-1]
    if widths[-1] > _LEAST_TEXT and left - 2 <= width:  # the last column is a text
        indent = left if width - left >= _LEAST_TEXT else 4
        out = []
        for row in rows:
            more = textwrap.wrap(row[-1], width - indent, break_on_hyphens=False, break_long_words=False)
            first = line(row, every[:-1])
            if indent == left:
                first = f"{first.ljust(left)}{''.join(more[:1])}".rstrip()
            out += [first, *(" " * indent + text for text in more[indent == left :])]
        return out
    blocks: list[list[int]] = [[0]]
    for i in every[1:]:
        if len(blocks[-1]) > 1 and sum(widths[k] + 2 for k in [*blocks[-1], i]) - 2 > width:
            blocks.append([0])
        blocks[-1].append(i)
    lines = [[line(row, places) for row in rows] for places in blocks]
    return [text for place, block in enumerate(lines) for text in (["", *block] if place else block)]


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null says that there is no number."""
    return {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in values.items()}


def say(text: str) -> None:
    """Tell the user something that is not the answer: on stderr."""
    click.echo(text, err=True)
