"""What is said and drawn of a fit once it is there: right after training, or later of a run folder."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pushforward.common.errors import DataError, RunUsageError
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.datasets import Dataset, open_rows, write_table
from pushforward.datasets.targets.names import PREFIX
from pushforward.evaluate.calibration import Calibration
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.evaluation import (
    Contexts,
    EvaluationReport,
    SplitScores,
    evaluate_flow,
    latents,
    score_split,
)
from pushforward.evaluate.extremes import Extremes, ScoredRow, extreme_rows
from pushforward.evaluate.likelihood import Array
from pushforward.evaluate.plots.calibration import pit, quantiles
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.density import density_2d, latent
from pushforward.evaluate.plots.training import training_curves
from pushforward.reports.run import write_report
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import rows_fingerprint, write_row_scores
from pushforward.tracking.base import Tracking
from pushforward.tracking.jsonl import read_metrics
from pushforward.train.data import Part, Prepared, check_same_data, load_data, prepare
from pushforward.train.device import choose_device
from pushforward.train.objectives.bound import OBJECTIVES

_SAMPLES = 10_000

_CAPTIONS = {
    "density": "Fitted density and samples of the flow",
    "corner": "Samples of the flow against test rows, every pair of columns",
    "latent": "Noise that the flow makes of test rows, against N(0, 1)",
    "quantiles": "Quantiles of samples against those of test rows, column by column",
    "pit": "Probability integral transform of test rows: flat under a perfect fit",
    "training": "Training record, with the baselines' NLL on the validation rows",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found out about a fit.

    Attributes:
        report: The numbers.
        extremes: The test rows with the lowest and the highest density.
        drawn: Samples ``(n, D)`` behind the numbers and the pictures; with context one for each test row.
        seed: What decided them.
        steps: Steps of training behind the density.
    """

    report: EvaluationReport
    extremes: Extremes
    drawn: Array
    seed: int
    steps: int


Keep = Callable[[Callable[[], object]], object]
"""Does something that may find no room on the disk, and goes on where it does not."""


def evaluate_fit(
    prepared: Prepared, density: FittedDensity, config: Config, scores: SplitScores, steps: int
) -> Evaluation:
    """Baselines, samples, latents, calibration and inversion of a density after so many steps of training."""
    # Drawn once: what is compared, drawn and written are the same points.
    context = prepared.test.context
    drawn = density.sample(_SAMPLES if context is None else len(context), context, seed=config.seed)
    report = evaluate_prepared(prepared, density, seed=config.seed, samples=drawn, scores=scores)
    return Evaluation(report, find_extremes(prepared, scores), drawn, config.seed, steps)


def write_evaluation(
    run: RunFolder,
    prepared: Prepared,
    density: FittedDensity,
    evaluation: Evaluation,
    tracking: Tracking | None = None,
    keep: Keep = lambda write: write(),
    stop: Callable[[], str] = lambda: "",
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the numbers, the pictures and the samples, as far as there is time.

    Args:
        run: Where to.
        prepared: The data.
        density: What was evaluated.
        evaluation: What was found.
        tracking: What else is told of it.
        keep: Called with each thing to be written.
        stop: Asked for a reason to leave out the rest.
        tell: Called with a line about what could not be drawn.
    """
    report, extremes, drawn, step = evaluation.report, evaluation.extremes, evaluation.drawn, evaluation.steps
    numbers = report.to_dict() | {"extreme_rows": extremes.to_dict(), "steps": step}
    keep(lambda: run.write_json("evaluation.json", numbers))
    if tracking is not None:
        tracking.table("tables/worst_rows", *_as_table(extremes.worst), step=step)
        lines = {f"baseline/{b.name}": b.validation_nll for b in report.baselines}
        keep(lambda: tracking.reference_lines(lines, step))
        keep(lambda: tracking.summary({f"gain/{name}": gain for name, (gain, _) in report.gains.items()}))
    if stop():
        return
    baselines = {baseline.label: baseline.validation_nll for baseline in report.baselines}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = draw_pictures(
            run, prepared.dataset, prepared.test, density, drawn, baselines, report.calibration, tell
        )
    if tracking is not None:
        image = tracking.image
        for key, path in pictures.items():
            keep(partial(image, f"pictures/{key}", path, _CAPTIONS[key], step))
    n = min(_SAMPLES, len(prepared.dataset.rows))
    context = prepared.test.context
    if context is None:
        shown, rows = np.empty((n, 0)), drawn[:n]
    else:
        shown = _repeat(context, n)
        rows = density.sample(n, shown, seed=evaluation.seed)
    keep(lambda: write_table(run.samples / "samples.csv", rows, shown, density.schema))


def forget_evaluation(run: RunFolder) -> None:
    """Remove what :func:`write_evaluation` wrote: the model it is about has been replaced."""
    for path in (run.path / "evaluation.json", run.samples / "samples.csv", *run.pictures.glob("*.png")):
        path.unlink(missing_ok=True)


def evaluate_run(
    run: RunFolder, data: str | None = None, *, device: str = "cpu", tell: Callable[[str], None] = lambda text: None
) -> EvaluationReport:
    """Evaluate a finished run again: on its own test rows, which renews its files and its page, or on others.

    Args:
        run: The run.
        data: A table, or the name of a data set, that takes the place of the run's test rows.
        device: Where the flow runs.
        tell: Called with notes on the data.

    Raises:
        DataError: If the run's data are gone or changed, or the table does not fit.
        ModelFileError: If the model is missing or damaged.
        RunUsageError: If the run is no fit of a flow to rows.
        RunError: If the run is being fitted.
    """
    config = load_config(files=[run.config])
    if config.data.source.startswith(PREFIX):
        raise RunUsageError(
            f"{run.path}: is a fit to a target, which has no rows to evaluate on; its results.json and its page have "
            "what is known of it, and pushforward score gives log-densities of points"
        )
    if config.train.objective in OBJECTIVES:
        raise RunUsageError(
            f"{run.path}: is a fit of an autoencoder, whose likelihood is bounded and not known: it cannot be "
            "evaluated as a flow; pushforward score gives the bounds of rows"
        )
    if data is None:
        run.claim()
        try:
            return _evaluate_again(run, config, device, tell)
        finally:
            run.release()
    density = FittedDensity.load(run.model, device=str(choose_device(device)))
    given = open_rows(data, density.schema)
    for note in given.notes:
        tell(note)
    rows, context = (np.concatenate(matrices) for matrices in zip(*given, strict=True))
    test = Part(density.dequantizer.fixed(rows), context if density.flow.context else None)
    prepared = prepare(load_data(config), config.data, config.data_seed)
    check_same_data(run.schema, run.path, prepared.dataset)
    # Rows of a table do not follow the toy's law, even where the run was fitted to one.
    prepared = replace(prepared, test=test, dataset=replace(prepared.dataset, toy=None))
    return evaluate_prepared(prepared, density, seed=config.seed)


def _evaluate_again(run: RunFolder, config: Config, device: str, tell: Callable[[str], None]) -> EvaluationReport:
    density = FittedDensity.load(run.model, device=str(choose_device(device)))
    prepared = prepare(load_data(config), config.data, config.data_seed)
    check_same_data(run.schema, run.path, prepared.dataset)
    if not len(prepared.test.rows):
        raise DataError(f"{run.path}: has no test rows (data.test_fraction=0); give a table to evaluate on")
    scores = score_prepared(prepared, density, seed=config.seed)
    results = json.loads(run.results.read_text(encoding="utf-8")) if run.results.exists() else {}
    evaluation = evaluate_fit(prepared, density, config, scores, results.get("steps", 0))
    write_row_scores(run, prepared.splits.test, scores.test)
    fingerprint = rows_fingerprint(prepared.dataset.schema.names, prepared.test.rows)
    run.write_json("results.json", results | {"test_rows_sha256": fingerprint})
    write_evaluation(run, prepared, density, evaluation, tell=tell)
    write_report(run)
    return evaluation.report


def find_extremes(prepared: Prepared, scores: SplitScores) -> Extremes:
    """The test rows that the density finds least and most likely, as recorded, with their context."""
    dataset, numbers = prepared.dataset, prepared.splits.test
    rows = np.concatenate([dataset.rows[numbers], dataset.context[numbers]], axis=1)
    return extreme_rows(scores.test, rows, numbers, (*dataset.schema.names, *dataset.schema.context_names))


def _as_table(rows: list[ScoredRow]) -> tuple[list[str], list[list[float]]]:
    columns = ["row", "log_prob", *(rows[0].values if rows else ())]
    return columns, [[row.row, row.log_prob, *row.values.values()] for row in rows]


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
    calibration: Calibration | None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """Draw what there is to see; returns the pictures by name. What cannot be drawn is told and left out.

    Args:
        run: Where the pictures go.
        dataset: What was fitted.
        test: The test rows.
        density: The fitted density.
        drawn: Rows drawn from it ``(n, D)``, with context one for each test row.
        baselines: NLL of other densities on the validation rows, by name.
        calibration: What the calibration plots show, if there is anything.
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
        picture("latent", lambda path: latent(latents(density.flow, rows[:_SAMPLES], seen), path))
    if calibration is not None:
        picture("quantiles", lambda path: quantiles(calibration, path))
        picture("pit", lambda path: pit(calibration, path))
    if run.metrics.exists():
        picture("training", lambda path: training_curves(read_metrics(run.metrics), path, baselines))
    return pictures


def _contexts(prepared: Prepared) -> Contexts | None:
    train, validation, test = (part.context for part in (prepared.train, prepared.validation, prepared.test))
    if train is None or validation is None or test is None:
        return None
    return train, validation, test


def _repeat(context: Array, n: int) -> Array:
    repeated: Array = context[np.arange(n) % len(context)]
    return repeated
