"""``pushforward sweep``: search for the best hyperparameters."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pushforward.commands.common import (
    WholeNumber,
    common_options,
    format_value,
    print_message,
    progress_bar,
    readable_again,
    split_data,
)

if TYPE_CHECKING:
    from pushforward.sweeps.space import SweepSpace
    from pushforward.sweeps.sweep import Sweep

_SHOWN_TRIALS = 5


@click.command
@click.argument("arguments", nargs=-1, metavar="[DATA] [KEY=VALUE ...]")
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="W&B sweep file; default: chosen by the size of the data.",
)
@click.option(
    "--trials",
    type=WholeNumber(1),
    help="Trials in total, resumed ones included; default: run_cap, the whole grid, or 20.",
)
@click.option("--workers", type=WholeNumber(1), default=1, show_default=True, help="Trials in parallel.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Time limit of the whole sweep.")
@click.option("--out", type=click.Path(path_type=Path), help="Sweep folder to create.")
@click.option("--resume", "resumed", type=click.Path(path_type=Path), metavar="SWEEP", help="Resume a sweep.")
@click.option("--wandb", type=click.Choice(["auto", "online", "offline", "off"]), help="Mode of Weights & Biases.")
@click.option("--print-space", is_flag=True, help="Print the complete sweep file for this data, and exit.")
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
    """Search for the hyperparameters with the best validation NLL; create a folder with a run for each trial.

    DATA is that of `pushforward fit`. KEY=VALUE sets a key for every trial, such as train.seconds=30. The search space
    is a file that `wandb sweep` accepts too; without -c it is chosen by the size of the data, and --print-space prints
    it. The first trial has the default hyperparameters, so that the best trial is never worse.

    Ctrl-C stops the running trials; --resume continues, up to --trials in total. The workers share the cores, and a
    trial with a budget in seconds makes fewer steps on fewer cores: use one worker per one or two cores. The test rows
    are not used for the search: evaluate the best trial with `pushforward evaluate SWEEP/best`.
    """
    from pushforward.common.errors import ConfigError

    if resumed is not None:
        data, overrides = split_data([text.removeprefix("data.source=") for text in arguments])
        if overrides or file or out or wandb or device or seed is not None or print_space:
            raise ConfigError(
                "--resume: takes all options except --trials, --workers and --seconds from the sweep; DATA is only "
                "needed if the file has been moved"
            )
        from pushforward.sweeps.study import require_optuna

        require_optuna()
        from pushforward.sweeps.sweep import Sweep

        source = None if data is None else readable_again(data)
        _run(Sweep.open(resumed, source=source, trials=trials, seconds=seconds), workers, as_json)
        return
    data, overrides = split_data(arguments)
    if data is not None:
        overrides = [f"data.source={readable_again(data)}", *overrides]
    space, text = _space(file, overrides, seed=seed, device=device, wandb=wandb)
    if print_space:
        click.echo(text, nl=False)
        return
    from pushforward.sweeps.study import require_optuna

    require_optuna()
    from pushforward.sweeps.sweep import Sweep

    _run(Sweep.create(space, out=out, trials=trials, seconds=seconds), workers, as_json)


def _space(file: Path | None, overrides: Sequence[str], **options: Any) -> "tuple[SweepSpace, str]":
    """Return the search space, checked, and the text of its file."""
    from pushforward.common.errors import ConfigError
    from pushforward.sweeps.parameter import Parameter
    from pushforward.sweeps.space import (
        parse_space,
        read_space,
        space_for,
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
    from pushforward.experiment.run import plan

    problem = plan(load_config(overrides=[f"{p.key}={p.only}" for p in constants]), strict=False)
    # With the resolved path of a file, which can be found from any working directory.
    source = Parameter.constant("data.source", problem.options.data.source)
    constants = tuple(source if p.key == "data.source" else p for p in constants)
    text = with_constants(space_for(problem), constants)
    space = parse_space(text, "the default space")
    space.check()
    return space, text


def _run(sweep: "Sweep", workers: int, as_json: bool) -> None:
    from pushforward.sweeps.scheduler import run_sweep
    from pushforward.tracking.wandb.tracker import turned_off

    with sweep:
        train = sweep.defaults.train
        budget = f"{train.seconds:g} s" if train.seconds != "auto" else f"{train.steps:,} steps"
        searched = ", ".join(p.key for p in sweep.space.searched)
        trials = f"{sweep.trials_wanted} trials of {budget} each, {workers} at a time"
        print_message(f"{sweep.facts['data']}: {trials}; sweep {sweep.path}")
        if variable := turned_off(sweep.defaults.wandb.mode):
            print_message(f"W&B is off: {variable}")
        if workers > (os.cpu_count() or 1):
            print_message(f"note: {workers} workers share {os.cpu_count()} cores, and the time of each trial")
        print_message(f"searching {searched}; the first trial has the default hyperparameters")
        with progress_bar(sweep.trials_wanted) as (notify, update):
            summary = run_sweep(
                sweep,
                workers=workers,
                notify=notify,
                progress=lambda done, text: update(completed=done, description=text),
            )
        importances = sweep.study.importances()
    best = summary["best"]
    resume = shlex.join(["pushforward", "sweep", "--resume", str(sweep.path)])
    if as_json:
        click.echo(json.dumps(summary | {"importances": importances}))
    elif best is not None:
        for line in _summary_lines(summary, importances):
            click.echo(line)
    if best is None:
        print_message(f"no trial has a result yet; sweep {sweep.path}")
    if sweep.signum is not None:
        print_message(f"stopped by a signal; continue with: {resume}")
        sys.exit(128 + sweep.signum)
    if sweep.has_given_up or best is None:
        print_message(f"continue with: {resume}")
        sys.exit(1)


def _summary_lines(summary: dict[str, Any], importances: dict[str, float]) -> list[str]:
    """Return the best trials, counts, importances and the outcome, as lines of text."""
    from pushforward.sweeps.summary import format_parameters

    done = [t for t in summary["trials"] if t["status"] == "finished" and t["val_nll"] is not None]
    ranked = sorted(done, key=lambda t: (t["val_nll"], t["number"]))[:_SHOWN_TRIALS]
    lines = [f"trial  {summary['metric'].replace('_', ' '):<10}  seconds  parameters"]
    for trial in ranked or [summary["best"]]:
        what = "the defaults: " if trial["is_default"] else ""
        seconds = "-" if trial["seconds"] is None else f"{trial['seconds']:.0f}"
        parameters = format_parameters(trial["parameters"])
        lines.append(f"{trial['number']:>5}  {format_value(trial['val_nll']):<10}  {seconds:>7}  {what}{parameters}")
    counts = ", ".join(f"{count} {status}" for status, count in summary["counts"].items() if count)
    lines += ["", counts]
    if importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importances.items() if share >= 0.005)
        lines.append(f"importance: {shares}")
    best = summary["best"]
    if "gain" in summary:
        rows = f"{summary['validation_rows']:,} validation rows"
        gain = f"{summary['gain']:.4f} ± {summary['gain_se']:.4f}"
        lines.append(f"better than the defaults by {gain} nats on the {rows} that selected it")
    elif best["is_default"]:
        lines.append("no trial is better than the defaults")
    lines.append(f"sweep     {summary['folder']}")
    lines.append(f"best run  {best['run']}")
    lines.append(f"longer fit: {best['refit']}")
    return lines
