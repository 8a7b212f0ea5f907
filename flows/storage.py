"""Flows on disk: ``model.safetensors`` for the weights, ``config.json`` for the architecture, checksums, no pickle."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import nn

from pushforward import __version__
from pushforward.common.errors import UserError
from pushforward.flows.bases.bounded import Beta, Gamma, Uniform
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.gaussian_mixture import GaussianMixture
from pushforward.flows.bases.heavy_tailed import Laplace, Logistic
from pushforward.flows.bases.kernel_density import KernelDensity
from pushforward.flows.bases.made_mog import AutoregressiveMixture
from pushforward.flows.bases.student_t import StudentT
from pushforward.flows.bases.transformed import TransformedDistribution
from pushforward.flows.bijections.autoregressive import MaskedAutoregressive
from pushforward.flows.bijections.base import Chain, Inverse
from pushforward.flows.bijections.coupling import Coupling
from pushforward.flows.bijections.elementwise import Elementwise
from pushforward.flows.bijections.linear import LULinear, Permutation
from pushforward.flows.bijections.normalization import ActNorm, Standardize
from pushforward.flows.bijections.probit import Probit
from pushforward.flows.bijections.support import Log, Logit
from pushforward.flows.flow import Flow
from pushforward.flows.mixture import Mixture, Model as Density
from pushforward.flows.networks.masked import MaskedResidualNet
from pushforward.flows.networks.residual import ResidualNet
from pushforward.flows.networks.transformer import MaskedTransformer
from pushforward.flows.univariate.affine import Affine
from pushforward.flows.univariate.base import Univariate
from pushforward.flows.univariate.rational_quadratic import RationalQuadraticSpline
from pushforward.flows.vae.autoencoder import Autoencoder
from pushforward.flows.vae.decoders import BernoulliDecoder, CategoricalDecoder, GaussianDecoder, LogisticDecoder
from pushforward.flows.vae.encoder import Encoder

Model = TypeVar("Model", bound=nn.Module)

FORMAT_VERSION = 1
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        ActNorm,
        Affine,
        Autoencoder,
        AutoregressiveMixture,
        BernoulliDecoder,
        CategoricalDecoder,
        Beta,
        Chain,
        Coupling,
        Encoder,
        Mixture,
        Flow,
        Gamma,
        Gaussian,
        GaussianDecoder,
        GaussianMixture,
        Inverse,
        KernelDensity,
        LULinear,
        Laplace,
        Log,
        Logistic,
        LogisticDecoder,
        Logit,
        Elementwise,
        MaskedAutoregressive,
        MaskedResidualNet,
        MaskedTransformer,
        Permutation,
        Probit,
        TransformedDistribution,
        RationalQuadraticSpline,
        ResidualNet,
        Standardize,
        StudentT,
        Uniform,
    )
}


class ModelFileError(UserError, RuntimeError):
    """A model folder is missing, damaged, or of another format."""


def save(flow: Flow | Mixture | Autoencoder, folder: str | Path, *, extra: dict[str, Any] | None = None) -> None:
    """Write a flow, an ensemble or an autoencoder into a folder; each file appears whole or not at all.

    Args:
        flow: The flow. Its parts must be this package's, or state their ``config``.
        folder: Folder to write into; made if missing.
        extra: JSON values to keep beside the model, returned by ``read_extra``.

    Raises:
        ValueError: If a part of the flow cannot be described.
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
    body = json.loads(json.dumps(body, allow_nan=False))  # as a reader will see it: every key a string
    text = json.dumps(body | {"config_sha256": _digest(body)}, indent=1, allow_nan=False) + "\n"
    # Weights first: a folder with a config is complete.
    _write(folder / _WEIGHTS, weights)
    _write(folder / _CONFIG, text.encode())


def load(folder: str | Path, *, device: str | torch.device = "cpu", kinds: dict[str, type] | None = None) -> Density:
    """Read a flow or an ensemble that ``save`` wrote, in evaluation mode.

    Args:
        folder: The folder.
        device: Where to put it; independent of where it was trained.
        kinds: Classes of your own that the flow contains, by class name.

    Raises:
        ModelFileError: If a file is missing, its checksum is wrong, or its format is unknown.
    """
    return cast(Density, load_model(folder, Flow, Mixture, device=device, kinds=kinds))


def load_model(
    folder: str | Path,
    *expected: type[Model],
    device: str | torch.device = "cpu",
    kinds: dict[str, type] | None = None,
) -> Model:
    """Read what ``save`` wrote, in evaluation mode, if it is of an expected class; otherwise as ``load``."""
    folder = Path(folder)
    body = _read_config(folder)
    weights = _read(folder / _WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != body["weights_sha256"]:
        raise ModelFileError(f"{folder / _WEIGHTS}: damaged: its checksum is not the one in {_CONFIG}")
    # Constructors draw initial weights; nobody who loads a model asked for other random numbers afterwards.
    with torch.random.fork_rng(devices=[]):
        flow = _decode(body["flow"], _KINDS | (kinds or {}), folder)
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
    """The JSON values that ``save`` kept beside the model."""
    extra: dict[str, Any] = _read_config(Path(folder))["extra"]
    return extra


def _encode(value: Any) -> Any:
    if isinstance(value, nn.Module | Univariate):
        kind = type(value).__name__
        try:
            arguments: dict[str, Any] = value.config()  # type: ignore[operator]  # to mypy, maybe a Module
        except (AttributeError, NotImplementedError) as error:
            raise ValueError(f"save: cannot describe {kind}; give it a config() method") from error
        return {"kind": kind} | {name: _encode(argument) for name, argument in arguments.items()}
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any, kinds: dict[str, type], folder: Path) -> Any:
    if isinstance(value, list):
        return [_decode(item, kinds, folder) for item in value]
    if not isinstance(value, dict):
        return value
    arguments = {name: _decode(item, kinds, folder) for name, item in value.items()}
    if "kind" not in arguments:
        return arguments
    kind = arguments.pop("kind")
    if kind not in kinds:
        raise ModelFileError(f"{folder / _CONFIG}: unknown kind {kind!r}; pass kinds={{{kind!r}: its class}}")
    try:
        return kinds[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{folder / _CONFIG}: cannot rebuild {kind}: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
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


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
