"""A study of gradient estimators: a flow learns a target, and on the way all estimators are measured."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pushforward.common.errors import ConfigError
from pushforward.common.files import json_safe
from pushforward.config.schema import Config
from pushforward.datasets.targets.base import Target
from pushforward.datasets.targets.gaussian import GaussianChain
from pushforward.datasets.targets.names import PREFIX
from pushforward.evaluate.plots.gradients import gradient_study
from pushforward.experiment.session import new_run, start_client
from pushforward.experiment.target import check_plan, plan_target
from pushforward.flows import Flow
from pushforward.flows.kernels import native
from pushforward.gradients.measurement import ALL, Measurement, gaussian_variances, location_and_scale, measure
from pushforward.runs.folder import RunFolder
from pushforward.tracking.base import Tracking
from pushforward.train.defaults import settings
from pushforward.train.device import choose_device, threads_for
from pushforward.train.objectives.target import TargetObjective
from pushforward.train.trainer import minimize, start

_VALIDATION_POINTS = 2_000
_AXES = {"base.location": 0, "base.log_scale": 1}


@dataclass(frozen=True)
class Study:
    """What a study leaves.

    Attributes:
        run: The folder, with ``gradients.json`` and ``gradients.png``.
        results: The content of ``gradients.json``: facts, and ``checkpoints`` with ``step``, ``loss`` (nats, up to the
            target's constant), ``reverse_kl`` (where the constant is known), and by estimator the ``milliseconds`` of a
            gradient and the statistics of each group of parameters.
    """

    run: RunFolder
    results: dict[str, Any]

    def table(self) -> list[list[str]]:
        """One line an estimator and checkpoint, of all parameters together; the first is the head."""
        rows = [["step", "estimator", "|mean|", "±", "variance", "±", "SNR", "±", "ms", "quartiles"]]
        for checkpoint in self.results["checkpoints"]:
            for name, found in checkpoint["estimators"].items():
                every, (low, high) = found["groups"][ALL], found["milliseconds_quartiles"]
                numbers = [
                    _digits(every[key]) for key in ("norm", "norm_se", "variance", "variance_se", "snr", "snr_se")
                ]
                cost = [f"{found['milliseconds']:.2f}", f"{low:.2f}-{high:.2f}"]
                rows.append([f"{checkpoint['step']:,}", name, *numbers, *cost])
        return rows

    def table_by_group(self) -> list[list[str]]:
        """The variance of every group of parameters at the last checkpoint; empty where there is only one group."""
        estimators = self.results["checkpoints"][-1]["estimators"]
        groups = [group for group in next(iter(estimators.values()))["groups"] if group != ALL]
        if len(groups) < 2:
            return []
        cells = [[g, *(_digits(found["groups"][g]["variance"]) for found in estimators.values())] for g in groups]
        return [["variance of", *estimators], *cells]

    def table_of_formulas(self) -> list[list[str]]:
        """Measured variances beside known ones, in units of a single point's; empty where none are known."""
        points, rows = self.results["points"], list[list[str]]()
        for checkpoint in self.results["checkpoints"]:
            for group in _AXES:
                for name, found in checkpoint["estimators"].items():
                    row = found["groups"].get(group, {})
                    if "variance_known" not in row:
                        continue
                    known, measured, se = (points * row[key] for key in ("variance_known", "variance", "variance_se"))
                    apart = f"{(measured - known) / se:+.1f}" if known else "-"  # beside zero stands rounding
                    place = [f"{checkpoint['step']:,}", f"{checkpoint['scale']:.4f}", group.removeprefix("base.")]
                    rows.append([*place, name, _digits(measured), _digits(se), _digits(known), apart])
        head = ["step", "scale", "by", "estimator", f"{points:,} x variance", "±", "formula", "apart by (±)"]
        return [head, *rows] if rows else []


def study(
    config: Config,
    *,
    steps: int,
    points: int | None = None,
    replicates: int = 64,
    checkpoints: int = 5,
    scale: float | None = None,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Study:
    """Train a flow on the reverse KL of a target, measure the estimators on the way, and leave a folder.

    The flow is that of a fit to the target. Measuring leaves the training as it is, random numbers included.

    Args:
        config: What is fitted and how, its ``data.source`` being ``target:NAME``; ``train.gradient`` trains.
        steps: Steps of the training; 0 to measure at the start only.
        points: Rows of a gradient that is measured; those of a training step if not given.
        replicates: Gradients by each estimator at each checkpoint.
        checkpoints: How often is measured, denser at the start: at steps ``steps * (k / (checkpoints - 1))^2``.
        scale: Standard deviations of the flow's base to begin with, around 0.
        out: Exactly this folder; None makes one below ``runs/``.
        tell: Told a line at each checkpoint.

    Raises:
        DataError: If the target cannot be used.
        ConfigError: If the objective is not the reverse KL, or the device is not there.
        RunError: If the folder cannot be made or written.
        DivergedError: If training does not stay finite.
    """
    if not config.data.source.startswith(PREFIX):
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"source": PREFIX + config.data.source})}
        )
    with start_client(config) as process:
        config, target, flow, objective = _prepared(config, steps, scale)
        points = points or objective.points
        parameters = sum(p.numel() for p in flow.parameters() if p.requires_grad)
        facts = {
            "target": config.data.source,
            "flow": config.flow.name,
            "features": target.features,
            "parameters": parameters,
            "trained_by": objective.estimator,
            "steps": steps,
            "points": points,
            "replicates": replicates,
            "log_z": target.log_z,
            "device": str(flow.base.device),
        }
        name, flow_name = config.data.source, config.flow.name
        with new_run(config, out, name=name, flow=flow_name, kind="gradients") as run:
            try:
                tracking = Tracking.open(
                    run,
                    config,
                    dataset=config.data.source,
                    flow=config.flow.name,
                    facts={key: facts[key] for key in ("features", "parameters", "points", "replicates")},
                    warn=lambda text: tell(f"warning: {text}"),
                    job_type="gradients",
                    process=process,
                )
                with tracking:
                    laboratory = _Laboratory(
                        target, config, points, replicates, _steps_of(steps, checkpoints), tracking, tell
                    )
                    with threads_for(config, target.features):
                        facts["threads"] = torch.get_num_threads()
                        _train(flow, objective, config, steps, laboratory, tracking, tell)
                    results = json_safe({"run": str(run.path), **facts, "checkpoints": laboratory.rows})
                    run.write_json("gradients.json", results)
                    picture = run.path / "gradients.png"
                    gradient_study(results, picture)
                    caption = f"{points} points a gradient, {replicates} gradients by each estimator"
                    tracking.image("gradients/picture", picture, caption, steps)
                    tracking.summary({key: value for key, value in facts.items() if key != "target"})
                if tracking.location is not None:
                    tell(f"W&B       {tracking.location}")
                run.set_status("finished", steps=steps)
                for folder in (run.checkpoints, run.model, run.samples, run.pictures):
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # those that a fit would have filled
                return Study(run, results)
            except KeyboardInterrupt:
                run.set_status("stopped")
                raise


class _Laboratory:
    """Measures when training passes a checkpoint, and keeps and passes on what was found."""

    def __init__(
        self,
        target: Target,
        config: Config,
        points: int,
        replicates: int,
        due: Sequence[int],
        tracking: Tracking,
        tell: Callable[[str], None],
    ) -> None:
        self.target, self.config, self.points, self.replicates = target, config, points, replicates
        self.due, self.tracking, self.tell = list(due), tracking, tell
        self.rows: list[dict[str, Any]] = []
        self.began = time.perf_counter()
        self._standard = isinstance(target, GaussianChain) and target.features == 1

    def visit(self, flow: Flow, step: int) -> None:
        """Measure if a checkpoint is due."""
        if not self.due or step < self.due[0]:
            return
        self.due.pop(0)
        began = time.perf_counter()
        with native.disabled() if self.config.train.compile == "off" else contextlib.nullcontext():
            found = measure(
                flow,
                self.target.log_prob,
                points=self.points,
                replicates=self.replicates,
                seed=self.config.seed + step,
            )
        row = self._row(flow, step, found)
        self.rows.append(row)
        seconds = time.perf_counter() - self.began
        self.tracking.log(_metrics(row), step, seconds=seconds, kind="gradients")
        value = ("loss", row["loss"]) if row["reverse_kl"] is None else ("reverse KL", row["reverse_kl"])
        took = time.perf_counter() - began
        self.tell(f"step {step:,}: {value[0]} {value[1]:.4f} ± {row['loss_se']:.4f} nats; measured in {took:.1f} s")

    def _row(self, flow: Flow, step: int, found: Measurement) -> dict[str, Any]:
        known = location_and_scale(flow) if self._standard else None
        row: dict[str, Any] = {
            "step": step,
            "loss": found.loss,
            "loss_se": found.loss_se,
            "reverse_kl": None if self.target.log_z is None else found.loss + self.target.log_z,
        }
        if known is not None:
            row["location"], row["scale"] = known
        formulas = {} if known is None else gaussian_variances(*known, self.points)
        row["estimators"] = {
            name: {
                "milliseconds": behaviour.median_milliseconds,
                "milliseconds_quartiles": behaviour.quartiles_milliseconds,
                "groups": {
                    group: statistics._asdict() | _known(formulas.get(name), group)
                    for group, statistics in behaviour.groups.items()
                },
            }
            for name, behaviour in found.estimators.items()
        }
        return row


def _prepared(config: Config, steps: int, scale: float | None) -> tuple[Config, Target, Flow, TargetObjective]:
    """The flow of a fit to the target, ready to be trained."""
    train = config.train.model_copy(update={"steps": max(1, steps), "seconds": "auto", "patience": 1.0})
    planned = plan_target(config.model_copy(update={"train": train}))
    config, target = planned.config, planned.target
    if config.train.objective != "reverse-kl":
        raise ConfigError(f"train.objective: gradients are those of the reverse-kl; got {config.train.objective}")
    assert config.train.batch_size != "auto"  # planning has decided it
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    flow = planned.flow.to(device)
    first_batch = check_plan(planned, gradients=True)
    with torch.no_grad():
        flow.train()(first_batch)  # layers that set themselves from data do so here
        if scale is not None:
            zeros = torch.zeros(target.features, device=device)
            flow.base.initialize(zeros, scale**2 * torch.eye(target.features, device=device))
    batch_size = config.train.batch_size
    objective = TargetObjective(
        target,
        config.train,
        batch_size,
        validation_points=_VALIDATION_POINTS,
        device=device,
        seed=config.seed,
    )
    return config, target, flow, objective


def _train(
    flow: Flow,
    objective: TargetObjective,
    config: Config,
    steps: int,
    laboratory: _Laboratory,
    tracking: Tracking,
    tell: Callable[[str], None],
) -> None:
    if steps == 0:
        laboratory.visit(flow, 0)
        return
    state = start(flow, settings(config.train))

    def stop() -> str:
        # Asked before every step and once at the end, with the weights of that step.
        laboratory.visit(flow, state.progress.step)
        return ""

    minimize(
        state,
        objective,
        settings(config.train),
        log=lambda kind, step, seconds, metrics: tracking.log(
            metrics, step, seconds=time.perf_counter() - laboratory.began, kind=kind
        ),
        stop=stop,
        warn=lambda text: tell(f"warning: {text}"),
    )


def _steps_of(steps: int, checkpoints: int) -> list[int]:
    """When to measure: much changes at the start, little at the end."""
    if checkpoints == 1 or steps == 0:
        return [0]
    return sorted({round(steps * (k / (checkpoints - 1)) ** 2) for k in range(checkpoints)})


def _known(formula: tuple[float, float] | None, group: str) -> dict[str, float]:
    if formula is None or group not in (ALL, *_AXES):
        return {}
    return {"variance_known": sum(formula) if group == ALL else formula[_AXES[group]]}


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    metrics = {"gradients/loss": row["loss"]}
    for name, found in row["estimators"].items():
        metrics[f"gradients/{name}/milliseconds"] = found["milliseconds"]
        for group, statistics in found["groups"].items():
            metrics |= {f"gradients/{name}/{group}/{key}": statistics[key] for key in ("norm", "variance", "snr")}
    return metrics


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
