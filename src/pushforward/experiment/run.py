"""Fit from a configuration to a run folder: plan, train, score, evaluate, report; and resume."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pushforward.common.errors import RunUsageError
from pushforward.common.signals import StopOnSignal
from pushforward.config.read import load_config
from pushforward.config.resolved import refuse_unused_keys, resolved
from pushforward.config.schema import Config
from pushforward.experiment.callbacks import (
    DrawPictures,
    RecordMetrics,
    SaveCheckpoints,
    ShowProgress,
    Signals,
)
from pushforward.experiment.data_source import accept_data, check_source
from pushforward.experiment.evaluation import forget_evaluation, write_evaluation
from pushforward.experiment.record import Record, new_run, resumed_run, start_client
from pushforward.experiment.result import Fit
from pushforward.experiment.resumed_keys import check_resumed_budget, check_resumed_keys
from pushforward.experiment.run_files import dashboard_summary, results_content, status_content
from pushforward.runs.folder import RunFolder
from pushforward.runs.listing import has_source
from pushforward.runs.row_scores import write_row_scores
from pushforward.tracking.progress import WARNING, Progress
from pushforward.tracking.registry import check_trackers
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.train import fitting
from pushforward.train.callbacks import Callback
from pushforward.train.checkpoint import save_checkpoint
from pushforward.train.device import choose_device, kernel_warning
from pushforward.train.divergence import DivergedError
from pushforward.train.problems.base import Evaluation, Fitted, Problem
from pushforward.train.problems.registry import plan as plan_problem
from pushforward.train.state import State


def plan(config: Config, data: Any = None, *, embedding: nn.Module | None = None, strict: bool = True) -> Problem:
    """Load the data and resolve the configuration, without fitting.

    Args:
        config: The configuration.
        data: A data set in memory, instead of the one that the configuration names.
        embedding: A module for the context of rows.
        strict: Refuse keys that have no effect.

    Raises:
        ConfigError: If the device or a tracker does not exist, keys do not go together, or one has no effect.
        DataError: If the data or the target cannot be used.
    """
    choose_device(config.device)
    check_trackers(config.track)
    problem = plan_problem(config.model_dump(), data, embedding=embedding)
    if strict:
        refuse_unused_keys(config, problem)
    return problem


def fit(
    config: Config,
    *,
    out: Path | None = None,
    data: Any = None,
    quiet: bool = False,
    silent: bool = False,
    embedding: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    job_type: str = "fit",
    strict: bool = True,
) -> Fit:
    """Fit a density to rows, to a target, or to any other problem, and write a run folder.

    Args:
        config: The configuration, for instance from ``load_config``.
        out: The run folder; None makes one in ``runs/``.
        data: A data set in memory, instead of the one that the configuration names.
        quiet: Show no progress bar, only warnings and messages.
        silent: Show nothing; warnings are Python's.
        embedding: A module for the context of rows.
        callbacks: Called around the steps, after those of the run.
        job_type: Job type of the Weights & Biases run.
        strict: Refuse keys that have no effect.

    Returns:
        The result; after a signal, that of the training so far, with ``signum`` set.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If the device does not exist, or keys do not go together.
        RunError: If the run folder cannot be made or written.
        DivergedError: If the loss does not stay finite.
    """
    with start_client(config) as process:
        problem = plan(config, data, embedding=embedding, strict=strict)
        notes = _kernel_notes()
        # Before there is a run folder: the options may not go together, or the target may be unusable.
        state = None if problem.is_open else problem.start(choose_device(config.device))
        written = _written(config, problem)
        facts: dict[str, Any] = {"name": problem.name, "flow": problem.flow_name, "problem": problem.kind}
        facts |= {"sections": problem.sections}
        with new_run(written, out, **facts, schema=problem.schema()) as run:
            shown = {"quiet": quiet, "silent": silent}
            own = _Fit(run, written, problem, process, **shown, callbacks=callbacks, job_type=job_type, notes=notes)
            return own.run_from(state)


def resume(path: Path, overrides: tuple[str, ...] = (), *, quiet: bool = False, **options: Any) -> Fit:
    """Resume a fit from its last checkpoint; without one, it starts over in the same folder.

    Args:
        path: The run folder.
        overrides: ``key=value`` of the keys in ``resumed_keys.MAY_CHANGE``, such as a larger budget, and
            ``data.source`` if the file has been moved.
        quiet: Show no progress bar, only warnings and messages.
        **options: ``device`` and ``wandb``; None if not given.

    Raises:
        RunError: If it is not a run folder, or another process uses it.
        ConfigError: If another key would change.
        CheckpointError: If the checkpoint is damaged.
        DataError: If the data cannot be used or are not those of the run.
    """
    run = RunFolder.open(path)
    if not run.schema.exists():
        raise RunUsageError(f"{path}: is a study, which cannot go on; start it again in another folder")
    before = load_config(files=[run.config])
    config = load_config(files=[run.config], overrides=overrides, **options)
    check_resumed_keys(run, before, config)
    command = f"pushforward fit --resume {run.path} data.source=FILE"
    cannot = "its fit cannot go on; fit again in Python, with pushforward.fit(rows, ...), to another out="
    check_source(run, config.data if has_source(before.flat()) else before.data, command, cannot)
    run.claim()
    try:
        with start_client(config) as process:
            problem = plan(config, strict=False)
            config, moved = accept_data(run, config, problem, command)
            device, last = choose_device(config.device), run.checkpoints / "last.pt"
            notes = _kernel_notes()
            # A checkpoint without the choice of its model was written just before a kill: the choice is made again.
            state: State | None
            if last.exists() and not problem.is_open:
                state = problem.restore(device, last)
                check_resumed_budget(before, config, state.progress)
                said = moved
            else:  # its model is not selected yet, or it was killed before its first checkpoint
                state = None if problem.is_open else problem.start(device)
                goes_on = problem.is_open and any(_selection_folder(run).glob("*"))
                how = "the selection of its model goes on" if goes_on else "has no checkpoint yet: the fit starts over"
                said = "; ".join(filter(None, [moved, f"{run.path}: {how}"]))
            written = _written(config, problem)
            with resumed_run(run, written, name=problem.name, flow=problem.flow_name):
                fit = _Fit(run, written, problem, process, quiet=quiet, notes=(said, *notes), resumed=True)
                return fit.run_from(state)
    finally:
        run.release()


def _kernel_notes() -> tuple[str, ...]:
    """The warning about the kernels, if any; to be called before their first use, which would print it."""
    warning = kernel_warning()
    return (f"{WARNING}{warning}",) if warning else ()


def _written(config: Config, problem: Problem) -> Config:
    """The configuration as it is written to the run folder: resolved, unless the fit selects the model itself."""
    if not problem.is_open:
        return resolved(config, problem.options, problem.uses)
    data = config.data.model_copy(update={"source": problem.options.data.source})
    return config.model_copy(update={"data": data})


class _Fit:
    """One fit in its run folder."""

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        problem: Problem,
        process: WandbProcess,
        *,
        quiet: bool = False,
        silent: bool = False,
        callbacks: Sequence[Callback] = (),
        job_type: str = "fit",
        notes: tuple[str, ...] = (),
        resumed: bool = False,
    ) -> None:
        self.run, self.config, self.problem, self.process = run, config, problem, process
        self.quiet, self.silent, self.job_type, self.notes, self.resumed = quiet, silent, job_type, notes, resumed
        self.signals = StopOnSignal()
        self.stops: list[Callback] = [Signals(self.signals), *callbacks]
        self.is_selecting = False

    def run_from(self, state: State | None) -> Fit:
        """Train from a state, score and evaluate; without a state, select the model first."""
        with self.signals:
            is_new = state is None or state.progress.step == 0
            if state is None:
                state = self.select()
            record = Record(
                self.run,
                self.config,
                self.problem,
                state.parameters,
                self.process,
                quiet=self.quiet,
                silent=self.silent,
                job_type=self.job_type,
                resume_step=None if not self.resumed else -1 if is_new else state.progress.step,
                signals=self.signals,
            )
            with record:
                for note in (*self.problem.notes, *self.notes):
                    if note:
                        record.progress.message(note)
                return self.finish(record, self.train(record, state))

    def select(self) -> State:
        """Select the model; its state and its configuration are written, so that a resumed fit keeps both.

        After a selection that was cut short the configuration stays open: a resumed fit goes on with the selection.
        """
        run, problem = self.run, self.problem
        progress = Progress(log=run.log, quiet=True, hidden=self.silent)  # the progress bar comes with the training
        for note in filter(None, self.notes):
            progress.message(note)
        self.notes = ()
        problem.selection_folder = _selection_folder(run)
        try:
            state = problem.start(choose_device(self.config.device), [*self.stops, _Messages(progress)])
        except DivergedError:
            run.set_status("diverged", dataset=problem.name, flow=problem.flow_name)
            raise
        if problem.selection is not None:
            run.write_json("selection.json", problem.selection.to_dict())
            self.is_selecting = not problem.selection.is_complete and any(c.should_stop(state) for c in self.stops)
        if not self.is_selecting:
            self.config = resolved(self.config, problem.options, problem.uses)
            save_checkpoint(state, run.checkpoints / "last.pt")
            run.write_config(self.config)  # last: a resumed fit goes on with the selection unless all of it is there
            shutil.rmtree(problem.selection_folder, ignore_errors=True)
        return state

    def train(self, record: Record, state: State) -> Fitted:
        """Train, and make the density."""
        guard = record.guard
        callbacks: list[Callback] = [
            ShowProgress(record.progress, guard),
            RecordMetrics(record.tracking, guard),
            *self.stops,
            DrawPictures(self.run, self.problem, record.tracking, guard),
        ]
        if not self.is_selecting:  # else those of the candidates stay
            callbacks.append(SaveCheckpoints(self.run.checkpoints / "last.pt", guard))
        try:
            fitted = fitting.fit(self.problem, callbacks, state)
        except DivergedError as error:
            record.mark_diverged(error)
            raise
        record.trained()
        return fitted

    def finish(self, record: Record, fitted: Fitted) -> Fit:
        """Score and evaluate the density, and write the files of the run."""
        run, problem, guard, tracking = self.run, self.problem, record.guard, record.tracking
        density, step = fitted.density, fitted.state.progress.step
        if fitted.note:
            record.progress.record(fitted.note)  # the result has it, too
        density.save(run.model, extra={"dataset": problem.name})
        guard.write(lambda: forget_evaluation(run))  # of the previous model, if the fit was resumed
        scores = problem.score(density, self.stop_reason)
        results = results_content(run, problem, fitted, scores)
        run.write_json("results.json", results)
        guard.write(lambda: tracking.summary(dashboard_summary(results)))
        guard.write(lambda: tracking.reference_lines(scores.references, step))
        record.mark_finished(status_content(results))
        # From here on the run is complete: after a signal or on a full disk only parts of the evaluation are missing.
        if (log_probs := scores.log_probs) is not None:
            guard.write(lambda: write_row_scores(run, scores.rows, log_probs, scores.weights))
        tracking.model(run.model, results)
        evaluation: Evaluation | None = None
        if self.signals.signum is None and self.config.train.evaluate and problem.can_evaluate:

            def evaluate() -> None:
                nonlocal evaluation
                evaluation = problem.evaluate(density, scores, record.progress.message)
                write_evaluation(
                    run,
                    density,
                    evaluation,
                    step,
                    tracking=tracking,
                    write_safely=guard.write,
                    stop=self.stop_reason,
                    notify=record.progress.message,
                )

            guard.run("no evaluation", evaluate)
        numbers = tuple(problem.lines(scores, evaluation))
        return Fit(run, density, results, evaluation, numbers, self.signals.signum, fitted.note)

    def stop_reason(self) -> str:
        """Why to leave out what takes long after training: the signal that came, if any."""
        return self.signals.reason


def _selection_folder(run: RunFolder) -> Path:
    """Where model selection keeps its candidates."""
    return run.checkpoints / "selection"


class _Messages(Callback):
    """Shows the messages of model selection."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_message(self, text: str) -> None:
        self.progress.message(text)

    def on_warning(self, text: str) -> None:
        self.progress.message(f"{WARNING}{text}")
