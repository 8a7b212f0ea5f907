"""When things happen in a fit: the learning rate, validations, and the end."""

import math
from collections import deque

from pushforward.train.options import VALIDATIONS, TrainOptions
from pushforward.train.state import TrainingProgress


class Schedule:
    """Decides by the share of the budget that is spent, of steps or of seconds.

    Args:
        options: The budget, the learning rate, the interval of validations and the patience are used.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self._validation_seconds: deque[float] = deque(maxlen=3)

    def learning_rate(self, step: int, spent: float, rollbacks: int) -> float:
        """Linear warm-up in steps, cosine to zero in the share of the budget spent; half after each rollback."""
        warmup = min(1.0, (step + 1) / max(1, self.options.warmup))
        return self.options.learning_rate * 0.5**rollbacks * (warmup * 0.5 * (1.0 + math.cos(math.pi * spent)))

    def ema_decay(self, step: int) -> float:
        """Decay of the averaged weights, smaller at first: the initial weights would dominate the average for long."""
        return min(self.options.ema_decay, (1 + step) / (10 + step))

    def validated(self, seconds: float) -> None:
        """Note how long a validation took."""
        self._validation_seconds.append(seconds)

    def is_validation_due(self, step: int, since_last: float) -> bool:
        """Whether to validate: every so many steps, or evenly over the budget in at most a tenth of the time.

        Args:
            step: Steps done.
            since_last: Seconds since the last validation.
        """
        options = self.options
        if options.validate_every:
            return step % options.validate_every == 0
        if options.seconds:
            # The fastest of the last validations: a single slow one must not delay the next for long.
            fastest = min(self._validation_seconds, default=0.0)
            return since_last >= max(options.seconds / VALIDATIONS, 10.0 * fastest)
        return step % math.ceil((options.steps or 1) / VALIDATIONS) == 0

    def stop_reason(self, progress: TrainingProgress, spent: float) -> str:
        """Why to stop by the budget or by patience; empty to continue."""
        if spent >= 1.0:
            return "budget"
        # Only right after a validation that was not the best: on a slow machine the last one may be long ago.
        is_stale = progress.best_step < progress.validated_step == progress.step
        # Shares of this budget: that of the fit that is resumed here may have been another one.
        without_better = spent - self.options.share(progress.best_step, progress.best_seconds)
        return "patience" if is_stale and without_better > self.options.patience else ""
