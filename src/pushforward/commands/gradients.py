"""``pushforward gradients``: measure gradient estimators."""

import json
from pathlib import Path

import click

from pushforward.commands.common import WholeNumber, common_options, print_message, print_table, split_data
from pushforward.common.files import json_safe

_STEPS = 400
_EXAMPLE = """\b
Example, whose known variances are shown beside the measured ones:
  pushforward gradients gaussian target.features=1 flow=gaussian \\
    --scale 0.5 --steps 0 --replicates 1000
"""


@click.command(epilog=_EXAMPLE)
@click.argument("arguments", nargs=-1, metavar="TARGET [KEY=VALUE ...]")
@click.option(
    "-c", "--config", "files", multiple=True, type=click.Path(path_type=Path), help="YAML file with configuration keys."
)
@click.option("--steps", type=WholeNumber(0), help=f"Training steps; default: {_STEPS}.")
@click.option("--checkpoints", type=WholeNumber(1), default=5, show_default=True, help="Number of measurements.")
@click.option("--samples", type=WholeNumber(2), help="Samples per gradient; default: the batch size.")
@click.option(
    "--replicates",
    type=WholeNumber(3),
    default=64,
    show_default=True,
    help="Gradients per estimator and measurement.",
)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    help="Initial standard deviation of the base distribution.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to create.")
@click.option(
    "--wandb",
    type=click.Choice(["auto", "online", "offline", "off"]),
    show_default="off",
    help="Mode of Weights & Biases.",
)
@common_options("seed", "device", "json")
def gradients(
    arguments: tuple[str, ...],
    files: tuple[Path, ...],
    steps: int | None,
    checkpoints: int,
    samples: int | None,
    replicates: int,
    scale: float | None,
    out: Path | None,
    wandb: str | None,
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure gradient estimators while a flow is fitted to TARGET by the reverse KL divergence.

    TARGET is a target density (see `pushforward datasets`) or MODULE:FUNCTION; KEY=VALUE are those of `pushforward
    fit`, such as flow=realnvp or target.features=8. For every estimator and layer, from the start to the end of
    training: the mean of the gradient, its variance, the signal-to-noise ratio, and the time of a gradient.
    """
    from pushforward.common.errors import ConfigError
    from pushforward.config.read import load_config
    from pushforward.gradients.study import study

    source, overrides = split_data(arguments)
    if source is None and not files:
        raise click.UsageError("TARGET is missing: give the name of a density, as in `pushforward gradients banana`")
    if wandb is None and not files and not any(text.startswith(("wandb=", "wandb.mode=")) for text in overrides):
        wandb = "off"
    config = load_config(source, files, overrides, seed=seed, device=device, wandb=wandb)
    if config.train.seconds != "auto":
        raise ConfigError("train.seconds: the budget of this command is in steps; give --steps")
    if steps is None:
        steps = _STEPS if config.train.steps == "auto" else config.train.steps
    elif config.train.steps != "auto":
        raise ConfigError("--steps: train.steps has the same meaning; give one of them")
    done = study(
        config,
        steps=steps,
        samples=samples,
        replicates=replicates,
        checkpoints=checkpoints,
        scale=scale,
        out=out,
        notify=print_message,
    )
    if as_json:
        click.echo(json.dumps(json_safe(done.results)))
        return
    print_table(done.table())
    for table in (done.table_by_group(), done.table_of_formulas()):
        if table:
            click.echo()
            print_table(table)
    results = done.results
    click.echo(
        f"\n{results['samples']:,} samples per gradient, {results['replicates']:,} gradients per estimator; "
        "variance: trace of the covariance of the gradient"
    )
    click.echo(f"numbers   {done.run.path / 'gradients.json'}")
    click.echo(f"picture   {done.run.path / 'gradients.png'}")
