"""Write the evaluation of a fit: its numbers, pictures and samples; and evaluate a run again later."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pushforward.common.errors import DataError
from pushforward.common.text import one_line
from pushforward.config.read import load_config
from pushforward.datasets import open_rows, write_table
from pushforward.datasets.named_rows import weight_notes
from pushforward.evaluate.density import FittedDensity
from pushforward.experiment.data_source import accept_data, check_source, find_copy, has_test_rows
from pushforward.reports.run import write_report
from pushforward.runs.folder import RunFolder, check_model
from pushforward.runs.row_scores import write_row_scores
from pushforward.tracking.jsonl import read_metrics
from pushforward.tracking.progress import WARNING
from pushforward.tracking.trackers import Tracking
from pushforward.train.device import choose_device
from pushforward.train.problems.base import Evaluation, Figure, Notify, Problem, Scores
from pushforward.train.problems.registry import plan

SafeWriter = Callable[[Callable[[], object]], object]
"""Calls a function that writes something, and turns its errors into warnings."""


def write_evaluation(
    run: RunFolder,
    density: FittedDensity,
    evaluation: Evaluation,
    step: int,
    *,
    tracking: Tracking | None = None,
    write_safely: SafeWriter = lambda write: write(),
    stop: Callable[[], str] = lambda: "",
    notify: Notify = lambda text: None,
) -> None:
    """Write the numbers, the pictures and the samples of an evaluation.

    Args:
        run: The run folder.
        density: The density.
        evaluation: Its evaluation.
        step: Training steps of the density.
        tracking: The trackers, if any.
        write_safely: Called with each function that writes something.
        stop: Returns a reason to leave out pictures and samples, or an empty string.
        notify: Called with a line before the pictures, and about each that could not be drawn.
    """
    if evaluation.numbers:
        write_safely(lambda: run.write_json("evaluation.json", dict(evaluation.numbers) | {"steps": step}))
    if tracking is not None:
        if evaluation.table is not None:
            tracking.table("tables/worst_rows", *evaluation.table, step=step)
        write_safely(lambda: tracking.reference_lines(evaluation.references, step))
        write_safely(lambda: tracking.summary(evaluation.summary))
    if stop():
        return
    notify("evaluating: pictures")
    figures = [*evaluation.figures]
    if evaluation.baselines and run.metrics.exists():
        from pushforward.evaluate.plots.training import training_curves

        def draw(path: Path) -> None:
            training_curves(read_metrics(run.metrics), path, dict(evaluation.baselines))

        figures.append(Figure("training", "Training curves, with the baselines' NLL on the validation rows", draw))
    for figure in figures:
        path = run.pictures / f"{figure.name}.png"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                figure.draw(path)
            except Exception as error:  # a failed picture must not end the fit
                notify(f"{WARNING}no picture '{figure.name}': {one_line(error)}")
                continue
        if tracking is not None:
            write_safely(partial(tracking.image, f"pictures/{figure.name}", path, figure.caption, step))
    write_safely(lambda: write_table(run.samples / "samples.csv", *evaluation.samples, density.schema))


def forget_evaluation(run: RunFolder) -> None:
    """Remove the files of :func:`write_evaluation`, because the model has been replaced."""
    for path in (run.path / "evaluation.json", run.samples / "samples.csv", *run.pictures.glob("*.png")):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class EvaluatedRun:
    """The evaluation of a run, from :func:`evaluate_run`.

    Attributes:
        scores: The final numbers.
        evaluation: Everything else.
        lines: Both as lines of text.
    """

    scores: Scores
    evaluation: Evaluation
    lines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values: those of the evaluation, and the final numbers where it has none of that name."""
        return dict(self.scores.numbers) | dict(self.evaluation.numbers)


def evaluate_run(
    run: RunFolder, data: str | None = None, *, device: str = "cpu", notify: Notify = lambda text: None
) -> EvaluatedRun:
    """Evaluate a finished run again: on its own test rows, which updates its files and its report, or on other rows.

    Args:
        run: The run.
        data: A table, or the name of a data set, instead of the run's test rows; for a fit to a target, samples of the
            target. The file that the run was fitted to stands for these test rows, also if it has been moved.
        device: The device of the flow.
        notify: Called with notes about the data, and before each part of the evaluation.

    Raises:
        DataError: If the run's data are missing or changed, or the table does not fit.
        ModelFileError: If the model is missing or damaged.
        RunError: If another process uses the run.
    """
    check_model(run)
    config = load_config(files=[run.config])
    copy = None if data is None else find_copy(run, data)
    if copy is not None:  # the file that the run was fitted to, which may have moved
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": copy})})
        if has_test_rows(run):
            notify(f"{data}: is the file that {run.path} was fitted to; its test rows are evaluated")
            data = None
    command = f"pushforward evaluate {run.path} FILE"
    cannot = "it cannot be evaluated again; the likelihood of other rows:"
    check_source(run, config.data, command, f"{cannot} pushforward score {run.path} FILE")
    density = FittedDensity.load(run.model, device=str(choose_device(device)))
    rows = context = np.empty((0, 0))
    weights = None
    if data is not None:
        given = open_rows(data, density.schema, missing=config.data.missing, weight=config.data.weight)
        rows, context = (np.concatenate(matrices) for matrices in zip(*given, strict=True))
        weights = None if given.weights is None else np.concatenate(given.weights)
        for note in (*given.notes, *given.findings, *weight_notes(given, data, config.data.weight)):
            notify(note)
    run.claim()
    try:
        problem = plan(config.model_dump())
        _, moved = accept_data(run, config, problem, command)
        if moved:
            notify(moved)
        if data is not None:
            problem = problem.on_rows(
                rows, context, density.schema, "stdin" if data == "-" else Path(data).name, weights
            )
            return _evaluated(problem, density, notify)
        if not problem.can_evaluate:
            raise DataError(f"{run.path}: has no test rows (data.test_fraction=0); give a table to evaluate on")
        evaluated = _evaluated(problem, density, notify)
        _update(run, density, evaluated, notify)
        return evaluated
    finally:
        run.release()


def _evaluated(problem: Problem, density: FittedDensity, notify: Notify) -> EvaluatedRun:
    scores = problem.score(density)
    evaluation = problem.evaluate(density, scores, notify)
    lines = problem.lines(scores, evaluation)
    return EvaluatedRun(scores, evaluation, tuple(lines[:-1] if lines and not lines[-1] else lines))


def _update(run: RunFolder, density: FittedDensity, evaluated: EvaluatedRun, notify: Notify) -> None:
    """Write the evaluation of the own test rows over that of the fit."""
    results = json.loads(run.results.read_text(encoding="utf-8")) if run.results.exists() else {}
    scores = evaluated.scores
    if scores.log_probs is not None:
        write_row_scores(run, scores.rows, scores.log_probs, scores.weights)
    fingerprint = scores.numbers.get("test_rows_sha256")
    run.write_json("results.json", results | {"test_rows_sha256": fingerprint})
    write_evaluation(run, density, evaluated.evaluation, results.get("steps", 0), notify=notify)
    write_report(run)
