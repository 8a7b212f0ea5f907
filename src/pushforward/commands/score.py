"""``pushforward score``: log-densities of rows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pushforward.commands.common import WholeNumber, check_output, common_options, load_density, open_run, print_message
from pushforward.commands.table_output import JsonColumns, out_option, row_progress, table_output
from pushforward.common.files import json_safe

if TYPE_CHECKING:
    from pushforward.evaluate.statistics import Array


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@out_option
@click.option(
    "--draws",
    type=WholeNumber(1),
    default=1,
    show_default=True,
    help="Number of dequantized rows averaged per row.",
)
@common_options("device", "json")
def score(run: Path, data: str, out: Path | None, draws: int, device: str | None, as_json: bool) -> None:
    """Write the log-density of each row of DATA, in nats and in the units of the data, one line per row, in order.

    DATA needs the columns that RUN was fitted to, in any order. Columns whose values lie on a grid are dequantized;
    --draws averages the density over several draws. DATA is a file, - for stdin, or the name of a data set, whose rows
    are all scored, training rows included. A file is read and scored in parts, with constant memory; --out is created
    when it is complete. (--json without --out keeps all scores in memory.) If RUN was fitted with data.weight and the
    file has that column, the mean NLL is weighted by it; the scores of rows are not.
    """
    import numpy as np

    from pushforward.datasets.named_rows import open_rows, weight_notes
    from pushforward.evaluate.likelihood import nll_from
    from pushforward.evaluate.scoring import score_parts, score_table
    from pushforward.runs.record import read_run

    check_output(out, run, data)
    density = load_density(run, device)
    weight = read_run(open_run(run)).config.get("data.weight")
    rows = open_rows(data, density.schema, weight=weight)
    scored = list["Array"]()  # kept for a weighted mean only
    for note in (*rows.notes, *weight_notes(rows, data, weight)):
        print_message(note)
    kept = JsonColumns() if as_json and out is None else None
    with table_output(out, score_table().schema, kept) as output, row_progress(out) as progress:

        def write(scores: "Array") -> None:
            if rows.weights is not None:
                scored.append(scores)
            output.write(score_table(scores))
            progress(len(scores), rows.rows)

        summary = score_parts(density, rows, write, draws=draws)
    if rows.weights is not None:
        summary = nll_from(np.concatenate(scored), np.concatenate(rows.weights))
    for note in rows.findings:
        print_message(note)
    if as_json:
        facts = {"run": str(run), "data": data, "rows": summary.rows, "nll": summary.nll, "nll_se": summary.se}
        facts |= {} if rows.weights is None else {"weight": weight}
        facts |= {"out": None if out is None else str(out)}
        click.echo(json.dumps(json_safe(facts) | ({} if kept is None else kept.columns)))
    else:
        name = "NLL" if rows.weights is None else "weighted NLL"
        print_message(f"{name} {summary}" + (f"; written to {out}" if out is not None else ""))
