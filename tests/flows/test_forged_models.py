"""Model folders whose description was edited: an error in one line, quickly and without large memory."""

import hashlib
import json
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pushforward.flows import (
    NAMES,
    Autoencoder,
    Chain,
    Flow,
    KernelDensity,
    Mixture,
    ModelFileError,
    Standardize,
    build,
    build_autoencoder,
    build_mixture,
    load_model,
    save,
)
from pushforward.flows.parts import PARTS

Perturb = Callable[[nn.Module], nn.Module]
SMALL: dict[str, Any] = {"layers": 2, "hidden": 8, "blocks": 1, "bins": 4}

MODELS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: build(name, 3, 2, **SMALL, base="full") for name in NAMES},  # type: ignore[misc]
    "transformer": lambda: build("nsf-ar", 3, conditioner="transformer", base="made-mog", **SMALL),
    "bounded": lambda: build("nsf-c", 3, base="beta", unconditional="spline", elementwise=True, **SMALL),
    "mixture": lambda: build_mixture("maf", 3, members=2, base="mixture", **SMALL),
    "kernel": lambda: Flow(KernelDensity(torch.randn(6, 2)), Chain([Standardize([0.0, 1.0], [1.0, 2.0])])),
    "autoencoder": lambda: build_autoencoder("logistic", 3, latent=2, values=5, hidden=8, blocks=1),
}


def loaded(folder: Path) -> Any:
    return load_model(folder, Flow, Mixture, Autoencoder)


def write(folder: Path, body: dict[str, Any]) -> None:
    """Write a description with a right checksum."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(body | {"config_sha256": digest}))


def read(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "config.json").read_text())
    del body["config_sha256"]
    return body


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(build("nsf-ar", 3, base="full", **SMALL), tmp_path)
    return tmp_path


@pytest.fixture
def small_memory() -> Iterator[None]:
    """Let the process allocate at most 4 GiB more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def nest(body: dict[str, Any], depth: int) -> None:
    for _ in range(depth):
        body["flow"] = {"part": "inverse", "bijection": body["flow"]}


def layer_of(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["flow"]["bijection"]["bijections"][0]
    return found


FORGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no flow": (lambda b: b.pop("flow"), "config.json: expected 'flow' as dict; got None"),
    "no dtype": (lambda b: b.pop("dtype"), "config.json: expected 'dtype' as str; got None"),
    "no extra": (lambda b: b.pop("extra"), "config.json: expected 'extra' as dict; got None"),
    "no format": (lambda b: b.pop("format"), "config.json: expected format 1; got None, written by pushforward"),
    "no checksum": (lambda b: b.pop("weights_sha256"), "config.json: expected 'weights_sha256' as str; got None"),
    "other checksum": (lambda b: b.update(weights_sha256="../x"), "model.safetensors: damaged: its checksum"),
    "dtype that is a function": (lambda b: b.update(dtype="load"), "config.json: expected a dtype of float32, "),
    "dtype of integers": (lambda b: b.update(dtype="int64"), "config.json: expected a dtype of float32, "),
    "no part": (
        lambda b: b["flow"].pop("part"),
        "config.json: expected a Flow or a Mixture or an Autoencoder; got dict",
    ),
    "part that is a list": (lambda b: b["flow"].update(part=["flow"]), "config.json: unknown part"),
    "no argument": (lambda b: b["flow"]["base"].pop("features"), "config.json: cannot rebuild gaussian: "),
    "text": (lambda b: b["flow"]["base"].update(features="3"), "config.json: cannot rebuild gaussian: "),
    "negative": (lambda b: b["flow"]["base"].update(features=-1), "config.json: cannot rebuild gaussian: "),
    "fraction": (lambda b: b["flow"]["base"].update(features=3.5), "config.json: cannot rebuild gaussian: "),
    "other kind": (
        lambda b: b["flow"].update(base=b["flow"]["bijection"]),
        "model.safetensors: does not fit the architecture: ",
    ),
    "part of another kind": (
        lambda b: b["flow"].update(bijection=b["flow"]["base"]),
        "config.json: cannot rebuild flow: expected a Bijection or an nflows Transform; got Gaussian",
    ),
    "huge features": (
        lambda b: b["flow"]["base"].update(features=10**9),
        "config.json: expected features of at most 4096, from the size of the weights; got 1000000000",
    ),
    "huge hidden": (
        lambda b: layer_of(b)["conditioner"].update(hidden=10**9),
        "config.json: expected hidden of at most 4096, from the size of the weights; got 1000000000",
    ),
    "many blocks": (
        lambda b: layer_of(b)["conditioner"].update(blocks=10**9),
        "config.json: expected blocks of at most 100, from the size of the weights; got 1000000000",
    ),
    "wide": (
        lambda b: layer_of(b)["conditioner"].update(hidden=4_000, blocks=100),
        "config.json: cannot rebuild masked-residual-net: its sizes are beyond those of the weights",
    ),
    "huge number": (
        lambda b: layer_of(b)["univariate"].update(bound=10**400),
        "config.json: expected finite numbers; got an infinite or huge bound",
    ),
    "deep": (lambda b: nest(b, 250), "config.json: "),
    "deeper": (lambda b: nest(b, 700), "config.json: damaged: nested too deeply"),
    "other weights": (
        lambda b: layer_of(b)["conditioner"].update(hidden=4),
        "model.safetensors: does not fit the architecture: expected bijection.bijections.0.conditioner.first.weight of "
        "shape (4, 3); got (8, 3)",
    ),
    "fewer parts": (
        lambda b: b["flow"]["bijection"]["bijections"].pop(),
        "model.safetensors: does not fit the architecture: ",
    ),
}


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("case", FORGED)
def test_a_forged_description_is_an_error_in_one_line(case: str, folder: Path) -> None:
    forge, said = FORGED[case]
    body = read(folder)
    forge(body)
    write(folder, body)
    with pytest.raises(ModelFileError) as error:
        loaded(folder)
    assert str(error.value).startswith(f"{folder}/{said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"flow": NaN}', '{"flow": ' * 5_000, "1" * 5_000])
def test_text_that_is_no_description(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.json: damaged: not a model description"):
        loaded(folder)


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    10**9,
    10**18,
    10**400,
    0.5,
    -2.5,
    1e300,
    "",
    "x",
    [],
    {},
    [1],
    [[2.0]],
]
VALUES += [*PARTS.names(), *({"part": name} for name in ("lu-linear", "affine", "gaussian"))]


def mutate(value: Any, generator: random.Random) -> Any:
    """Replace, remove or add one value somewhere inside JSON values."""
    if isinstance(value, dict | list) and value and generator.random() < 0.85:
        keys: Any = list(value) if isinstance(value, dict) else range(len(value))
        key = generator.choice(keys)
        copied: Any = dict(value) if isinstance(value, dict) else list(value)
        action = generator.random()
        if action < 0.08:
            del copied[key]
        elif action < 0.12:
            copied[key] = copied[generator.choice(keys)]
        elif action < 0.14 and isinstance(copied, dict):
            copied["more"] = generator.choice(VALUES)
        else:
            copied[key] = mutate(copied[key], generator)
        return copied
    return generator.choice(VALUES)


def check_mutations(name: str, folder: Path, seeds: range) -> None:
    save(MODELS[name](), folder)
    body = read(folder)
    loads = 0
    for seed in seeds:
        generator = random.Random(seed)
        forged = dict(body)
        key = generator.choice(["flow"] * 20 + list(body))
        forged[key] = mutate(body[key], generator)
        write(folder, forged)
        message = f"{folder}"
        try:
            loaded(folder)
            loads += 1
        except ModelFileError as error:
            message = str(error)
        assert message.startswith(str(folder)), seed
        assert "\n" not in message, seed
    assert loads < len(seeds) / 2


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("name", MODELS)
def test_random_changes_load_or_are_named(name: str, tmp_path: Path) -> None:
    check_mutations(name, tmp_path, range(25))


@pytest.mark.slow
@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("name", MODELS)
def test_many_random_changes_load_or_are_named(name: str, tmp_path: Path) -> None:
    check_mutations(name, tmp_path, range(1_000))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    flow = build("maf", 3, **SMALL)
    save(flow, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bijection.bijections.1.conditioner.last.bias"][2] = number
    save_file(weights, tmp_path / "model.safetensors")
    body = read(tmp_path)
    write(
        tmp_path, body | {"weights_sha256": hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()}
    )
    with pytest.raises(
        ModelFileError,
        match=r"model\.safetensors: bijection\.bijections\.1\.conditioner\.last\.bias has numbers that are not finite",
    ):
        loaded(tmp_path)
    with torch.no_grad():
        next(flow.parameters())[0] = number
    with pytest.raises(ValueError, match=r"save: base\.location has numbers that are not finite"):
        save(flow, tmp_path)


def test_saved_files_hold_weights_only(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    flow = build("nsf-ar", 3, **SMALL)
    save(flow, tmp_path)
    names = {name for name, _ in flow.named_parameters()}
    assert set(load_file(tmp_path / "model.safetensors")) == names
