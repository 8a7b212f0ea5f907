"""Where a computation runs."""

import torch

from pushforward.train.overrides import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that a name means; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: If that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:N or mps; got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: expected one that is here; got {name!r}, and torch finds no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}; got {name!r}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device: expected one that is here; got {name!r}, and torch finds no MPS device")
    return device
