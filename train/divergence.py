"""The error of a fit whose loss does not stay finite, or never is in validation."""

from pushforward.common.errors import UserError
from pushforward.train.objectives.base import Objective
from pushforward.train.options import TrainOptions
from pushforward.train.state import TrainingProgress


class DivergedError(UserError, RuntimeError):
    """The loss is not finite, also after several rollbacks with smaller learning rates, or in any validation."""

    exit_code = 4

    @classmethod
    def after(cls, progress: TrainingProgress, objective: Objective, options: TrainOptions) -> "DivergedError":
        """The error after the last rollback, with a learning rate to try."""
        key = f"best/val_{objective.loss_key}"
        best = objective.in_data_units({key: progress.best_loss})[key]
        return cls(
            f"the loss is not finite at step {progress.step}, after {max(0, progress.rollbacks - 1)} rollbacks to the "
            f"best weights with half the learning rate each (best validation {objective.loss_name} "
            f"{best:.4f}, at step {progress.best_step}); try a learning rate of {options.learning_rate / 10:g} "
            f"(train.learning_rate)"
        )

    @classmethod
    def never_valid(cls, objective: Objective, note: str) -> "DivergedError":
        """The error of a fit without a validation whose loss is finite: no weights are better than the first ones.

        Args:
            objective: Names the loss.
            note: Why the last one was not finite; empty if that is not known.
        """
        return cls(f"the validation {objective.loss_name} was not finite in any validation" + (note and f": {note}"))
