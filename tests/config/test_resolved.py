"""Keys without effect are refused; the resolved configuration has a value for every key that is used."""

import pytest

from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.config.resolved import given_keys, resolved
from pushforward.experiment.run import plan


@pytest.mark.parametrize(
    ("data", "keys", "unused", "what"),
    [
        ("iris", ["vae.latent=3"], "vae.latent", "flow=auto"),
        ("iris", ["flow=maf", "target.spread=3"], "target.spread", "flow=maf"),
        ("iris", ["flow=maf", "flow.bins=4"], "flow.bins", "flow=maf"),
        ("iris", ["flow=maf", "train.alpha=1"], "train.alpha", "flow=maf"),
        ("iris", ["flow=maf", "train.energy_weight=2"], "train.energy_weight", "flow=maf"),
        ("iris", ["train.objective=elbo", "flow=maf"], "flow.name", r"an autoencoder \(train.objective=elbo\)"),
        ("iris", ["train.objective=elbo", "train.importance_samples=2"], "train.importance_samples", "an autoencoder"),
        ("target:u1", ["data.drop=a"], "data.drop", "flow=nsf-ar"),
        ("target:u1", ["train.alpha=1"], "train.alpha", "flow=nsf-ar"),
    ],
)
def test_a_key_without_effect_is_refused(data: str, keys: list[str], unused: str, what: str) -> None:
    config = load_config(data, overrides=keys)
    with pytest.raises(ConfigError, match=rf"^{unused}: has no effect on {what}.*; the nearest key that has one is "):
        plan(config)
    assert plan(config, strict=False).uses(unused) is False


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
