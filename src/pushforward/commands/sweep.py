"""``pushforward sweep``: many fits, searched for the best."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import cell, common_options, say, split_data

if TYPE_CHECKING:
    from pushforward.sweeps.space import SweepSpace
    from pushforward.sweeps.sweep import Sweep

_SHOWN = 5


@click.command
@click.argument("arguments", nargs=-1, metavar="[DATA] [KEY=VALUE ...]")
@click.option("-c", "--config", "file", type=click.Path(path_type=Path), help="W&B sweep file; a default by data size.")
@click.option(
    "--trials", type=click.IntRange(min=1), help="Trials in total, also when resumed; run_cap, all of a grid, or 20."
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Trials side by side.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End the whole sweep after this time.")
@click.option("--out", type=click.Path(path_type=Path), help="Make exactly this folder the sweep.")
@click.option("--resume", "resumed", type=click.Path(path_type=Path), metavar="SWEEP", help="Go on with a sweep.")
@click.option("--wandb", type=click.Choice(["auto", "online", "offline", "off"]), help="Where W&B records the trials.")
@click.option("--print-space", is_flag=True, help="Print the sweep file for this data, complete, and stop.")
@common_options("seed", "device", "json")
def sweep(
    arguments: tuple[str, ...],
    file: Path | None,
    trials: int | None,
    workers: int,
    seconds: float | None,
    out: Path | None,
    resumed: Path | None,
    wandb: str | None,
    print_space: bool,
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Search for the parameters with the best validation NLL; leaves a folder with a run for each trial.

    DATA is what `pushforward fit` takes. KEY=VALUE sets a key for every trial, such as train.seconds=30. What is
    searched stands in a file that `wandb sweep` takes too; without -c it is chosen by the size of the data, and
    --print-space shows it. The first trial is the fit without a search, so that the best is never worse.

    Ctrl-C ends the trials that run; --resume goes on, up to --trials in total. Each worker has its share of the cores,
    and a trial with a budget in seconds gets fewer steps done on fewer cores: one worker for each one or two cores.
    The test rows choose nothing: score the best with `pushforward evaluate SWEEP/best`.
    """
    from pushforward.common.errors import ConfigError

    if resumed is not None:
        if arguments or file or out or wandb or device or seed is not None or print_space:
            raise ConfigError("--resume: takes everything but --trials, --workers and --seconds from the sweep")
        from pushforward.sweeps.study import require_optuna

        require_optuna()
        from pushforward.sweeps.sweep import Sweep

        _run(Sweep.open(resumed, trials=trials, seconds=seconds), workers, as_json)
        return
    data, overrides = split_data(arguments)
    if data is not None:
        overrides = [f"data.source={data}", *overrides]
    space, text = _space(file, overrides, seed=seed, device=device, wandb=wandb)
    if print_space:
        click.echo(text, nl=False)
        return
    from pushforward.sweeps.study import require_optuna

    require_optuna()
    from pushforward.sweeps.sweep import Sweep

    _run(Sweep.create(space, out=out, trials=trials, seconds=seconds), workers, as_json)


def _space(file: Path | None, overrides: Sequence[str], **options: Any) -> "tuple[SweepSpace, str]":
    """The space that is meant, checked, and the text of a file that says the same."""
    from pushforward.common.errors import ConfigError
    from pushforward.sweeps.parameter import Parameter
    from pushforward.sweeps.space import (
        default_space,
        parse_space,
        read_space,
        typed_constants,
        with_constants,
    )

    constants = typed_constants(overrides, **options)
    space = None if file is None else read_space(file).fixed(constants)
    named = (space.constants if space else {p.key: None for p in constants}).keys()
    if "data.source" not in named:
        raise ConfigError("expected DATA, or a sweep file with parameters: data.source: {value: ...}")
    if space is not None:
        space.check()
        return space, space.to_yaml()
    from pushforward.config.read import load_config
    from pushforward.experiment.rows import plan

    planned = plan(load_config(overrides=[f"{p.key}={p.only}" for p in constants]))
    dataset = planned.prepared.dataset
    # A file is to be found from any folder.
    source = Parameter.constant("data.source", planned.config.data.source)
    constants = tuple(source if p.key == "data.source" else p for p in constants)
    shipped = default_space(len(planned.prepared.recorded), is_toy=dataset.toy is not None)
    text = with_constants(shipped, constants)
    space = parse_space(text, "the default space")
    space.check()
    return space, text


def _run(sweep: "Sweep", workers: int, as_json: bool) -> None:
    from pushforward.sweeps.scheduler import run_sweep

    with sweep:
        train = sweep.defaults.train
        budget = f"{train.seconds:g} s" if train.seconds != "auto" else f"{train.steps:,} steps"
        searched = ", ".join(p.key for p in sweep.space.searched)
        trials = f"{sweep.trials_wanted} trials of {budget} each, {workers} at a time"
        say(f"{sweep.facts['data']}: {trials}; sweep {sweep.path}")
        if workers > (os.cpu_count() or 1):
            say(f"note: {workers} workers share {os.cpu_count()} cores, and the time of each trial")
        say(f"searching {searched}; the first trial is the fit without a search")
        with _shown(sweep.trials_wanted) as (tell, progress):
            summary = run_sweep(sweep, workers=workers, tell=tell, progress=progress)
        importances = sweep.study.importances()
    best = summary["best"]
    resume = shlex.join(["pushforward", "sweep", "--resume", str(sweep.path)])
    if as_json:
        click.echo(json.dumps(summary | {"importances": importances}))
    elif best is not None:
        for line in _lines(summary, importances):
            click.echo(line)
    if best is None:
        say(f"no trial has a result yet; sweep {sweep.path}")
    if sweep.signum is not None:
        say(f"stopped by a signal; go on with: {resume}")
        sys.exit(128 + sweep.signum)
    if sweep.has_given_up or best is None:
        say(f"go on with: {resume}")
        sys.exit(1)


@contextlib.contextmanager
def _shown(trials: int) -> Iterator[tuple[Callable[[str], None], Callable[[float, str], None]]]:
    """Lines on stderr; on a terminal, above a bar that says how far the sweep is."""
    from pushforward.tracking.terminal_bar import is_terminal, open_bar

    if not is_terminal(sys.stderr):
        yield say, lambda done, text: None
        return
    bar, task = open_bar(sys.stderr, total=trials)
    try:
        yield (
            lambda text: bar.console.print(text, markup=False, highlight=False, soft_wrap=True),
            lambda done, text: bar.update(task, completed=done, description=text),
        )
    finally:
        bar.stop()


def _lines(summary: dict[str, Any], importances: dict[str, float]) -> list[str]:
    from pushforward.sweeps.summary import written

    done = [t for t in summary["trials"] if t["status"] == "finished" and t["val_nll"] is not None]
    ranked = sorted(done, key=lambda t: (t["val_nll"], t["number"]))[:_SHOWN]
    lines = ["trial  val nll     seconds  parameters"]
    for trial in ranked or [summary["best"]]:
        what = "the defaults: " if trial["is_default"] else ""
        seconds = "-" if trial["seconds"] is None else f"{trial['seconds']:.0f}"
        lines.append(
            f"{trial['number']:>5}  {cell(trial['val_nll']):<10}  {seconds:>7}  {what}{written(trial['parameters'])}"
        )
    counts = ", ".join(f"{count} {status}" for status, count in summary["counts"].items() if count)
    lines += ["", counts]
    if importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importances.items() if share >= 0.005)
        lines.append(f"what mattered: {shares}")
    best = summary["best"]
    if "gain" in summary:
        rows = f"{summary['validation_rows']:,} validation rows"
        gain = f"{summary['gain']:.4f} ± {summary['gain_se']:.4f}"
        lines.append(f"better than the defaults by {gain} nats on the {rows} that chose it")
    elif best["is_default"]:
        lines.append("no trial is better than the defaults")
    lines.append(f"sweep     {summary['folder']}")
    lines.append(f"best run  {best['run']}")
    lines.append(f"for longer: {best['refit']}")
    return lines
