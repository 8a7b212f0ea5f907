"""``pushforward report`` and ``pushforward compare``: runs as pages that open without a network."""

import json
from pathlib import Path

import click

from pushforward.commands.common import common_options, open_run, print_table


@click.command
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file to write; RUN/report.html if not given.")
@common_options("json")
def report(run: Path, out: Path | None, as_json: bool) -> None:
    """Write one HTML page about RUN, which needs nothing but itself: numbers, curves, pictures, calibration, rows.

    RUN may be in any state, also while it is being fitted. Nothing is computed anew: what the page lacks, `pushforward
    evaluate RUN` may add.
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
    help="HTML file to write; an earlier comparison is replaced, nothing else is.",
)
@click.option("--page/--no-page", default=True, help="Write the page beside the table, or the table alone.")
@common_options("json")
def compare(runs: tuple[Path, ...], out: Path | None, page: bool, as_json: bool) -> None:
    """Compare runs on the same test rows: a table, and a page with curves, differences and where they come from.

    Differences of test NLL are paired, row by row. Runs that were scored on different rows are not compared;
    data.seed=N gives fits with different seeds the same split.
    """
    from pushforward.reports.comparison import write_comparison
    from pushforward.runs.comparison import compare_runs

    if out is not None and not page:
        raise click.UsageError("--out names the page that --no-page leaves out; give one of them")
    comparison = compare_runs([open_run(run) for run in runs])
    if not as_json:
        print_table(comparison.table())
        verdict = comparison.verdict()
        if verdict.startswith(("No ", "There is ")):  # no name of a run
            verdict = f"{verdict[0].lower()}{verdict[1:]}"
        click.echo(f"{len(comparison.contenders[0].rows):,} test rows; {verdict}")
    path = None
    try:
        if page:
            path = write_comparison(comparison, out or Path("comparison.html"))
    finally:  # the numbers are known whether or not there is a place for the page
        if as_json:
            click.echo(json.dumps(comparison.to_dict() | {"out": None if path is None else str(path)}))
    if path is not None and not as_json:
        click.echo(f"page written to {path}")
