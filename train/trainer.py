"""The training loop: :func:`minimize`, the state of a run, and what happens when it diverges."""

import copy
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pushforward.common.errors import UserError
from pushforward.flows import Model
from pushforward.train.device import StepExecutor
from pushforward.train.layer_metrics import gradient_norms, named_layers
from pushforward.train.objectives.base import Metrics, Objective
from pushforward.train.optimizer import ClippedAdamW
from pushforward.train.options import TrainOptions

VALIDATIONS = 40
_ROLLBACKS = 5

_clock = time.perf_counter

MetricsCallback = Callable[[str, int, float, Metrics], None]
"""Receives ``"train"`` or ``"validation"``, the step, the seconds spent, and the metrics."""


class DivergedError(UserError, RuntimeError):
    """The loss is not finite, also after several rollbacks with smaller learning rates."""

    exit_code = 4


@dataclass
class TrainingProgress:
    """Counters of a training run; a checkpoint holds them besides weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    best_seconds: float = 0.0
    start_loss: float = math.inf
    rollbacks: int = 0
    stop_reason: str = ""
    validated_step: int = -1


@dataclass
class State:
    """The state of a training run between two steps.

    Attributes:
        flow: The model with its current weights; after training, with the best ones.
        average: Exponential moving average of the parameters.
        optimizer: The optimiser with its moments.
        best: State dict of the weights with the best validation loss.
        progress: Counters.
    """

    flow: Model
    average: list[Tensor]
    optimizer: ClippedAdamW
    best: dict[str, Tensor]
    progress: TrainingProgress = field(default_factory=TrainingProgress)


def start(flow: Model, options: TrainOptions) -> State:
    """Make the state of a new run; layers that initialise themselves from data must have done so already."""

    def is_decayed(name: str, parameter: Tensor) -> bool:
        """Whether it is a weight of a network, and not a parameter of a base distribution itself."""
        parts = name.split(".")
        own = parts[-1] in ("raw", "bias", "position", "frequency")
        return parameter.dim() > 1 and not own and ("base" not in parts or "conditioner" in parts)

    decayed = [p for name, p in flow.named_parameters() if is_decayed(name, p)]
    chosen = {id(p) for p in decayed}
    others = [p for p in flow.parameters() if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = ClippedAdamW([g for g in groups if g["params"]], options.learning_rate)
    average = [p.detach().clone() for p in flow.parameters()]
    return State(flow, average, optimizer, copy.deepcopy(flow.state_dict()))


def minimize(
    state: State,
    objective: Objective,
    options: TrainOptions,
    *,
    log: MetricsCallback = lambda kind, step, seconds, metrics: None,
    checkpoint: Callable[[State], None] = lambda state: None,
    stop: Callable[[], str] = lambda: "",
    warn: Callable[[str], object] = warnings.warn,
) -> State:
    """Train a flow until the budget is spent, validation stops improving, or a callback asks to stop.

    Every step estimates the objective and takes one AdamW step; the learning rate warms up and then follows a cosine to
    zero over the budget. The averaged weights are validated and kept. No step waits for the device: numbers are read
    when they are logged. Steps use the kernels and the precision of ``train.device.StepExecutor``; validation is exact.
    If the loss or its gradient is not finite, training rolls back to the best weights with half the learning rate.

    Args:
        state: From ``start`` or a checkpoint.
        objective: The objective to minimise.
        options: The budget and all other options.
        log: Called with metrics in the units of the objective; with training also ``grad_norm/<layer>``, the norm of
            each layer's gradient in the last step, before clipping.
        checkpoint: Called about every ``checkpoint_seconds`` and at the end.
        stop: Called at every step; returns a reason to stop, or an empty string to continue.
        warn: Called with one line if something does not work as asked and is done in another way.

    Returns:
        The state; ``state.flow`` has the best weights, ``state.progress.stop_reason`` says why training ended.

    Raises:
        DivergedError: If the loss is not finite after several rollbacks with smaller learning rates.
    """
    return _Training(state, objective, options, log, checkpoint, stop, warn).run()


class _Training:
    """One call of :func:`minimize`."""

    def __init__(
        self,
        state: State,
        objective: Objective,
        options: TrainOptions,
        log: MetricsCallback,
        checkpoint: Callable[[State], None],
        stop: Callable[[], str],
        warn: Callable[[str], object],
    ) -> None:
        self.state, self.objective, self.options = state, objective, options
        self.log, self.checkpoint, self.stop = log, checkpoint, stop
        self.flow, self.progress = state.flow, state.progress
        self.parameters: list[Tensor] = list(state.flow.parameters())
        self.average = state.average if options.ema_decay else []
        self.layers = named_layers(state.flow)
        self.executor = StepExecutor(state.flow, options, warn)
        self.began = _clock() - state.progress.seconds
        self.last_checkpoint = self.last_validation = _clock()
        self.validation_seconds: deque[float] = deque(maxlen=3)
        self.window = _Window(objective)

    def run(self) -> State:
        progress = self.progress
        self.flow.train()
        if progress.step == 0:
            self.validate()
            self.checkpoint(self.state)  # from now on the run can be resumed
        while True:
            spent = self.spent()
            if progress.step != progress.validated_step and self.is_validation_due():
                self.validate()
            # After validation, so that the rows of metrics up to a checkpoint's step are exactly those before it.
            if progress.step and _clock() - self.last_checkpoint >= self.options.checkpoint_seconds:
                progress.seconds = _clock() - self.began
                self.checkpoint(self.state)
                self.last_checkpoint = _clock()
            reason = self.stop_reason(spent)
            if reason:
                progress.stop_reason = reason
                break
            self.take_step(spent)

        progress.seconds = _clock() - self.began
        if progress.validated_step != progress.step:
            self.validate()
        if self.window.count and progress.best_step == 0 and not math.isfinite(sum(self.window.read().values())):
            # A fit too short for a row of metrics would otherwise return its initial weights without an error.
            raise _diverged(progress, self.objective, self.options)
        self.checkpoint(self.state)
        self.flow.load_state_dict(self.state.best)
        self.flow.eval()
        return self.state

    def spent(self) -> float:
        """Share of the budget that is spent."""
        return self.share(self.progress.step, _clock() - self.began)

    def share(self, steps: int, seconds: float) -> float:
        """The larger share of the budget that so many steps and seconds are, at most 1."""
        options = self.options
        by_steps = steps / options.steps if options.steps else 0.0
        by_time = seconds / options.seconds if options.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def is_validation_due(self) -> bool:
        """Whether to validate now: every so many steps, or evenly over the budget in at most a tenth of the time."""
        options = self.options
        if options.validate_every:
            return self.progress.step % options.validate_every == 0
        if options.seconds:
            # The fastest of the last validations: a single slow one must not delay the next for long.
            interval = max(options.seconds / VALIDATIONS, 10.0 * min(self.validation_seconds, default=0.0))
            return _clock() - self.last_validation >= interval
        assert options.steps is not None  # TrainOptions requires one of them
        return self.progress.step % math.ceil(options.steps / VALIDATIONS) == 0

    def validate(self) -> None:
        """Validate the averaged weights, and keep them if they are the best so far."""
        flow, progress, key = self.flow, self.progress, self.objective.loss_key
        before = _clock()
        with self.executor.exact(), _swapped(self.parameters, self.average or self.parameters):
            flow.eval()
            validation = self.objective.validate(flow)
            flow.train()
            metrics = {f"val/{key}": validation.loss} | validation.metrics
            if not math.isfinite(progress.start_loss):
                progress.start_loss = validation.loss
            if validation.loss < progress.best_loss + validation.tolerance:
                progress.best_loss = min(validation.loss, progress.best_loss)
                progress.best_step, progress.best_seconds = progress.step, _clock() - self.began
                self.state.best = copy.deepcopy(flow.state_dict())
            metrics[f"best/val_{key}"] = progress.best_loss
        progress.validated_step = progress.step
        # The callback does not count: the times of validations must not depend on how slow it is.
        self.validation_seconds.append(_clock() - before)
        self.log("validation", progress.step, _clock() - self.began, metrics)
        self.last_validation = _clock()
        self.window.began += self.last_validation - before

    def stop_reason(self, spent: float) -> str:
        """Why to stop now; empty to continue."""
        progress = self.progress
        reason = self.stop()
        if not reason and spent >= 1.0:
            reason = "budget"
        # Only right after a validation that was not the best: on a slow machine the last one may be long ago.
        stale = progress.best_step < progress.validated_step == progress.step
        # Shares of this budget: that of the fit that is resumed here may have been another one.
        without_better = spent - self.share(progress.best_step, progress.best_seconds)
        if not reason and stale and without_better > self.options.patience:
            reason = "patience"
        return reason

    def take_step(self, spent: float) -> None:
        """Take one step of the optimiser, and log a row of metrics if it is due."""
        options, progress, optimizer = self.options, self.progress, self.state.optimizer
        batch = self.objective.draw(spent)
        rate = options.learning_rate * 0.5**progress.rollbacks * _schedule(progress.step, spent, options.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers = self.executor.run(differentiate, self.objective, self.flow, optimizer, batch)
        progress.step += 1
        is_row_due = progress.step % options.log_every == 0
        layer_norms = gradient_norms(self.layers) if is_row_due else {}  # before clipping, which may work in place
        # A smaller decay at first, or the initial weights would dominate the average for long.
        decay = min(options.ema_decay, (1 + progress.step) / (10 + progress.step))
        with self.executor.exact():
            norm = optimizer.clipped_step(self.parameters, options.gradient_clip, self.average, decay)
        self.window.add(numbers, norm)
        if is_row_due:
            self.log_row(rate, layer_norms)

    def log_row(self, rate: float, layer_norms: dict[str, Tensor]) -> None:
        """Log the means since the last row, and roll back if they are not finite."""
        progress = self.progress
        metrics = self.window.read() | {f"grad_norm/{name}": float(norm) for name, norm in layer_norms.items()}
        progress.seconds = _clock() - self.began
        more = self.objective.step_metrics(progress.step) | {"train/learning_rate": rate}
        self.log("train", progress.step, progress.seconds, metrics | more)
        key = f"train/{self.objective.loss_key}"
        if not math.isfinite(metrics[key]) or not math.isfinite(metrics["train/grad_norm"]):
            _roll_back(self.state, self.objective, self.options)


def differentiate(objective: Objective, flow: Model, optimizer: ClippedAdamW, batch: Any) -> Tensor:
    """Compute the gradients of the loss of a batch, and return the numbers to log."""
    optimizer.zero_grad(set_to_none=True)
    loss, numbers = objective.loss(flow, batch)
    loss.backward()
    return numbers


def _schedule(step: int, spent: float, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up in steps, cosine to zero in the share of the budget spent."""
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1.0 + math.cos(math.pi * spent))


def _roll_back(state: State, objective: Objective, options: TrainOptions) -> None:
    """Return to the best weights with half the learning rate, and reset the optimiser."""
    progress = state.progress
    progress.rollbacks += 1
    if progress.rollbacks > _ROLLBACKS or not math.isfinite(progress.best_loss):
        raise _diverged(progress, objective, options)
    state.flow.load_state_dict(state.best)
    with torch.no_grad():
        for average, parameter in zip(state.average, state.flow.parameters(), strict=True):
            average.copy_(parameter)
    state.optimizer.state.clear()


def _diverged(progress: TrainingProgress, objective: Objective, options: TrainOptions) -> DivergedError:
    return DivergedError(
        f"the loss is not finite at step {progress.step}, after {max(0, progress.rollbacks - 1)} rollbacks to the best "
        f"weights with half the learning rate each (best validation {objective.loss_name} {progress.best_loss:.4f} "
        f"in standardised units, at step {progress.best_step}); "
        f"try train.learning_rate={options.learning_rate / 10:g}"
    )


class _Window:
    """Sums of the numbers of the steps since the last row of metrics, kept on the device."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.sums: Tensor | None = None
        self.count = 0
        self.began = _clock()

    def add(self, numbers: Tensor, norm: Tensor) -> None:
        row = torch.cat([numbers, norm.reshape(1).to(numbers.dtype)])
        self.sums = row if self.sums is None else self.sums + row
        self.count += 1

    def read(self) -> Metrics:
        """The metrics of the means, and reset the sums."""
        assert self.sums is not None  # read only after add
        *means, norm = (self.sums / self.count).tolist()
        rate = self.count * self.objective.batch_size / (_clock() - self.began)
        self.sums, self.count, self.began = None, 0, _clock()
        return self.objective.metrics(means) | {"train/grad_norm": norm, "perf/rows_per_s": rate}


@contextmanager
def _swapped(parameters: list[Tensor], values: list[Tensor]) -> Iterator[None]:
    """Give parameters other values within a block; the tensors change places, so nothing is copied."""
    if values is parameters:
        yield
        return
    own = [p.data for p in parameters]
    for p, value in zip(parameters, values, strict=True):
        p.data = value
    try:
        yield
    finally:
        for p, value in zip(parameters, own, strict=True):
            p.data = value
