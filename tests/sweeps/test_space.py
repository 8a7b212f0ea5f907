"""Sweep files: they mean what they mean to Weights & Biases; anything else is refused with its line."""

import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.config.resolved import resolved
from pushforward.config.schema import Config
from pushforward.experiment.run import plan
from pushforward.sweeps.parameter import Parameter
from pushforward.sweeps.pruning import Hyperband
from pushforward.sweeps.space import (
    SweepSpace,
    default_space,
    parse_space,
    read_space,
    space_for,
    typed_constants,
    with_constants,
)
from pushforward.train.defaults import resolve
from pushforward.train.options import VALIDATIONS

HEAD = "program: pushforward\nmethod: bayes\nparameters:\n  data.source: {value: moons}\n"


def space(*parameters: str, rest: str = "") -> SweepSpace:
    return parse_space(HEAD + "".join(f"  {line}\n" for line in parameters) + rest, "sweep.yaml")


def parameter(text: str) -> Parameter:
    return space(f"flow.layers: {text}").parameters[-1]


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_space(text, "sweep.yaml").check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("{min: 1, max: 3}", "int_uniform"),
        ("{min: 1.0, max: 3}", "uniform"),
        ("{min: 1, max: 3.0}", "uniform"),
        ("{values: [1, 2]}", "categorical"),
        ("{value: 1}", "constant"),
        ("{distribution: uniform, min: 1, max: 3}", "uniform"),
    ],
)
def test_the_distribution_is_inferred_if_none_is_named(text: str, distribution: str) -> None:
    assert parameter(text).distribution == distribution


@pytest.mark.parametrize(
    ("text", "raw", "value"),
    [
        ("{distribution: q_uniform, min: 0.0, max: 1.0, q: 0.05}", 0.149, 0.15),
        ("{distribution: q_uniform, min: 1, max: 9, q: 2}", 6.2, 6),
        ("{distribution: q_log_uniform_values, min: 16, max: 256, q: 8}", 21.0, 24),
        ("{distribution: log_uniform, min: -2, max: 0}", -1.0, math.exp(-1)),
        ("{distribution: log_uniform, min: 2.3, max: 6.9}", 3.0, math.exp(3)),
        ("{distribution: q_log_uniform, min: 0, max: 3, q: 1}", 2.0, 7),
        ("{distribution: normal, mu: 3, sigma: 2}", 0.5, 3.0),
        ("{distribution: normal}", 0.8413447460685429, 1.0),
        ("{distribution: log_normal, mu: 1.0}", 0.5, math.e),
        ("{distribution: q_normal, mu: 10, sigma: 4, q: 1}", 0.8413447460685429, 14),
    ],
)
def test_values_follow_the_formulas_of_wandb(text: str, raw: float, value: float) -> None:
    found = parameter(text).value(raw)
    assert found == pytest.approx(value, rel=1e-12)
    assert type(found) is type(value)
    assert parameter(text).value(parameter(text).raw(value)) == pytest.approx(value)


def test_values_sampled_by_optuna_follow_the_distribution() -> None:
    found = space(
        "flow.layers: {min: 2, max: 5}",
        "flow.hidden: {distribution: q_log_uniform_values, min: 16, max: 64, q: 16}",
        "train.learning_rate: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-2}",
        "flow.name: {values: [maf, nsf-c]}",
        "train.weight_decay: {distribution: log_normal, mu: -7}",
    )
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    values: dict[str, list[Any]] = {p.key: [] for p in found.searched}
    for _ in range(60):
        trial = study.ask()
        for p in found.searched:
            values[p.key].append(p.value(p.suggest(trial)))
    assert set(values["flow.layers"]) == {2, 3, 4, 5}
    assert set(values["flow.hidden"]) == {16, 32, 48, 64}
    assert all(type(v) is int for v in values["flow.hidden"])
    assert set(values["flow.name"]) == {"maf", "nsf-c"}
    rates = sorted(values["train.learning_rate"])
    assert 1e-4 <= rates[0] < rates[30] < 3e-3 < rates[-1] <= 1e-2


def test_a_grid_has_the_same_values_as_in_wandb() -> None:
    assert parameter("{min: 2, max: 4}").grid() == (2, 3, 4)
    assert parameter("{distribution: q_uniform, min: 0.1, max: 0.3, q: 0.1}").grid() == (0.1, 0.2, 0.3)
    assert parameter("{distribution: q_uniform, min: 1, max: 6, q: 2}").grid() == (1, 3, 5)
    assert parameter("{min: 0.5, max: 1.5}").grid() is None
    text = HEAD.replace("bayes", "grid") + "  flow.layers: {min: 2, max: 4}\n  flow.dropout: {min: 0.0, max: 0.5}\n"
    assert refused(text) == (
        "sweep.yaml line 6: flow.dropout: method: grid needs values, int_uniform or q_uniform; got uniform"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("flow.layer: {min: 1, max: 3}", "unknown key 'flow.layer'; did you mean 'flow.layers'?"),
        ("flow.layers: {min: 0, max: 3}", "flow.layers: expected a whole number above 0; got '0'"),
        ("flow.layers: {values: [2, many]}", "flow.layers: expected a whole number above 0; got 'many'"),
        ("flow.layers: {min: 1.0, max: 3.0}", "flow.layers: expected a whole number above 0; got '1.7638'"),
        ("flow.dropout: {min: 0.0, max: 1.0}", "flow.dropout: expected a number from 0 to below 1; got '1.0'"),
        (
            "flow.dropout: {distribution: normal, mu: 0.1}",
            "flow.dropout: expected a number from 0 to below 1; got '-2.",
        ),
        ("flow.name: {values: [maf, nsf_xx]}", "unknown flow 'nsf_xx'; did you mean 'nsf-c'?"),
        ("flow.layers: {min: 4, max: 3}", "flow.layers: max: expected at least min, 4; got 3"),
        ("flow.layers: {min: 4}", "flow.layers: expected value, values, min and max, or a distribution; got min"),
        ("flow.layers: 3", "flow.layers: expected value, values, or min and max; got 3"),
        ("flow.layers: {distribution: int_uniform, min: 1.0, max: 3}", "expected a whole number; got 1.0"),
        (
            "flow.layers: {distribution: uniformm, min: 1, max: 3}",
            "unknown distribution 'uniformm'; did you mean 'unif",
        ),
        ("flow.layers: {distribution: beta}", "flow.layers: beta is not supported here; use uniform"),
        ("flow.layers: {values: [1, 2], probabilities: [0.5, 0.5]}", "use values without probabilities"),
        ("flow.layers: {min: 1, max: 3, step: 2}", "int_uniform takes min, max; got step"),
        ("train.learning_rate: {distribution: log_uniform_values, min: 1e-4, max: 1}", "as a text; write 1.0e-4"),
        ("train.learning_rate: {distribution: log_uniform_values, min: 0, max: 1}", "min: expected a number above 0"),
        (
            "train.learning_rate: {distribution: log_uniform, min: 1.0e-5, max: 0.1}",
            "min and max of log_uniform are exponents, so that 1e-05 to 0.1 means values of 1.00001 to 1.10517; for "
            "values of 1e-05 to 0.1 write distribution: log_uniform_values",
        ),
        ("flow.hidden: {distribution: q_log_uniform, min: 16, max: 256, q: 8}", "distribution: q_log_uniform_values"),
        ("flow.hidden: {distribution: log_uniform, min: 800, max: 900}", "means values of 1.01423e+304 and more"),
        ("flow: {parameters: {layers: {value: 3}}}", "parameters inside parameters are not supported"),
        ("data.validation_fraction: {values: [0.1, 0.2]}", "expected one value; it changes the rows that trials are"),
        ("seed: {values: [0, 1]}", "expected one value; it changes the split; set data.seed"),
        ("device: {values: [cpu, cuda]}", "expected one value; the same time means another budget"),
        ("wandb.mode: {values: ['off', offline]}", "expected one value; it changes where trials are recorded"),
        ("flow.layers: {value: }", "flow.layers: expected a value; got nothing"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_line(line: str, message: str) -> None:
    text = refused(f"{HEAD}  flow.bins: {{min: 4, max: 8}}\n  {line}\n")
    assert text.startswith("sweep.yaml line 6: ")
    assert message in text


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("parameter: {}", "line 6: unknown key 'parameter'; did you mean 'parameters'?"),
        ("scheduler: {engine: ax}", "line 6: scheduler is not supported: the search is decided by method"),
        (
            "metric: {name: test/nll}",
            "line 6: metric: name: expected best/val_nll or best/val_loss (test rows never choose)",
        ),
        (
            "metric: {name: val/nll}",
            "line 6: metric: name: expected best/val_nll or best/val_loss (the best validation so far)",
        ),
        ("metric: {name: best/val_nll, goal: maximize}", "goal: expected minimize; got 'maximize'"),
        ("metric: {name: best/val_nll, impute: best}", "metric: impute is not supported"),
        ("early_terminate: {type: envelope}", "line 6: early_terminate: expected type: hyperband"),
        ("early_terminate: {type: hyperband}", "early_terminate: expected min_iter, or max_iter and s"),
        ("early_terminate: {type: hyperband, min_iter: 40}", "early_terminate: no band below 40"),
        ("early_terminate: {type: hyperband, min_iter: 4, eta: 1}", "eta: expected a number above 1; got 1"),
        (
            "early_terminate:\n  type: hyperband\n  min_iter: 4\n  strict: true",
            "line 9: early_terminate: strict: expected false (the strict rule is not supported)",
        ),
        ("run_cap: 0", "line 6: run_cap: expected a whole number above 0; got 0"),
        ("command: [python, train.py]", "line 6: command: expected pushforward fit"),
        ("command: [pushforward, fit, '${args}']", "expected ${args_no_hyphens}"),
        ("command: [pushforward, fit, '${args_no_hyphens}', --json]", "'--json' is not supported; write key=value"),
        ("command: [pushforward, fit, flow.bins=3, '${args_no_hyphens}']", "line 5: 'flow.bins' is set twice"),
        ("method: grid", "line 6: 'method' is set twice"),
        ("command: [", "not valid YAML"),
    ],
)
def test_other_wrong_keys_are_refused_with_their_line(rest: str, message: str) -> None:
    assert message in refused(f"{HEAD}  flow.bins: {{min: 4, max: 8}}\n{rest}\n")


def test_a_sweep_without_searched_parameters_or_method_is_refused(tmp_path: Path) -> None:
    assert "there is nothing to search" in refused(HEAD)
    assert "method: expected bayes, random, grid; got nothing" in refused(HEAD.replace("method: bayes\n", ""))
    assert "expected pushforward; got 'train.py'" in refused(HEAD.replace("program: pushforward", "program: train.py"))
    with pytest.raises(ConfigError, match="cannot read the sweep: no such file"):
        read_space(tmp_path / "none.yaml")


def test_arguments_of_the_command_are_constants() -> None:
    text = HEAD.replace("  data.source: {value: moons}\n", "  flow.bins: {min: 4, max: 8}\n")
    command = 'command: ["${env}", pushforward, fit, power.parquet, flow=maf, train.seconds=3, "${args_no_hyphens}"]'
    found = parse_space(f"{text}{command}\nproject: mine\n", "sweep.yaml")
    assert found.constants == {
        "data.source": "power.parquet",
        "flow.name": "maf",
        "train.seconds": "3",
        "wandb.project": "mine",
    }
    assert found.check().train.seconds == 3.0


def test_the_seed_may_be_searched_if_the_split_is_fixed() -> None:
    found = space("seed: {values: [0, 1]}", "data.seed: {value: 5}")
    assert found.check().data.seed == 5


@pytest.mark.parametrize(("rows", "is_toy"), [(100, False), (599, False), (600, False), (6_000, False), (500, True)])
def test_the_default_space_contains_the_defaults(rows: int, is_toy: bool) -> None:
    found = parse_space(default_space(rows, is_toy=is_toy), "default").fixed(typed_constants(["data=moons"]))
    found.check()
    config = Config(data="moons")  # type: ignore[arg-type]
    options = resolve(config.model_dump(), rows=rows, features=8, is_toy=is_toy)
    config = resolved(config, options, lambda key: True)
    for searched in found.searched:
        assert searched.raw(config.flat()[searched.key]) is not None, searched.key
    assert found.hyperband is not None
    assert found.hyperband.bands == (10, 30)


def test_a_printed_space_reads_back_and_keeps_its_comments() -> None:
    shipped = default_space(100, is_toy=False)
    constants = typed_constants(["data=a, 'b': c.csv", "flow=maf", "train.steps=1e3"], seed=3)
    text = with_constants(shipped, constants)
    found = parse_space(text, "printed")
    assert found == parse_space(shipped, "shipped").fixed(constants)
    assert found.constants["train.steps"] == 1000
    assert found.constants["data.source"] == "a, 'b': c.csv"
    assert "flow.name" not in [p.key for p in found.searched]
    assert "# no baselines" in text
    assert parse_space(found.to_yaml(), "resolved") == found
    # wandb reads the same value.
    assert yaml.safe_load(text)["parameters"]["train.steps"] == {"value": 1000}


def test_pruning_bands_are_those_of_wandb() -> None:
    assert Hyperband.create(min_iter=3, eta=3, most=VALIDATIONS).bands == (3, 9, 27)
    assert Hyperband.create(min_iter=4, eta=1.5, most=12).bands == (4, 6, 9)
    assert Hyperband.create(max_iter=27, s=2, eta=3, most=VALIDATIONS).bands == (3, 9)
    assert Hyperband.create(max_iter=27, s=2, min_iter=1, eta=3, most=VALIDATIONS).bands == (3, 9)


def test_strict_false_may_be_written_in_the_file() -> None:
    rest = "early_terminate: {type: hyperband, min_iter: 4, strict: false}\n"
    found = space("flow.bins: {min: 4, max: 8}", rest=rest)
    assert found == space("flow.bins: {min: 4, max: 8}", rest=rest.replace(", strict: false", ""))
    assert parse_space(found.to_yaml(), "resolved") == found


def test_a_trial_is_pruned_unless_it_is_among_the_best_at_its_band() -> None:
    hyperband = Hyperband.create(min_iter=10, eta=2, most=VALIDATIONS)

    def pruned(own: list[tuple[int, float]], *others: list[tuple[int, float]]) -> bool:
        return hyperband.should_prune(0, {0: own, **dict(enumerate(others, start=1))})

    good, bad = [(5, 9.0), (10, 1.0), (20, 0.5)], [(5, 0.0), (10, 2.0)]
    assert not pruned([])
    assert not pruned([(9, 99.0)], good), "no trial is pruned before the first band"
    assert not pruned([(10, 99.0)]), "the first of all is the best"
    assert pruned(bad, good, good, good)
    assert not pruned(good, bad, bad, bad)
    assert pruned([(12, 2.0)], good, good), "the band counts from the first report after it"
    assert not pruned([*bad, (20, 0.4)], good, good, good), "the last band decides"
    assert pruned([(10, math.nan)], good, good)
    # One in eta passes, and one more: W&B takes the value at rank n/eta as the threshold.
    three = [[(10, float(v))] for v in (1, 2, 3)]
    assert [pruned([(10, v)], *three) for v in (0.5, 1.5, 2.5, 3.5)] == [False, False, False, True]


def test_the_default_space_is_that_of_the_problem() -> None:
    """Its metric is the problem's own, and every key has an effect."""
    of_target = parse_space(space_for(plan(load_config("target:u1"))), "default")
    assert (of_target.metric, of_target.to_dict()["metric"]["name"]) == ("best/val_loss", "best/val_loss")
    assert "flow.layers" in {p.key for p in of_target.searched}
    of_rows = parse_space(space_for(plan(load_config("iris"))), "default")
    assert of_rows.metric == "best/val_nll"
    autoencoder = plan(load_config("digits", overrides=["train.objective=elbo"]))
    searched = {p.key for p in parse_space(space_for(autoencoder), "default").searched}
    assert "flow.hidden" in searched
    assert not searched & {"flow.name", "flow.layers", "flow.members"}


@pytest.mark.parametrize(
    ("data", "entry", "metric", "message"),
    [
        ("target:u1", "flow.layers: {values: [1, 2]}", "best/val_nll", "name: expected best/val_loss (the target"),
        ("moons", "flow.layers: {values: [1, 2]}", "best/val_loss", "name: expected best/val_nll (the rows"),
        ("target:u1", "train.objective: {values: [reverse-kl, alpha]}", "", "it changes the loss"),
        ("target:u1", "data.missing: {values: [drop, refuse]}", "", "data.missing: has no effect with a target"),
        ("moons", "target.spread: {values: [1, 2]}", "", "target.spread: has no effect with rows"),
    ],
)
def test_a_space_must_suit_the_problem(data: str, entry: str, metric: str, message: str) -> None:
    found = space(entry, rest=f"metric: {{name: {metric}}}\n" if metric else "")
    with pytest.raises(ConfigError, match=re.escape(message)):
        found.for_problem(plan(load_config(data)))
