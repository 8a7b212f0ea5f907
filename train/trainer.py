"""The training loop, read from top to bottom."""

import copy
import math
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pushforward.common.errors import UserError
from pushforward.flows import Model
from pushforward.train.defaults import TrainOptions
from pushforward.train.device import Steps
from pushforward.train.layer_metrics import gradient_norms, named_layers
from pushforward.train.objectives.base import Metrics, Objective
from pushforward.train.optimizer import ClippedAdamW

VALIDATIONS = 40
_ROLLBACKS = 5


class DivergedError(UserError, RuntimeError):
    """Training kept producing values that are not finite, also after smaller learning rates."""

    exit_code = 4


@dataclass
class TrainingProgress:
    """Where training stands; together with weights and optimiser all that a checkpoint needs."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    best_fraction: float = 0.0
    start_loss: float = math.inf
    rollbacks: int = 0
    stop_reason: str = ""
    validated_step: int = -1


@dataclass
class State:
    """A training run between two steps."""

    flow: Model
    average: list[Tensor]
    optimizer: ClippedAdamW
    best: dict[str, Tensor]
    progress: TrainingProgress = field(default_factory=TrainingProgress)


def start(flow: Model, settings: TrainOptions) -> State:
    """Make the state of a run that has not begun; data-dependent layers must be initialised already."""

    def is_decayed(name: str, parameter: Tensor) -> bool:
        """Whether it is a weight of a network, and not one of a base law's own numbers."""
        parts = name.split(".")
        own = parts[-1] in ("raw", "bias", "position", "frequency")
        return parameter.dim() > 1 and not own and ("base" not in parts or "conditioner" in parts)

    decayed = [p for name, p in flow.named_parameters() if is_decayed(name, p)]
    chosen = {id(p) for p in decayed}
    others = [p for p in flow.parameters() if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = ClippedAdamW([g for g in groups if g["params"]], settings.learning_rate)
    average = [p.detach().clone() for p in flow.parameters()]
    return State(flow, average, optimizer, copy.deepcopy(flow.state_dict()))


Log = Callable[[str, int, float, Metrics], None]


def minimize(
    state: State,
    objective: Objective,
    settings: TrainOptions,
    *,
    log: Log = lambda kind, step, seconds, metrics: None,
    checkpoint: Callable[[State], None] = lambda state: None,
    stop: Callable[[], str] = lambda: "",
    warn: Callable[[str], object] = warnings.warn,
) -> State:
    """Train a flow until the budget is spent, validation stops improving, or it is told to stop.

    Every step estimates the objective and takes one AdamW step; the learning rate warms up and then follows a cosine to
    zero over the budget. What is validated and kept are the averaged weights. No step waits for the device: numbers are
    read when they are logged. Kernels and precision of a step are those of ``train.device.Steps``; validation is exact.

    Args:
        state: From ``start`` or a checkpoint.
        objective: What is minimised.
        settings: The budget and everything else.
        log: Called with ``"train"`` or ``"validation"``, the step, the seconds spent, and metrics in the units of the
            objective: with training also the norm of each layer's gradient in the last step before clipping,
            ``grad_norm/<layer>``.
        checkpoint: Called about every ``checkpoint_seconds`` and at the end.
        stop: Asked at every step for a reason to stop; an empty string means go on.
        warn: Told, in one line, what does not work as asked and is done in another way.

    A loss or a gradient that is not finite sends the fit back to the best weights with half the learning rate.

    Returns:
        The state; ``state.flow`` holds the best weights, ``state.progress.stop_reason`` says why it ended.

    Raises:
        DivergedError: If the loss is not finite after several rollbacks with smaller learning rates.
    """
    flow, optimizer, progress = state.flow, state.optimizer, state.progress
    parameters: list[Tensor] = list(flow.parameters())
    layers = named_layers(flow)
    steps = Steps(flow, settings, warn)
    key = objective.loss_key
    clock = time.perf_counter
    began = clock() - progress.seconds
    last_checkpoint = last_validation = clock()
    validation_seconds: deque[float] = deque(maxlen=3)
    window = _Window(objective)

    def validate() -> None:
        nonlocal last_validation
        before = clock()
        with steps.exact(), _swapped(parameters, state.average if settings.ema_decay else parameters):
            flow.eval()
            found = objective.validate(flow)
            flow.train()
            metrics = {f"val/{key}": found.loss} | found.metrics
            if not math.isfinite(progress.start_loss):
                progress.start_loss = found.loss
            if found.loss < progress.best_loss + found.noise:
                progress.best_loss = min(found.loss, progress.best_loss)
                progress.best_step, progress.best_fraction = progress.step, fraction()
                state.best = copy.deepcopy(flow.state_dict())
            metrics[f"best/val_{key}"] = progress.best_loss
        progress.validated_step = progress.step
        # Without what the listener does: who watches must not change how often is validated.
        validation_seconds.append(clock() - before)
        log("validation", progress.step, clock() - began, metrics)
        last_validation = clock()
        window.began += last_validation - before

    def fraction() -> float:
        """Share of the budget spent."""
        by_steps = progress.step / settings.steps if settings.steps else 0.0
        by_time = (clock() - began) / settings.seconds if settings.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def due() -> bool:
        """Whether to validate now: as told; or evenly over the budget, and never more than a tenth of the time."""
        if settings.validate_every:
            return progress.step % settings.validate_every == 0
        if settings.seconds:
            # The least of the last: one that was slow for reasons of its own must not put off the next for long.
            interval = max(settings.seconds / VALIDATIONS, 10.0 * min(validation_seconds, default=0.0))
            return clock() - last_validation >= interval
        assert settings.steps is not None  # TrainOptions has made sure
        return progress.step % math.ceil(settings.steps / VALIDATIONS) == 0

    flow.train()
    if progress.step == 0:
        validate()
        checkpoint(state)  # from now on there is something to resume from
    while True:
        spent = fraction()
        if progress.step != progress.validated_step and due():
            validate()
        # After validation, so that the rows up to the checkpoint's step are exactly those before it.
        if progress.step and clock() - last_checkpoint >= settings.checkpoint_seconds:
            progress.seconds = clock() - began
            checkpoint(state)
            last_checkpoint = clock()
        reason = stop()
        if not reason and spent >= 1.0:
            reason = "budget"
        # Only right after a validation that was not the best: on a slow machine the last one may be long ago.
        stale = progress.best_step < progress.validated_step == progress.step
        if not reason and stale and spent - progress.best_fraction > settings.patience:
            reason = "patience"
        if reason:
            progress.stop_reason = reason
            break

        batch = objective.draw(spent)
        rate = settings.learning_rate * 0.5**progress.rollbacks * _schedule(progress.step, spent, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers = steps.run(differentiate, objective, flow, optimizer, batch)
        progress.step += 1
        due_row = progress.step % settings.log_every == 0
        norms = gradient_norms(layers) if due_row else {}  # now: clipping may work in place
        # Young averages forget faster, or the first weights would stay in them for long.
        decay = min(settings.ema_decay, (1 + progress.step) / (10 + progress.step))
        with steps.exact():
            average = state.average if settings.ema_decay else []
            norm = optimizer.clipped_step(parameters, settings.gradient_clip, average, decay)
        window.add(numbers, norm)

        if due_row:
            metrics = window.read() | {f"grad_norm/{name}": float(norm) for name, norm in norms.items()}
            progress.seconds = clock() - began
            log(
                "train",
                progress.step,
                progress.seconds,
                metrics | objective.at(progress.step) | {"train/learning_rate": rate},
            )
            if not math.isfinite(metrics[f"train/{key}"]) or not math.isfinite(metrics["train/grad_norm"]):
                _roll_back(state, objective, settings)

    progress.seconds = clock() - began
    if progress.validated_step != progress.step:
        validate()
    if window.count and progress.best_step == 0 and not math.isfinite(sum(window.read().values())):
        # A fit too short for a row of metrics would otherwise end with its first weights as if it had learned.
        raise _diverged(progress, objective, settings)
    checkpoint(state)
    flow.load_state_dict(state.best)
    flow.eval()
    return state


def differentiate(objective: Objective, flow: Model, optimizer: ClippedAdamW, batch: Any) -> Tensor:
    """Compute the gradients of a step's loss anew, and return its numbers."""
    optimizer.zero_grad(set_to_none=True)
    loss, numbers = objective.loss(flow, batch)
    loss.backward()
    return numbers


def _schedule(step: int, spent: float, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up in steps, cosine to zero in the share of the budget spent."""
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1.0 + math.cos(math.pi * spent))


def _roll_back(state: State, objective: Objective, settings: TrainOptions) -> None:
    """Return to the best weights with half the learning rate: the loss or its gradient was not finite."""
    progress = state.progress
    progress.rollbacks += 1
    if progress.rollbacks > _ROLLBACKS or not math.isfinite(progress.best_loss):
        raise _diverged(progress, objective, settings)
    state.flow.load_state_dict(state.best)
    with torch.no_grad():
        for average, parameter in zip(state.average, state.flow.parameters(), strict=True):
            average.copy_(parameter)
    state.optimizer.state.clear()


def _diverged(progress: TrainingProgress, objective: Objective, settings: TrainOptions) -> DivergedError:
    return DivergedError(
        f"the loss is not finite at step {progress.step}, after {max(0, progress.rollbacks - 1)} returns to the best "
        f"weights with half the learning rate each (best validation {objective.loss_name} {progress.best_loss:.4f} "
        f"in standardised units, at step {progress.best_step}); "
        f"try train.learning_rate={settings.learning_rate / 10:g}"
    )


class _Window:
    """Sums of the numbers of the steps since the last row of metrics, kept on the device."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.sums: Tensor | None = None
        self.count = 0
        self.began = time.perf_counter()

    def add(self, numbers: Tensor, norm: Tensor) -> None:
        row = torch.cat([numbers, norm.reshape(1).to(numbers.dtype)])
        self.sums = row if self.sums is None else self.sums + row
        self.count += 1

    def read(self) -> Metrics:
        assert self.sums is not None  # whoever reads has added something
        *means, norm = (self.sums / self.count).tolist()
        rate = self.count * self.objective.points / (time.perf_counter() - self.began)
        self.sums, self.count, self.began = None, 0, time.perf_counter()
        return self.objective.metrics(means) | {"train/grad_norm": norm, "perf/points_per_s": rate}


class _swapped:
    """Context in which parameters hold other values; the tensors change places, nothing is copied twice."""

    def __init__(self, parameters: list[Tensor], values: list[Tensor]) -> None:
        self.parameters, self.values = parameters, values

    def __enter__(self) -> None:
        if self.values is not self.parameters:
            self.own = [p.data for p in self.parameters]
            for p, value in zip(self.parameters, self.values, strict=True):
                p.data = value

    def __exit__(self, *_: object) -> None:
        if self.values is not self.parameters:
            for p, value in zip(self.parameters, self.own, strict=True):
                p.data = value
