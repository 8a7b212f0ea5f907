"""Fitting flows: configuration, the loop, runs on disk, tracking.

Names are imported when they are first asked for: configuration and the list of runs must not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pushforward.train.checkpoint import CheckpointError
    from pushforward.train.config import Config
    from pushforward.train.device import choose_device
    from pushforward.train.evaluation import evaluate_run
    from pushforward.train.fitting import Plan, fit, plan, resume
    from pushforward.train.likelihood import Likelihood, Points
    from pushforward.train.loop import DivergedError, Standing, State, maximize_likelihood, minimize, start
    from pushforward.train.objective import Objective, Validation
    from pushforward.train.outcome import Fit
    from pushforward.train.overrides import ConfigError, load_config
    from pushforward.train.runs import RunError, RunFolder, list_runs
    from pushforward.train.settings import Settings

_HOMES = {
    "CheckpointError": "checkpoint",
    "Config": "config",
    "ConfigError": "overrides",
    "DivergedError": "loop",
    "Fit": "outcome",
    "Plan": "fitting",
    "Likelihood": "likelihood",
    "Objective": "objective",
    "Points": "likelihood",
    "Validation": "objective",
    "RunError": "runs",
    "RunFolder": "runs",
    "Settings": "settings",
    "Standing": "loop",
    "State": "loop",
    "choose_device": "device",
    "evaluate_run": "evaluation",
    "fit": "fitting",
    "list_runs": "runs",
    "load_config": "overrides",
    "maximize_likelihood": "loop",
    "minimize": "loop",
    "plan": "fitting",
    "resume": "fitting",
    "start": "loop",
}

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "DivergedError",
    "Fit",
    "Likelihood",
    "Objective",
    "Plan",
    "Points",
    "RunError",
    "RunFolder",
    "Settings",
    "Standing",
    "State",
    "Validation",
    "choose_device",
    "evaluate_run",
    "fit",
    "list_runs",
    "load_config",
    "maximize_likelihood",
    "minimize",
    "plan",
    "resume",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pushforward.train.{_HOMES[name]}"), name)
