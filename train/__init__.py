"""From data or a target to a fitted model: problems, objectives, the trainer, model selection."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.train.callbacks import Callback as Callback, Watch as Watch
    from pushforward.train.checkpoint import CheckpointError as CheckpointError
    from pushforward.train.device import choose_device as choose_device
    from pushforward.train.divergence import DivergedError as DivergedError
    from pushforward.train.objectives.base import Objective as Objective, Validation as Validation
    from pushforward.train.objectives.likelihood import Likelihood as Likelihood, RowTensors as RowTensors
    from pushforward.train.objectives.registry import register_objective as register_objective
    from pushforward.train.options import TrainOptions as TrainOptions
    from pushforward.train.problems.base import Problem as Problem
    from pushforward.train.problems.registry import register_problem as register_problem
    from pushforward.train.state import State as State, TrainingProgress as TrainingProgress, start as start
    from pushforward.train.trainer import Trainer as Trainer

__getattr__, __dir__ = lazy(
    "pushforward.train",
    {
        "callbacks": "Callback Watch",
        "checkpoint": "CheckpointError",
        "device": "choose_device",
        "objectives.base": "Objective Validation",
        "objectives.likelihood": "Likelihood RowTensors",
        "objectives.registry": "register_objective",
        "options": "TrainOptions",
        "problems.base": "Problem",
        "problems.registry": "register_problem",
        "state": "State TrainingProgress start",
        "divergence": "DivergedError",
        "trainer": "Trainer",
    },
)
