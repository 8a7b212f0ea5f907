"""What a key has an effect on, in words: for messages about keys that have none in a fit."""

from dataclasses import replace
from typing import Any

from pushforward.flows.registries import FLOWS, UNIVARIATE_MAPS
from pushforward.train.architecture import uses_key
from pushforward.train.objectives.registry import OBJECTIVE_KEYS, OBJECTIVES
from pushforward.train.options import FlowOptions
from pushforward.train.problems.base import Problem
from pushforward.train.problems.registry import PROBLEMS


def without_effect(problem: Problem, key: str) -> str:
    """One line about a key that a fit does not use: which part of the fit leaves it unused, and what would use it.

    Args:
        problem: The fit.
        key: A key such as ``flow.bins``.
    """
    group, _, name = key.partition(".")
    if group == "train" and name in OBJECTIVE_KEYS:
        part, users = f"train.objective={problem.options.objective.name}", _objectives(problem.kind, name)
    elif group == "flow" and "flow" in problem.keys:
        part, users = f"flow={problem.flow_name}", _flows(problem.options.flow, name)
    else:
        part, users = _short(problem.kind), [_words(kind) for kind in PROBLEMS.names() if has_effect(kind, key)]
    return f"{key}: has no effect with {part}" + (f"; it has one with {_either(users)}" if users else "")


def has_effect(kind: str, key: str) -> bool:
    """Whether a key such as ``flow.bins`` has an effect on some fit of a kind."""
    return key.partition(".")[0] in PROBLEMS[kind].keys or key in PROBLEMS[kind].keys


def _objectives(kind: str, name: str) -> list[str]:
    """The objectives that use a key: those of a kind of fit, if any, else those of the others, with their kinds."""
    found: dict[str, list[str]] = {}
    for full in OBJECTIVES.names():
        if name in OBJECTIVES[full].uses:
            found.setdefault(full.partition("/")[0], []).append(full.partition("/")[2])
    if kind in found:
        return [f"train.objective={_either(found[kind])}"]
    return [f"train.objective={_either(names)} of {_short(of)}" for of, names in found.items()]


def _flows(flow: FlowOptions, name: str) -> list[str]:
    """The values of single keys with which a flow would use another key."""
    values: dict[str, list[Any]] = {
        "name": FLOWS.names(),
        "univariate": UNIVARIATE_MAPS.names(),
        "elementwise": [True],
        "base": ["made-mog"],
    }
    out = []
    for changed, options in values.items():
        users = [str(value).lower() for value in options if uses_key(replace(flow, **{changed: value}), name)]
        if users and changed != name:
            out.append(f"{'flow' if changed == 'name' else f'flow.{changed}'}={_either(users)}")
    return out


def _words(kind: str) -> str:
    return PROBLEMS[kind].words or kind


def _short(kind: str) -> str:
    return _words(kind).partition(" (")[0]


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
