"""What the commands share: options, tables, numbers as JSON has them, opening a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pushforward.evaluate.fitted import FittedDensity
    from pushforward.train.runs import RunFolder


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
    from pushforward.train.runs import RunFolder

    return RunFolder.open(path)


def load_density(run: Path, device: str | None) -> "FittedDensity":
    """Load the density of a run, for scores and samples."""
    folder = open_run(run)
    if not (folder.model / "config.json").exists() and folder.status == "running":
        from pushforward.train.runs import RunError

        raise RunError(
            f"{run}: is still being fitted and has no model yet; `pushforward report {run}` shows how it goes"
        )
    from pushforward.evaluate.fitted import FittedDensity
    from pushforward.train import choose_device

    chosen = choose_device(device or "cpu")
    if chosen.type == "mps":
        from pushforward.train.overrides import ConfigError

        raise ConfigError("--device: scores and samples are computed in float64, which mps does not have; use cpu")
    return FittedDensity.load(folder.model, device=str(chosen))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns that are as wide as they need to be; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


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
