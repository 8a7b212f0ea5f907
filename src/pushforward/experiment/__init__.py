"""From a configuration to a run folder: data or target, training, evaluation, report; and resuming."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.experiment.evaluation import evaluate_run as evaluate_run
    from pushforward.experiment.result import Fit as Fit
    from pushforward.experiment.rows import Plan as Plan, fit as fit, plan as plan, resume as resume

__getattr__, __dir__ = lazy(
    "pushforward.experiment",
    {
        "evaluation": "evaluate_run",
        "result": "Fit",
        "rows": "Plan fit plan resume",
    },
)
