"""``pushforward sample``: new rows of a fitted density."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import WholeNumber, check_output, common_options, load_density, print_message
from pushforward.commands.table_output import JsonColumns, out_option, row_progress, table_output

if TYPE_CHECKING:
    from pushforward.evaluate.density import FittedDensity

_MOST_JSON_CELLS = 10_000_000
"""Most values in a JSON object, which is held in memory."""

_WITHOUT_CONTEXT = "it has no context columns (data.given)"


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-n", "count", type=WholeNumber(1, 1_000_000), required=True, help="Number of rows; for each row of --given FILE."
)
@out_option
@click.option(
    "--given",
    multiple=True,
    metavar="COL=VALUE|FILE",
    help="Value of a context column, once per column; or a table with these columns.",
)
@common_options("seed", "device", "json")
def sample(
    run: Path,
    count: int,
    out: Path | None,
    given: tuple[str, ...],
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Draw rows from RUN, with the columns, column order and number types of its data.

    The rows are drawn and written in parts, with constant memory; --out is created when it is complete. Equal seeds
    draw equal rows, whatever --out is; without --seed it is 0. Values of columns with a grid are rounded to it; those
    of columns with repeated values, such as counts and grades, are kept within the recorded range. --given sets the
    columns that a run with data.given or data.response is conditioned on: --given COL=VALUE for all rows, --given FILE
    (- for stdin) for -n rows a row of the file, in order. (--json without --out keeps all rows in memory.)
    """
    from pushforward.datasets.tables.write import RowTables

    density = load_density(run, device)
    file = _file_of(given, density.schema.context_names)
    check_output(out, run, file)
    seed = 0 if seed is None else seed
    context = _values(density, given) if file is None else _read(density, file)
    rows = count if context is None else count * len(context)
    kept = JsonColumns() if as_json and out is None else None
    if kept is not None and rows * len(density.schema.order) > _MOST_JSON_CELLS:
        raise click.UsageError(f"--json holds all values in memory, {_MOST_JSON_CELLS:,} at most; give --out FILE")
    tables = RowTables(density.schema)
    with table_output(out, tables.schema, kept, rows=rows) as output, row_progress(out) as progress:
        for drawn, shown in density.sample_parts(rows, context, seed=seed):
            output.write(tables.table(drawn, shown))
            progress(len(drawn), rows)
    if tables.clipped:
        counts = ", ".join(f"{name} in {count:,}" for name, count in tables.clipped.items())
        print_message(f"values beyond the recorded range, set to its ends: {counts} of {rows:,} rows")
    if as_json:
        facts = {"run": str(run), "rows": rows, "seed": seed, "out": None if out is None else str(out)}
        click.echo(json.dumps(facts if kept is None else facts | {"columns": kept.columns}))
    elif out is not None:
        print_message(f"{rows:,} rows written to {out}")


def _file_of(given: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """Return the table among the values of --given; None for ``COL=VALUE`` options."""
    from pushforward.common.errors import ConfigError

    # The name of a file may contain '=', too.
    files = [text for text in given if text.rpartition("=")[0] not in names and (text == "-" or Path(text).exists())]
    if files and len(given) > 1:
        raise ConfigError(f"--given: expected one file, or COL=VALUE for each column; got {' and '.join(given)}")
    return files[0] if files else None


def _read(density: "FittedDensity", file: str) -> Any:
    """Return the context rows ``(m, context)`` of a table."""
    import dataclasses

    import numpy as np

    from pushforward.common.errors import ConfigError
    from pushforward.datasets import open_rows

    schema = density.schema
    if not schema.context:
        raise ConfigError(f"--given: {_WITHOUT_CONTEXT}; leave {file} out")
    kept = [k for k, name in enumerate(schema.order) if name in schema.context_names]
    order, places = tuple(schema.order[k] for k in kept), tuple(schema.places[k] for k in kept if schema.places)
    rows = open_rows(file, dataclasses.replace(schema, columns=(), order=order, places=places))
    context = np.concatenate([part for _, part in rows])
    for note in (*rows.notes, *rows.findings):
        print_message(note)
    return context


def _values(density: "FittedDensity", given: tuple[str, ...]) -> Any:
    """Return the context row ``(1, context)`` from ``COL=VALUE`` options, None for a run without context."""
    import numpy as np

    from pushforward.common.errors import ConfigError
    from pushforward.datasets.tables.checks.range import recorded, unrecorded

    names = density.schema.context_names
    values: dict[str, float] = {}
    for text in given:
        # A column name may contain '=': the value follows the last one.
        name, equals, value = text.rpartition("=")
        if not equals:
            raise ConfigError(f"--given: expected COL=VALUE, or a file; got '{text}', and there is no such file")
        if name not in names:
            known = f"its context columns are {', '.join(names)}" if names else _WITHOUT_CONTEXT
            raise ConfigError(f"--given: '{name}' is not a context column of this run; {known}")
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
        needed = ", ".join(f"--given {name}=..." for name in missing)
        raise ConfigError(f"--given: this run needs {needed}, or --given FILE with these columns")
    for column in density.schema.context:
        if unrecorded(column, np.array([values[column.name]])).any():
            print_message(
                f"--given: {column.name}={values[column.name]:g} is not among the recorded values, {recorded(column)}; "
                f"the samples are an extrapolation"
            )
    return np.array([[values[name] for name in names]]) if names else None
