"""What is said and drawn of a fit once it is there: right after training, or later of a run folder."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pushforward.datasets import DataError, Dataset, read_rows, write_table
from pushforward.evaluate.corner import corner
from pushforward.evaluate.curves import training_curves
from pushforward.evaluate.fitted import FittedDensity
from pushforward.evaluate.likelihood import Array
from pushforward.evaluate.plots import density_2d, latent
from pushforward.evaluate.report import EvaluationReport, evaluate_flow, latent_noise
from pushforward.train.config import Config
from pushforward.train.device import choose_device
from pushforward.train.overrides import load_config
from pushforward.train.prepare import Part, Prepared, check_same_data, load_data, prepare
from pushforward.train.runs import RunFolder
from pushforward.train.tracking import Tracking, read_metrics

_SAMPLES = 10_000


def evaluate_fit(
    run: RunFolder,
    prepared: Prepared,
    density: FittedDensity,
    config: Config,
    tracking: Tracking,
    step: int,
    stop: Callable[[], str],
    tell: Callable[[str], None],
) -> EvaluationReport:
    """Baselines, samples, latents, inversion, and pictures of all that, as far as there is time."""
    report = evaluate_prepared(prepared, density, seed=config.seed)
    run.write_json("evaluation.json", report.to_dict())
    if stop():
        return report
    # Named by their rows: the curves are of training and validation rows.
    baselines = {f"{baseline.label}, test": baseline.nll.nll for baseline in report.baselines}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = draw_pictures(
            run, prepared.dataset, prepared.test.rows, prepared.test.context, density, baselines, tell
        )
    for key, path in pictures.items():
        tracking.image(f"pictures/{key}", path, step=step)
    n = min(_SAMPLES, len(prepared.dataset.rows))
    context = prepared.test.context
    drawn = density.sample(n, None if context is None else _repeat(context, n), seed=config.seed)
    shown = np.empty((n, 0)) if context is None else _repeat(context, n)
    write_table(run.samples / "samples.csv", drawn, shown, density.schema)
    return report


def evaluate_run(
    run: RunFolder, data: str | None = None, *, device: str = "cpu", tell: Callable[[str], None] = lambda text: None
) -> EvaluationReport:
    """Evaluate a finished run again, on its own test rows or on others.

    Args:
        run: The run.
        data: A table that takes the place of the run's test rows.
        device: Where the flow runs.
        tell: Called with notes on the data.

    Raises:
        DataError: If the run's data are gone or changed, or the table does not fit.
        ModelFileError: If the model is missing or damaged.
    """
    config = load_config(files=[run.config])
    density = FittedDensity.load(run.model, device=str(choose_device(device)))
    if data is None:
        prepared = prepare(load_data(config), config.data, config.seed)
        check_same_data(run.schema, run.path, prepared.dataset)
        if not len(prepared.test.rows):
            raise DataError(f"{run.path}: has no test rows (data.test_fraction=0); give a table to evaluate on")
        report = evaluate_prepared(prepared, density, seed=config.seed)
        run.write_json("evaluation.json", report.to_dict())
        return report
    rows, context, notes = read_rows(data, density.schema)
    for note in notes:
        tell(note)
    test = Part(density.dequantizer.fixed(rows), context if density.flow.context else None)
    prepared = prepare(load_data(config), config.data, config.seed)
    check_same_data(run.schema, run.path, prepared.dataset)
    # Rows of a table do not follow the toy's law, even where the run was fitted to one.
    prepared = replace(prepared, test=test, dataset=replace(prepared.dataset, toy=None))
    return evaluate_prepared(prepared, density, seed=config.seed)


def evaluate_prepared(
    prepared: Prepared, density: FittedDensity, *, seed: int, baselines: bool = True
) -> EvaluationReport:
    """Everything that is said of a density on its own split."""
    train, validation, test = prepared.train, prepared.validation, prepared.test
    contexts = None
    if train.context is not None and validation.context is not None and test.context is not None:
        contexts = (train.context, validation.context, test.context)
    toy = prepared.dataset.toy
    return evaluate_flow(
        density.flow,
        train.rows,
        validation.rows,
        test.rows,
        columns=prepared.dataset.schema.names,
        standardize_log_det=-prepared.standardize.log_det,
        contexts=contexts,
        truth_log_prob=None if toy is None else toy.log_prob,
        seed=seed,
        baselines=baselines,
        baseline_seconds=20.0,
    )


def draw_pictures(
    run: RunFolder,
    dataset: Dataset,
    test: Array,
    context: Array | None,
    density: FittedDensity,
    baselines: dict[str, float],
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """Draw what there is to see; returns the pictures by name. What cannot be drawn is told and left out."""
    pictures: dict[str, Path] = {}

    def picture(name: str, draw: Callable[[Path], None]) -> None:
        path = run.pictures / f"{name}.png"
        try:
            draw(path)
        except Exception as error:  # a picture is not worth a fit
            tell(f"warning: no picture '{name}': {' '.join(str(error).split())}")
        else:
            pictures[name] = path

    n = min(_SAMPLES, max(1_000, len(test)))
    drawn = density.sample(n if context is None else len(test), context, seed=1)
    names = dataset.schema.names
    if len(names) == 2 and context is None:
        truth = None if dataset.toy is None else dataset.toy.log_prob
        picture("density", lambda path: density_2d(density.flow, drawn, test, truth, path, columns=names))
    else:
        picture("corner", lambda path: corner(drawn, test, names, path))
    if len(test) > 1:
        seen = None if context is None else context[:_SAMPLES]
        picture("latent", lambda path: latent(latent_noise(density.flow, test[:_SAMPLES], seen), path))
    metrics = read_metrics(run.metrics)
    if any("val/nll" in row for row in metrics):
        picture("training", lambda path: training_curves(metrics, path, baselines))
    return pictures


def _repeat(context: Array, n: int) -> Array:
    repeated: Array = context[np.arange(n) % len(context)]
    return repeated
