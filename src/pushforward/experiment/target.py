"""A fit to an unnormalised density: no rows, a flow that learns from a log-density and its gradient."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pushforward.common.errors import ConfigError
from pushforward.config.schema import Config
from pushforward.datasets.tables.write import write_table
from pushforward.datasets.targets.base import Target
from pushforward.datasets.targets.check import check_target
from pushforward.datasets.targets.load import load_target
from pushforward.datasets.targets.names import PREFIX
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.density import density_2d
from pushforward.evaluate.plots.weights import log_weights
from pushforward.evaluate.target import density_of, draw, for_numbers, log_prob_of, numbers_of, weighted_sample
from pushforward.experiment.evaluation import forget_evaluation
from pushforward.experiment.recording import Watch
from pushforward.experiment.result import Fit
from pushforward.experiment.results_file import summary_of
from pushforward.experiment.session import Session, new_run, resumed_run, start_client
from pushforward.flows import Chain, Flow, Model, Standardize, load_model, save as save_flow
from pushforward.flows.bijections.probit import Probit
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import rows_fingerprint, write_row_scores
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.train.architecture import build_model
from pushforward.train.checkpoint import load_checkpoint
from pushforward.train.defaults import resolve, settings
from pushforward.train.device import choose_device, kernel_trouble
from pushforward.train.objectives.target import OBJECTIVES, TargetObjective, objective_name
from pushforward.train.trainer import State, start

Array = np.ndarray[Any, np.dtype[np.float64]]

_FIRST_BATCH = 512
_POINTS = 50_000  # of the final numbers
_TRUTH_POINTS, _TRUTH_SEED = 10_000, 271_828
_VALIDATION_POINTS = 4_000
_SHOWN = 10_000  # points of a picture and of samples.csv


def is_target(config: Config) -> bool:
    """Whether a density takes the place of rows."""
    return config.data.source.startswith(PREFIX)


class TargetFit(Fit):
    """What a fit to a target leaves; there is no report of rows."""

    def lines(self) -> list[str]:
        """The outcome as plain text."""
        results = self.results
        out = [f"log Z          {results['log_z']:.4f} ± {results['log_z_se']:.4f} nats" + _known(results)]
        out.append(f"lower bound    {results['elbo']:.4f} ± {results['elbo_se']:.4f} nats")
        out.append(f"reverse ESS    {results['reverse_ess']:.4f}, from points of the flow")
        if results["forward_ess"] is not None:
            k = results["forward_pareto_k"]
            few = f"; few points of its tail decide this (Pareto k {k:.2f})" if k is not None and k > 0.7 else ""
            out.append(f"forward ESS    {results['forward_ess']:.4f}, from points of the truth{few}")
        if results["kl_to_truth"] is not None:
            out.append(f"KL to truth    {results['kl_to_truth']:.4f} ± {results['kl_to_truth_se']:.4f} nats")
        if results["pareto_k"] is not None and results["pareto_k"] > 0.7:
            out.append(
                f"warning: few points carry the weight (Pareto k {results['pareto_k']:.2f}): log Z and its error are "
                f"not reliable; give the fit more time, or say with target.spread how far from the origin the mass lies"
            )
        return out + self.closing_lines()


@dataclass(frozen=True)
class TargetPlan:
    """A fit that could begin: the target, the configuration with every choice made, and a flow of the right size."""

    config: Config
    target: Target
    flow: Flow

    @property
    def parameters(self) -> int:
        """Trainable numbers of the flow."""
        return sum(p.numel() for p in self.flow.parameters())


def plan_target(config: Config) -> TargetPlan:
    """Load the target and build the flow, without fitting.

    Raises:
        ConfigError: If the device is not there, or the objective is one for rows.
        DataError: If the target cannot be used.
    """
    choose_device(config.device)
    told = config.target
    target = load_target(
        config.data.source,
        None if told.features == "auto" else told.features,
        bounds=told.bounds,
        spread=None if told.spread == "auto" else told.spread,
    )
    _check_options(config, target)
    config = _resolved(config, target)
    if config.flow.members != 1:
        raise ConfigError(f"flow.members: a target is fitted by a single flow; got {config.flow.members}")
    if config.flow.stacking is True:
        raise ConfigError("flow.stacking: a target has no rows that could weight a kernel density; leave it out")
    core = build_model(config.flow, target.features, seed=config.seed)
    assert isinstance(core, Flow)  # of one member
    d = target.features
    first = Standardize([0.0] * d, [target.spread] * d) if target.bounds is None else Probit(d, *target.bounds)
    members = core.bijection.bijections if isinstance(core.bijection, Chain) else [core.bijection]
    return TargetPlan(config, target, Flow(core.base, Chain([first, *members], features=d)))


def check_plan(planned: TargetPlan, *, gradients: bool = False) -> Tensor:
    """Ask the target for the first batch of the flow, on the device of the fit; returns the batch.

    Args:
        planned: The fit.
        gradients: Look at the target's gradients also where the fit itself takes none.

    Raises:
        TargetError: If the target cannot be used, with the offending point.
    """
    flow = planned.flow.to(choose_device(planned.config.device))
    with torch.no_grad():
        first_batch = flow.eval().sample(_FIRST_BATCH)
    check_target(planned.target, first_batch, gradients=gradients or planned.config.train.gradient != "score-function")
    return first_batch


def fit_target(
    config: Config,
    *,
    out: Path | None = None,
    quiet: bool = False,
    watch: Watch = lambda fraction, nll: "",
    job_type: str = "fit",
) -> TargetFit:
    """Fit a flow to an unnormalised density and leave a run folder.

    Args:
        config: What to fit and how, its ``data.source`` being ``target:NAME``.
        out: Exactly this folder becomes the run; None makes one below ``runs/``.
        quiet: Show warnings and messages only.
        watch: Told how validation goes; what it answers ends the fit early.
        job_type: What Weights & Biases calls this process.

    Raises:
        DataError: If the target cannot be used.
        ConfigError: If the device is not there, or the objective does not exist for the target.
        RunError: If the run folder cannot be made or written.
        DivergedError: If training does not stay finite.
    """
    with start_client(config) as process:
        planned = plan_target(config)
        config, target, flow = planned.config, planned.target, planned.flow
        device = choose_device(config.device)
        torch.manual_seed(config.seed)
        first_batch = check_plan(planned)  # before there is a run folder
        objective = _objective(config, target, device)
        name, flow_name = config.data.source, config.flow.name
        with new_run(config, out, name=name, flow=flow_name, schema=_schema_of(config, target)) as run:
            trouble = kernel_trouble()
            flow.train()(first_batch)  # layers that set themselves from data do so here
            save_flow(flow, run.checkpoints / "start")
            state = start(flow, settings(config.train))
            options = {"quiet": quiet, "watch": watch, "job_type": job_type}
            return _run(run, config, target, objective, state, process, trouble=trouble, **options)


def resume_target(run: RunFolder, config: Config, *, quiet: bool = False) -> TargetFit:
    """Go on with a fit to a target; the caller has claimed the run."""
    with start_client(config) as process:
        planned = plan_target(config)
        config, device = planned.config, choose_device(planned.config.device)
        flow = load_model(run.checkpoints / "start", Flow, device=device)
        state = load_checkpoint(start(flow.train(), settings(config.train)), run.checkpoints / "last.pt")
        objective = _objective(config, planned.target, device)
        with resumed_run(run, config, name=config.data.source, flow=config.flow.name):
            trouble = kernel_trouble()
            return _run(
                run, config, planned.target, objective, state, process, trouble=trouble, quiet=quiet, resumed=True
            )


def _run(
    run: RunFolder,
    config: Config,
    target: Target,
    objective: TargetObjective,
    state: State,
    process: WandbProcess,
    *,
    trouble: str,
    **options: Any,
) -> TargetFit:
    assert isinstance(state.flow, Flow)  # plan_target has refused an ensemble
    target = for_numbers(target, state.flow, state.average[0].device)
    known = "" if target.log_z is None else f", log Z {target.log_z:.4f}"
    session = Session(
        run,
        config,
        state,
        process,
        name=config.data.source,
        size=f"{target.features} coordinates{known}; {objective.name}, {objective.estimator} gradient",
        facts={"features": target.features, "objective": objective.name},
        draw=partial(_draw_points, target),
        **options,
    )
    with session:
        if trouble:
            session.progress.message(f"warning: {trouble}")
        state = session.train(objective)
        flow = state.flow.cpu().double().eval()
        assert isinstance(flow, Flow)
        density = density_of(flow, draw(flow, _VALIDATION_POINTS, config.seed)[0])
        density.save(run.model, extra={"dataset": config.data.source})
        session.keep(lambda: forget_evaluation(run))  # of the model before, where the fit was resumed
        drawn, log_w = weighted_sample(flow, target, _POINTS, config.seed)
        # The same points for every fit to a target, so that fits can be compared point by point.
        truth = target.sample(_TRUTH_POINTS, _TRUTH_SEED)
        truth = None if truth is None else truth.double()
        of_truth = None if truth is None else log_prob_of(flow, truth)
        results = {
            "run": str(run.path),
            "dataset": config.data.source,
            "flow": config.flow.name,
            "objective": objective.name,
            "gradient": objective.estimator,
            "features": target.features,
            "rows": None,
            "parameters": session.parameters,
            "steps": state.progress.step,
            "seconds": round(state.progress.seconds, 3),
            "stop_reason": state.progress.stop_reason,
            "train_nll": None,
            "val_nll": None,
            "test_nll_standardized": None,
            **numbers_of(target, log_w, truth, of_truth),
            "test_rows_sha256": None if truth is None else rows_fingerprint(density.schema.names, truth.numpy()),
        }
        run.write_json("results.json", results)
        session.keep(lambda: session.tracking.summary(summary_of(results)))
        if target.log_z is not None:
            lines = {"known/log_z": target.log_z}
            session.keep(lambda: session.tracking.reference_lines(lines, state.progress.step))
        session.ended({key: results[key] for key in ("dataset", "flow", "steps", "val_nll", "test_nll")})
        if of_truth is not None:
            scores = of_truth.numpy()
            session.keep(lambda: write_row_scores(run, np.arange(len(scores)), scores))
        session.tracking.model(run.model, results)
        if session.signum is None and config.train.evaluate:
            session.progress.message("evaluating: pictures, samples")
            session.recording.attempt(
                "no evaluation", lambda: _write_pictures(session, target, density, drawn, log_w, state.progress.step)
            )
        return TargetFit(run, density, results, None, session.signum)


def _write_pictures(
    session: Session, target: Target, density: FittedDensity, drawn: Tensor, log_w: Tensor, step: int
) -> None:
    run, kind = session.run, "density" if target.features == 2 else "corner"
    captions = {kind: "The fitted density against the target", "weights": "Log-weights of points of the flow"}
    paths = {key: run.pictures / f"{key}.png" for key in captions}
    assert isinstance(density.flow, Flow)
    _draw_points(target, density.flow, paths[kind], (drawn, log_w))
    log_weights(log_w.numpy(), target.log_z, paths["weights"])
    for key, path in paths.items():
        session.keep(partial(session.tracking.image, f"pictures/{key}", path, captions[key], step))
    table = drawn[:_SHOWN].numpy()
    session.keep(lambda: write_table(run.samples / "samples.csv", table, np.empty((len(table), 0)), density.schema))


def _learns_from_samples(config: Config, target: Target) -> bool:
    return config.train.objective == "forward-kl" and target.has_samples


def _check_options(config: Config, target: Target) -> None:
    """Complain of an objective or an estimator that does not exist for a target.

    Raises:
        ConfigError: With what there is.
    """
    train, name = config.train, objective_name(config.train)
    if name not in OBJECTIVES:
        raise ConfigError(
            f"train.objective: {name} is for rows; a target is fitted by reverse-kl, alpha, forward-kl or iwae"
        )
    if _learns_from_samples(config, target):
        if train.gradient == "score-function":
            raise ConfigError(
                "train.gradient: the forward KL from samples of the target has no score-function gradient; take path "
                "(with the target's forces) or path-wise (maximum likelihood)"
            )
        return
    if train.gradient == "path-wise" and (name == "forward-kl" or (name == "alpha" and train.alpha == 1)):
        raise ConfigError(
            "train.gradient: the forward KL by weights (train.alpha=1) has no path-wise gradient; "
            "take train.gradient=path"
        )
    if train.gradient == "score-function" and train.batch_size == 1:
        raise ConfigError("train.batch_size: expected at least 2 with train.gradient=score-function; got 1")


def _objective(config: Config, target: Target, device: torch.device) -> TargetObjective:
    assert config.train.batch_size != "auto"  # resolve has decided it
    return TargetObjective(
        target,
        config.train,
        config.train.batch_size,
        validation_points=_VALIDATION_POINTS,
        device=device,
        seed=config.seed,
    )


def _resolved(config: Config, target: Target) -> Config:
    """Replace every ``auto``: sizes as for a toy, and more time for more coordinates."""
    features, train = target.features, config.train
    resolved = resolve(config, rows=0, features=features, is_toy=True)
    updates: dict[str, Any] = {"objective": "reverse-kl"} if train.objective == "auto" else {}
    if train.seconds == "auto" and train.steps == "auto":
        updates["seconds"] = min(120.0, 10.0 + 2.0 * features)
    if train.learning_rate == "auto":
        updates["learning_rate"] = 2e-3  # samples of a flow that is wrong lead astray faster than rows do
    told = resolved.target.model_copy(update={"features": features})
    return resolved.model_copy(update={"train": resolved.train.model_copy(update=updates), "target": told})


def _schema_of(config: Config, target: Target) -> dict[str, Any]:
    about: dict[str, Any] = {"dataset": config.data.source, "source": "target", "sha256": None, "rows": {}, "notes": []}
    return about | {"log_z": target.log_z, "entropy": target.entropy, "description": target.description}


def _draw_points(target: Target, flow: Model, path: Path, sample: tuple[Tensor, Tensor] | None = None) -> None:
    """The flow against exact samples of the target, or where there are none against the flow's own, by weight."""
    assert isinstance(flow, Flow)  # plan_target has refused an ensemble
    flow = flow.double().eval()
    drawn, log_w = weighted_sample(flow, target, _SHOWN, 0) if sample is None else sample
    truth = target.sample(_SHOWN, 0)
    if truth is None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.multinomial(torch.softmax(log_w, 0), _SHOWN, replacement=True, generator=generator)
        truth = drawn[rows]
    names = [f"x{i}" for i in range(1, target.features + 1)]
    points, held_out = drawn[:_SHOWN].double().numpy(), truth.double().numpy()
    if target.features == 2:
        log_z = target.log_z
        true = None if log_z is None else lambda x: target.log_prob(torch.from_numpy(x)).numpy() - log_z
        density_2d(flow, points, held_out, true, path, columns=names)
    else:
        corner(points, held_out, names, path)


def _known(results: dict[str, Any]) -> str:
    if results["log_z_known"] is None:
        return ""
    return f", known {results['log_z_known']:.4f}: off by {results['log_z'] - results['log_z_known']:+.4f}"
