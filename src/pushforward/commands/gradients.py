"""``pushforward gradients``."""

import json
from pathlib import Path

import click

from pushforward.commands.common import common_options, finite, print_table, say, split_data

_STEPS = 400


@click.command
@click.argument("arguments", nargs=-1, metavar="TARGET [KEY=VALUE ...]")
@click.option("-c", "--config", "files", multiple=True, type=click.Path(path_type=Path), help="YAML file of keys.")
@click.option("--steps", type=click.IntRange(min=0), help=f"Steps of the training, {_STEPS} if not given; 0 for none.")
@click.option("--checkpoints", type=click.IntRange(min=1), default=5, show_default=True, help="How often is measured.")
@click.option("--points", type=click.IntRange(min=2), help="Rows of a gradient; those of a step if not given.")
@click.option(
    "--replicates", type=click.IntRange(min=3), default=64, show_default=True, help="Gradients by each estimator."
)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    help="Standard deviation of the flow's base to begin with.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Make exactly this folder.")
@click.option(
    "--wandb",
    type=click.Choice(["auto", "online", "offline", "off"]),
    show_default="off",
    help="Where W&B records the study.",
)
@common_options("seed", "device", "json")
def gradients(
    arguments: tuple[str, ...],
    files: tuple[Path, ...],
    steps: int | None,
    checkpoints: int,
    points: int | None,
    replicates: int,
    scale: float | None,
    out: Path | None,
    wandb: str | None,
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure gradient estimators while a flow learns TARGET by the reverse KL.

    TARGET is a density (see `pushforward datasets`) or MODULE:FUNCTION; KEY=VALUE are those of `pushforward fit`, such
    as flow=realnvp or target.features=8. Told from the start to the end of training, for every estimator and layer:
    the mean of the gradient, its variance, the signal-to-noise ratio, and the time of a gradient.

    Where the variances are known they stand beside the measured ones:
    pushforward gradients gaussian target.features=1 flow=gaussian --scale 0.5 --steps 0 --replicates 1000
    """
    from pushforward.common.errors import ConfigError
    from pushforward.config.read import load_config
    from pushforward.gradients.study import study

    source, overrides = split_data(arguments)
    if source is None and not files:
        raise click.UsageError("TARGET is missing: a density's name, as in `pushforward gradients banana`")
    if wandb is None and not files and not any(text.startswith(("wandb=", "wandb.mode=")) for text in overrides):
        wandb = "off"
    config = load_config(source, files, overrides, seed=seed, device=device, wandb=wandb)
    if config.train.seconds != "auto":
        raise ConfigError("train.seconds: a study counts steps; give --steps")
    if steps is None:
        steps = _STEPS if config.train.steps == "auto" else config.train.steps
    elif config.train.steps != "auto":
        raise ConfigError("--steps: train.steps says the same; give one of them")
    done = study(
        config,
        steps=steps,
        points=points,
        replicates=replicates,
        checkpoints=checkpoints,
        scale=scale,
        out=out,
        tell=say,
    )
    if as_json:
        click.echo(json.dumps(finite(done.results)))
        return
    print_table(done.table())
    for table in (done.table_by_group(), done.table_of_formulas()):
        if table:
            click.echo()
            print_table(table)
    results = done.results
    click.echo(
        f"\n{results['points']:,} points a gradient, {results['replicates']:,} gradients by each estimator; variance: "
        f"trace of the covariance of a gradient"
    )
    click.echo(f"numbers   {done.run.path / 'gradients.json'}")
    click.echo(f"picture   {done.run.path / 'gradients.png'}")
