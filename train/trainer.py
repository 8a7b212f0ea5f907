"""The training loop: :class:`Trainer`, from top to bottom."""

import copy
import math
import time
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pushforward.train.callbacks import Callback, Callbacks
from pushforward.train.device import StepExecutor
from pushforward.train.divergence import DivergedError
from pushforward.train.layer_metrics import gradient_norms, named_layers
from pushforward.train.objectives.base import Objective
from pushforward.train.objectives.likelihood import Likelihood
from pushforward.train.options import TrainOptions
from pushforward.train.schedule import Schedule
from pushforward.train.state import State
from pushforward.train.tensors import row_tensors, start_on_rows
from pushforward.train.window import MetricsWindow

_ROLLBACKS = 5
_clock = time.perf_counter


class Trainer:
    """Trains a model until the budget is spent, validation stops improving, or a callback asks to stop.

    Every step estimates the objective and takes one AdamW step; the learning rate warms up and then follows a cosine to
    zero over the budget. The averaged weights are validated and kept. No step waits for the device: numbers are read
    when they are logged. Steps use the kernels and the precision of ``train.device.StepExecutor``; validation is exact.
    If the loss or its gradient is not finite, training rolls back to the best weights with half the learning rate.

    Args:
        options: The budget and all other options; by default made from ``keys``.
        callbacks: Called around the steps, in this order.
        **keys: The fields of ``TrainOptions``, such as ``seconds=60`` or ``learning_rate=1e-3``.

    Example:
        >>> import torch
        >>> from pushforward.flows import build
        >>> x = torch.randn(300, 2)
        >>> flow = Trainer(steps=20).fit(build("maf", 2, hidden=8), x[:200], x[200:])
        >>> flow.log_prob(x).shape
        torch.Size([300])
    """

    def __init__(self, options: TrainOptions | None = None, *, callbacks: Iterable[Callback] = (), **keys: Any) -> None:
        self.options = TrainOptions(**keys) if options is None else options
        self.callbacks = Callbacks(callbacks)

    def fit(
        self,
        flow: nn.Module,
        x: Any,
        x_validation: Any = None,
        *,
        given: Any = None,
        given_validation: Any = None,
        weight: Any = None,
        seed: int = 0,
    ) -> nn.Module:
        """Fit a flow, or any module with ``log_prob(x, context)``, to rows by maximum likelihood.

        The rows are taken as they are: standardised ones train best. The random state of torch does not change.

        Args:
            flow: The module, on its device; it is trained in place and ends in evaluation mode.
            x: Training rows ``(n, D)``, a tensor or an array.
            x_validation: Validation rows ``(m, D)``; by default a random tenth of the training rows.
            given: Context rows ``(n, C)``.
            given_validation: Context of the validation rows ``(m, C)``.
            weight: Weights of the training rows ``(n,)``.
            seed: Seed of batches, noise and dropout.

        Returns:
            The same module, with its best weights.

        Raises:
            DivergedError: If the loss is not finite after several rollbacks with smaller learning rates.
            ValueError: If the rows have other shapes, or numbers that are not finite.
        """
        context = {"given": given, "given_validation": given_validation}
        train, validation = row_tensors(flow, x, x_validation, **context, weight=weight, seed=seed)
        state = start_on_rows(flow, train, self.options, seed)
        self.run(state, Likelihood(train, validation, self.options.batch_size, seed=seed))
        return flow

    def run(self, state: State, objective: Objective) -> State:
        """Minimise an objective, from a new state or one of a checkpoint.

        Returns:
            The state; ``state.flow`` has the best weights, ``state.progress.stop_reason`` says why training ended.
        """
        self.state, self.objective, options, progress = state, objective, self.options, state.progress
        self.parameters: list[Tensor] = list(state.flow.parameters())
        self.average = state.average if options.ema_decay else []
        self.layers = named_layers(state.flow)
        self.executor = StepExecutor(state.flow, options, self.callbacks.on_warning)
        self.began = _clock() - progress.seconds
        self.last_checkpoint = self.last_validation = _clock()
        self.schedule = Schedule(options)
        self.window = MetricsWindow(objective)
        progress.stop_reason = ""
        self.callbacks.on_start(state, options)
        state.flow.train()
        if progress.step == 0:
            self.validate()
            self.checkpoint()  # from now on the run can be resumed
        while True:
            spent = options.share(progress.step, _clock() - self.began)
            since = _clock() - self.last_validation
            if progress.step != progress.validated_step and self.schedule.is_validation_due(progress.step, since):
                self.validate()
            # After validation, so that the rows of metrics up to a checkpoint's step are exactly those before it.
            if progress.step and _clock() - self.last_checkpoint >= options.checkpoint_seconds:
                self.checkpoint()
            progress.stop_reason = self.callbacks.should_stop(state) or self.schedule.stop_reason(progress, spent)
            if progress.stop_reason:
                break
            self.take_step(spent)

        if progress.validated_step != progress.step:
            self.validate()
        if self.window.count and progress.best_step == 0 and not math.isfinite(sum(self.window.read().values())):
            # A fit too short for a row of metrics would otherwise return its initial weights without an error.
            raise DivergedError.after(progress, self.objective, options)
        self.checkpoint()
        state.flow.load_state_dict(state.best)
        state.flow.eval()
        self.callbacks.on_end(state)
        return state

    def validate(self) -> None:
        """Validate the averaged weights, and keep them if they are the best so far."""
        state, progress, key = self.state, self.state.progress, self.objective.loss_key
        before = _clock()
        with self.executor.exact(), state.weights(averaged=bool(self.average)):
            state.flow.eval()
            validation = self.objective.validate(state.flow)
            state.flow.train()
            metrics = {f"val/{key}": validation.loss} | validation.metrics
            if not math.isfinite(progress.start_loss):
                progress.start_loss = validation.loss
            if validation.loss < progress.best_loss + validation.tolerance:
                progress.best_loss = min(validation.loss, progress.best_loss)
                progress.best_step, progress.best_seconds = progress.step, _clock() - self.began
                state.best = copy.deepcopy(state.flow.state_dict())
            metrics[f"best/val_{key}"] = progress.best_loss
        progress.validated_step = progress.step
        # Callbacks do not count: the times of validations must not depend on how slow they are.
        self.schedule.validated(_clock() - before)
        progress.seconds = _clock() - self.began
        metrics = self.objective.in_data_units(metrics)
        self.callbacks.on_validation(state, metrics)
        self.last_validation = _clock()
        self.window.pause(self.last_validation - before)

    def checkpoint(self) -> None:
        """Let the callbacks save the state."""
        self.state.progress.seconds = _clock() - self.began
        self.callbacks.on_checkpoint(self.state)
        self.last_checkpoint = _clock()

    def take_step(self, spent: float) -> None:
        """Take one step of the optimiser, and log a row of metrics if it is due."""
        state, options, progress = self.state, self.options, self.state.progress
        rate = self.schedule.learning_rate(progress.step, spent, progress.rollbacks)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        with state.random.active():
            batch = self.objective.draw(spent)
            numbers = self.executor.run(self.objective.differentiate, state.flow, state.optimizer, batch)
        progress.step += 1
        is_row_due = progress.step % options.log_every == 0
        layer_norms = gradient_norms(self.layers) if is_row_due else {}  # before clipping, which may work in place
        decay = self.schedule.ema_decay(progress.step)
        with self.executor.exact():
            norm = state.optimizer.clipped_step(self.parameters, options.gradient_clip, self.average, decay)
        self.window.add(numbers, norm)
        if is_row_due:
            self.log_row(rate, layer_norms)

    def log_row(self, rate: float, layer_norms: dict[str, Tensor]) -> None:
        """Log the means since the last row, and roll back if they are not finite."""
        progress = self.state.progress
        metrics = self.window.read() | {f"grad_norm/{name}": float(norm) for name, norm in layer_norms.items()}
        is_finite = all(math.isfinite(metrics[f"train/{key}"]) for key in (self.objective.loss_key, "grad_norm"))
        metrics |= self.objective.step_metrics(progress.step) | {"train/learning_rate": rate}
        progress.seconds = _clock() - self.began
        metrics = self.objective.in_data_units(metrics)
        self.callbacks.on_log(self.state, metrics)
        if not is_finite:
            progress.rollbacks += 1
            if progress.rollbacks > _ROLLBACKS or not math.isfinite(progress.best_loss):
                raise DivergedError.after(progress, self.objective, self.options)
            self.state.roll_back()
