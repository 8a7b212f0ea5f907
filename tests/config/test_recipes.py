"""Recipes: published sizes, comments, the list, overriding and fitting, and the keys that recipes need."""

import fnmatch
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.config.recipe import read_recipe, recipe_file, recipe_names
from pushforward.config.recipe_list import list_recipes
from pushforward.config.resolved import resolved as resolved_config, unused_keys
from pushforward.experiment.run import plan
from pushforward.flows import (
    AutoregressiveMixture,
    Coupling,
    Elementwise,
    LULinear,
    MaskedAutoregressive,
    MaskedResidualNet,
    Permutation,
    ResidualNet,
    members_of,
)
from pushforward.train.architecture import NEUTRAL, build_model, uses_key
from pushforward.train.defaults import resolve
from tests.fixtures.paths import ROOT

FEATURES = {"power": 6, "gas": 8, "hepmass": 21, "miniboone": 43, "bsds300": 63}
TRAINING_ROWS = {"power": 1_659_917, "gas": 852_174, "hepmass": 315_123, "miniboone": 29_556, "bsds300": 1_000_000}
# The published tables: batch, steps, learning rate, flow steps, residual blocks, hidden features, bins, dropout.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "nsf-ar/power": (512, 400_000, 5e-4, 10, 2, 256, 8, 0.0),
    "nsf-ar/gas": (512, 400_000, 5e-4, 10, 2, 256, 8, 0.1),
    "nsf-ar/hepmass": (512, 400_000, 5e-4, 10, 2, 256, 8, 0.2),
    "nsf-ar/miniboone": (64, 250_000, 3e-4, 10, 1, 64, 4, 0.2),
    "nsf-ar/bsds300": (512, 400_000, 5e-4, 10, 2, 512, 8, 0.2),
    "nsf-c/power": (512, 400_000, 5e-4, 10, 2, 256, 8, 0.0),
    "nsf-c/gas": (512, 400_000, 5e-4, 10, 2, 256, 8, 0.1),
    "nsf-c/hepmass": (256, 400_000, 5e-4, 20, 1, 128, 8, 0.2),
    "nsf-c/miniboone": (128, 200_000, 3e-4, 10, 1, 32, 4, 0.2),
    "nsf-c/bsds300": (512, 400_000, 5e-4, 20, 1, 128, 8, 0.2),
}
# Layers and hidden units.
PUBLISHED_MAF = {
    "maf/power": (10, 100),
    "maf/gas": (10, 100),
    "maf/hepmass": (5, 512),
    "maf/miniboone": (5, 512),
    "maf/bsds300": (5, 512),
}
# Keys without effect for these flows.
SPLINE_KEYS = {"bins", "bound", "tails", "unconditional"}
IDLE = {
    "nsf-ar": {"components"},
    "nsf-c": {"components", "conditioner"},
    "maf": {"components", *SPLINE_KEYS},
    "made-mog": {"layers", "linear", *SPLINE_KEYS},
}
LITERATURE = [name for name in recipe_names() if not name.startswith("ours/")]


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


def unused(config: Any) -> list[str]:
    """The keys of the flow that a configuration sets without effect."""
    flow = resolve(config.model_dump(), rows=1_000, features=4, is_toy=False).flow
    names = {key for key in vars(flow) if uses_key(flow, key) or key in NEUTRAL}
    return unused_keys(config, lambda key: not key.startswith("flow.") or key.removeprefix("flow.") in names)


def config_of(name: str, *overrides: str) -> Any:
    return load_config(files=[f"recipe:{name}"], overrides=overrides)


@pytest.mark.parametrize("name", PUBLISHED)
def test_spline_recipes_have_the_published_sizes(name: str) -> None:
    flow, train = config_of(name).flow, config_of(name).train
    sizes = (train.batch_size, train.steps, train.learning_rate, flow.layers, flow.blocks, flow.hidden, flow.bins)
    assert (*sizes, flow.dropout) == PUBLISHED[name]
    assert (flow.bound, flow.tails, flow.linear) == (3.0, "linear", "around")
    assert flow.unconditional == ("spline" if flow.name == "nsf-c" else "none")
    assert (train.gradient_clip, train.validate_every) == (5.0, 250)


@pytest.mark.parametrize("name", PUBLISHED_MAF)
def test_maf_recipes_have_the_published_sizes(name: str) -> None:
    flow, train = config_of(name).flow, config_of(name).train
    assert (flow.layers, flow.hidden) == PUBLISHED_MAF[name]
    assert (flow.blocks, train.batch_size, train.learning_rate, train.weight_decay) == (0, 100, 1e-4, 1e-6)
    rows = TRAINING_ROWS[name.partition("/")[2]]
    assert train.validate_every == -(-rows // train.batch_size)  # once an epoch


@pytest.mark.parametrize("data", FEATURES)
def test_mixture_recipes_have_the_sizes_of_the_scripts(data: str) -> None:
    flow, train = config_of(f"made-mog/{data}").flow, config_of(f"made-mog/{data}").train
    assert (flow.components, flow.hidden, flow.blocks, flow.dropout, flow.members) == (20, 512, 4, 0.1, 1)
    assert (train.batch_size, train.steps, train.learning_rate) == (512, 400_000, 5e-4)


def test_every_family_has_a_recipe_for_every_data_set() -> None:
    assert {*PUBLISHED, *PUBLISHED_MAF} <= set(recipe_names())
    for family in {name.partition("/")[0] for name in LITERATURE}:
        assert {name.partition("/")[2] for name in LITERATURE if name.startswith(f"{family}/")} == set(FEATURES)


@pytest.mark.parametrize("name", LITERATURE)
def test_a_recipe_has_no_auto(name: str) -> None:
    family, _, data = name.partition("/")
    config = config_of(name)
    assert (config.data.source, config.data.dequantize) == (data, "off")
    assert config.flow.name == family
    keys = config.flat()
    left = {key for key in keys if key.startswith("flow.") and keys[key] == "auto"}
    assert left <= {f"flow.{key}" for key in IDLE[family]} | {"flow.univariate"}
    for key in ("objective", "steps", "batch_size", "learning_rate", "warmup", "weight_decay", "validate_every"):
        assert keys[f"train.{key}"] != "auto"
    assert not unused(config)
    # As published: no warm-up, no weight averaging, no early stopping; the loop has the cosine.
    assert (config.train.warmup, config.train.ema_decay, config.train.patience) == (0, 0.0, 1.0)
    resolved = resolve(config.model_dump(), rows=TRAINING_ROWS[data], features=FEATURES[data], is_toy=False)
    assert resolved.train.seconds is None  # the steps are the only budget
    options = resolved.train
    assert (options.steps, options.seconds, options.validate_every) == (
        config.train.steps,
        None,
        config.train.validate_every,
    )
    written = resolved_config(config, resolved, lambda key: True).flat()
    changed = ("train.gradient",)  # auto is the path gradient, which the likelihood does not use
    assert {k: v for k, v in written.items() if keys[k] != "auto" and k not in changed} == {
        k: v for k, v in keys.items() if v != "auto"
    }


@pytest.mark.parametrize("name", LITERATURE)
def test_the_comments_of_a_recipe_are_complete(name: str) -> None:
    text = read_recipe(name)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert text.splitlines()[: len(comments)] == comments  # before everything else
    data = name.partition("/")[2]
    assert data.upper() in comments[0]
    assert "published log-likelihood" in comments[0]
    for part in ("Error bar: ", "Source: ", "As published: ", "Differs in "):
        assert sum(line.startswith(f"# {part}") for line in comments) >= 1, part
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("data", FEATURES)
def test_our_own_recipes_are_marked(data: str) -> None:
    """They have no auto either, and say that they have not been run."""
    config = config_of(f"ours/{data}")
    keys, text = config.flat(), read_recipe(f"ours/{data}")
    assert {key for key in keys if key.startswith("flow.") and keys[key] == "auto"} == {"flow.univariate"}
    assert not unused(config)
    assert text.startswith(f"# Our own, for {data.upper()}: ")
    assert "not run on this data set yet" in text.splitlines()[0]
    assert "published log-likelihood" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    resolved = resolve(config.model_dump(), rows=TRAINING_ROWS[data], features=FEATURES[data], is_toy=False)
    assert resolved.train.steps == config.train.steps
    model = build_model(resolved.flow, FEATURES[data], seed=0)
    assert len(members_of(model)) == config.flow.members
    assert all(isinstance(member.base, AutoregressiveMixture) for member in members_of(model))
    assert model.log_prob(torch.randn(3, FEATURES[data])).isfinite().all()


@pytest.mark.parametrize("name", ["nsf-ar/miniboone", "nsf-c/miniboone", "maf/miniboone", "made-mog/miniboone"])
def test_a_recipe_builds_the_published_layers(name: str) -> None:
    config = config_of(name)
    resolved = resolve(config.model_dump(), rows=TRAINING_ROWS["miniboone"], features=43, is_toy=False)
    flow = build_model(resolved.flow, 43, seed=0)
    kinds = (Coupling, MaskedAutoregressive, Elementwise, LULinear, Permutation)
    counts = [sum(isinstance(module, kind) for module in flow.modules()) for kind in kinds]
    expected = {"maf": [0, 5, 0, 0, 4], "nsf-ar": [0, 10, 0, 11, 11], "nsf-c": [10, 0, 10, 11, 11]}
    assert counts == expected.get(config.flow.name, [0, 0, 0, 0, 0])
    (net, *others) = [m.config() for m in flow.modules() if isinstance(m, MaskedResidualNet | ResidualNet)]
    sizes = [(one["hidden"], one["blocks"], one["dropout"]) for one in (net, *others)]
    assert set(sizes) == {(config.flow.hidden, config.flow.blocks, config.flow.dropout)}
    if config.flow.name == "made-mog":
        assert net["outputs_per_feature"] == 3 * 20
    assert flow.log_prob(torch.randn(5, 43)).isfinite().all()


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("flow: {layers: 3, hidden: 17}\n")
    config = load_config("moons", ["recipe:nsf-ar/power", own], ["flow.hidden=5", "train.seconds=9"], seed=4)
    assert (config.data.source, config.flow.layers, config.flow.hidden, config.seed) == ("moons", 3, 5, 4)
    assert (config.flow.bins, config.train.seconds, config.train.steps) == (8, 9.0, 400_000)
    before = load_config(files=[own, "recipe:nsf-ar/power"])
    assert (before.flow.layers, before.flow.hidden) == (10, 256)


def test_commands_print_recipes(tmp_path: Path) -> None:
    done = invoke("fit", "-c", "recipe:nsf-c/gas", "train.batch_size=64", "--print-config")
    path = tmp_path / "printed.yaml"
    path.write_text(done.stdout)
    assert load_config(files=[path]) == config_of("nsf-c/gas", "train.batch_size=64")
    assert invoke("recipes", "nsf-c/gas").stdout == read_recipe("nsf-c/gas")
    path.write_text(invoke("recipes", "recipe:nsf-c/gas").stdout)
    assert load_config(files=[path]) == config_of("nsf-c/gas")


def test_the_list_of_recipes() -> None:
    found = json.loads(invoke("recipes", "--json").stdout)["recipes"]
    assert [one["name"] for one in found] == recipe_names() == sorted(recipe_names())
    first = next(one for one in found if one["name"] == "nsf-ar/power")
    about = "RQ-NSF (AR) on POWER: published log-likelihood 0.66 ± 0.01 nats"
    assert first == {"name": "nsf-ar/power", "data": "power", "flow": "nsf-ar", "steps": 400_000, "about": about}
    lines = invoke("recipes").stdout.splitlines()
    assert len(lines) == 1 + len(list_recipes())
    assert lines[0].split() == ["name", "data", "flow", "steps", "description"]
    assert json.loads(invoke("recipes", "maf/gas", "--json").stdout) == {
        "name": "maf/gas",
        "text": read_recipe("maf/gas"),
    }


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nsf-ar/powr", "did you mean 'nsf-ar/power'?"),
        ("nsf_ar/power", "did you mean 'nsf-ar/power'?"),
        ("nsf-ar/power.yaml", "did you mean 'nsf-ar/power'?"),
        ("../spaces/small", "known: made-mog/bsds300, "),
        ("", "known: made-mog/bsds300, "),
    ],
)
def test_an_unknown_recipe_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("moons", [f"recipe:{name}"])
    message = str(caught.value)
    assert message.startswith(f"unknown recipe '{name}'; {hint}")
    assert message.endswith("(pushforward recipes lists them)")
    for command in (("fit", "moons", "-c", f"recipe:{name}"), ("recipes", f"recipe:{name}")):
        done = invoke(*command, code=2)
        assert done.stdout == ""
        assert done.stderr == f"pushforward {command[0]}: {message}\n"


def test_the_list_imports_no_heavy_packages() -> None:
    code = (
        "import sys; sys.argv = ['pushforward', 'recipes']\n"
        "from pushforward.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print('heavy:', sorted({'torch', 'matplotlib', 'wandb', 'sklearn', 'pyarrow'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


def test_every_recipe_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pushforward.config"]
    for name in recipe_names():
        file = recipe_file(name).relative_to(ROOT / "src" / "pushforward" / "config")
        assert any(fnmatch.fnmatch(file.as_posix(), pattern) for pattern in patterns), file


def test_a_fit_with_a_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("flow.hidden=8", "flow.layers=2", "train.steps=30", "train.validate_every=7", "data.rows=500")
    invoke("fit", "moons", "-c", "recipe:nsf-c/miniboone", *small, "train.evaluate=false", "wandb=off", "--out", run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = [row["step"] for row in rows if "val/nll" in row]
    assert validated == [0, 7, 14, 21, 28, 30]
    config = load_config(files=[run / "config.yaml"])
    assert (config.flow.unconditional, config.flow.linear, config.train.warmup) == ("spline", "around", 0)
    # The final model may be a Gaussian: this is the one that was trained.
    modules = list(plan(config).build().modules())
    assert [sum(isinstance(m, kind) for m in modules) for kind in (Elementwise, LULinear)] == [2, 3]


# The keys that recipes need


@pytest.mark.parametrize(
    ("argument", "path", "expected"),
    [
        ("flow.tails=learned", ("flow", "tails"), "learned"),
        ("flow.linear=around", ("flow", "linear"), "around"),
        ("flow.unconditional=spline", ("flow", "unconditional"), "spline"),
        ("flow.elementwise=true", ("flow", "elementwise"), True),
        ("flow.elementwise=off", ("flow", "elementwise"), False),
        ("flow.elementwise=auto", ("flow", "elementwise"), "auto"),
        ("flow.blocks=0", ("flow", "blocks"), 0),
        ("train.warmup=0", ("train", "warmup"), 0),
        ("train.warmup=1e3", ("train", "warmup"), 1000),
        ("train.validate_every=250", ("train", "validate_every"), 250),
    ],
)
def test_accepted(argument: str, path: tuple[str, str], expected: object) -> None:
    value = getattr(getattr(load_config("moons", [], [argument]), path[0]), path[1])
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("flow.tails=learnt", "flow.tails: expected linear, learned or auto; got 'learnt'"),
        ("flow.linear=arround", "flow.linear: expected between, around or auto; got 'arround'"),
        ("flow.unconditional=splines", "flow.unconditional: expected none, spline or auto; got 'splines'"),
        ("flow.elementwise=maybe", "flow.elementwise: expected true or false; got 'maybe'"),
        ("flow.blocks=-1", "flow.blocks: expected a whole number, 0 or above; got '-1'"),
        ("train.warmup=-1", "train.warmup: expected a whole number, 0 or above; got '-1'"),
        ("train.validate_every=0", "train.validate_every: expected a whole number above 0; got '0'"),
        ("train.warmup_steps=5", "unknown key 'train.warmup_steps'; did you mean 'train.warmup'?"),
    ],
)
def test_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("moons", [], [argument])
    assert str(caught.value) == message


def test_auto_of_these_keys() -> None:
    resolved = resolve(load_config("moons").model_dump(), rows=1000, features=2, is_toy=True)
    flow = resolved.flow
    assert (flow.tails, flow.linear, flow.unconditional, flow.elementwise) == ("linear", "between", "none", False)
    assert (resolved.train.warmup, resolved.train.validate_every) == (100, None)


def test_keys_that_do_not_fit_a_flow_are_refused() -> None:
    done = invoke("fit", "moons", "flow=nsf-ar", "flow.unconditional=spline", "data.rows=500", "--dry-run", code=2)
    assert done.stderr == (
        "pushforward fit: flow.unconditional: has no effect with flow=nsf-ar; it has one with flow=realnvp or nsf-c\n"
    )
