"""Saved models: they are loaded unchanged, and damage is reported."""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    NAMES,
    Bijection,
    Chain,
    Coupling,
    Flow,
    Gaussian,
    LULinear,
    ModelFileError,
    NflowsTransform,
    ResidualNet,
    Standardize,
    Univariate,
    build,
    load,
    read_extra,
    save,
)
from pushforward.flows.parts import PARTS, register_part

Perturb = Callable[[nn.Module], nn.Module]


@pytest.fixture
def flow(perturb: Perturb) -> Flow:
    made = build("nsf-c", 3, layers=2, hidden=4)
    perturb(made)
    return made.eval()


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the description of a model and correct its checksum."""
    path = folder / "config.json"
    body = json.loads(path.read_text())
    del body["config_sha256"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(body | {"config_sha256": digest}))


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_flow_is_loaded_unchanged(
    name: str, context: int, standardized: bool, tmp_path: Path, perturb: Perturb
) -> None:
    flow = build(name, 3, context, layers=2, hidden=4, base="full")
    perturb(flow)
    x, given = torch.randn(8, 3), torch.randn(8, context) if context else None
    flow(x, given)  # initializes ActNorm
    if standardized:
        members = [Standardize([1e9, 0.1, -1 / 3], [1e-7, 2.0, 1e3]), flow.bijection]
        embedding = Standardize([0.1] * context, [3.0] * context) if context else None
        flow = Flow(flow.base, Chain(members), embedding)
    flow.eval()
    save(flow, tmp_path / "model")
    state = torch.random.get_rng_state()
    twin = load(tmp_path / "model")
    torch.random.set_rng_state(state)
    assert not twin.training
    assert_close(twin(x, given), flow(x, given), rtol=0, atol=0)
    twin.train()(x, given)  # a loaded ActNorm is not initialized again
    assert_close(twin.state_dict(), flow.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_is_kept_whatever_the_default(dtype: torch.dtype, flow: Flow, tmp_path: Path) -> None:
    save(flow.to(dtype), tmp_path)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == torch.float32 else torch.float32)
    try:
        twin = load(tmp_path, device=torch.device("cpu"))
    finally:
        torch.set_default_dtype(default)
    assert {parameter.dtype for parameter in twin.parameters()} == {dtype}
    x = torch.randn(4, 3, dtype=dtype)
    assert_close(twin(x), flow(x), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_loads_on_another_device(flow: Flow, tmp_path: Path) -> None:
    save(flow.cuda(), tmp_path)
    x = torch.randn(4, 3)
    assert_close(load(tmp_path)(x), load(tmp_path, device="cuda")(x.cuda()).cpu(), rtol=1e-5, atol=1e-5)


def test_extra_values_are_stored(flow: Flow, tmp_path: Path) -> None:
    # As strings, keys are sorted differently than as numbers.
    save(flow, tmp_path, extra={"columns": ["a", "ü"], "nested": {2: "x", 10: "y"}})
    assert read_extra(tmp_path) == {"columns": ["a", "ü"], "nested": {"2": "x", "10": "y"}}
    load(tmp_path)


def test_a_second_save_replaces_the_first(flow: Flow, tmp_path: Path) -> None:
    save(build("gaussian", 3), tmp_path)
    save(flow, tmp_path)
    x = torch.randn(4, 3)
    assert_close(load(tmp_path)(x), flow(x), rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_loading_does_not_use_pickle(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("pickle was used")

    save(flow, tmp_path)
    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    load(tmp_path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "flipped byte": (
        lambda f: (f / "model.safetensors").write_bytes(
            (b := (f / "model.safetensors").read_bytes())[:-3] + bytes([b[-3] ^ 1]) + b[-2:]
        ),
        "model.safetensors",
        "damaged: its checksum is not the one in config.json",
    ),
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
        "model.safetensors",
        "damaged: its checksum is not the one in config.json",
    ),
    "truncated config": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:-20]),
        "config.json",
        "damaged: not a model description",
    ),
    "config that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json", "damaged: not a model"),
    "config that is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json", "damaged: not a"),
    "edited config": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('"bound": 5.0', '"bound": 4')),
        "config.json",
        "damaged or edited: its checksum does not match its contents",
    ),
    "missing weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors", "cannot be read: No such"),
    "missing config": (lambda f: (f / "config.json").unlink(), "config.json", "cannot be read: No such file"),
    "unknown format": (
        lambda f: edit_config(f, lambda body: body.update(format=99, pushforward="9.9")),
        "config.json",
        "expected format 1; got 99, written by pushforward 9.9",
    ),
    "unknown kind": (
        lambda f: edit_config(f, lambda body: body["flow"]["base"].update(part="student")),
        "config.json",
        "unknown part 'student'; did you mean 'student-t'? known: ",
    ),
    "not a flow": (
        lambda f: edit_config(f, lambda body: body.update(flow=body["flow"]["base"])),
        "config.json",
        "expected a Flow or a Mixture; got Gaussian",
    ),
    "unknown argument": (
        lambda f: edit_config(f, lambda body: body["flow"]["base"].update(colour="red")),
        "config.json",
        "cannot rebuild gaussian: ",
    ),
    "impossible argument": (
        lambda f: edit_config(f, lambda body: body["flow"]["base"].update(features=0)),
        "config.json",
        "cannot rebuild gaussian: Gaussian: expected features of at least 1",
    ),
    "weights of another architecture": (
        lambda f: edit_config(f, lambda body: body["flow"]["base"].update(covariance="full")),
        "model.safetensors",
        "does not fit the architecture: ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_the_file(damage: str, flow: Flow, tmp_path: Path) -> None:
    save(flow, tmp_path)
    spoil, file, said = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(ModelFileError) as error:
        load(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / file}: {said}")
    assert "\n" not in message


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    for read in (load, read_extra):
        with pytest.raises(ModelFileError, match=r"config\.json: cannot be read: No such file or directory"):
            read(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_is_an_os_error(flow: Flow, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        save(flow, tmp_path / "file" / "model")


@pytest.mark.parametrize("failing_write", [1, 2])
def test_a_failed_write_leaves_no_partial_file(
    failing_write: int, flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    write_bytes = Path.write_bytes

    def full_disk(self: Path, content: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == failing_write:
            write_bytes(self, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(flow, tmp_path)
    assert "config.json" not in {p.name for p in tmp_path.iterdir()}
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(ModelFileError):
        load(tmp_path)


@register_part("test-scale")
class Scale(Bijection):
    """A user's own bijection, with an argument of every JSON type."""

    def __init__(self, features: int, notes: dict[str, Any], inner: Bijection) -> None:
        super().__init__(features)
        self.notes, self.inner = notes, inner
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.inner(x)
        return x * self.log_scale.exp(), log_det + self.log_scale.sum()

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "notes": self.notes, "inner": self.inner}


@register_part("test-shift")
@dataclass(frozen=True)
class Shift(Univariate):
    by: float = 1.0

    @property
    def size(self) -> int:
        return 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z = x + self.by * parameters[..., 0]
        return z, torch.zeros_like(z)


def test_your_own_registered_parts_are_saved_and_loaded(tmp_path: Path, perturb: Perturb) -> None:
    notes = {"a": [1, None, True], "b": {"c": 0.5}}
    coupling = Coupling(ResidualNet(1, 1, hidden=4), Shift(2.0), transformed=[True, False])
    flow = Flow(Gaussian(2), Chain([Scale(2, notes, LULinear(2)), coupling]))
    perturb(flow)
    save(flow, tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert '"test-scale"' in text
    assert '"test-shift"' in text
    assert "Scale" not in text  # no class name
    assert __name__ not in text  # no module name
    twin = load(tmp_path)
    x = torch.randn(4, 2)
    assert_close(twin(x), flow(x), rtol=0, atol=0)
    scale = next(m for m in twin.modules() if isinstance(m, Scale))
    assert scale.notes == notes


class Unregistered(Scale):
    """Has a ``config`` but no registered name."""


def test_saving_a_part_without_a_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="save: Unregistered has no name in saved files; give it one with @register_part"
    ):
        save(Flow(Gaussian(2), Unregistered(2, {}, LULinear(2))), tmp_path / "model")
    assert not list(tmp_path.glob("model/*"))


def test_a_name_belongs_to_one_class() -> None:
    with pytest.raises(ValueError, match="register: the part 'flow' exists already; take another name"):
        register_part("flow")(Unregistered)
    with pytest.raises(ValueError, match="register: the part 'test-scale' exists already"):
        register_part("test-scale")(Unregistered)


def test_registered_names_are_not_class_names(tmp_path: Path) -> None:
    for name in PARTS.names():
        kind = PARTS[name]
        assert kind.__name__ != name, name
        assert PARTS.name_of(kind) == name


class Undescribed(Bijection):
    """Has no ``config``."""


@pytest.mark.parametrize("part", [Undescribed(2), NflowsTransform(nn.Identity(), 2)], ids=["bijection", "nflows"])
def test_saving_a_part_without_config_is_an_error(part: Bijection, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"save: cannot describe {type(part).__name__}; give it a config"):
        save(Flow(Gaussian(2), part), tmp_path / "model")
    assert not list(tmp_path.glob("model/*"))
