"""``pushforward score`` and ``pushforward sample``: rows in, numbers out, and the other way round."""

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

from pushforward.commands.common import common_options, finite, load_density, open_run, say

if TYPE_CHECKING:
    from pushforward.evaluate.density import FittedDensity
    from pushforward.evaluate.likelihood import Array


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), help="CSV or Parquet file to write; stdout if not given.")
@click.option("--draws", type=click.IntRange(min=1), default=1, show_default=True, help="Rows averaged in each cell.")
@common_options("device", "json")
def score(run: Path, data: str, out: Path | None, draws: int, device: str | None, as_json: bool) -> None:
    """Write the log-density of each row of DATA, in nats and in the units of the data, one line a row, in order.

    DATA needs the columns RUN was fitted to, in any order. A value of a column with a grid stands for its cell;
    --draws averages the density over more points of the cell. DATA is a file, or the name of a data set, of which all
    rows are scored, those of its training part too. A file is read and scored a part at a time, in memory
    that does not grow with it; --out appears when all of it is there. (--json without --out keeps all scores.)
    """
    from pushforward.datasets import open_rows
    from pushforward.evaluate.scoring import ScoreFile, score_parts
    from pushforward.tracking.row_progress import RowProgress

    density = load_density(run, device)
    rows = open_rows(data, density.schema)
    for note in rows.notes:
        say(note)
    # Without a file the scores go where the numbers go: nothing that was computed is thrown away.
    kept: list[float | None] | None = [] if as_json and out is None else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        file = ScoreFile(out) if kept is None else None
        if file is not None:
            stack.enter_context(file)
        shown = out is not None or not sys.stdout.isatty()
        progress = stack.enter_context(RowProgress(shown=shown))

        def write(scores: "Array") -> None:
            if file is not None:
                file.write(scores)
            if kept is not None:
                kept.extend(value if math.isfinite(value) else None for value in scores.tolist())
            progress.add(len(scores), rows.rows)

        summary = score_parts(density, rows, write, draws=draws)
    if as_json:
        facts = {"run": str(run), "data": data, "rows": summary.rows, "nll": summary.nll, "nll_se": summary.se}
        scored = {} if kept is None else {"log_prob": kept}
        click.echo(json.dumps(finite(facts | {"out": None if out is None else str(out)}) | scored))
    else:
        say(f"NLL {summary}" + (f"; written to {out}" if out is not None else ""))


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block like an error, so that what it has begun is taken away; exit code 143."""

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
@click.option("--given", multiple=True, metavar="COL=VALUE", help="Value of a context column, once for each.")
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
    """Draw rows from RUN with the columns, order and number types it was fitted to.

    Without --out the rows go to RUN/samples. --given fixes the columns of a run fitted with data.context.
    """
    import numpy as np

    from pushforward.datasets import write_table
    from pushforward.datasets.tables.write import WRITTEN_ENDINGS

    if out is not None and not out.name.lower().endswith(WRITTEN_ENDINGS):
        raise click.BadParameter(
            f"expected a file ending in {', '.join(WRITTEN_ENDINGS)}; got {out}", param_hint="--out"
        )
    density = load_density(run, device)
    seed = 0 if seed is None else seed
    context = _given(density, given)
    repeated = np.empty((rows, 0)) if context is None else np.repeat(context, rows, axis=0)
    # What was drawn for other values stays beside it.
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
    """Context row ``(1, C)`` from ``COL=VALUE`` options, None for a run without context."""
    import numpy as np

    from pushforward.common.errors import ConfigError

    names = density.schema.context_names
    values: dict[str, float] = {}
    for text in given:
        # A column name may hold '=' itself: the value is what stands after the last one.
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
