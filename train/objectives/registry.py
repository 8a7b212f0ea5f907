"""The objectives, by the kind of problem and their name."""

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from pushforward.common.errors import ConfigError
from pushforward.common.registry import Registry
from pushforward.train.options import ObjectiveOptions

if TYPE_CHECKING:
    from pushforward.train.objectives.base import Objective

OBJECTIVES: "Registry[type[Objective]]" = Registry(
    "objective",
    {
        name: f"pushforward.train.objectives.{place}"
        for name, place in {
            "rows/mle": "likelihood:Likelihood",
            "rows/energy": "energy:Energy",
            "rows/mle+energy": "energy:LikelihoodAndEnergy",
            "rows/evidence": "evidence:Evidence",
            "autoencoder/elbo": "bound:EvidenceBound",
            "autoencoder/iwae": "bound:ImportanceWeightedBound",
            "target/reverse-kl": "target:ReverseKl",
            "target/alpha": "target:Alpha",
            "target/forward-kl": "target:ForwardKl",
            "target/iwae": "target:ImportanceBound",
        }.items()
    },
)

OBJECTIVE_KEYS = tuple(field.name for field in fields(ObjectiveOptions) if field.name != "name")
"""Keys of ``train`` that only some objectives use."""


def register_objective(name: str, *, problem: str = "rows") -> "Callable[[type[Objective]], type[Objective]]":
    """Return a decorator that adds an objective under a name, the value of ``train.objective``.

    Args:
        name: The name.
        problem: The kind of problem that it is for: ``rows``, ``target``, ``autoencoder``, or one that was added.
    """

    def add(kind: "type[Objective]") -> "type[Objective]":
        from pushforward.train.objectives.base import Objective

        if not (isinstance(kind, type) and issubclass(kind, Objective)):
            raise ValueError(f"register_objective: {name}: expected a subclass of train.objectives.base.Objective")
        return register(kind)

    register = OBJECTIVES.register(f"{problem}/{name}")
    return add


def objective_names(problem: str) -> list[str]:
    """Names of the objectives of a kind of problem."""
    return [name.partition("/")[2] for name in OBJECTIVES.names() if name.startswith(f"{problem}/")]


def all_objective_names() -> list[str]:
    """Names of the objectives of all kinds of problems."""
    return list(dict.fromkeys(name.partition("/")[2] for name in OBJECTIVES.names()))


def find_objective(problem: str, name: str) -> "type[Objective]":
    """Return the objective of a name for a kind of problem.

    Raises:
        ConfigError: If there is none; the message has those that there are.
    """
    names = objective_names(problem)
    if name in names:
        return OBJECTIVES[f"{problem}/{name}"]
    raise ConfigError(
        f"train.objective: expected {' or '.join(filter(None, [', '.join(names[:-1]), *names[-1:]]))}; got {name}"
    )
