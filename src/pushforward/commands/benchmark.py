"""``pushforward benchmark``: compare methods on data sets, with published results."""

import contextlib
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import (
    WholeNumber,
    common_options,
    print_message,
    print_table,
    progress_bar,
    readable_again,
    terminal_width,
)

if TYPE_CHECKING:
    from pushforward.benchmark.run import Benchmark, Request

_FIT_SECONDS = 60.0


@click.command
@click.argument("arguments", nargs=-1, metavar="[SUITE | DATA ...]")
@click.option("--sets", help="Some of the suite's data sets, such as red-wine,housing.")
@click.option("--methods", multiple=True, help="Methods, separated by commas; repeatable; see --list.")
@click.option("--folds", help="Folds (splits of the rows), such as 0-9 or 0,2,5.")
@click.option("--seeds", type=WholeNumber(1), default=1, show_default=True, help="Fits per fold.")
@click.option("--protocol", help="rnade, half or tenths, for data sets and files; default: random splits.")
@click.option("--columns", help="Columns to model, such as a,b, for data sets and files; default: all.")
@click.option("--drop", help="Columns to leave out, such as id,name, for data sets and files.")
@click.option(
    "--dequantize",
    type=click.Choice(["off", "auto", "both"]),
    help="Values as they are (off), dequantized (auto), or both, in separate columns of the table.",
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), show_default="60", help="Time budget of a fit.")
@click.option("--steps", type=WholeNumber(1), help="Step budget of a fit, instead of --seconds.")
@click.option("--total-seconds", type=click.FloatRange(min=0, min_open=True), help="Time limit of this command.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Time limit of this command in hours.")
@click.option("--jobs", type=WholeNumber(1), default=1, show_default=True, help="Fits in parallel.")
@click.option("--retry", is_flag=True, help="Repeat failed fits.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="runs/benchmark-SUITE",
    help="Benchmark folder, new or existing.",
)
@click.option("--wandb", type=click.Choice(["auto", "online", "offline", "off"]), default="auto", show_default=True,
              help="Mode of Weights & Biases.")  # fmt: skip
@click.option("--list", "is_list", is_flag=True, help="List suites and methods, or the fits of a suite, and exit.")
@common_options("device", "json")
def benchmark(
    arguments: tuple[str, ...],
    seconds: float | None,
    steps: int | None,
    total_seconds: float | None,
    hours: float | None,
    jobs: int,
    retry: bool,
    out: Path | None,
    wandb: str,
    is_list: bool,
    device: str | None,
    as_json: bool,
    **selection: Any,
) -> None:
    """Run data sets x methods x folds within a time budget, and write one table with published results.

    SUITE is literature, rnade, half, tables or embedded; DATA is that of `pushforward fit`, one or more.
    Every fit is a run folder below --out. The same command continues an interrupted benchmark.

    \b
    pushforward benchmark embedded --seconds 20
    pushforward benchmark rnade --methods gaussian,nflows:nsf-ar,auto --hours 3
    pushforward benchmark my.csv --methods auto,"flow=maf flow.layers=8"
    """  # noqa: D301 - click keeps the line breaks of a paragraph that starts with a backspace
    from pushforward.benchmark.run import benchmark_plan, check_device, run_benchmark
    from pushforward.benchmark.sources import read_sources
    from pushforward.common.errors import ConfigError

    if is_list and not arguments:
        check_device(device or "auto")
        _list_suites(as_json)
        return
    if seconds is not None and steps is not None:
        raise ConfigError("--steps: replaces --seconds; give one of them")
    if total_seconds is not None and hours is not None:
        raise ConfigError("--hours: has the same meaning as --total-seconds; give one of them")
    request = benchmark_plan(
        tuple(readable_again(argument) for argument in arguments),
        seconds=seconds if seconds is not None or steps is not None else _FIT_SECONDS,
        steps=steps,
        parallel=jobs,
        device=device or "auto",
        **selection,  # --sets, --methods, --folds, --seeds, --protocol, --columns, --drop, --dequantize
    )
    if is_list:
        read_sources(request.plan)  # report data that cannot be read
        _list_plan(request, as_json)
        return
    limit = total_seconds if hours is None else 3600.0 * hours
    with _progress() as (notify, progress):
        done = run_benchmark(
            request, out, parallel=jobs, seconds=limit, is_retry=retry, wandb=wandb, notify=notify, progress=progress
        )
    _print_result(done, as_json)


def _print_result(done: "Benchmark", as_json: bool) -> None:
    """Print the table and the paths of the files; exit with the code of a signal."""
    from pushforward.benchmark.table_data import table_dict
    from pushforward.benchmark.text import WIDTH, table_lines
    from pushforward.tracking.wandb.location import location_line

    if as_json:
        click.echo(json.dumps({"out": str(done.path), **table_dict(done.table)}, ensure_ascii=False))
    else:
        # At most as wide as table.txt.
        for line in table_lines(done.table, max(60, min(WIDTH, terminal_width() or WIDTH))):
            click.echo(line)
        click.echo(f"\npage      {done.path / 'table.html'}")
        click.echo(f"numbers   {done.path / 'table.json'}, and table.txt beside it")
        click.echo(f"runs      {done.path / 'runs'}")
    if done.location is not None:
        print_message(location_line(done.location, done.path))
    if done.stopped:
        left = "1 job is" if done.table.jobs_left == 1 else f"{done.table.jobs_left:,} jobs are"
        print_message(f"{done.stopped}; {left} left; the same command continues")
    if done.signum is not None:
        sys.exit(128 + done.signum)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[int, int, str], None]]]:
    """Yield functions that print a line and that show progress, with an estimate of the time left."""
    from pushforward.common.numbers import duration

    began, first = time.monotonic(), list[int]()
    with progress_bar(None) as (notify, update):

        def progress(done: int, total: int, text: str) -> None:
            first[:] = first or [done]
            ended = done - first[0]
            left = f", {duration((time.monotonic() - began) / ended * (total - done))} left" if ended else ""
            update(completed=done, total=total, description=f"{done}/{total}{left}  {text}")

        yield notify, progress


def _list_suites(as_json: bool) -> None:
    """List the suites and the methods."""
    from pushforward.benchmark.methods import PEERS, known_methods, method_names, parse_method
    from pushforward.benchmark.sources import missing_sets
    from pushforward.benchmark.suites import SUITES, score_in_words

    missing = {suite.name: missing_sets(suite.sets) for suite in SUITES.values()}
    if as_json:
        suites = [
            {
                "suite": suite.name,
                "description": suite.description,
                "sets": [{"set": name, "missing": missing[suite.name].get(name)} for name in suite.sets],
                "protocol": suite.protocol,
                "folds": len(suite.folds),
                "score": score_in_words(suite),
                "methods": list(suite.methods),
                "published": len(suite.published),
            }
            for suite in SUITES.values()
        ]
        click.echo(json.dumps({"suites": suites, "methods": method_names()}))
        return
    width = max(60, terminal_width() or 10_000)

    def show(text: str, indent: str = "    ") -> None:
        wrap = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False, subsequent_indent="    ")
        wrap.initial_indent = indent
        for line in wrap.wrap(text):
            click.echo(line)

    for suite in SUITES.values():
        show(f"{suite.name}: {suite.description}", "")
        show(score_in_words(suite))
        word = suite.fold_word if len(suite.folds) == 1 else suite.folds_word
        divisions = "fixed parts" if suite.most_folds == 1 else f"{len(suite.folds)} {word}"
        published = f"; {len(suite.published)} published rows" if suite.published else ""
        show(f"{divisions}; {', '.join(suite.methods)}{published}")
        sets = [f"{name} (not here)" if name in missing[suite.name] else name for name in suite.sets]
        show(", ".join(sets))
        click.echo()
    show(f"methods: {known_methods()}", "")
    for library, flows in PEERS.items():
        if parse_method(f"{library}:{flows[0]}").missing_package:
            click.echo(f"    {library} is not installed: pip install {library}")


def _list_plan(request: "Request", as_json: bool) -> None:
    """List the data sets, folds, methods and fits of a benchmark."""
    from pushforward.benchmark.suites import labels, score_in_words
    from pushforward.common.numbers import duration

    plan, names = request.plan, labels(request.plan.suite.sets)
    trained = [method for method in plan.methods if method.kind != "baseline"]
    fits = len(plan.tasks) * len(plan.folds) * len(plan.seeds) * len(trained)
    seconds = None if plan.budget.seconds is None else fits * plan.budget.seconds
    facts = {
        "suite": plan.suite.name,
        "score": score_in_words(plan.suite),
        "sets": list(dict.fromkeys(names[task.source] for task in plan.tasks)),
        "missing": dict(request.missing),
        "folds": list(plan.folds),
        "seeds": len(plan.seeds),
        "methods": [method.spec for method in plan.methods],
        "left_out": list(request.notes),
        "jobs": len(plan.jobs),
        "fits": fits,
        "threads": plan.budget.threads,
        "seconds_of_fits": seconds,
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    rows = [[key.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, list) else str(v)]
            for key, v in facts.items() if key not in ("missing", "left_out", "seconds_of_fits")]  # fmt: skip
    if seconds is not None:
        rows.append(["time of fits", f"{duration(seconds)} with one job"])
    print_table(rows)
    for text in (*(f"{name}: {why}" for name, why in request.missing.items()), *request.notes):
        click.echo(text)
