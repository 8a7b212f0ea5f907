"""Checkpoints: everything a fit needs to go on, in one file that ``torch.load(weights_only=True)`` reads."""

import os
import pickle
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from pushforward.train.loop import Standing, State


class CheckpointError(RuntimeError):
    """A checkpoint is missing or cannot be used."""


def save_checkpoint(state: State, path: Path) -> None:
    """Write a checkpoint whole or not at all: a kill in the middle leaves the one before.

    Raises:
        OSError: If it cannot be written.
    """
    content = {
        "flow": state.flow.state_dict(),
        "average": state.average,
        "optimizer": state.optimizer.state_dict(),
        "best": state.best,
        "standing": asdict(state.progress),
        "rng": torch.get_rng_state(),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch reports a full disk as a failure of its own writer
            raise OSError(f"cannot write the checkpoint: {str(error).splitlines()[0]}") from error
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(state: State, path: Path) -> State:
    """Put a fresh state where the checkpoint stood: weights, optimiser, averages, clock and random numbers.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another flow.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location=state.average[0].device, weights_only=True)
        state.flow.load_state_dict(content["flow"])
        state.optimizer.load_state_dict(content["optimizer"])
        with torch.no_grad():
            for average, saved in zip(state.average, content["average"], strict=True):
                average.copy_(saved)
        state.best = content["best"]
        known = {field.name for field in fields(Standing)}
        state.progress = Standing(**{key: value for key, value in content["standing"].items() if key in known})
        torch.set_rng_state(content["rng"].cpu())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no checkpoint to resume from") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: damaged or of another flow: {str(error).splitlines()[0]}") from error
    return state
