"""Evaluate a fit and write its numbers, pictures and samples: right after training, or later from a run folder."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pushforward.common.errors import DataError, RunUsageError
from pushforward.common.text import one_line
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.datasets import Dataset, open_rows, write_table
from pushforward.datasets.targets.names import PREFIX
from pushforward.evaluate.calibration import Calibration
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.evaluation import (
    EvaluationReport,
    SplitRows,
    SplitScores,
    evaluate_flow,
    score_split,
)
from pushforward.evaluate.extremes import Extremes, ScoredRow, extreme_rows
from pushforward.evaluate.plots.calibration import pit, quantiles
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.density import density_2d, latent
from pushforward.evaluate.plots.training import training_curves
from pushforward.evaluate.sampling import latents
from pushforward.evaluate.statistics import Array
from pushforward.experiment.data_source import accept_data, check_source, find_copy, has_test_rows
from pushforward.reports.run import write_report
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import rows_fingerprint, write_row_scores
from pushforward.tracking.base import Tracking
from pushforward.tracking.jsonl import read_metrics
from pushforward.train.data import Prepared, SplitPart, load_data, prepare
from pushforward.train.device import choose_device
from pushforward.train.objectives.bound import BOUNDS

_SAMPLES = 10_000

_CAPTIONS = {
    "density": "Fitted density and samples of the flow",
    "corner": "Samples of the flow against test rows, every pair of columns",
    "latent": "Test rows in latent space, against N(0, 1)",
    "quantiles": "Quantiles of samples against those of test rows, column by column",
    "pit": "Probability integral transform of test rows: uniform for a perfect fit",
    "training": "Training curves, with the baselines' NLL on the validation rows",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluation of a fit.

    Attributes:
        report: The numbers.
        extremes: The test rows with the lowest and the highest density.
        drawn: The samples ``(n, D)`` that numbers and pictures use; with context one for each test row.
        seed: Seed of the samples.
        steps: Training steps of the density.
    """

    report: EvaluationReport
    extremes: Extremes
    drawn: Array
    seed: int
    steps: int


SafeWriter = Callable[[Callable[[], object]], object]
"""Calls a function that writes something, and turns its errors into warnings."""


Notify = Callable[[str], object]
"""Called with one line for the user."""


def evaluate_fit(
    prepared: Prepared, density: FittedDensity, config: Config, scores: SplitScores, steps: int, notify: Notify
) -> Evaluation:
    """Evaluate a density after so many training steps: baselines, samples, latents, calibration, inversion."""
    # Drawn once: numbers, pictures and samples.csv use the same samples.
    context = prepared.test.context
    drawn = density.sample(_SAMPLES if context is None else len(context), context, seed=config.seed)
    report = evaluate_prepared(prepared, density, seed=config.seed, samples=drawn, scores=scores, notify=notify)
    return Evaluation(report, find_extremes(prepared, scores), drawn, config.seed, steps)


def write_evaluation(
    run: RunFolder,
    prepared: Prepared,
    density: FittedDensity,
    evaluation: Evaluation,
    tracking: Tracking | None = None,
    write_safely: SafeWriter = lambda write: write(),
    stop: Callable[[], str] = lambda: "",
    notify: Notify = lambda text: None,
) -> None:
    """Write the numbers, the pictures and the samples of an evaluation.

    Args:
        run: The run folder.
        prepared: The data.
        density: The density.
        evaluation: Its evaluation.
        tracking: The trackers, if any.
        write_safely: Called with each function that writes something.
        stop: Returns a reason to leave out pictures and samples, or an empty string.
        notify: Called with a line before the pictures, and about each that could not be drawn.
    """
    report, extremes, drawn, step = evaluation.report, evaluation.extremes, evaluation.drawn, evaluation.steps
    numbers = report.to_dict() | {"extreme_rows": extremes.to_dict(), "steps": step}
    write_safely(lambda: run.write_json("evaluation.json", numbers))
    if tracking is not None:
        tracking.table("tables/worst_rows", *_as_table(extremes.worst), step=step)
        lines = {f"baseline/{b.name}": b.validation_nll for b in report.baselines}
        write_safely(lambda: tracking.reference_lines(lines, step))
        write_safely(lambda: tracking.summary({f"gain/{name}": gain for name, (gain, _) in report.gains.items()}))
    if stop():
        return
    baselines = {baseline.label: baseline.validation_nll for baseline in report.baselines}
    notify("evaluating: pictures")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = draw_pictures(
            run, prepared.dataset, prepared.test, density, drawn, baselines, report.calibration, notify
        )
    if tracking is not None:
        image = tracking.image
        for key, path in pictures.items():
            write_safely(partial(image, f"pictures/{key}", path, _CAPTIONS[key], step))
    n = min(_SAMPLES, len(prepared.dataset.rows))
    context = prepared.test.context
    if context is None:
        shown, rows = np.empty((n, 0)), drawn[:n]
    else:
        shown = _repeat(context, n)
        rows = density.sample(n, shown, seed=evaluation.seed)
    write_safely(lambda: write_table(run.samples / "samples.csv", rows, shown, density.schema))


def forget_evaluation(run: RunFolder) -> None:
    """Remove the files of :func:`write_evaluation`, because the model has been replaced."""
    for path in (run.path / "evaluation.json", run.samples / "samples.csv", *run.pictures.glob("*.png")):
        path.unlink(missing_ok=True)


def evaluate_run(
    run: RunFolder, data: str | None = None, *, device: str = "cpu", notify: Notify = lambda text: None
) -> EvaluationReport:
    """Evaluate a finished run again: on its own test rows, which updates its files and its report, or on other rows.

    Args:
        run: The run.
        data: A table, or the name of a data set, instead of the run's test rows. The file that the run was fitted to
            stands for these test rows, also if it has been moved.
        device: The device of the flow.
        notify: Called with notes about the data, and before each part of the evaluation.

    Raises:
        DataError: If the run's data are missing or changed, or the table does not fit.
        ModelFileError: If the model is missing or damaged.
        RunUsageError: If the run is not a fit of a flow to rows.
        RunError: If another process uses the run.
    """
    config = load_config(files=[run.config])
    if config.data.source.startswith(PREFIX):
        raise RunUsageError(
            f"{run.path}: is a fit to a target, which has no rows to evaluate on; see its results.json and its report; "
            "pushforward score computes log-densities of rows"
        )
    if config.train.objective in BOUNDS:
        raise RunUsageError(
            f"{run.path}: is a fit of an autoencoder, whose likelihood is known only by a bound, so that it cannot be "
            "evaluated like a flow; pushforward score computes the bounds of rows"
        )
    copy = None if data is None else find_copy(run, data)
    if copy is not None:  # the file that the run was fitted to, which may have moved
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": copy})})
        if has_test_rows(run):
            notify(f"{data}: is the file that {run.path} was fitted to; its test rows are evaluated")
            data = None
    command = f"pushforward evaluate {run.path} FILE"
    check_source(run, config.data, command)
    if data is None:
        run.claim()
        try:
            return _evaluate_again(run, config, command, device, notify)
        finally:
            run.release()
    name = "stdin" if data == "-" else Path(data).name
    density = FittedDensity.load(run.model, device=str(choose_device(device)))
    given = open_rows(data, density.schema, missing=config.data.missing)
    rows, context = (np.concatenate(matrices) for matrices in zip(*given, strict=True))
    for note in (*given.notes, *given.findings):
        notify(note)
    test = SplitPart(density.dequantizer.fixed(rows), context if density.flow.context else None)
    prepared = prepare(load_data(config), config.data, config.data_seed)
    run.claim()
    try:
        config, prepared, moved = accept_data(run, config, prepared, command)
    finally:
        run.release()
    if moved:
        notify(moved)
    # The rows of a table do not come from the toy's distribution, even if the run was fitted to a toy.
    prepared = replace(prepared, test=test, dataset=replace(prepared.dataset, toy=None))
    return evaluate_prepared(prepared, density, seed=config.seed, evaluated=name, notify=notify)


def _evaluate_again(run: RunFolder, config: Config, command: str, device: str, notify: Notify) -> EvaluationReport:
    density = FittedDensity.load(run.model, device=str(choose_device(device)))
    prepared = prepare(load_data(config), config.data, config.data_seed)
    config, prepared, moved = accept_data(run, config, prepared, command)
    if moved:
        notify(moved)
    if not len(prepared.test.rows):
        raise DataError(f"{run.path}: has no test rows (data.test_fraction=0); give a table to evaluate on")
    scores = score_prepared(prepared, density, seed=config.seed)
    results = json.loads(run.results.read_text(encoding="utf-8")) if run.results.exists() else {}
    evaluation = evaluate_fit(prepared, density, config, scores, results.get("steps", 0), notify)
    write_row_scores(run, prepared.dataset.in_file(prepared.splits.test), scores.test)
    fingerprint = rows_fingerprint(prepared.dataset.schema.names, prepared.test.rows)
    run.write_json("results.json", results | {"test_rows_sha256": fingerprint})
    write_evaluation(run, prepared, density, evaluation, notify=notify)
    write_report(run)
    return evaluation.report


def find_extremes(prepared: Prepared, scores: SplitScores) -> Extremes:
    """The test rows with the lowest and the highest density, as recorded, with their context."""
    dataset, numbers = prepared.dataset, prepared.splits.test
    rows = np.concatenate([dataset.rows[numbers], dataset.context[numbers]], axis=1)
    return extreme_rows(
        scores.test, rows, dataset.in_file(numbers), (*dataset.schema.names, *dataset.schema.context_names)
    )


def _as_table(rows: list[ScoredRow]) -> tuple[list[str], list[list[float]]]:
    columns = ["row", "log_prob", *(rows[0].values if rows else ())]
    return columns, [[row.row, row.log_prob, *row.values.values()] for row in rows]


def score_prepared(prepared: Prepared, density: FittedDensity, *, seed: int) -> SplitScores:
    """Log-densities of the rows of the three parts; the test part may be empty."""
    return score_split(density.flow, _split_rows(prepared), seed=seed)


def evaluate_prepared(
    prepared: Prepared,
    density: FittedDensity,
    *,
    seed: int,
    baselines: bool = True,
    samples: int | Array = _SAMPLES,
    scores: SplitScores | None = None,
    evaluated: str = "test rows",
    notify: Notify = lambda text: None,
) -> EvaluationReport:
    """Evaluate a density on prepared data; the options are those of ``evaluate_flow``."""
    toy = prepared.dataset.toy
    return evaluate_flow(
        density.flow,
        _split_rows(prepared),
        columns=prepared.dataset.schema.names,
        standardize_log_det=-prepared.standardize.log_det,
        true_log_prob=None if toy is None else toy.log_prob,
        seed=seed,
        baselines=baselines,
        baseline_seconds=20.0,
        samples=samples,
        scores=scores,
        evaluated=evaluated,
        notify=notify,
    )


def draw_pictures(
    run: RunFolder,
    dataset: Dataset,
    test: SplitPart,
    density: FittedDensity,
    drawn: Array,
    baselines: dict[str, float],
    calibration: Calibration | None,
    notify: Notify = lambda text: None,
) -> dict[str, Path]:
    """Draw the pictures of an evaluation, and return their paths by name; a picture that fails is left out.

    Args:
        run: The run folder.
        dataset: The data set.
        test: The test rows.
        density: The fitted density.
        drawn: Samples of it ``(n, D)``, with context one for each test row.
        baselines: NLL of the baselines on the validation rows, by name.
        calibration: The data of the calibration plots, if any.
        notify: Called with one line about a picture that failed.
    """
    pictures: dict[str, Path] = {}
    rows, context = test.rows, test.context

    def picture(name: str, draw: Callable[[Path], None]) -> None:
        path = run.pictures / f"{name}.png"
        try:
            draw(path)
        except Exception as error:  # a failed picture must not end the fit
            notify(f"warning: no picture '{name}': {one_line(error)}")
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


def _split_rows(prepared: Prepared) -> SplitRows:
    train, validation, test = prepared.train, prepared.validation, prepared.test
    contexts = None
    if train.context is not None and validation.context is not None and test.context is not None:
        contexts = train.context, validation.context, test.context
    return SplitRows(train.rows, validation.rows, test.rows, contexts)


def _repeat(context: Array, n: int) -> Array:
    repeated: Array = context[np.arange(n) % len(context)]
    return repeated
