"""From a problem to a fitted model: objectives, the training loop, the choice of a model."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.train.checkpoint import CheckpointError as CheckpointError
    from pushforward.train.defaults import TrainOptions as TrainOptions
    from pushforward.train.device import choose_device as choose_device
    from pushforward.train.maximize import maximize_likelihood as maximize_likelihood
    from pushforward.train.objectives.base import Objective as Objective, Validation as Validation
    from pushforward.train.objectives.likelihood import Likelihood as Likelihood, Rows as Rows
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
        "defaults": "TrainOptions",
        "device": "choose_device",
        "maximize": "maximize_likelihood",
        "objectives.base": "Objective Validation",
        "objectives.likelihood": "Likelihood Rows",
        "trainer": "DivergedError TrainingProgress State minimize start",
    },
)
