"""Fit a density to rows from end to end: load data, train, evaluate, write the run folder; and resume."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.evaluation import EvaluationReport
from pushforward.experiment.autoencoder import fit_autoencoder_run, is_autoencoder, resume_autoencoder
from pushforward.experiment.data_source import accept_data, check_override, check_source, with_absolute_source
from pushforward.experiment.evaluation import evaluate_fit, forget_evaluation, score_prepared, write_evaluation
from pushforward.experiment.progress_picture import draw_progress
from pushforward.experiment.recording import Watch
from pushforward.experiment.result import Fit
from pushforward.experiment.run_files import (
    dashboard_summary,
    results_content,
    schema_content,
    status_content,
)
from pushforward.experiment.session import Session, new_run, resumed_run, start_client
from pushforward.experiment.signals import StopOnSignal
from pushforward.experiment.target import fit_target, is_target, resume_target
from pushforward.flows import Flow, Mixture, Model, load_model, save as save_flow
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import write_row_scores
from pushforward.tracking.progress import Progress
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.train.architecture import build_model, describe, idle_keys, initialize
from pushforward.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pushforward.train.data import Prepared, load_data, prepare
from pushforward.train.defaults import is_open, resolve, train_options
from pushforward.train.device import choose_device, kernel_warning
from pushforward.train.gaussian import better_of_flow_and_gaussian
from pushforward.train.objectives.base import Objective
from pushforward.train.objectives.energy import Energy
from pushforward.train.objectives.likelihood import Likelihood
from pushforward.train.objectives.target import TARGET_OBJECTIVES
from pushforward.train.selection import Selection, select_model
from pushforward.train.stacking import FLOW, stack
from pushforward.train.trainer import DivergedError, State, start

# Keys that define the loss: with other values, the best loss so far would be that of another objective.
_OBJECTIVE_KEYS = ("objective", "alpha", "energy_weight", "importance_samples")


@dataclass(frozen=True)
class RowsPlan:
    """A planned fit to rows.

    Attributes:
        config: The resolved configuration.
        prepared: The data.
        flow: The flow that the configuration describes.
        undecided: The configuration before ``flow=auto`` was resolved, if the fit selects the model itself; else None.
        notes: Which keys have a value but no effect.
    """

    config: Config
    prepared: Prepared
    flow: Model
    undecided: Config | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.flow.parameters())


def plan(config: Config) -> RowsPlan:
    """Load the data and build the flow, without fitting; ``--dry-run`` shows the result.

    Raises:
        ConfigError: If the device does not exist, or keys do not go together.
        DataError: If the data cannot be used.
    """
    choose_device(config.device)
    if is_target(config):
        raise ConfigError(f"data.source: {config.data.source} is a target and has no rows; fit it: pushforward fit")
    if is_autoencoder(config):
        raise ConfigError(f"train.objective: {config.train.objective} fits an autoencoder and not a flow")
    if config.train.objective in TARGET_OBJECTIVES:
        raise ConfigError(
            f"train.objective: {config.train.objective} needs a target, as in pushforward fit target:many-well; "
            f"rows are fitted by mle, energy or mle+energy"
        )
    prepared = prepare(load_data(config), config.data, config.data_seed)
    dataset = prepared.dataset
    rows, features = prepared.recorded.shape
    is_toy = dataset.toy is not None
    config = config.model_copy(update={"data": with_absolute_source(config.data, dataset)})
    undecided = config if is_open(config, is_toy=is_toy) else None
    if config.flow.stacking is True and dataset.context.shape[1]:
        raise ConfigError("flow.stacking: averages densities of rows, and data.given asks for conditional ones")
    given = config.flow
    config = resolve(config, rows=rows, features=features, is_toy=is_toy)
    if config.train.objective in ("energy", "mle+energy"):
        if config.flow.members != 1:
            raise ConfigError(f"flow.members: {config.train.objective} fits a single flow; got {config.flow.members}")
        if config.train.objective == "energy" and config.flow.stacking is True:
            raise ConfigError("flow.stacking: weights by likelihood, which train.objective=energy leaves aside")
        if config.train.batch_size == 1:
            raise ConfigError("train.batch_size: expected at least 2 for the energy distance; got 1")
    flow = build_model(config.flow, features, dataset.context.shape[1], seed=config.seed)
    idle = idle_keys(given.model_copy(update={"name": config.flow.name, "base": config.flow.base}))
    notes = tuple(f"flow.{key}: has no effect on flow={config.flow.name}" for key in idle)
    return RowsPlan(config, prepared, flow, undecided, notes)


def fit(
    config: Config,
    *,
    out: Path | None = None,
    quiet: bool = False,
    watch: Watch = lambda fraction, nll: "",
    job_type: str = "fit",
) -> Fit:
    """Fit a density to rows or to a target, and write a run folder.

    Args:
        config: The configuration, for instance from ``load_config``.
        out: The run folder; None makes one in ``runs/``.
        quiet: Show no progress bar, only warnings and messages.
        watch: Called after every validation; a reason that it returns ends the fit and becomes its ``stop_reason``.
        job_type: Job type of the Weights & Biases run.

    Returns:
        The result; after a signal, that of the training so far, with ``signum`` set.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If the device does not exist, or keys do not go together.
        RunError: If the run folder cannot be made or written.
        DivergedError: If the loss does not stay finite.
    """
    if is_autoencoder(config):
        return fit_autoencoder_run(config, out=out, quiet=quiet, watch=watch, job_type=job_type)
    if is_target(config):
        return fit_target(config, out=out, quiet=quiet, watch=watch, job_type=job_type)
    with start_client(config) as process:
        planned = plan(config)
        config, prepared = planned.config, planned.prepared
        name, flow = prepared.dataset.name, config.flow.name if planned.undecided is None else "auto"
        with new_run(config, out, name=name, flow=flow, schema=schema_content(prepared)) as run:
            device = choose_device(config.device)
            warning = kernel_warning()  # before the first use of the kernels, which would print the warning
            options: dict[str, Any] = {"quiet": quiet, "warning": warning, "watch": watch, "job_type": job_type}
            options["notes"] = planned.notes
            if planned.undecided is not None:
                selection, options["signum"] = _select_model(run, prepared, planned.undecided, device)
                config, state = selection.config, selection.state
            else:
                state = start(initialize(planned.flow, prepared, device, seed=config.seed), train_options(config.train))
            # A resumed fit builds its flow from this.
            save_flow(state.flow, run.checkpoints / "start")
            if state.progress.step:
                save_checkpoint(state, run.checkpoints / "last.pt")
            return _run(run, config, prepared, state, process, **options)


def resume(path: Path, overrides: tuple[str, ...] = (), *, quiet: bool = False, **options: Any) -> Fit:
    """Resume a fit from its last checkpoint.

    Args:
        path: The run folder.
        overrides: ``key=value`` of ``train`` and ``wandb``, such as a larger budget, and ``data.source`` if the file
            has been moved; data and flow cannot change.
        quiet: Show no progress bar, only warnings and messages.
        **options: ``device`` and ``wandb``; None if not given.

    Raises:
        RunError: If it is not a run folder, or another process uses it.
        ConfigError: If an override would change the data, the flow or the objective.
        CheckpointError: If there is no checkpoint, or it is damaged.
        DataError: If the data cannot be used or are not those of the run.
    """
    run = RunFolder.open(path)
    before = load_config(files=[run.config])
    config = load_config(files=[run.config], overrides=overrides, **options)
    check_override(run, before, config)
    for group in ("target", "flow", "vae", "seed"):
        if getattr(config, group) != getattr(before, group):
            raise ConfigError(f"{group}: a resumed fit keeps its {group}; start a new fit to change it")
    for key in _OBJECTIVE_KEYS:
        if getattr(config.train, key) != getattr(before.train, key):
            raise ConfigError(f"train.{key}: a resumed fit keeps what it minimises; start a new fit to change it")
    command = f"pushforward fit --resume {run.path} data.source=FILE"
    check_source(run, config.data, command)
    run.claim()
    try:
        if is_autoencoder(config):
            return resume_autoencoder(run, config, command, quiet=quiet)
        if is_target(config):
            return resume_target(run, config, quiet=quiet)
        with start_client(config) as process:
            prepared = prepare(load_data(config), config.data, config.data_seed)
            config, prepared, moved = accept_data(run, config, prepared, command)
            rows, features = prepared.recorded.shape
            config = resolve(config, rows=rows, features=features, is_toy=prepared.dataset.toy is not None)
            device = choose_device(config.device)
            last = run.checkpoints / "last.pt"
            if not last.exists():  # the initial flow is missing too if the fit was killed during model selection
                raise CheckpointError(f"{last}: no checkpoint to resume from")
            flow = cast(Model, load_model(run.checkpoints / "start", Flow, Mixture, device=device))
            state = load_checkpoint(start(flow.train(), train_options(config.train)), last)
            with resumed_run(run, config, name=prepared.dataset.name, flow=config.flow.name):
                said: dict[str, Any] = {"notes": (moved,), "warning": kernel_warning()}
                return _run(run, config, prepared, state, process, quiet=quiet, resumed=True, **said)
    finally:
        run.release()


def _select_model(
    run: RunFolder, prepared: Prepared, undecided: Config, device: torch.device
) -> tuple[Selection, int | None]:
    """Select the model; also return the signal that ended the selection, None without a signal."""
    progress = Progress(log=run.log, quiet=True)  # the progress bar comes with the training
    with StopOnSignal() as signals:
        try:
            selection = select_model(
                prepared, undecided, device, stop=lambda: "signal" if signals.signum else "", notify=progress.message
            )
        except DivergedError:
            run.set_status("diverged", dataset=prepared.dataset.name, flow="auto")
            raise
    run.write_config(selection.config)
    run.write_json("selection.json", selection.to_dict())
    return selection, signals.signum


def _run(
    run: RunFolder,
    config: Config,
    prepared: Prepared,
    state: State,
    process: WandbProcess,
    *,
    warning: str = "",
    notes: tuple[str, ...] = (),
    **options: Any,
) -> Fit:
    """Train, choose the final model, evaluate it, and write the files of the run."""
    dataset = prepared.dataset
    session = Session(
        run,
        config,
        state,
        process,
        name=dataset.name,
        size=f"{len(dataset.rows):,} rows x {dataset.rows.shape[1]} columns",
        facts={"features": dataset.rows.shape[1], "rows": len(dataset.rows)},
        rows_scored=len(prepared.test.rows),
        offset=-prepared.standardize.log_det,
        draw=None if prepared.train.context is not None else partial(_draw, prepared),
        **options,
    )
    with session:
        for note in (*prepared.notes, *notes, warning and f"warning: {warning}"):
            if note:
                session.progress.message(note)
        state = session.train(_rows_objective(config, prepared, state))
        with torch.random.fork_rng(devices=[]):
            # The noise of dequantized rows must not depend on the steps: a resumed fit that finds nothing better would
            # change the model.
            torch.manual_seed(config.seed)
            model, description, message = _final_model(prepared, config, state)
        if message:
            session.progress.record(message)  # the result has it, too
        density = FittedDensity(prepared.in_data_units(model), dataset.schema, prepared.bin_widths.tolist())
        density.save(run.model, extra={"dataset": dataset.name})
        session.write_safely(lambda: forget_evaluation(run))  # of the previous model, if the fit was resumed
        scores = score_prepared(prepared, density, seed=config.seed)
        results = results_content(run, prepared, state, density, scores, flow=description)
        run.write_json("results.json", results)
        session.write_safely(lambda: session.tracking.summary(dashboard_summary(results)))
        session.mark_finished(status_content(results))
        # From here on the run is complete: after a signal or on a full disk only parts of the evaluation are missing.
        session.write_safely(lambda: write_row_scores(run, dataset.in_file(prepared.splits.test), scores.test))
        session.tracking.model(run.model, results)
        report: EvaluationReport | None = None
        if session.signum is None and config.train.evaluate and len(prepared.test.rows):

            def evaluate() -> None:
                nonlocal report
                notify = session.progress.message
                evaluation = evaluate_fit(prepared, density, config, scores, state.progress.step, notify)
                report = evaluation.report
                write_evaluation(
                    run,
                    prepared,
                    density,
                    evaluation,
                    session.tracking,
                    session.write_safely,
                    session.stop_reason,
                    notify,
                )

            session.recorder.run_safely("no evaluation", evaluate)
        return Fit(run, density, results, report, session.signum, note=message)


def _final_model(prepared: Prepared, config: Config, state: State) -> tuple[Model, str, str]:
    """The final model, its description, and one line on why it is not the flow alone, empty if it is."""
    name = describe(config.flow)
    if config.train.objective == "energy":
        # The likelihood was not the objective, so it does not decide.
        return state.flow.cpu().eval(), name, ""
    if config.flow.stacking is True:
        model, weights = stack(prepared, state.flow)
        if list(weights) == [FLOW]:
            return model, name, ""
        shares = ", ".join(f"{part} {weight:.2f}" for part, weight in weights.items())
        description = f"{name}, stacked" if FLOW in weights else " and ".join(weights).lower()
        return model, description, f"stacked   by validation likelihood: {shares}"
    model, message = better_of_flow_and_gaussian(prepared, state)
    return model, "gaussian" if message else name, message


def _rows_objective(config: Config, prepared: Prepared, state: State) -> Objective:
    """The objective of a fit to rows."""
    train, device = config.train, state.average[0].device
    assert train.batch_size != "auto"  # resolve has decided it
    rows = prepared.training_rows(device), prepared.validation_rows(device), train.batch_size, state.progress.step
    if train.objective in ("energy", "mle+energy"):
        both = train.objective == "mle+energy"
        return Energy(*rows, seed=config.seed, likelihood=both, weight=train.energy_weight)
    return Likelihood(*rows)


def _draw(prepared: Prepared, flow: Model, path: Path) -> None:
    draw_progress(prepared.in_data_units(flow.double().eval()), prepared, path)
