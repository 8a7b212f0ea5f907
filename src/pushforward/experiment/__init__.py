"""From a configuration to a run folder: load data or target, train, evaluate, report; and resume."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.experiment.evaluation import evaluate_run as evaluate_run
    from pushforward.experiment.result import Fit as Fit
    from pushforward.experiment.run import fit as fit, plan as plan, resume as resume

__getattr__, __dir__ = lazy(
    "pushforward.experiment",
    {
        "evaluation": "evaluate_run",
        "result": "Fit",
        "run": "fit plan resume",
    },
)
