"""Reports on the trials of a sweep: a line for each, and the summary ``sweep.json``."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pushforward.config.schema import Config
from pushforward.sweeps.space import SweepSpace, typed_constants
from pushforward.sweeps.study import INTERRUPTED, TrialRecord

# The budget of the final fit, as a multiple of that of a trial.
_REFIT_FACTOR = 4


def validation_value(results: Mapping[str, Any]) -> float | None:
    """The number of a fit that trials are compared by: the validation NLL, or the loss where there is no NLL."""
    value = results.get("val_nll")
    return results.get("val_loss") if value is None else value


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the finished trial with the smallest validation NLL; if none has finished, the best of the pruned ones."""
    for statuses in (("finished",), ("pruned",)):
        candidates = [t for t in records if t.status in statuses and t.val_nll is not None]
        if candidates:
            return min(candidates, key=lambda t: (t.val_nll, t.number))
    return None


def trial_line(trial: TrialRecord, records: Sequence[TrialRecord]) -> str:
    """Return a line about a trial that has ended."""
    seconds = "" if trial.seconds is None else f"{trial.seconds:.0f} s"
    if trial.reason == INTERRUPTED:
        outcome = trial.reason
    elif trial.status == "failed":
        outcome = f"failed: {trial.reason}"
    elif trial.val_nll is None:
        outcome = trial.reason or trial.status
    else:
        outcome = f"val {trial.val_nll:.4f}"
        if trial.reason:
            outcome += f" {trial.reason}"
        best = best_of(records)
        if best is not None and best.number == trial.number and trial.status == "finished":
            outcome += " best"
    values = "the defaults" if trial.is_default else format_parameters(trial.values)
    return "  ".join(part for part in (f"trial {trial.number:>3}", outcome, seconds, values) if part)


def format_parameters(values: Mapping[str, Any]) -> str:
    """Format parameters as ``key=value``, with four digits of real numbers."""
    return " ".join(f"{key}={_format(value)}" for key, value in values.items())


def summarize(folder: Path, space: SweepSpace, defaults: Config, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return the part of ``sweep.json`` that depends on the trials."""
    best = best_of(records)
    counts = {
        status: sum(t.status == status and not t.is_repeated for t in records)
        for status in ("finished", "pruned", "failed", "running")
    }
    default = next((t.val_nll for t in records if t.is_default and t.status == "finished"), None)
    return {
        "folder": str(folder),
        "counts": counts,
        "default_val_nll": default,
        "best": None if best is None else _facts(best, folder) | {"refit": refit_command(space, defaults, best)},
        "trials": [_facts(t, folder) for t in records if t.status != "waiting"],
    }


def refit_command(space: SweepSpace, defaults: Config, best: TrialRecord) -> str:
    """Return the command of a longer fit with the parameters of a trial, evaluation and report included."""
    budget = {"train.evaluate", "train.seconds", "train.steps"}
    keys = {k: v for k, v in space.constants.items() if k not in budget and not k.startswith("wandb.")}
    source = keys.pop("data.source", defaults.data.source)
    keys |= {} if best.is_default else best.values
    flat = defaults.flat()
    for key in ("train.seconds", "train.steps"):
        # The trial's own budget comes first; a file may have it as text, such as '1e2'.
        own = {p.key: p.only for p in typed_constants([f"{key}={keys.pop(key, flat[key])}"])}[key]
        if own != "auto":
            keys[key] = math.ceil(_REFIT_FACTOR * own)
    arguments = [f"{key}={value}" for key, value in keys.items()]
    return shlex.join(["pushforward", "fit", str(source), *arguments])


def _facts(trial: TrialRecord, folder: Path) -> dict[str, Any]:
    return {
        "number": trial.number,
        "run": str(folder / "trials" / str(trial.number)),
        "status": trial.status,
        "val_nll": trial.val_nll,
        "seconds": trial.seconds,
        "is_default": trial.is_default,
        "parameters": trial.values,
        "reason": trial.reason,
    }


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
