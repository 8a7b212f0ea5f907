"""``pushforward sample``: new rows of a fitted density."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import check_output, common_options, load_density, print_message
from pushforward.commands.table_output import JsonColumns, out_option, row_progress, table_output

if TYPE_CHECKING:
    from pushforward.evaluate.density import FittedDensity

_MOST_JSON_CELLS = 10_000_000
"""Most values in a JSON object, which is held in memory."""


class _RowCount(click.ParamType[int]):
    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            count = int(value)
        except ValueError:
            count = 0
        if count < 1:
            self.fail(f"expected a whole number of at least 1, such as 1000000; got '{value}'", param, ctx)
        return count


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "rows", type=_RowCount(), required=True, help="Number of rows.")
@out_option
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

    The rows are drawn and written in parts, with constant memory; --out is created when it is complete. Equal seeds
    draw equal rows, whatever --out is; without --seed it is 0. Values of columns with a grid are rounded to it; those
    of columns with repeated values, such as counts and grades, are kept within the recorded range. --given sets the
    context columns of a run with data.given. (--json without --out keeps all rows in memory.)
    """
    from pushforward.datasets.tables.write import RowTables

    check_output(out, run)
    density = load_density(run, device)
    seed = 0 if seed is None else seed
    context = _given(density, given)
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


def _given(density: "FittedDensity", given: tuple[str, ...]) -> Any:
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
            raise ConfigError(f"--given: expected COL=VALUE; got '{text}'")
        if name not in names:
            known = f"its context columns are {', '.join(names)}" if names else "it has no context columns"
            raise ConfigError(f"--given: '{name}' is not a context column of this run; {known} (data.given)")
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
    for column in density.schema.context:
        if unrecorded(column, np.array([values[column.name]])).any():
            print_message(
                f"--given: {column.name}={values[column.name]:g} is not among the recorded values, {recorded(column)}; "
                f"the samples are an extrapolation"
            )
    return np.array([[values[name] for name in names]]) if names else None
