"""Checkpoints: everything that resuming a fit needs, in one file with a checksum; never arbitrary pickle."""

import hashlib
import io
import pickle
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from pushforward.common.errors import UserError
from pushforward.common.files import atomic_write
from pushforward.train.state import State, TrainingProgress

_DIGEST_BYTES = hashlib.sha256().digest_size


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing or cannot be used."""


def save_checkpoint(state: State, path: Path) -> None:
    """Write a checkpoint atomically: if the process is killed meanwhile, the previous one stays.

    Raises:
        OSError: If it cannot be written.
    """
    content = {
        "flow": state.flow.state_dict(),
        "average": state.average,
        "optimizer": state.optimizer.state_dict(),
        "best": state.best,
        "progress": asdict(state.progress),
        "random": state.random.states,
    }
    # In memory first: torch raises its own error for a full disk, and does not check its checksums when it reads.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    with atomic_write(path) as temporary:
        temporary.write_bytes(body + hashlib.sha256(body).digest())


def load_checkpoint(state: State, path: Path) -> State:
    """Restore a new state from a checkpoint: weights, optimiser, averages, clock and random state.

    Returns:
        The same state, changed in place.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another flow.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no checkpoint to resume from") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"{path}: damaged: its checksum is not that of its contents")
    try:
        _restore(state, body)
    except (RuntimeError, ValueError, TypeError, LookupError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: of another flow or format: {str(error).splitlines()[0]}") from error
    return state


def _restore(state: State, body: bytes) -> None:
    content: dict[str, Any] = torch.load(io.BytesIO(body), map_location=state.device, weights_only=True)
    state.flow.load_state_dict(content["flow"])
    state.optimizer.load_state_dict(content["optimizer"])
    with torch.no_grad():
        for average, saved in zip(state.average, content["average"], strict=True):
            average.copy_(saved)
    state.best = content["best"]
    known = {field.name for field in fields(TrainingProgress)}
    state.progress = TrainingProgress(**{key: value for key, value in content["progress"].items() if key in known})
    saved = [random_state.cpu() for random_state in content["random"]]
    # On another kind of device the fit goes on with that device's own state.
    state.random.states = saved + state.random.states[len(saved) :] if state.device.type != "cpu" else saved[:1]
