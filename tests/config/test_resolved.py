"""Keys without effect are refused; the resolved configuration has a value for every key that is used."""

import pytest

from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.config.resolved import given_keys, resolved
from pushforward.experiment.run import plan
from pushforward.train.problems.effects import without_effect

OBJECTIVES_OF_TARGETS = "train.objective=reverse-kl, alpha, forward-kl or iwae of a target"
SPLINES = "flow=nsf-c or nsf-ar, flow.univariate=rational-quadratic or flow.elementwise=true"
AN_AUTOENCODER = "an autoencoder (train.objective=elbo or iwae)"
A_TARGET = "a target (DATA is target:NAME)"


@pytest.mark.parametrize(
    ("data", "keys", "unused", "part", "users"),
    [
        ("iris", ["vae.latent=3"], "vae.latent", "rows", AN_AUTOENCODER),
        ("iris", ["flow=maf", "target.spread=3"], "target.spread", "rows", A_TARGET),
        ("iris", ["flow=maf", "flow.bins=4"], "flow.bins", "flow=maf", SPLINES),
        (
            "iris",
            ["flow=maf", "flow.components=4"],
            "flow.components",
            "flow=maf",
            "flow=made-mog or flow.base=made-mog",
        ),
        ("iris", ["train.annealing=0.1"], "train.annealing", "train.objective=mle", OBJECTIVES_OF_TARGETS),
        (
            "iris",
            ["flow=maf", "train.energy_weight=2"],
            "train.energy_weight",
            "train.objective=mle",
            "train.objective=mle+energy",
        ),
        ("iris", ["train.objective=elbo", "flow=maf"], "flow.name", "an autoencoder", f"{A_TARGET} or rows"),
        (
            "iris",
            ["train.objective=elbo", "train.importance_samples=2"],
            "train.importance_samples",
            "train.objective=elbo",
            "train.objective=iwae",
        ),
        ("target:u1", ["data.drop=a"], "data.drop", "a target", f"{AN_AUTOENCODER} or rows"),
        ("target:u1", ["train.alpha=1"], "train.alpha", "train.objective=reverse-kl", "train.objective=alpha"),
    ],
)
def test_a_key_without_effect_is_refused_and_the_message_says_on_what_it_has_one(
    data: str, keys: list[str], unused: str, part: str, users: str
) -> None:
    config = load_config(data, overrides=keys)
    with pytest.raises(ConfigError) as caught:
        plan(config)
    assert str(caught.value) == f"{unused}: has no effect with {part}; it has one with {users}"
    assert plan(config, strict=False).uses(unused) is False


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ("iris", ["flow=gaussian"]),
        ("iris", ["flow=made-mog"]),
        ("iris", ["train.objective=iwae"]),
        ("target:u1", ["train.objective=forward-kl"]),
    ],
)
def test_what_the_message_suggests_uses_the_key(data: str, keys: list[str]) -> None:
    """Each key without an effect on a fit has one on something, and that one can be asked for."""
    problem = plan(load_config(data, overrides=keys))
    unused = [key for key in load_config(data).flat() if "." in key and not key.startswith("wandb.")]
    unused = [key for key in unused if not problem.uses(key)]
    assert unused
    for key in unused:
        users = without_effect(problem, key).partition("; it has one with ")[2]
        assert users
        if users.startswith("flow="):
            name = users.removeprefix("flow=").replace(",", " ").split()[0]
            assert plan(load_config(data, overrides=[f"flow={name}"]), strict=False).uses(key)


def _name(key: str) -> str:
    name = key.partition("=")[0]
    return "flow.name" if name == "flow" else name


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ("iris", ["flow=maf", "flow.layers=2", "data.drop=petal width (cm)", "train.weight_decay=0.1", "wandb.name=n"]),
        ("iris", ["flow=nsf-c", "train.objective=mle+energy", "train.energy_weight=2"]),
        ("iris", ["train.objective=iwae", "train.importance_samples=2", "flow.hidden=8", "vae.latent=2"]),
        ("target:u1", ["train.objective=alpha", "train.alpha=1.5", "flow.bins=4"]),
        ("moons", ["flow=maf", "flow.tails=linear", "flow.elementwise=false"]),
    ],
)
def test_keys_with_an_effect_are_accepted_and_kept(data: str, keys: list[str]) -> None:
    config = load_config(data, overrides=keys)
    problem = plan(config)
    given, written = given_keys(config), given_keys(resolved(config, problem.options, problem.uses))
    assert set(given) == {"data.source", *(_name(key) for key in keys)}
    assert {key: written[key] for key in given if not key.startswith("data.")} == {
        key: value for key, value in given.items() if not key.startswith("data.")
    }


def test_the_resolved_configuration_is_that_of_the_same_fit() -> None:
    """Nothing that depends on the data is left open, and resolving it again changes nothing."""
    config = load_config("iris", overrides=["flow=nsf-ar"])
    problem = plan(config)
    once = resolved(config, problem.options, problem.uses)
    left = {key for key, value in once.flat().items() if value == "auto" and problem.uses(key)}
    assert left == {
        "data.rows",  # all of them
        "data.dequantize",  # on
        "data.seed",  # that of the fit
        "flow.univariate",
        "train.steps",  # the budget is in seconds
        "train.validate_every",
        "train.compile",
        "train.precision",
    }
    again = plan(once)
    assert again.options == problem.options
    assert resolved(once, again.options, again.uses) == once
