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
from pushforward.evaluate.report import (
    Contexts,
    EvaluationReport,
    SplitScores,
    evaluate_flow,
    latent_noise,
    score_split,
)
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
    *,
    scores: SplitScores,
) -> EvaluationReport:
    """Baselines, samples, latents, inversion, and pictures of all that, as far as there is time."""
    # Drawn once: what is compared, drawn and written are the same points.
    context = prepared.test.context
    drawn = density.sample(_SAMPLES if context is None else len(context), context, seed=config.seed)
    report = evaluate_prepared(prepared, density, seed=config.seed, samples=drawn, scores=scores)
    run.write_json("evaluation.json", report.to_dict())
    if stop():
        return report
    # Named by their rows: the curves are of training and validation rows.
    baselines = {f"{baseline.label}, test": baseline.nll.nll for baseline in report.baselines}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = draw_pictures(run, prepared.dataset, prepared.test, density, drawn, baselines, tell)
    for key, path in pictures.items():
        tracking.image(f"pictures/{key}", path, step=step)
    n = min(_SAMPLES, len(prepared.dataset.rows))
    if context is None:
        shown, rows = np.empty((n, 0)), drawn[:n]
    else:
        shown = _repeat(context, n)
        rows = density.sample(n, shown, seed=config.seed)
    write_table(run.samples / "samples.csv", rows, shown, density.schema)
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


def score_prepared(prepared: Prepared, density: FittedDensity, *, seed: int) -> SplitScores:
    """Log-densities of the rows of a density's own split; the test part may be empty."""
    train, validation, test = prepared.train, prepared.validation, prepared.test
    return score_split(density.flow, train.rows, validation.rows, test.rows, _contexts(prepared), seed=seed)


def evaluate_prepared(
    prepared: Prepared,
    density: FittedDensity,
    *,
    seed: int,
    baselines: bool = True,
    samples: int | Array = _SAMPLES,
    scores: SplitScores | None = None,
) -> EvaluationReport:
    """Everything that is said of a density on its own split; samples and scores are those of ``evaluate_flow``."""
    train, validation, test = prepared.train, prepared.validation, prepared.test
    toy = prepared.dataset.toy
    return evaluate_flow(
        density.flow,
        train.rows,
        validation.rows,
        test.rows,
        columns=prepared.dataset.schema.names,
        standardize_log_det=-prepared.standardize.log_det,
        contexts=_contexts(prepared),
        truth_log_prob=None if toy is None else toy.log_prob,
        seed=seed,
        baselines=baselines,
        baseline_seconds=20.0,
        samples=samples,
        scores=scores,
    )


def draw_pictures(
    run: RunFolder,
    dataset: Dataset,
    test: Part,
    density: FittedDensity,
    drawn: Array,
    baselines: dict[str, float],
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """Draw what there is to see; returns the pictures by name. What cannot be drawn is told and left out.

    Args:
        run: Where the pictures go.
        dataset: What was fitted.
        test: The test rows.
        density: The fitted density.
        drawn: Points drawn from it ``(n, D)``, with context one for each test row.
        baselines: NLL of other densities by name.
        tell: Called with a line about what could not be drawn.
    """
    pictures: dict[str, Path] = {}
    rows, context = test.rows, test.context

    def picture(name: str, draw: Callable[[Path], None]) -> None:
        path = run.pictures / f"{name}.png"
        try:
            draw(path)
        except Exception as error:  # a picture is not worth a fit
            tell(f"warning: no picture '{name}': {' '.join(str(error).split())}")
        else:
            pictures[name] = path

    if context is None:
        drawn = drawn[: max(1_000, len(rows))]
    names = dataset.schema.names
    if len(names) == 2 and context is None:
        truth = None if dataset.toy is None else dataset.toy.log_prob
        picture("density", lambda path: density_2d(density.flow, drawn, rows, truth, path, columns=names))
    else:
        picture("corner", lambda path: corner(drawn, rows, names, path))
    if len(rows) > 1:
        seen = None if context is None else context[:_SAMPLES]
        picture("latent", lambda path: latent(latent_noise(density.flow, rows[:_SAMPLES], seen), path))
    metrics = read_metrics(run.metrics)
    if any("val/nll" in row for row in metrics):
        picture("training", lambda path: training_curves(metrics, path, baselines))
    return pictures


def _contexts(prepared: Prepared) -> Contexts | None:
    train, validation, test = (part.context for part in (prepared.train, prepared.validation, prepared.test))
    if train is None or validation is None or test is None:
        return None
    return train, validation, test


def _repeat(context: Array, n: int) -> Array:
    repeated: Array = context[np.arange(n) % len(context)]
    return repeated
