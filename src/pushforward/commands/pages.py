"""``pushforward report`` and ``pushforward compare``: self-contained HTML pages about runs."""

import json
from pathlib import Path

import click

from pushforward.commands.common import common_options, open_run, print_table


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file to write; default: RUN/report.html.")
@common_options("json")
def report(run: Path, out: Path | None, as_json: bool) -> None:
    """Write a self-contained HTML page about RUN: numbers, curves, figures, calibration, rows.

    RUN may be in any state, also while it is being fitted. The page shows recorded results only; `pushforward evaluate
    RUN` computes missing ones.
    """
    from pushforward.reports.run import write_report

    path = write_report(open_run(run), out)
    if as_json:
        click.echo(json.dumps({"run": str(run), "out": str(path), "bytes": path.stat().st_size}))
    else:
        click.echo(f"report written to {path}")


@click.command
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN ...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="comparison.html",
    help="HTML file to write; only an earlier comparison is overwritten.",
)
@click.option("--page/--no-page", default=True, help="Write the page as well as the table, or only the table.")
@common_options("json")
def compare(runs: tuple[Path, ...], out: Path | None, page: bool, as_json: bool) -> None:
    """Compare runs on the same test rows: a table, and a page with curves, differences and the rows behind them.

    Differences of test NLL are paired, row by row. Runs that were scored on different rows cannot be compared;
    data.seed=N gives fits with different seeds the same split.
    """
    from pushforward.reports.comparison import write_comparison
    from pushforward.runs.comparison import compare_runs

    if out is not None and not page:
        raise click.UsageError("--out is the file of the page, which --no-page leaves out; give one of them")
    comparison = compare_runs([open_run(run) for run in runs])
    if not as_json:
        print_table(comparison.table())
        verdict = comparison.verdict()
        if verdict.startswith(("No ", "There is ")):  # otherwise it starts with the name of a run
            verdict = f"{verdict[0].lower()}{verdict[1:]}"
        click.echo(f"{len(comparison.runs[0].rows):,} test rows; {verdict}")
    path = None
    try:
        if page:
            path = write_comparison(comparison, out or Path("comparison.html"))
    finally:  # print the numbers even if the page cannot be written
        if as_json:
            click.echo(json.dumps(comparison.to_dict() | {"out": None if path is None else str(path)}))
    if path is not None and not as_json:
        click.echo(f"page written to {path}")
