"""A fit from end to end: data in, a run folder with a scored density out."""

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
from pushforward.experiment.evaluation import evaluate_fit, forget_evaluation, score_prepared, write_evaluation
from pushforward.experiment.progress_picture import draw_progress
from pushforward.experiment.recording import Watch
from pushforward.experiment.result import Fit
from pushforward.experiment.results_file import results_of, schema_of, status_facts, summary_of
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
from pushforward.train.data import Prepared, anchored, check_same_data, load_data, prepare
from pushforward.train.defaults import is_open, resolve, settings
from pushforward.train.device import choose_device, kernel_trouble
from pushforward.train.gaussian import better_of_flow_and_gaussian
from pushforward.train.objectives.base import Objective
from pushforward.train.objectives.energy import Energy
from pushforward.train.objectives.likelihood import Likelihood
from pushforward.train.objectives.target import OBJECTIVES
from pushforward.train.selection import Selection, select_model
from pushforward.train.stacking import FLOW, stack
from pushforward.train.trainer import DivergedError, State, start

# What a loss means: with another one, the best weights so far could not be told from better ones.
_DEFINING = ("objective", "alpha", "energy_weight", "importance_samples")


@dataclass(frozen=True)
class Plan:
    """A fit that could begin: the data, the configuration with every choice made, and a flow of the right size.

    Where the fit itself decides on kind and number of flows, ``undecided`` is the configuration without that choice.
    ``notes`` say which keys that were set have no effect.
    """

    config: Config
    prepared: Prepared
    flow: Model
    undecided: Config | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Trainable numbers of the flow."""
        return sum(p.numel() for p in self.flow.parameters())


def plan(config: Config) -> Plan:
    """Load the data and build the flow, without fitting: what ``--dry-run`` shows.

    Raises:
        ConfigError: If the device is not there.
        DataError: If the data cannot be used.
    """
    choose_device(config.device)
    if is_target(config):
        raise ConfigError(f"data.source: {config.data.source} is a target and has no rows; fit it: pushforward fit")
    if is_autoencoder(config):
        raise ConfigError(f"train.objective: {config.train.objective} fits an autoencoder and not a flow")
    if config.train.objective in OBJECTIVES:
        raise ConfigError(
            f"train.objective: {config.train.objective} needs a target, as in pushforward fit target:many-well; "
            f"rows are fitted by mle, energy or mle+energy"
        )
    prepared = prepare(load_data(config), config.data, config.data_seed)
    dataset = prepared.dataset
    rows, features = prepared.recorded.shape
    is_toy = dataset.toy is not None
    config = config.model_copy(update={"data": anchored(config.data, dataset)})
    undecided = config if is_open(config, is_toy=is_toy) else None
    if config.flow.stacking is True and dataset.context.shape[1]:
        raise ConfigError("flow.stacking: averages densities of rows, and data.context asks for conditional ones")
    asked = config.flow
    config = resolve(config, rows=rows, features=features, is_toy=is_toy)
    if config.train.objective in ("energy", "mle+energy"):
        if config.flow.members != 1:
            raise ConfigError(f"flow.members: {config.train.objective} fits a single flow; got {config.flow.members}")
        if config.train.objective == "energy" and config.flow.stacking is True:
            raise ConfigError("flow.stacking: weights by likelihood, which train.objective=energy leaves aside")
        if config.train.batch_size == 1:
            raise ConfigError("train.batch_size: expected at least 2 for the energy distance; got 1")
    core = build_model(config.flow, features, dataset.context.shape[1], seed=config.seed)
    idle = idle_keys(asked.model_copy(update={"name": config.flow.name, "base": config.flow.base}))
    notes = tuple(f"flow.{key}: has no effect on flow={config.flow.name}" for key in idle)
    return Plan(config, prepared, core, undecided, notes)


def fit(
    config: Config,
    *,
    out: Path | None = None,
    quiet: bool = False,
    watch: Watch = lambda fraction, nll: "",
    job_type: str = "fit",
) -> Fit:
    """Fit a density to rows, or to a target, and leave a run folder.

    Args:
        config: What to fit and how, for instance from ``load_config``.
        out: Exactly this folder becomes the run; None makes one below ``runs/``.
        quiet: Show warnings and messages only.
        watch: Told how validation goes; what it answers ends the fit early and becomes its ``stop_reason``.
        job_type: What Weights & Biases calls this process.

    Returns:
        The fit; after a signal, what there was, with ``signum`` set.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If the device is not there.
        RunError: If the run folder cannot be made or written.
        DivergedError: If training does not stay finite.
    """
    if is_autoencoder(config):
        return fit_autoencoder_run(config, out=out, quiet=quiet, watch=watch, job_type=job_type)
    if is_target(config):
        return fit_target(config, out=out, quiet=quiet, watch=watch, job_type=job_type)
    with start_client(config) as process:
        planned = plan(config)
        config, prepared, core = planned.config, planned.prepared, planned.flow
        name, flow = prepared.dataset.name, config.flow.name if planned.undecided is None else "auto"
        with new_run(config, out, name=name, flow=flow, schema=schema_of(prepared)) as run:
            device = choose_device(config.device)
            trouble = kernel_trouble()  # before anything needs the kernels, which would warn by itself
            options: dict[str, Any] = {"quiet": quiet, "trouble": trouble, "watch": watch, "job_type": job_type}
            options["notes"] = planned.notes
            if planned.undecided is not None:
                outcome, options["signum"] = _choose(run, prepared, planned.undecided, device)
                config, state = outcome.config, outcome.state
            else:
                state = start(initialize(core, prepared, device, seed=config.seed), settings(config.train))
            # The flow as it starts: what a resumed fit is built from.
            save_flow(state.flow, run.checkpoints / "start")
            if state.progress.step:
                save_checkpoint(state, run.checkpoints / "last.pt")
            return _run(run, config, prepared, state, process, **options)


def resume(path: Path, overrides: tuple[str, ...] = (), *, quiet: bool = False, **options: Any) -> Fit:
    """Go on with a fit where its last checkpoint stands.

    Args:
        path: The run folder.
        overrides: ``key=value`` of ``train`` and ``wandb``, such as a larger budget; what shapes data or flow is fixed.
        quiet: Show warnings and messages only.
        **options: ``device`` and ``wandb``, None if not given.

    Raises:
        RunError: If it is not a run folder, or another process uses it.
        ConfigError: If an override would change the data or the flow.
        CheckpointError: If there is no checkpoint, or it is damaged.
        DataError: If the data cannot be used or are not those of the run.
    """
    run = RunFolder.open(path)
    before = load_config(files=[run.config])
    config = load_config(files=[run.config], overrides=overrides, **options)
    for group in ("data", "target", "flow", "vae", "seed"):
        if getattr(config, group) != getattr(before, group):
            raise ConfigError(f"{group}: a resumed fit keeps its {group}; start a new fit to change it")
    for key in _DEFINING:
        if getattr(config.train, key) != getattr(before.train, key):
            raise ConfigError(f"train.{key}: a resumed fit keeps what it minimises; start a new fit to change it")
    run.claim()
    try:
        if is_autoencoder(config):
            return resume_autoencoder(run, config, quiet=quiet)
        if is_target(config):
            return resume_target(run, config, quiet=quiet)
        with start_client(config) as process:
            prepared = prepare(load_data(config), config.data, config.data_seed)
            check_same_data(run.schema, run.path, prepared.dataset)
            rows, features = prepared.recorded.shape
            config = resolve(config, rows=rows, features=features, is_toy=prepared.dataset.toy is not None)
            device = choose_device(config.device)
            last = run.checkpoints / "last.pt"
            if not last.exists():  # nor is there a flow yet, where the fit was killed while it was choosing one
                raise CheckpointError(f"{last}: no checkpoint to resume from")
            core = cast(Model, load_model(run.checkpoints / "start", Flow, Mixture, device=device))
            state = load_checkpoint(start(core.train(), settings(config.train)), last)
            with resumed_run(run, config, name=prepared.dataset.name, flow=config.flow.name):
                return _run(run, config, prepared, state, process, quiet=quiet, resumed=True, trouble=kernel_trouble())
    finally:
        run.release()


def _choose(
    run: RunFolder, prepared: Prepared, undecided: Config, device: torch.device
) -> tuple[Selection, int | None]:
    """Decide on kind and number of flows; also the signal that ended the decision, None if none did."""
    progress = Progress(log=run.log, quiet=True)  # a bar comes with the fit
    with StopOnSignal() as signals:
        try:
            outcome = select_model(
                prepared, undecided, device, stop=lambda: "signal" if signals.signum else "", tell=progress.message
            )
        except DivergedError:
            run.set_status("diverged", dataset=prepared.dataset.name, flow="auto")
            raise
    run.write_config(outcome.config)
    run.write_json("selection.json", outcome.to_dict())
    return outcome, signals.signum


def _run(
    run: RunFolder,
    config: Config,
    prepared: Prepared,
    state: State,
    process: WandbProcess,
    *,
    trouble: str = "",
    notes: tuple[str, ...] = (),
    **options: Any,
) -> Fit:
    """Train, keep the better of flow and Gaussian, score it, and write everything down."""
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
        for note in (*dataset.notes, *notes, prepared.ties, trouble and f"warning: {trouble}"):
            if note:
                session.progress.message(note)
        state = session.train(objective_of(config, prepared, state))
        core, kind, message = _finished(prepared, config, state)
        if message:
            session.progress.message(message)
        density = FittedDensity(prepared.in_data_units(core), dataset.schema, prepared.cells.tolist())
        density.save(run.model, extra={"dataset": dataset.name})
        session.keep(lambda: forget_evaluation(run))  # of the model before, where the fit was resumed
        scores = score_prepared(prepared, density, seed=config.seed)
        results = results_of(run, config, prepared, state, density, scores, flow=kind)
        run.write_json("results.json", results)
        session.keep(lambda: session.tracking.summary(summary_of(results)))
        session.ended(status_facts(results))
        # From here on the run is whole; a signal or a full disk cuts short only what is said about it.
        session.keep(lambda: write_row_scores(run, prepared.splits.test, scores.test))
        session.tracking.model(run.model, results)
        report: EvaluationReport | None = None
        if session.signum is None and config.train.evaluate and len(prepared.test.rows):
            session.progress.message("evaluating: baselines, samples, pictures")

            def evaluate() -> None:
                nonlocal report
                evaluation = evaluate_fit(prepared, density, config, scores, state.progress.step)
                report = evaluation.report
                write_evaluation(
                    run,
                    prepared,
                    density,
                    evaluation,
                    session.tracking,
                    session.keep,
                    session.stop,
                    session.progress.message,
                )

            session.recording.attempt("no evaluation", evaluate)
        return Fit(run, density, results, report, session.signum, note=message)


def _finished(prepared: Prepared, config: Config, state: State) -> tuple[Model, str, str]:
    """The density that a fit ends with, what it is, and one line on why it is not the flow alone."""
    name = describe(config.flow)
    if config.train.objective == "energy":
        # A flow that was fitted by its samples alone is not judged by its likelihood.
        return state.flow.cpu().eval(), name, ""
    if config.flow.stacking is True:
        model, weights = stack(prepared, state.flow)
        if list(weights) == [FLOW]:
            return model, name, ""
        shares = ", ".join(f"{what} {weight:.2f}" for what, weight in weights.items())
        kind = f"{name}, stacked" if FLOW in weights else " and ".join(weights).lower()
        return model, kind, f"stacked   by validation likelihood: {shares}"
    model, message = better_of_flow_and_gaussian(prepared, state)
    return model, "gaussian" if message else name, message


def objective_of(config: Config, prepared: Prepared, state: State) -> Objective:
    """What is minimised on rows."""
    train, device = config.train, state.average[0].device
    assert train.batch_size != "auto"  # resolve has decided it
    rows = prepared.training_points(device), prepared.validation_points(device), train.batch_size, state.progress.step
    if train.objective in ("energy", "mle+energy"):
        both = train.objective == "mle+energy"
        return Energy(*rows, seed=config.seed, likelihood=both, weight=train.energy_weight)
    return Likelihood(*rows)


def _draw(prepared: Prepared, flow: Model, path: Path) -> None:
    draw_progress(prepared.in_data_units(flow.double().eval()), prepared, path)
