"""Save and load flows: ``model.safetensors`` for the weights, ``config.json`` for the architecture, no pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import nn

from pushforward import __version__
from pushforward.common.errors import UserError
from pushforward.common.files import atomic_write
from pushforward.common.registry import UnknownNameError
from pushforward.flows.flow import Flow
from pushforward.flows.mixture import Mixture, Model
from pushforward.flows.parts import PARTS
from pushforward.flows.univariate.base import Univariate
from pushforward.flows.vae.autoencoder import Autoencoder

Loaded = TypeVar("Loaded", bound=nn.Module)

FORMAT_VERSION = 1
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


class ModelFileError(UserError, RuntimeError):
    """A model folder is missing, damaged, or of another format."""


def save(flow: Flow | Mixture | Autoencoder, folder: str | Path, *, extra: dict[str, Any] | None = None) -> None:
    """Write a flow, a mixture or an autoencoder into a folder; each file is written atomically.

    Args:
        flow: The model. Your own parts need a ``config`` method and a name from ``register_part``.
        folder: Folder to write into; created if missing.
        extra: JSON values to store beside the model, returned by ``read_extra``.

    Raises:
        ValueError: If a part of the model has no ``config`` or no registered name.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()}
    weights = save_tensors(tensors)
    body = {
        "format": FORMAT_VERSION,
        "pushforward": __version__,
        "torch": torch.__version__,
        "dtype": str(next(t.dtype for t in tensors.values() if t.is_floating_point())).removeprefix("torch."),
        "flow": _encode(flow),
        "extra": extra or {},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    body = json.loads(json.dumps(body, allow_nan=False))  # as it will be read: every key is a string
    text = json.dumps(body | {"config_sha256": _digest(body)}, indent=1, allow_nan=False) + "\n"
    # Weights first: a folder with a config file is complete.
    with atomic_write(folder / _WEIGHTS) as path:
        path.write_bytes(weights)
    with atomic_write(folder / _CONFIG) as path:
        path.write_bytes(text.encode())


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Load a flow or a mixture written by ``save``, in evaluation mode.

    Args:
        folder: The folder.
        device: Device of the loaded model, whatever it was trained on.

    Raises:
        ModelFileError: If a file is missing, its checksum is wrong, or its format is unknown.
    """
    return cast(Model, load_model(folder, Flow, Mixture, device=device))


def load_model(
    folder: str | Path,
    *expected: type[Loaded],
    device: str | torch.device = "cpu",
) -> Loaded:
    """Load a model written by ``save``, in evaluation mode, and check that it is of an expected class.

    Arguments and errors are those of ``load``.
    """
    folder = Path(folder)
    body = _read_config(folder)
    weights = _read(folder / _WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != body["weights_sha256"]:
        raise ModelFileError(f"{folder / _WEIGHTS}: damaged: its checksum is not the one in {_CONFIG}")
    # Constructors draw initial weights; loading must not change the random numbers that follow.
    with torch.random.fork_rng(devices=[]):
        flow = _decode(body["flow"], folder)
    if not isinstance(flow, expected):
        wanted = " or ".join(("an " if e.__name__[0] in "AEIOU" else "a ") + e.__name__ for e in expected)
        raise ModelFileError(f"{folder / _CONFIG}: expected {wanted}; got {type(flow).__name__}")
    flow.to(getattr(torch, body["dtype"]))
    try:
        flow.load_state_dict(load_tensors(weights))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFileError(f"{folder / _WEIGHTS}: does not fit the architecture: {reason}") from error
    return flow.to(device).eval()


def read_extra(folder: str | Path) -> dict[str, Any]:
    """Read the JSON values that ``save`` stored beside the model."""
    extra: dict[str, Any] = _read_config(Path(folder))["extra"]
    return extra


def _encode(value: Any) -> Any:
    """Turn a model into JSON values: each part becomes its registered name and its ``config``."""
    if isinstance(value, nn.Module | Univariate):
        kind = type(value).__name__
        try:
            arguments: dict[str, Any] = value.config()  # type: ignore[operator]  # mypy: may be a Module
        except (AttributeError, NotImplementedError) as error:
            raise ValueError(f"save: cannot describe {kind}; give it a config() method") from error
        name = PARTS.name_of(type(value))
        if name is None:
            raise ValueError(f"save: {kind} has no name in saved files; give it one with @register_part")
        return {"part": name} | {key: _encode(argument) for key, argument in arguments.items()}
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any, folder: Path) -> Any:
    """Rebuild what ``_encode`` described."""
    if isinstance(value, list):
        return [_decode(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    arguments = {name: _decode(item, folder) for name, item in value.items()}
    if "part" not in arguments:
        return arguments
    name = arguments.pop("part")
    try:
        kind = PARTS[name]
    except UnknownNameError as error:
        advice = "import the module that registers it before loading"
        raise ModelFileError(f"{folder / _CONFIG}: {error}; {advice}") from None
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{folder / _CONFIG}: cannot rebuild {name}: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """Read the description of a model, and check its checksum and its format."""
    path = folder / _CONFIG
    try:
        body = json.loads(_read(path))
        recorded = body.pop("config_sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelFileError(f"{path}: damaged: not a model description") from error
    if _digest(body) != recorded:
        raise ModelFileError(f"{path}: damaged or edited: its checksum does not match its contents")
    if body["format"] != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: expected format {FORMAT_VERSION}; got {body['format']}, "
            f"written by pushforward {body['pushforward']}"
        )
    return dict(body)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(body: dict[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
