"""Fit a flow to a target: an unnormalised log-density and its gradient take the place of rows."""

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
from pushforward.evaluate.likelihood import log_prob
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.density import density_2d
from pushforward.evaluate.plots.weights import log_weights
from pushforward.evaluate.target import (
    BATCH_SIZE,
    accept_float64,
    as_fitted_density,
    sample_and_log_prob,
    target_metrics,
    weighted_sample,
)
from pushforward.experiment.evaluation import forget_evaluation
from pushforward.experiment.recording import Watch
from pushforward.experiment.result import Fit
from pushforward.experiment.run_files import dashboard_summary
from pushforward.experiment.session import Session, new_run, resumed_run, start_client
from pushforward.flows import Chain, Flow, Model, Standardize, load_model, save as save_flow
from pushforward.flows.bijections.probit import Probit
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import rows_fingerprint, write_row_scores
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.train.architecture import build_model
from pushforward.train.checkpoint import load_checkpoint
from pushforward.train.defaults import resolve, train_options
from pushforward.train.device import choose_device, kernel_warning
from pushforward.train.objectives.target import TARGET_OBJECTIVES, TargetObjective, objective_name
from pushforward.train.trainer import State, start

Array = np.ndarray[Any, np.dtype[np.float64]]

_FIRST_BATCH = 512
_FINAL_SAMPLES = 50_000  # for the final numbers
_EXACT_SAMPLES, _EXACT_SEED = 10_000, 271_828
_VALIDATION_SAMPLES = 4_000
_SHOWN = 10_000  # samples in a picture and in samples.csv


def is_target(config: Config) -> bool:
    """Whether a target is fitted instead of rows."""
    return config.data.source.startswith(PREFIX)


class TargetFit(Fit):
    """The result of a fit to a target; it has no evaluation on rows."""

    def lines(self) -> list[str]:
        """The result as lines of text."""
        results = self.results
        out = [f"log Z               {results['log_z']:.4f} ± {results['log_z_se']:.4f} nats" + _known(results)]
        out.append(f"lower bound         {results['elbo']:.4f} ± {results['elbo_se']:.4f} nats")
        out.append(f"reverse ESS         {results['reverse_ess']:.4f}, from samples of the flow")
        if results["forward_ess"] is not None:
            k = results["forward_pareto_k"]
            few = f"; few samples of the tail dominate (Pareto k {k:.2f})" if k is not None and k > 0.7 else ""
            out.append(f"forward ESS         {results['forward_ess']:.4f}, from exact samples of the target{few}")
        if results["kl_to_truth"] is not None:
            out.append(f"KL(target || flow)  {results['kl_to_truth']:.4f} ± {results['kl_to_truth_se']:.4f} nats")
        if results["pareto_k"] is not None and results["pareto_k"] > 0.7:
            out.append(
                f"warning: few samples dominate the weights (Pareto k {results['pareto_k']:.2f}): log Z and its error "
                f"are not reliable; give the fit more time, or set target.spread to the distance of the mass from the "
                f"origin"
            )
        return out + self.closing_lines()


@dataclass(frozen=True)
class TargetPlan:
    """A planned fit to a target: the resolved configuration, the target and the flow."""

    config: Config
    target: Target
    flow: Flow

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.flow.parameters())


def plan_target(config: Config) -> TargetPlan:
    """Load the target and build the flow, without fitting.

    Raises:
        ConfigError: If the device does not exist, or the objective is one for rows.
        DataError: If the target cannot be used.
    """
    choose_device(config.device)
    options = config.target
    target = load_target(
        config.data.source,
        None if options.features == "auto" else options.features,
        bounds=options.bounds,
        spread=None if options.spread == "auto" else options.spread,
    )
    _check_options(config, target)
    config = _resolved(config, target)
    if config.flow.members != 1:
        raise ConfigError(f"flow.members: a target is fitted by a single flow; got {config.flow.members}")
    if config.flow.stacking is True:
        raise ConfigError("flow.stacking: a target has no rows that could weight a kernel density; leave it out")
    flow = build_model(config.flow, target.features, seed=config.seed)
    assert isinstance(flow, Flow)  # it has one member
    d = target.features
    first = Standardize([0.0] * d, [target.spread] * d) if target.bounds is None else Probit(d, *target.bounds)
    layers = flow.bijection.bijections if isinstance(flow.bijection, Chain) else [flow.bijection]
    return TargetPlan(config, target, Flow(flow.base, Chain([first, *layers], features=d)))


def check_plan(planned: TargetPlan, *, gradients: bool = False) -> Tensor:
    """Check the target on the first batch of the flow, on the device of the fit, and return the batch.

    Args:
        planned: The fit.
        gradients: Check the gradients of the target even if the fit does not need them.

    Raises:
        TargetError: If the target cannot be used; the message has the sample at fault.
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
    """Fit a flow to a target and write a run folder.

    Args:
        config: The configuration; ``data.source`` is ``target:NAME``.
        out: The run folder; None makes one in ``runs/``.
        quiet: Show no progress bar, only warnings and messages.
        watch: Called after every validation; a reason that it returns ends the fit.
        job_type: Job type of the Weights & Biases run.

    Raises:
        DataError: If the target cannot be used.
        ConfigError: If the device does not exist, or the objective does not exist for the target.
        RunError: If the run folder cannot be made or written.
        DivergedError: If the loss does not stay finite.
    """
    with start_client(config) as process:
        planned = plan_target(config)
        config, target, flow = planned.config, planned.target, planned.flow
        device = choose_device(config.device)
        torch.manual_seed(config.seed)
        first_batch = check_plan(planned)  # before there is a run folder
        objective = _objective(config, target, device)
        name, flow_name = config.data.source, config.flow.name
        with new_run(config, out, name=name, flow=flow_name, schema=_schema_content(config, target)) as run:
            warning = kernel_warning()
            flow.train()(first_batch)  # initialises layers that initialise themselves from data
            save_flow(flow, run.checkpoints / "start")
            state = start(flow, train_options(config.train))
            options = {"quiet": quiet, "watch": watch, "job_type": job_type}
            return _run(run, config, target, objective, state, process, warning=warning, **options)


def resume_target(run: RunFolder, config: Config, *, quiet: bool = False) -> TargetFit:
    """Resume a fit to a target; the caller has claimed the run."""
    with start_client(config) as process:
        planned = plan_target(config)
        config, device = planned.config, choose_device(planned.config.device)
        flow = load_model(run.checkpoints / "start", Flow, device=device)
        state = load_checkpoint(start(flow.train(), train_options(config.train)), run.checkpoints / "last.pt")
        objective = _objective(config, planned.target, device)
        with resumed_run(run, config, name=config.data.source, flow=config.flow.name):
            warning = kernel_warning()
            return _run(
                run, config, planned.target, objective, state, process, warning=warning, quiet=quiet, resumed=True
            )


def _run(
    run: RunFolder,
    config: Config,
    target: Target,
    objective: TargetObjective,
    state: State,
    process: WandbProcess,
    *,
    warning: str,
    **options: Any,
) -> TargetFit:
    assert isinstance(state.flow, Flow)  # plan_target refuses mixtures of flows
    target = accept_float64(target, state.flow, state.average[0].device)
    known = "" if target.log_z is None else f", log Z {target.log_z:.4f}"
    session = Session(
        run,
        config,
        state,
        process,
        name=config.data.source,
        size=f"{target.features} features{known}; {objective.name}, {objective.estimator} gradient",
        facts={"features": target.features, "objective": objective.name},
        draw=partial(_draw_samples, target),
        **options,
    )
    with session:
        if warning:
            session.progress.message(f"warning: {warning}")
        state = session.train(objective)
        flow = state.flow.cpu().double().eval()
        assert isinstance(flow, Flow)
        density = as_fitted_density(flow, sample_and_log_prob(flow, _VALIDATION_SAMPLES, config.seed)[0])
        density.save(run.model, extra={"dataset": config.data.source})
        session.write_safely(lambda: forget_evaluation(run))  # of the previous model, if the fit was resumed
        drawn, log_w = weighted_sample(flow, target, _FINAL_SAMPLES, config.seed)
        # The same samples for every fit to a target, so that fits can be compared sample by sample.
        exact = target.sample(_EXACT_SAMPLES, _EXACT_SEED)
        exact = None if exact is None else exact.double()
        exact_log_q = None if exact is None else log_prob(flow, exact, batch_size=BATCH_SIZE)
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
            **target_metrics(target, log_w, exact, exact_log_q),
            "test_rows_sha256": None if exact is None else rows_fingerprint(density.schema.names, exact.numpy()),
        }
        run.write_json("results.json", results)
        session.write_safely(lambda: session.tracking.summary(dashboard_summary(results)))
        if target.log_z is not None:
            lines = {"known/log_z": target.log_z}
            session.write_safely(lambda: session.tracking.reference_lines(lines, state.progress.step))
        session.mark_finished({key: results[key] for key in ("dataset", "flow", "steps", "val_nll", "test_nll")})
        if exact_log_q is not None:
            scores = exact_log_q.numpy()
            session.write_safely(lambda: write_row_scores(run, np.arange(len(scores)), scores))
        session.tracking.model(run.model, results)
        if session.signum is None and config.train.evaluate:
            session.progress.message("evaluating: pictures, samples")
            session.recorder.run_safely(
                "no evaluation", lambda: _write_pictures(session, target, density, drawn, log_w, state.progress.step)
            )
        return TargetFit(run, density, results, None, session.signum)


def _write_pictures(
    session: Session, target: Target, density: FittedDensity, drawn: Tensor, log_w: Tensor, step: int
) -> None:
    run, kind = session.run, "density" if target.features == 2 else "corner"
    captions = {kind: "The fitted density against the target", "weights": "Log-weights of samples of the flow"}
    paths = {key: run.pictures / f"{key}.png" for key in captions}
    assert isinstance(density.flow, Flow)
    _draw_samples(target, density.flow, paths[kind], (drawn, log_w))
    log_weights(log_w.numpy(), target.log_z, paths["weights"])
    for key, path in paths.items():
        session.write_safely(partial(session.tracking.image, f"pictures/{key}", path, captions[key], step))
    table = drawn[:_SHOWN].numpy()
    session.write_safely(
        lambda: write_table(run.samples / "samples.csv", table, np.empty((len(table), 0)), density.schema)
    )


def _learns_from_samples(config: Config, target: Target) -> bool:
    return config.train.objective == "forward-kl" and target.has_samples


def _check_options(config: Config, target: Target) -> None:
    """Check that the objective and the gradient estimator exist for the target.

    Raises:
        ConfigError: If one does not; the message says which ones do.
    """
    train, name = config.train, objective_name(config.train)
    if name not in TARGET_OBJECTIVES:
        raise ConfigError(
            f"train.objective: {name} is for rows; a target is fitted by reverse-kl, alpha, forward-kl or iwae"
        )
    if _learns_from_samples(config, target):
        if train.gradient == "score-function":
            raise ConfigError(
                "train.gradient: the forward KL from samples of the target has no score-function gradient; take path "
                "(with the score function of the target) or path-wise (maximum likelihood)"
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
        validation_samples=_VALIDATION_SAMPLES,
        device=device,
        seed=config.seed,
    )


def _resolved(config: Config, target: Target) -> Config:
    """Replace every ``auto``: sizes as for a toy, and more time for more features."""
    features, train = target.features, config.train
    resolved = resolve(config, rows=0, features=features, is_toy=True)
    updates: dict[str, Any] = {"objective": "reverse-kl"} if train.objective == "auto" else {}
    if train.seconds == "auto" and train.steps == "auto":
        updates["seconds"] = min(120.0, 10.0 + 2.0 * features)
    if train.learning_rate == "auto":
        updates["learning_rate"] = 2e-3  # noisier than for rows: the samples are those of the flow itself
    resolved_target = resolved.target.model_copy(update={"features": features})
    return resolved.model_copy(update={"train": resolved.train.model_copy(update=updates), "target": resolved_target})


def _schema_content(config: Config, target: Target) -> dict[str, Any]:
    data: dict[str, Any] = {"dataset": config.data.source, "source": "target", "sha256": None, "rows": {}, "notes": []}
    return data | {"log_z": target.log_z, "entropy": target.entropy, "description": target.description}


def _draw_samples(target: Target, flow: Model, path: Path, sample: tuple[Tensor, Tensor] | None = None) -> None:
    """Draw samples of the flow against samples of the target, or against its own samples resampled by weight."""
    assert isinstance(flow, Flow)  # plan_target refuses mixtures of flows
    flow = flow.double().eval()
    drawn, log_w = weighted_sample(flow, target, _SHOWN, 0) if sample is None else sample
    exact = target.sample(_SHOWN, 0)
    if exact is None:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.multinomial(torch.softmax(log_w, 0), _SHOWN, replacement=True, generator=generator)
        exact = drawn[chosen]
    names = [f"x{i}" for i in range(1, target.features + 1)]
    samples, exact_samples = drawn[:_SHOWN].double().numpy(), exact.double().numpy()
    if target.features == 2:
        log_z = target.log_z
        true = None if log_z is None else lambda x: target.log_prob(torch.from_numpy(x)).numpy() - log_z
        density_2d(flow, samples, exact_samples, true, path, columns=names)
    else:
        corner(samples, exact_samples, names, path)


def _known(results: dict[str, Any]) -> str:
    if results["log_z_known"] is None:
        return ""
    return f", known {results['log_z_known']:.4f}: off by {results['log_z'] - results['log_z_known']:+.4f}"
