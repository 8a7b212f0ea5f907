"""The study of gradient estimators: train a flow on a target, and measure all estimators at checkpoints."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pushforward.common.errors import ConfigError
from pushforward.common.files import json_safe
from pushforward.config.resolved import refuse_unused_keys, resolved, unused_keys
from pushforward.config.schema import Config
from pushforward.datasets.targets.base import Target
from pushforward.datasets.targets.gaussian import GaussianChain
from pushforward.datasets.targets.names import PREFIX
from pushforward.evaluate.plots.gradients import gradient_study
from pushforward.experiment.record import new_run, start_client
from pushforward.flows import Flow
from pushforward.flows.kernels import native
from pushforward.gradients.measurement import ALL, Measurement, gaussian_variances, location_and_scale, measure
from pushforward.reports.run import write_report
from pushforward.runs.folder import RunFolder
from pushforward.tracking.registry import check_trackers
from pushforward.tracking.trackers import Tracking
from pushforward.tracking.wandb.location import location_line
from pushforward.train.callbacks import Callback
from pushforward.train.device import choose_device
from pushforward.train.objectives.base import Metrics
from pushforward.train.objectives.target import TargetObjective
from pushforward.train.problems.base import Headline
from pushforward.train.problems.target import TargetProblem
from pushforward.train.state import State, start
from pushforward.train.trainer import Trainer

_VALIDATION_SAMPLES = 2_000
_SECTIONS = ("gradients", "training")  # of the report
_UNUSED = ("train.patience", "train.evaluate", "train.checkpoint_seconds")
# Groups of parameters with known variances, and their places in the result of gaussian_variances.
_KNOWN_GROUPS = {"base.location": 0, "base.log_scale": 1}


@dataclass(frozen=True)
class Study:
    """The result of a study.

    Attributes:
        run: The run folder, with ``gradients.json`` and ``gradients.png``.
        results: The content of ``gradients.json``: facts, and ``checkpoints`` with ``step``, ``loss`` (nats, up to the
            target's constant), ``reverse_kl`` (None if the constant is unknown), and for each estimator the
            ``milliseconds`` of a gradient and the statistics of each group of parameters.
    """

    run: RunFolder
    results: dict[str, Any]

    def table(self) -> list[list[str]]:
        """Return one row for each checkpoint and estimator, for all parameters together; the first row is the head."""
        rows = [["step", "estimator", "|mean|", "±", "variance", "±", "SNR", "±", "ms", "quartiles"]]
        for checkpoint in self.results["checkpoints"]:
            for name, result in checkpoint["estimators"].items():
                statistics, (low, high) = result["groups"][ALL], result["milliseconds_quartiles"]
                keys = ("norm", "norm_se", "variance", "variance_se", "snr", "snr_se")
                cost = [f"{result['milliseconds']:.2f}", f"{low:.2f}-{high:.2f}"]
                rows.append([f"{checkpoint['step']:,}", name, *(_number(statistics[key]) for key in keys), *cost])
        return rows

    def table_by_group(self) -> list[list[str]]:
        """Return the variance of each group of parameters at the last checkpoint; empty if there is only one group."""
        estimators = self.results["checkpoints"][-1]["estimators"]
        groups = [group for group in next(iter(estimators.values()))["groups"] if group != ALL]
        if len(groups) < 2:
            return []
        rows = [[g, *(_number(result["groups"][g]["variance"]) for result in estimators.values())] for g in groups]
        return [["variance of", *estimators], *rows]

    def table_of_formulas(self) -> list[list[str]]:
        """Return measured and exact variances, multiplied by the number of samples; empty if none are known exactly."""
        samples, rows = self.results["samples"], list[list[str]]()
        for checkpoint in self.results["checkpoints"]:
            for group in _KNOWN_GROUPS:
                for name, result in checkpoint["estimators"].items():
                    row = result["groups"].get(group, {})
                    if "variance_known" not in row:
                        continue
                    known, measured, se = (samples * row[key] for key in ("variance_known", "variance", "variance_se"))
                    apart = f"{(measured - known) / se:+.1f}" if known else "-"  # a measured zero is a rounding error
                    place = [f"{checkpoint['step']:,}", f"{checkpoint['scale']:.4f}", group.removeprefix("base.")]
                    rows.append([*place, name, _number(measured), _number(se), _number(known), apart])
        head = ["step", "scale", "by", "estimator", f"{samples:,} x variance", "±", "formula", "apart by (±)"]
        return [head, *rows] if rows else []


def study(
    config: Config,
    *,
    steps: int,
    samples: int | None = None,
    replicates: int = 64,
    checkpoints: int = 5,
    scale: float | None = None,
    out: Path | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Study:
    """Train a flow on the reverse KL of a target, measure the estimators at checkpoints, and write a run folder.

    The flow is that of a fit to the target. Measuring does not change the training, random numbers included.

    Args:
        config: Configuration of the fit; its ``data.source`` is ``target:NAME``, and ``train.gradient`` is the
            estimator that trains.
        steps: Training steps; 0 to measure only at the start.
        samples: Samples of the flow in a measured gradient; None for those of a training step.
        replicates: Gradients by each estimator at each checkpoint.
        checkpoints: Number of measurements, denser at the start: at steps ``steps * (k / (checkpoints - 1))^2``.
        scale: Initial standard deviation of the flow's base, with mean 0; None to keep the usual initialisation.
        out: The run folder; None makes one below ``runs/``.
        notify: Called with a line of text at each checkpoint.

    Raises:
        DataError: If the target cannot be used.
        ConfigError: If the objective is not the reverse KL, or the device is not available.
        RunError: If the folder cannot be made or written.
        DivergedError: If training diverges.
    """
    if not config.data.source.startswith(PREFIX):
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"source": PREFIX + config.data.source})}
        )
    check_trackers(config.track)
    with start_client(config) as process:
        problem, state, objective = _prepared(config, steps, scale)
        config, target, flow = resolved(config, problem.options, problem.uses), problem.target, state.flow
        samples = samples or objective.batch_size
        parameters = sum(p.numel() for p in flow.parameters() if p.requires_grad)
        facts = {
            "target": config.data.source,
            "flow": config.flow.name,
            "features": target.features,
            "parameters": parameters,
            "trained_by": objective.estimator,
            "steps": steps,
            "samples": samples,
            "replicates": replicates,
            "log_z": target.log_z,
            "device": str(flow.base.device),
        }
        name, flow_name = config.data.source, config.flow.name
        with new_run(config, out, name=name, flow=flow_name, problem="gradients", sections=_SECTIONS) as run:
            try:
                tracking = Tracking.open(
                    run,
                    config,
                    dataset=config.data.source,
                    flow=config.flow.name,
                    facts={key: facts[key] for key in ("features", "parameters", "samples", "replicates")},
                    warn=lambda text: notify(f"warning: {text}"),
                    job_type="gradients",
                    process=process,
                )
                with tracking:
                    measurements = _Measurements(
                        target, config, samples, replicates, _checkpoint_steps(steps, checkpoints), tracking, notify
                    )
                    with problem.threads():
                        facts["threads"] = torch.get_num_threads()
                        if steps:
                            callbacks = [_Record(tracking, measurements, notify)]
                            Trainer(problem.options.train, callbacks=callbacks).run(state, objective)
                        else:
                            measurements.measure_if_due(flow, 0)
                    results = json_safe({"run": str(run.path), **facts, "checkpoints": measurements.rows})
                    run.write_json("gradients.json", results)
                    picture = run.path / "gradients.png"
                    gradient_study(results, picture)
                    caption = f"{samples} samples a gradient, {replicates} gradients by each estimator"
                    tracking.image("gradients/picture", picture, caption, steps)
                    tracking.summary({key: value for key, value in facts.items() if key != "target"})
                if tracking.location is not None:
                    notify(location_line(tracking.location, run.path))
                run.set_status("finished", steps=steps, headline=[json_safe(vars(_headline(measurements.rows[-1])))])
                write_report(run)
                for folder in (run.checkpoints, run.model, run.samples, run.pictures):
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # a fit would have filled them
                return Study(run, results)
            except (KeyboardInterrupt, SystemExit):
                run.set_status("stopped")
                raise


class _Measurements:
    """Measures the estimators when training reaches a checkpoint; keeps and logs the results.

    Args:
        target: The target.
        config: Configuration of the fit.
        samples: Samples in a gradient.
        replicates: Gradients by each estimator.
        steps: Steps at which to measure, ascending.
        tracking: Logs the metrics.
        notify: Called with a line of text at each checkpoint.
    """

    def __init__(
        self,
        target: Target,
        config: Config,
        samples: int,
        replicates: int,
        steps: Sequence[int],
        tracking: Tracking,
        notify: Callable[[str], None],
    ) -> None:
        self.target, self.config, self.samples, self.replicates = target, config, samples, replicates
        self.remaining, self.tracking, self.notify = list(steps), tracking, notify
        self.rows: list[dict[str, Any]] = []
        self.began = time.perf_counter()
        self._is_standard_gaussian = isinstance(target, GaussianChain) and target.features == 1

    def measure_if_due(self, flow: Flow, step: int) -> None:
        """Measure if training has reached the next checkpoint."""
        if not self.remaining or step < self.remaining[0]:
            return
        self.remaining.pop(0)
        began = time.perf_counter()
        with native.disabled() if self.config.train.compile == "off" else contextlib.nullcontext():
            measurement = measure(
                flow,
                self.target.log_prob,
                samples=self.samples,
                replicates=self.replicates,
                seed=self.config.seed + step,
            )
        row = self._row(flow, step, measurement)
        self.rows.append(row)
        seconds = time.perf_counter() - self.began
        self.tracking.log(_metrics(row), step, seconds=seconds, kind="gradients")
        name, value = ("loss", row["loss"]) if row["reverse_kl"] is None else ("reverse KL", row["reverse_kl"])
        took = time.perf_counter() - began
        self.notify(f"step {step:,}: {name} {value:.4f} ± {row['loss_se']:.4f} nats; measured in {took:.1f} s")

    def _row(self, flow: Flow, step: int, measurement: Measurement) -> dict[str, Any]:
        gaussian = location_and_scale(flow) if self._is_standard_gaussian else None
        row: dict[str, Any] = {
            "step": step,
            "loss": measurement.loss,
            "loss_se": measurement.loss_se,
            "reverse_kl": None if self.target.log_z is None else measurement.loss + self.target.log_z,
        }
        if gaussian is not None:
            row["location"], row["scale"] = gaussian
        exact = {} if gaussian is None else gaussian_variances(*gaussian, self.samples)
        row["estimators"] = {
            name: {
                "milliseconds": result.median_milliseconds,
                "milliseconds_quartiles": result.quartiles_milliseconds,
                "groups": {
                    group: statistics._asdict() | _known_variance(exact.get(name), group)
                    for group, statistics in result.groups.items()
                },
            }
            for name, result in measurement.estimators.items()
        }
        return row


def _prepared(config: Config, steps: int, scale: float | None) -> tuple[TargetProblem, State, TargetObjective]:
    """Return the problem, the state of a fit to it before the first step, and the objective."""
    train = config.train.model_copy(update={"steps": max(1, steps), "seconds": "auto", "patience": 1.0})
    given, config = config, config.model_copy(update={"train": train})
    device = choose_device(config.device)
    problem = TargetProblem.plan(config.model_dump())
    refuse_unused_keys(given, problem)
    for key in unused_keys(given, lambda key: key not in _UNUSED):
        raise ConfigError(f"{key}: has no effect on a study of gradients; it has one with pushforward fit")
    if problem.options.objective.name != "reverse-kl":
        raise ConfigError(f"train.objective: expected reverse-kl; got {problem.options.objective.name}")
    problem.check(problem.build().to(device), gradients=True)
    state = problem.start(device)
    if scale is not None:
        zeros = torch.zeros(problem.features, device=device)
        state.flow.base.initialize(zeros, scale**2 * torch.eye(problem.features, device=device))
        state = start(state.flow, problem.options.train, random=state.random)
    objective = TargetObjective(
        problem.target,
        problem.options.objective,
        problem.options.train.batch_size,
        validation_samples=_VALIDATION_SAMPLES,
        device=device,
        seed=config.seed,
    )
    return problem, state, objective


class _Record(Callback):
    """Measures at the checkpoints of the study, and logs the metrics of training."""

    def __init__(self, tracking: Tracking, measurements: _Measurements, notify: Callable[[str], None]) -> None:
        self.tracking, self.measurements, self.notify = tracking, measurements, notify

    def on_log(self, state: State, metrics: Metrics) -> None:
        self._log(state, metrics, "train")

    def on_validation(self, state: State, metrics: Metrics) -> None:
        self._log(state, metrics, "validation")

    def should_stop(self, state: State) -> str:
        # Asked before every step and once at the end, with the weights of that step.
        self.measurements.measure_if_due(state.flow, state.progress.step)
        return ""

    def on_warning(self, text: str) -> None:
        self.notify(f"warning: {text}")

    def _log(self, state: State, metrics: Metrics, kind: str) -> None:
        seconds = time.perf_counter() - self.measurements.began
        self.tracking.log(metrics, state.progress.step, seconds=seconds, kind=kind)


def _checkpoint_steps(steps: int, checkpoints: int) -> list[int]:
    """Return the steps at which to measure, denser at the start, where the flow changes most."""
    if checkpoints == 1 or steps == 0:
        return [0]
    return sorted({round(steps * (k / (checkpoints - 1)) ** 2) for k in range(checkpoints)})


def _headline(checkpoint: dict[str, Any]) -> Headline:
    """What sums up a study in the list of runs: how far the flow is from the target at the last checkpoint."""
    is_known = checkpoint["reverse_kl"] is not None
    name, value = ("reverse KL", checkpoint["reverse_kl"]) if is_known else ("loss", checkpoint["loss"])
    return Headline(name, value, checkpoint["loss_se"])


def _known_variance(variances: tuple[float, float] | None, group: str) -> dict[str, float]:
    if variances is None or group not in (ALL, *_KNOWN_GROUPS):
        return {}
    return {"variance_known": sum(variances) if group == ALL else variances[_KNOWN_GROUPS[group]]}


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    metrics = {"gradients/loss": row["loss"]}
    for name, result in row["estimators"].items():
        metrics[f"gradients/{name}/milliseconds"] = result["milliseconds"]
        for group, statistics in result["groups"].items():
            metrics |= {f"gradients/{name}/{group}/{key}": statistics[key] for key in ("norm", "variance", "snr")}
    return metrics


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
