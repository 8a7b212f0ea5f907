"""From data or a target to a fitted model: objectives, the training loop, model selection."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.train.checkpoint import CheckpointError as CheckpointError
    from pushforward.train.device import choose_device as choose_device
    from pushforward.train.maximize import maximize_likelihood as maximize_likelihood
    from pushforward.train.objectives.base import Objective as Objective, Validation as Validation
    from pushforward.train.objectives.likelihood import Likelihood as Likelihood, RowTensors as RowTensors
    from pushforward.train.options import TrainOptions as TrainOptions
    from pushforward.train.trainer import (
        DivergedError as DivergedError,
        State as State,
        TrainingProgress as TrainingProgress,
        minimize as minimize,
        start as start,
    )

__getattr__, __dir__ = lazy(
    "pushforward.train",
    {
        "checkpoint": "CheckpointError",
        "device": "choose_device",
        "maximize": "maximize_likelihood",
        "objectives.base": "Objective Validation",
        "objectives.likelihood": "Likelihood RowTensors",
        "options": "TrainOptions",
        "trainer": "DivergedError TrainingProgress State minimize start",
    },
)
