"""``pushforward fit``: fit a density to data."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pushforward.commands.common import common_options, print_message, split_data
from pushforward.common.files import json_safe

if TYPE_CHECKING:
    from pushforward.config.schema import Config
    from pushforward.experiment.result import Fit


class _Fit(click.Command):
    """The fit command, whose help ends with the lists of flows, those of plugins too, and of configuration keys."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from pushforward.common.plugins import load_plugins
        from pushforward.config.read import describe_keys
        from pushforward.flows.registries import FLOWS

        load_plugins(print_message)
        with formatter.section("Flows"):
            formatter.write_dl([(name, FLOWS.about(name)) for name in FLOWS.names()])
        with formatter.section("Keys"):
            rows = [
                (f"{key.key}={key.default}", key.description) for key in describe_keys() if key.key != "data.source"
            ]
            formatter.write_dl(rows)


@click.command(cls=_Fit)
@click.argument("arguments", nargs=-1, metavar="DATA [KEY=VALUE ...]")
@click.option(
    "-c",
    "--config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with configuration keys, or recipe:NAME.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to create.")
@click.option("--resume", "resumed", type=click.Path(path_type=Path), metavar="RUN", help="Resume a run.")
@click.option("--wandb", type=click.Choice(["auto", "online", "offline", "off"]), help="Mode of Weights & Biases.")
@click.option("--dry-run", is_flag=True, help="Check the configuration and the data, build the flow, and exit.")
@click.option("--print-config", is_flag=True, help="Print the configuration as YAML, and exit.")
@common_options("seed", "device", "json")
def fit(
    arguments: tuple[str, ...],
    files: tuple[Path, ...],
    out: Path | None,
    resumed: Path | None,
    wandb: str | None,
    dry_run: bool,
    print_config: bool,
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Fit a density to DATA and create a run folder.

    DATA is the name of a toy density or a data set (see `pushforward datasets`), a file (delimited text, JSON lines,
    Parquet, Feather, a workbook, .npy; compressed or not; - is stdin), or an unnormalised density: target:NAME, or
    target:MODULE:FUNCTION with target.features=D.
    KEY=VALUE sets a configuration key, such as flow=nsf-ar, train.seconds=60 or data.drop=id; --print-config shows all
    keys. `pushforward recipes` lists configurations from the literature for -c.
    """
    from pushforward.common.errors import ConfigError
    from pushforward.config.read import load_config
    from pushforward.tracking.registry import check_trackers

    # DATA is optional: it may be in the run (--resume) or in a YAML file.
    data, overrides = split_data(arguments)
    if resumed is not None:
        if files or seed is not None or out is not None:
            raise ConfigError("--resume: takes -c, --seed and --out from the run; leave them out")
        if dry_run or print_config:
            raise ConfigError("--resume: cannot be combined with --dry-run or --print-config")
        from pushforward.experiment.run import resume

        if data is not None:  # the file of the run, which was moved
            overrides = [f"data.source={data}", *overrides]
        _finish_fit(resume(resumed, tuple(overrides), quiet=False, device=device, wandb=wandb), as_json)
        return
    config = load_config(data, files, overrides, seed=seed, device=device, wandb=wandb)
    check_trackers(config.track)
    if print_config:
        click.echo(config.to_yaml(), nl=False)
        return
    if dry_run:
        config, facts, notes = _dry_run(config)
        if as_json:
            click.echo(json.dumps(facts | {"config": config.model_dump(mode="json")}))
        else:
            click.echo(config.to_yaml(), nl=False)
            # Below the configuration, so that a terminal shows them above the prompt.
            for note in notes:
                print_message(note)
            for key, value in facts.items():
                print_message(f"{key:<10}  {value:,}" if isinstance(value, int) else f"{key:<10}  {value}")
            print_message("nothing was fitted; leave out --dry-run to fit")
        return
    from pushforward.experiment.run import fit as run_fit

    _finish_fit(run_fit(config, out=out), as_json)


def _dry_run(config: "Config") -> "tuple[Config, dict[str, object], tuple[str, ...]]":
    """Return the resolved configuration, facts to print, and notes on the data."""
    from pushforward.config.resolved import resolved
    from pushforward.experiment.run import plan
    from pushforward.train.device import choose_device

    problem = plan(config)
    notes = tuple(problem.notes)
    if problem.is_open:
        notes += (
            "flow=auto: the fit chooses the kind and number of flows by the time of a step; this is the first choice",
        )
    model = problem.build()
    problem.check(model.to(choose_device(config.device)))
    parameters = sum(p.numel() for p in model.parameters())
    facts: dict[str, object] = {"dataset": problem.name, **problem.plan_facts}
    facts |= {"flow": problem.description, "parameters": parameters}
    return resolved(config, problem.options, problem.uses), facts, notes


def _finish_fit(result: "Fit", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(json_safe(result.results)))
    else:
        for line in result.lines():
            click.echo(line)
    if result.signum is not None:
        resume_command = f"pushforward fit --resume {result.run.path}"
        print_message(f"stopped by a signal; the best weights are saved; continue with: {resume_command}")
        sys.exit(128 + result.signum)
