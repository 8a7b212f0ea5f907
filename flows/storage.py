"""Save and load flows: ``model.safetensors`` for the weights, ``config.json`` for the architecture, no pickle."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import Tensor, nn

from pushforward.common.errors import UserError
from pushforward.common.files import atomic_write
from pushforward.common.text import shorten
from pushforward.common.version import __version__
from pushforward.flows.description import DescriptionError, build, check_fit, describe
from pushforward.flows.flow import Flow
from pushforward.flows.mixture import Mixture, Model
from pushforward.flows.random_state import kept
from pushforward.flows.state import records_of, weights_of
from pushforward.flows.vae.autoencoder import Autoencoder

Loaded = TypeVar("Loaded", bound=nn.Module)

FORMAT_VERSION = 1
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
_KEYS = {"flow": dict, "dtype": str, "extra": dict, "weights_sha256": str}
_DIGITS = 16  # of the checksum in the name of weights that have not taken their place yet


class ModelFileError(UserError, RuntimeError):
    """A model folder is missing, damaged, or of another format."""


def save(flow: Flow | Mixture | Autoencoder, folder: str | Path, *, extra: dict[str, Any] | None = None) -> None:
    """Write a flow, a mixture or an autoencoder into a folder, in place of an earlier one.

    If the process is killed, or the power fails, the folder holds the old or the new model.

    Args:
        flow: The model. Your own parts need a ``config`` method and a name from ``register_part``.
        folder: Folder to write into; created if missing.
        extra: JSON values to store beside the model, returned by ``read_extra``.

    Raises:
        ValueError: If a part of the model has no ``config`` or no registered name, or a weight is not finite.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    description = describe(flow)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{folder}: expected a folder to write the model into; got a file") from None
    if broken := _not_finite(flow):
        raise ValueError(f"save: {broken} has numbers that are not finite, so that the model could not be used")
    # Without the records of its parts: the description says the same.
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights_of(flow).items()}
    weights = save_tensors(tensors)
    body = {
        "format": FORMAT_VERSION,
        "pushforward": __version__,
        "torch": torch.__version__,
        "dtype": str(next(t.dtype for t in tensors.values() if t.is_floating_point())).removeprefix("torch."),
        "flow": description,
        "extra": extra or {},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    body = json.loads(json.dumps(body, allow_nan=False))  # as it will be read: every key is a string
    text = json.dumps(body | {"config_sha256": _digest(body)}, indent=1, allow_nan=False) + "\n"
    # The config file decides which weights belong to the model. So the new weights are there before it names them, and
    # take the place of the old ones after that: whenever the process is killed, the old or the new model can be loaded.
    named = _named_weights(folder, body["weights_sha256"])
    with atomic_write(named) as path:
        path.write_bytes(weights)
    try:
        with atomic_write(folder / _CONFIG) as path:
            path.write_bytes(text.encode())
    except OSError:  # a full disk: the old model stays
        named.unlink()
        raise
    os.replace(named, folder / _WEIGHTS)
    for other in folder.glob(f"{_WEIGHTS}.{'[0-9a-f]' * _DIGITS}"):  # of a save that was killed
        other.unlink()


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
    raw = _read_weights(folder, body["weights_sha256"])
    try:
        weights = load_tensors(raw)
    except SafetensorError as error:
        raise ModelFileError(f"{folder / _WEIGHTS}: damaged: {str(error).splitlines()[0]}") from error
    try:
        # Constructors draw initial weights; loading must not change the random numbers that follow.
        with kept():
            model = _build(body["flow"], weights, folder, expected).to(_DTYPES[body["dtype"]])
    except RecursionError as error:
        raise ModelFileError(f"{folder / _CONFIG}: damaged: nested too deeply") from error
    except DescriptionError as error:
        raise ModelFileError(f"{folder / _CONFIG}: {error}") from error
    try:
        model.load_state_dict(records_of(model) | weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{folder / _WEIGHTS}: does not fit the architecture: {reason}") from error
    if broken := _not_finite(model):
        raise ModelFileError(
            f"{folder / _WEIGHTS}: {broken} has numbers that are not finite, so that every log-density would be NaN: "
            "the fit diverged; fit again"
        )
    return model.to(device).eval()


def _build(description: Any, weights: dict[str, Tensor], folder: Path, expected: tuple[type[Loaded], ...]) -> Loaded:
    """Build the model of a description, if it is of an expected class and the weights are its own."""
    model = build(description, weights)
    if not isinstance(model, expected):
        wanted = " or ".join(("an " if e.__name__[0] in "AEIOU" else "a ") + e.__name__ for e in expected)
        raise DescriptionError(f"expected {wanted}; got {type(model).__name__}")
    try:
        check_fit(model, weights)
    except DescriptionError as error:
        raise ModelFileError(f"{folder / _WEIGHTS}: does not fit the architecture: {error}") from error
    return model


def _not_finite(model: nn.Module) -> str:
    """The name of a parameter with a number that is not finite, or of a buffer with NaN; empty if there is none.

    A buffer of your own part may have infinite numbers on purpose, as a mask has.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return name
    return next((name for name, buffer in model.named_buffers() if bool(buffer.isnan().any())), "")


def read_extra(folder: str | Path) -> dict[str, Any]:
    """Read the JSON values that ``save`` stored beside the model."""
    extra: dict[str, Any] = _read_config(Path(folder))["extra"]
    return extra


def _read_config(folder: Path) -> dict[str, Any]:
    """Read the description of a model, and check its checksum and its format."""
    path = folder / _CONFIG
    try:
        body = json.loads(_read(path), parse_constant=_refuse_constant)
        recorded = body.pop("config_sha256")
        digest = _digest(body)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged: not a model description") from error
    if digest != recorded:
        raise ModelFileError(f"{path}: damaged or edited: its checksum does not match its contents")
    if body.get("format") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: expected format {FORMAT_VERSION}; got {body.get('format')}, "
            f"written by pushforward {body.get('pushforward')}"
        )
    for key, kind in _KEYS.items():
        if not isinstance(body.get(key), kind):
            raise ModelFileError(f"{path}: expected {key!r} as {kind.__name__}; got {shorten(repr(body.get(key)), 60)}")
    if body["dtype"] not in _DTYPES:
        raise ModelFileError(f"{path}: expected a dtype of {', '.join(_DTYPES)}; got {shorten(body['dtype'], 60)}")
    return dict(body)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of a model")


def _named_weights(folder: Path, sha256: str) -> Path:
    """Path of weights that have not taken their place yet, see :func:`save`."""
    return folder / f"{_WEIGHTS}.{sha256[:_DIGITS]}"


def _read_weights(folder: Path, sha256: str) -> bytes:
    """Read the weights with a checksum, also if the process that saved them was killed before its last step."""
    named = _named_weights(folder, sha256)
    weights = _read(named if named.exists() else folder / _WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != sha256:
        raise ModelFileError(f"{folder / _WEIGHTS}: damaged: its checksum is not the one in {_CONFIG}")
    return weights


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(body: dict[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
