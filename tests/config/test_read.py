"""Reading the configuration: accepted values, error messages, round trips."""

import subprocess
import sys
from pathlib import Path

import pytest

from pushforward.common.errors import ConfigError
from pushforward.config.read import describe_keys, load_config
from pushforward.config.schema import Config

KNOWN_FLOWS = "known: realnvp, maf, iaf, nsf-c, nsf-ar, made-mog, gaussian, bayesian-network"

REFUSED = {
    "unknown key": ("train.secnods=3", "unknown key 'train.secnods'; did you mean 'train.seconds'?"),
    "key of another tool": ("lr=1e-3", "unknown key 'lr'; did you mean 'train.learning_rate'?"),
    "key without section": ("seconds=4", "unknown key 'seconds'; did you mean 'train.seconds'?"),
    "key below a value": ("flow.layers.x=3", "unknown key 'flow.layers.x'; did you mean 'flow.layers'?"),
    "nothing near": ("zzz=3", "unknown key 'zzz'; known: data, target, flow, vae, train, seed, device, track, wandb"),
    "section": ("train=5", "train: expected one of its keys, as in train.objective=..."),
    "no equals sign": ("foo", "expected key=value; got 'foo'"),
    "no key": ("=3", "expected key=value; got '=3'"),
    "text for a number": ("train.seconds=abc", "train.seconds: expected a number above 0; got 'abc'"),
    "zero": ("train.seconds=0", "train.seconds: expected a number above 0; got '0'"),
    "infinity": ("train.seconds=inf", "train.seconds: expected a number above 0; got 'inf'"),
    "nan": ("train.learning_rate=nan", "train.learning_rate: expected a number above 0; got 'nan'"),
    "part of a step": ("train.steps=1.5", "train.steps: expected a whole number above 0; got '1.5'"),
    "endless steps": ("train.steps=inf", "train.steps: expected a whole number above 0; got 'inf'"),
    "true for a number": ("train.steps=true", "train.steps: expected a whole number above 0; got 'true'"),
    "too many members": (
        "flow.members=10000",
        "flow.members: expected a whole number above 0, and at most 256; got '10000'",
    ),
    "empty": ("train.steps=", "train.steps: expected a whole number above 0; got ''"),
    "negative seed": ("seed=-1", "seed: expected a whole number from 0 to 4294967295; got '-1'"),
    "choice": ("train.compile=onn", "train.compile: expected auto, on or off; got 'onn'"),
    "precision": ("train.precision=fp16", "train.precision: expected auto, float32, tf32 or bf16; got 'fp16'"),
    "dtype of another tool": ("train.dtype=bf16", "unknown key 'train.dtype'; did you mean 'train.precision'?"),
    "short mode": ("wandb=of", "wandb.mode: expected auto, online, offline or off; got 'of'"),
    "truth value": ("train.evaluate=x", "train.evaluate: expected true or false; got 'x'"),
    "device": ("device=gpu", "device: expected auto, cpu, cuda, cuda:N or mps; got 'gpu'"),
    "flow": ("flow=nfs-ar", f"flow.name: unknown flow 'nfs-ar'; did you mean 'nsf-ar'? {KNOWN_FLOWS}"),
    "far flow": ("flow.name=glow2", f"flow.name: unknown flow 'glow2'; {KNOWN_FLOWS}"),
    "share": ("flow.dropout=1", "flow.dropout: expected a number from 0 to below 1; got '1'"),
    "all held out": (
        "data.validation_fraction=0.95",
        "data.validation_fraction + data.test_fraction: expected a sum below 1; got 1.05",
    ),
    "broken list": ("data.drop=[a", "data.drop: expected a list of names, as in a,b or [a, b]; got '[a'"),
}

ACCEPTED = {
    "short flow": ("flow=nsf-ar", ("flow", "name"), "nsf-ar"),
    "flow with underscore": ("flow=NSF_AR", ("flow", "name"), "nsf-ar"),
    "short mode": ("wandb=offline", ("wandb", "mode"), "offline"),
    "exponent without dot": ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
    "exponent for a count": ("train.steps=1e4", ("train", "steps"), 10_000),
    "large count": ("train.steps=9007199254740993", ("train", "steps"), 2**53 + 1),
    "underscores": ("train.steps=1_000", ("train", "steps"), 1000),
    "True": ("train.evaluate=True", ("train", "evaluate"), True),
    "false": ("train.evaluate=false", ("train", "evaluate"), False),
    "off is a word": ("train.compile=off", ("train", "compile"), "off"),
    "precision": ("train.precision=bf16", ("train", "precision"), "bf16"),
    "dequantize off": ("data.dequantize=off", ("data", "dequantize"), "off"),
    "comma list": ("data.drop=a, b.c d", ("data", "drop"), ("a", "b.c d")),
    "bracket list": ('data.drop=[a,"b,c"]', ("data", "drop"), ("a", "b,c")),
    "numbers are names": ("data.drop=1.50,01,yes", ("data", "drop"), ("1.50", "01", "yes")),
    "empty list": ("data.drop=", ("data", "drop"), ()),
    "all": ("data.columns=all", ("data", "columns"), "all"),
    "a column called all": ("data.columns=[all]", ("data", "columns"), ("all",)),
    "value with equals": ("wandb.name=a=b", ("wandb", "name"), "a=b"),
    "auto again": ("train.steps=auto", ("train", "steps"), "auto"),
    "one GPU": ("device=cuda:1", ("device",), "cuda:1"),
}

RICH = Config.model_validate(
    {
        "data": {"source": "a b/c.csv", "columns": ["x.y", "1.50", "null", "a,b", "[z", "é"], "drop": ["off"]},
        "flow": {"name": "maf", "layers": 3, "bound": 1e-5, "dropout": 0.1},
        "train": {"steps": 2**53 + 1, "learning_rate": 1e-4, "seconds": 0.1 + 0.2, "evaluate": False},
        "seed": 7,
        "wandb": {"mode": "off", "name": "null", "tags": ["1", "true"]},
    }
)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    argument, message = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        load_config("moons", [], [argument])
    assert str(caught.value) == message


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    argument, path, expected = ACCEPTED[case]
    value: object = load_config("moons", [], [argument])
    for name in path:
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


def test_the_data_source_is_required() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert str(caught.value) == "data.source: expected the name of a data set, or a file; got nothing"


def test_defaults_files_overrides_options_in_this_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("flow: maf\ntrain: {steps: 1, seconds: 1, batch_size: 1}\nseed: 1\n")
    second.write_text("flow:\n  layers: 9\ntrain.seconds: 2\ntrain:\n  batch_size: 2\n")
    config = load_config("moons", [first, second], ["train.batch_size=3", "seed=2", "train.batch_size=4"], seed=None)
    assert (config.flow.name, config.flow.layers) == ("maf", 9)
    assert (config.train.steps, config.train.seconds, config.train.batch_size, config.seed) == (1, 2.0, 4, 2)
    assert load_config("moons", [first], ["seed=2", "wandb=off"], seed=5, wandb="online").seed == 5
    assert load_config("moons", [first], ["wandb=off"], wandb="online").wandb.mode == "online"


FILES = {
    "unknown key": ("seed: 1\ntrain:\n  secnods: 3\n", "3: unknown key 'train.secnods'; did you mean 'train.seconds'?"),
    "wrong value": ("train:\n\n  seconds: abc\n", "3: train.seconds: expected a number above 0; got 'abc'"),
    "null": ("train:\n  seconds:\n", "2: train.seconds: expected a number above 0; got nothing"),
    "twice": ("flow: maf\nflow.name: iaf\n", "2: 'flow.name' is set twice"),
    "too deep": ("flow:\n  layers: {a: 1}\n", "2: flow.layers: expected a single value; got keys below it"),
    "list of lists": ("data:\n  drop: [[a]]\n", "2: data.drop: expected a flat list of names"),
    "not keys": ("- a\n", "1: expected keys with values, as in 'seed: 1'"),
    "flow": ("flow: nfs-ar\n", f"1: flow.name: unknown flow 'nfs-ar'; did you mean 'nsf-ar'? {KNOWN_FLOWS}"),
}


@pytest.mark.parametrize("case", FILES)
def test_file_errors_name_the_line(case: str, tmp_path: Path) -> None:
    text, message = FILES[case]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config("moons", [path])
    assert str(caught.value) == f"{path} line {message}"


def test_files_that_are_missing_or_not_yaml(tmp_path: Path) -> None:
    missing, broken, binary = tmp_path / "none.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"
    broken.write_text("seed: 1\nflow: [a\n")
    binary.write_bytes(b"seed: \xff\n")
    for path, message in (
        (missing, f"{missing}: cannot read the configuration: no such file or directory"),
        (binary, f"{binary}: expected UTF-8 text; byte 6 is not"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config("moons", [path])
        assert str(caught.value) == message
    with pytest.raises(ConfigError, match=r"b\.yaml line 3: not valid YAML: expected ',' or '\]'") as caught:
        load_config("moons", [broken])
    assert "\n" not in str(caught.value)


def test_yaml_words_and_numbers_keep_their_meaning(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "train: {learning_rate: 1e-4, compile: off, steps: 010}\nwandb: off\ndata: {drop: [no, 1.50]}\nflow:\n"
    )
    config = load_config("moons", [path])
    assert (config.train.learning_rate, config.train.compile, config.train.steps) == (1e-4, "off", 10)
    assert config.wandb.mode == "off"
    assert config.data.drop == ("no", "1.50")
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert load_config("moons", [empty]) == load_config("moons")


@pytest.mark.parametrize("config", [RICH, load_config("moons")], ids=["rich", "default"])
def test_round_trips(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(None, [path]) == config
    arguments = [f"{key}={value}" for key, value in config.flat().items() if value is not None]
    again = load_config(None, [], [argument for argument in arguments if argument != "wandb.name=null"])
    assert again == config.model_copy(update={"wandb": again.wandb})
    assert again.wandb.tags == config.wandb.tags


def test_flat_has_every_key_with_a_description() -> None:
    keys = describe_keys()
    assert [key.key for key in keys] == list(load_config("moons").flat())
    assert all(key.description for key in keys)
    assert all(value is None or isinstance(value, str | int | float | bool) for value in RICH.flat().values())


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("moons").train.steps = 3


def test_truth_values_are_not_numbers() -> None:
    for group in ({"steps": True}, {"seconds": True}, {"weight_decay": False}):
        with pytest.raises(ValueError, match="truth value"):
            Config.model_validate({"data": "moons", "train": group})


def test_imports_are_light() -> None:
    code = (
        "import sys\n"
        "import pushforward.config.read, pushforward.runs.folder, pushforward.tracking.trackers\n"
        "import pushforward.tracking.progress, pushforward.common.signals\n"
        "print([name for name in ('torch', 'wandb', 'rich', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
