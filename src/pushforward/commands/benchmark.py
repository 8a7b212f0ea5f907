"""``pushforward benchmark``: data sets, methods and published numbers in one table."""

import contextlib
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pushforward.commands.common import common_options, print_table, say, terminal_width

if TYPE_CHECKING:
    from pushforward.benchmark.run import Benchmark, Request

_SECONDS = 60.0


@click.command
@click.argument("arguments", nargs=-1, metavar="[SUITE | DATA ...]")
@click.option("--sets", help="Some of the suite's data sets, as in red-wine,housing.")
@click.option("--methods", multiple=True, help="What is compared, a list with commas; repeatable. --list tells all.")
@click.option("--folds", help="Divisions of the rows, as in 0-9 or 0,2,5.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Fits of each division.")
@click.option("--protocol", help="rnade, half or tenths, for data sets and files; else rows are divided at random.")
@click.option("--columns", help="Columns to learn, as in a,b, for data sets and files; all unless told.")
@click.option("--drop", help="Columns to leave out, as in id,name, for data sets and files.")
@click.option(
    "--dequantize",
    type=click.Choice(["off", "auto", "both"]),
    help="Values as they are (off), spread over their grid steps (auto), or both, each a column of the table.",
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), show_default="60", help="Time of a fit.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of a fit, in place of --seconds.")
@click.option("--total-seconds", type=click.FloatRange(min=0, min_open=True), help="Time for everything, from now on.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="The same in hours.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Fits side by side.")
@click.option("--retry", is_flag=True, help="Also try again what has failed.")
@click.option("--out", type=click.Path(path_type=Path), show_default="runs/benchmark-SUITE", help="Folder to work in.")
@click.option("--wandb", type=click.Choice(["auto", "online", "offline", "off"]), default="auto", show_default=True,
              help="Where W&B records the table.")  # fmt: skip
@click.option("--list", "is_list", is_flag=True, help="Say what there is, or with a suite what would be run; and stop.")
@common_options("device", "json")
def benchmark(
    arguments: tuple[str, ...],
    sets: str | None,
    methods: tuple[str, ...],
    folds: str | None,
    seeds: int,
    protocol: str | None,
    columns: str | None,
    drop: str | None,
    dequantize: str | None,
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
) -> None:
    """Run data sets x methods x folds within a time budget, and write one table beside published numbers.

    SUITE is literature, rnade, half, tables or embedded; DATA is what `pushforward fit` takes, one or more.
    Every fit is a run folder below --out. The same command goes on where it was stopped.

    \b
    pushforward benchmark embedded --seconds 20
    pushforward benchmark rnade --methods gaussian,nflows:nsf-ar,auto --hours 3
    pushforward benchmark my.csv --methods auto,"flow=maf flow.layers=8"
    """  # noqa: D301 - what click takes for lines to leave as they are is a backspace
    from pushforward.benchmark.run import benchmark_plan, check_device, run_benchmark
    from pushforward.benchmark.sources import read_sources
    from pushforward.common.errors import ConfigError

    if is_list and not arguments:
        check_device(device or "auto")
        _list(as_json)
        return
    if seconds is not None and steps is not None:
        raise ConfigError("--steps: takes the place of --seconds; give one of them")
    if total_seconds is not None and hours is not None:
        raise ConfigError("--hours: says the same as --total-seconds; give one of them")
    request = benchmark_plan(
        arguments,
        sets=sets,
        methods=methods,
        folds=folds,
        seeds=seeds,
        protocol=protocol,
        columns=columns,
        drop=drop,
        dequantize=dequantize,
        seconds=seconds if seconds is not None or steps is not None else _SECONDS,
        steps=steps,
        jobs=jobs,
        device=device or "auto",
    )
    if is_list:
        read_sources(request.plan)  # to complain of what would fail in every cell
        _show_plan(request, as_json)
        return
    limit = total_seconds if hours is None else 3600.0 * hours
    with _shown() as (tell, progress):
        done = run_benchmark(
            request, out, jobs=jobs, seconds=limit, is_retry=retry, wandb=wandb, tell=tell, progress=progress
        )
    _tell_result(done, as_json)


def _tell_result(done: "Benchmark", as_json: bool) -> None:
    from pushforward.benchmark.table_data import table_dict
    from pushforward.benchmark.text import WIDTH, table_lines

    if as_json:
        click.echo(json.dumps({"out": str(done.path), **table_dict(done.table)}, ensure_ascii=False))
    else:
        # Never wider than the file, which is read by others too.
        for line in table_lines(done.table, max(60, min(WIDTH, terminal_width() or WIDTH))):
            click.echo(line)
        click.echo(f"\npage      {done.path / 'table.html'}")
        click.echo(f"numbers   {done.path / 'table.json'}, and table.txt beside it")
        click.echo(f"runs      {done.path / 'runs'}")
    if done.location is not None:
        say(f"W&B       {done.location}")
    if done.stopped:
        left = "1 cell is" if done.table.left == 1 else f"{done.table.left:,} cells are"
        say(f"{done.stopped}; {left} left, and the same command goes on")
    if done.signum is not None:
        sys.exit(128 + done.signum)


@contextlib.contextmanager
def _shown() -> Iterator[tuple[Callable[[str], None], Callable[[int, int, str], None]]]:
    """Lines on stderr; on a terminal, above a bar that says how far it is."""
    from pushforward.common.numbers import duration
    from pushforward.tracking.terminal_bar import is_terminal, open_bar

    if not is_terminal(sys.stderr):
        yield say, lambda done, total, text: None
        return
    bar, task = open_bar(sys.stderr, total=None)
    began, first = time.monotonic(), list[int]()

    def progress(done: int, total: int, text: str) -> None:
        first[:] = first or [done]
        ended = done - first[0]
        left = f", {duration((time.monotonic() - began) / ended * (total - done))} left" if ended else ""
        bar.update(task, completed=done, total=total, description=f"{done}/{total}{left}  {text}")

    try:
        yield lambda text: bar.console.print(text, markup=False, highlight=False, soft_wrap=True), progress
    finally:
        bar.stop()


def _list(as_json: bool) -> None:
    """The suites and the methods."""
    from pushforward.benchmark.methods import BASELINES, PEERS, known_methods, parse_method
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
        peers = [f"{library}:{flow}" for library, flows in PEERS.items() for flow in flows]
        click.echo(json.dumps({"suites": suites, "methods": [*BASELINES, *peers, "auto"]}))
        return
    width = max(60, terminal_width() or 10_000)

    def tell(text: str, indent: str = "    ") -> None:
        wrap = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False, subsequent_indent="    ")
        wrap.initial_indent = indent
        for line in wrap.wrap(text):
            click.echo(line)

    for suite in SUITES.values():
        tell(f"{suite.name}: {suite.description}", "")
        tell(score_in_words(suite))
        word = suite.fold_word if len(suite.folds) == 1 else suite.folds_word
        divisions = "fixed parts" if suite.most_folds == 1 else f"{len(suite.folds)} {word}"
        published = f"; {len(suite.published)} published rows" if suite.published else ""
        tell(f"{divisions}; {', '.join(suite.methods)}{published}")
        sets = [f"{name} (not here)" if name in missing[suite.name] else name for name in suite.sets]
        tell(", ".join(sets))
        click.echo()
    tell(f"methods: {known_methods()}", "")
    for library, flows in PEERS.items():
        if parse_method(f"{library}:{flows[0]}").missing_package:
            click.echo(f"    {library} is not installed: pip install {library}")


def _show_plan(request: "Request", as_json: bool) -> None:
    """What would be run."""
    from pushforward.benchmark.suites import labels, score_in_words
    from pushforward.common.numbers import duration

    plan, names = request.plan, labels(request.plan.suite.sets)
    trained = [method for method in plan.methods if method.kind != "baseline"]
    fits = len(plan.columns) * len(plan.folds) * len(plan.seeds) * len(trained)
    seconds = None if plan.budget.seconds is None else fits * plan.budget.seconds
    facts = {
        "suite": plan.suite.name,
        "score": score_in_words(plan.suite),
        "sets": list(dict.fromkeys(names[column.source] for column in plan.columns)),
        "missing": dict(request.missing),
        "folds": list(plan.folds),
        "seeds": len(plan.seeds),
        "methods": [method.spec for method in plan.methods],
        "left_out": list(request.notes),
        "cells": len(plan.cells),
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
        rows.append(["time of fits", f"{duration(seconds)} one after the other, with one job"])
    print_table(rows)
    for text in (*(f"{name}: {why}" for name, why in request.missing.items()), *request.notes):
        click.echo(text)
