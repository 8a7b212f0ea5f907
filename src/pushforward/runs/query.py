"""Filter and sort runs by the fields of the list of runs, by results, and by configuration keys."""

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pushforward.common.errors import ConfigError
from pushforward.common.text import did_you_mean
from pushforward.config.read import describe_keys
from pushforward.runs.listing import RunSummary

FIELDS = (*(found.name for found in fields(RunSummary) if found.name not in ("path", "facts")), "headline")
"""Fields of every run in the list of runs."""

_CONDITION = re.compile(r"\s*([^<>=!\s]+)\s*(>=|<=|!=|==|=|<|>)\s*(.*?)\s*")
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """``key operator value``, such as ``train.learning_rate>=1e-3``."""

    key: str
    operator: str
    value: str

    @classmethod
    def read(cls, text: str) -> "Condition":
        """Parse a condition.

        Raises:
            ConfigError: If it has no operator, or no number after an order operator.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise ConfigError(f"--where: expected KEY=VALUE, or KEY and one of != < <= > >=; got '{text}'")
        key, sign, value = found.groups()
        condition = cls(key, "=" if sign == "==" else sign, value)
        if sign in _ORDERS and math.isnan(_number(value)):
            raise ConfigError(f"--where: expected a number after {key}{sign}; got '{value}'")
        return condition

    def holds(self, value: Any) -> bool:
        """Return whether a value fulfils the condition; a missing value (None) does not."""
        if value is None:
            return False
        number, wanted = _number(value), _number(self.value)
        if self.operator in _ORDERS:
            return _ORDERS[self.operator](number, wanted)
        same = number == wanted if not math.isnan(number + wanted) else fnmatch.fnmatchcase(_text(value), self.value)
        return same == (self.operator == "=")


def value_of(run: RunSummary, key: str) -> Any:
    """Return a field, a result or a configuration value of a run; ``None`` if it is missing."""
    if key in FIELDS:
        return getattr(run, key)
    return run.facts[key] if key in run.facts else run.configuration.get(key)


def select(
    runs: Iterable[RunSummary],
    conditions: Sequence[Condition] = (),
    *,
    one_of: Mapping[str, Sequence[str]] | None = None,
    sort: str = "started",
    reverse: bool = False,
    limit: int | None = None,
) -> list[RunSummary]:
    """Return the selected runs, sorted.

    Args:
        runs: The runs.
        conditions: Conditions that must all hold.
        one_of: Patterns by field, at least one of which must match; an empty list matches everything.
        sort: A field, a result or a configuration key; runs without it come last.
        reverse: Highest or latest first.
        limit: Maximum number of runs.

    Raises:
        ConfigError: If a key is unknown.
    """
    found = list(runs)
    for option, key in [("--where", condition.key) for condition in conditions] + [("--sort", sort)]:
        _check(option, key, found)
    for name, patterns in (one_of or {}).items():
        found = [run for run in found if not patterns or any(_matches(getattr(run, name), p) for p in patterns)]
    # Cheap conditions first: a configuration is one more file to read.
    for condition in sorted(conditions, key=lambda condition: condition.key not in FIELDS):
        found = [run for run in found if condition.holds(value_of(run, condition.key))]
    values = [(value_of(run, sort), run) for run in found]
    present = [(_rank(value), run) for value, run in values if value is not None]
    present.sort(key=lambda pair: pair[0], reverse=reverse)
    ordered = [run for _, run in present] + [run for value, run in values if value is None]
    return ordered if limit is None else ordered[:limit]


def _check(option: str, key: str, runs: Sequence[RunSummary]) -> None:
    if key in FIELDS:
        return
    results = {name for run in runs for name in run.facts}
    keys = [description.key for description in describe_keys()]
    if key in results or key in keys:
        return
    near = did_you_mean(key, [*FIELDS, *results, *keys])
    known = f"known: {', '.join(FIELDS)}, the keys of results.json, and configuration keys (flow.layers, ...)"
    raise ConfigError(f"{option}: unknown field '{key}'; {near}{known}")


def _matches(value: Any, pattern: str) -> bool:
    return value is not None and fnmatch.fnmatchcase(_text(value), pattern)


def _rank(value: Any) -> tuple[bool, float, str]:
    """Sort numbers by value, then texts alphabetically."""
    number = _number(value)
    return (math.isnan(number), 0.0 if math.isnan(number) else number, _text(value))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
