"""The kinds of problems, by name."""

from typing import TYPE_CHECKING, Any

from pushforward.common.errors import ConfigError
from pushforward.common.registry import Registry
from pushforward.datasets.targets.names import PREFIX
from pushforward.train.defaults import Asked
from pushforward.train.objectives.registry import objective_names

if TYPE_CHECKING:
    from pushforward.train.problems.base import Problem

PROBLEMS: "Registry[type[Problem]]" = Registry(
    "problem",
    {
        "target": "pushforward.train.problems.target:TargetProblem",
        "autoencoder": "pushforward.train.problems.autoencoder:AutoencoderProblem",
        "rows": "pushforward.train.problems.rows:RowsProblem",
    },
)

register_problem = PROBLEMS.register
"""Decorator that adds a kind of problem under a name."""


def problem_class(asked: Asked) -> "type[Problem]":
    """Return the kind of problem that keys describe."""
    for name in PROBLEMS.names():
        if name not in PROBLEMS.builtins and PROBLEMS[name].accepts(asked):
            return PROBLEMS[name]
    if str(asked["data"]["source"]).startswith(PREFIX):
        return PROBLEMS["target"]
    is_bound = asked["train"]["objective"] in objective_names("autoencoder")
    return PROBLEMS["autoencoder" if is_bound else "rows"]


def plan(asked: Asked, data: Any = None, *, embedding: Any = None) -> "Problem":
    """Plan the fit that keys ask for.

    Args:
        asked: The keys as they were asked for.
        data: Data in memory, instead of those that the keys name.
        embedding: A module for the context of rows; None for none.

    Raises:
        ConfigError: If keys do not go together.
        DataError: If the data or the target cannot be used.
    """
    kind = problem_class(asked)
    if embedding is None:
        return kind.plan(asked, data)
    if kind.kind != "rows":
        raise ConfigError(f"embedding: embeds the context of rows, and a fit of kind {kind.kind} has none")
    return kind.plan(asked, data, embedding=embedding)
