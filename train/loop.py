"""The training loop: one fit from its first step to its last."""

import copy
import math
import time

from torch import Tensor

from pushforward.train.callbacks import Callback
from pushforward.train.device import StepExecutor
from pushforward.train.divergence import DivergedError
from pushforward.train.layer_metrics import gradient_norms, named_layers
from pushforward.train.objectives.base import Objective
from pushforward.train.options import TrainOptions
from pushforward.train.schedule import Schedule
from pushforward.train.state import State
from pushforward.train.window import MetricsWindow

_ROLLBACKS = 5
_clock = time.perf_counter


class Loop:
    """One fit, from a new state or one of a checkpoint; ``Trainer`` says how it goes.

    Args:
        options: The budget and all other options.
        callbacks: Called around the steps.
        state: The state to go on from.
        objective: What is minimised.
    """

    def __init__(self, options: TrainOptions, callbacks: Callback, state: State, objective: Objective) -> None:
        self.options, self.callbacks, self.state, self.objective = options, callbacks, state, objective
        self.parameters: list[Tensor] = list(state.flow.parameters())
        self.average = state.average if options.ema_decay else []
        self.layers = named_layers(state.flow)
        self.executor = StepExecutor(state.flow, options, self.callbacks.on_warning)
        self.began = _clock() - state.progress.seconds
        self.last_checkpoint = self.last_validation = _clock()
        self.schedule = Schedule(options)
        self.window = MetricsWindow(objective)
        self.note = ""

    def run(self) -> State:
        """Take steps until the fit ends, and give the model its best weights.

        Raises:
            DivergedError: If the loss does not stay finite, or is not finite in any validation.
        """
        state, options, progress = self.state, self.options, self.state.progress
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
            asked = self.callbacks.should_stop(state)
            progress.stop_reason = asked or self.schedule.stop_reason(progress, spent)
            if progress.stop_reason:
                break
            self.take_step(spent)
        if asked:  # without the validation that follows, which the fit would not have had if nobody had asked
            self.checkpoint()
        if progress.validated_step != progress.step:
            self.validate()
        if self.window.count and progress.best_step == 0 and not math.isfinite(sum(self.window.read().values())):
            # A fit too short for a row of metrics would otherwise return its initial weights without an error.
            raise DivergedError.after(progress, self.objective, options)
        if not asked:
            self.checkpoint()
        if not math.isfinite(progress.best_loss):
            raise DivergedError.never_valid(self.objective, self.note)
        state.flow.load_state_dict(state.best)
        state.flow.eval()
        state.optimizer.zero_grad(set_to_none=True)
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
            if math.isfinite(validation.loss) and validation.loss < progress.best_loss + validation.tolerance:
                progress.best_loss = min(validation.loss, progress.best_loss)
                progress.best_step, progress.best_seconds = progress.step, _clock() - self.began
                state.best = copy.deepcopy(state.flow.state_dict())
            metrics[f"best/val_{key}"] = progress.best_loss
        progress.validated_step, self.note = progress.step, validation.note
        # Callbacks do not count: the times of validations must not depend on how slow they are.
        self.schedule.validated(_clock() - before)
        progress.seconds = _clock() - self.began
        self.callbacks.on_validation(state, self.objective.in_data_units(metrics))
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
        self.callbacks.on_log(self.state, self.objective.in_data_units(metrics))
        if not is_finite:
            progress.rollbacks += 1
            if progress.rollbacks > _ROLLBACKS or not math.isfinite(progress.best_loss):
                raise DivergedError.after(progress, self.objective, self.options)
            self.state.roll_back()
