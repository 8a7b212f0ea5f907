"""``pushforward score`` and ``pushforward sample``: log-densities of rows, and samples."""

import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import common_options, load_density, open_run, print_message
from pushforward.common.files import json_safe

if TYPE_CHECKING:
    from pushforward.evaluate.density import FittedDensity
    from pushforward.evaluate.statistics import Array


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), help="CSV or Parquet file to write; default: stdout.")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of dequantized rows averaged per row.",
)
@common_options("device", "json")
def score(run: Path, data: str, out: Path | None, draws: int, device: str | None, as_json: bool) -> None:
    """Write the log-density of each row of DATA, in nats and in the units of the data, one line per row, in order.

    DATA needs the columns that RUN was fitted to, in any order. Columns whose values lie on a grid are dequantized;
    --draws averages the density over several draws. DATA is a file, or the name of a data set, whose rows are all
    scored, training rows included. A file is read and scored in parts, with constant memory; --out is created when it
    is complete. (--json without --out keeps all scores in memory.)
    """
    from pushforward.datasets import open_rows
    from pushforward.evaluate.scoring import ScoreFile, score_parts
    from pushforward.tracking.row_progress import RowProgress

    density = load_density(run, device)
    rows = open_rows(data, density.schema)
    for note in rows.notes:
        print_message(note)
    # Without --out, the scores are part of the JSON object.
    kept: list[float | None] | None = [] if as_json and out is None else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_exit_on_sigterm())
        file = ScoreFile(sys.stdout if out is None else out) if kept is None else None
        if file is not None:
            stack.enter_context(file)
        shown = out is not None or not sys.stdout.isatty()
        progress = stack.enter_context(RowProgress(shown=shown))

        def write(scores: "Array") -> None:
            if file is not None:
                file.write(scores)
            if kept is not None:
                kept.extend(json_safe(scores))
            progress.add(len(scores), rows.rows)

        summary = score_parts(density, rows, write, draws=draws)
    if as_json:
        facts = {"run": str(run), "data": data, "rows": summary.rows, "nll": summary.nll, "nll_se": summary.se}
        scored = {} if kept is None else {"log_prob": kept}
        click.echo(json.dumps(json_safe(facts | {"out": None if out is None else str(out)}) | scored))
    else:
        print_message(f"NLL {summary}" + (f"; written to {out}" if out is not None else ""))


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit (exit code 143) on SIGTERM during the block, so that incomplete files are removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "rows", type=click.IntRange(min=1), required=True, help="Number of rows.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV or Parquet file to write.")
@click.option("--given", multiple=True, metavar="COL=VALUE", help="Value of a context column; once per column.")
@common_options("seed", "device", "json")
def sample(
    run: Path,
    rows: int,
    out: Path | None,
    given: tuple[str, ...],
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Draw rows from RUN, with the columns, column order and number types of its data.

    Without --out the rows are written to RUN/samples. --given sets the context columns of a run with data.context.
    """
    import numpy as np

    from pushforward.datasets import write_table
    from pushforward.datasets.tables.write import WRITABLE_SUFFIXES

    if out is not None and not out.name.lower().endswith(WRITABLE_SUFFIXES):
        raise click.BadParameter(
            f"expected a file ending in {', '.join(WRITABLE_SUFFIXES)}; got {out}", param_hint="--out"
        )
    density = load_density(run, device)
    seed = 0 if seed is None else seed
    context = _given(density, given)
    repeated = np.empty((rows, 0)) if context is None else np.repeat(context, rows, axis=0)
    # The values of --given are part of the default file name, so that samples for other values are kept.
    values = "".join(f"-{re.sub(r'[^A-Za-z0-9._=-]+', '-', text)}" for text in sorted(given))
    target: Path = out or open_run(run).samples / f"sample-{rows}-seed{seed}{values}.csv"
    drawn = density.sample(rows, None if context is None else repeated, seed=seed)
    try:
        write_table(target, drawn, repeated, density.schema)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"cannot write: {reason}", str(target)) from error
    if as_json:
        click.echo(json.dumps({"run": str(run), "rows": rows, "seed": seed, "out": str(target)}))
    else:
        click.echo(f"{rows:,} rows written to {target}")


def _given(density: "FittedDensity", given: tuple[str, ...]) -> Any:
    """Return the context row ``(1, context)`` from ``COL=VALUE`` options, None for a run without context."""
    import numpy as np

    from pushforward.common.errors import ConfigError

    names = density.schema.context_names
    values: dict[str, float] = {}
    for text in given:
        # A column name may contain '=': the value follows the last one.
        name, equals, value = text.rpartition("=")
        if not equals:
            raise ConfigError(f"--given: expected COL=VALUE; got '{text}'")
        if name not in names:
            known = f"its context columns are {', '.join(names)}" if names else "it has no context columns"
            raise ConfigError(f"--given: '{name}' is not a context column of this run; {known} (data.context)")
        if name in values:
            raise ConfigError(f"--given: '{name}' is given twice")
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = math.nan
        if not math.isfinite(values[name]):
            raise ConfigError(f"--given: expected a number for '{name}'; got '{value}'")
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"--given: this run needs {', '.join(f'--given {name}=...' for name in missing)}")
    return np.array([[values[name] for name in names]]) if names else None
