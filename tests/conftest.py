"""Fixtures that every test file shares."""

import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from pushforward.flows import native
from tests.wandb_server import WandbServer

Module = TypeVar("Module", bound=nn.Module)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same seeds and leaves torch's generators as it found them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  (for code under test that uses the global generator)
        random.seed(0)
        yield


@pytest.fixture
def perturb() -> Callable[[Module], Module]:
    """A function that moves every parameter of a module away from its initial value, and returns the module."""

    def move(module: Module, size: float = 0.3) -> Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((size * noise / fan_in**0.5).to(parameter.dtype))
        return module

    return move


@pytest.fixture(autouse=True, scope="session")
def _kernels() -> None:
    """Build the kernels, or be told once that they cannot be had: most tests are as good without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", native.NativeWarning)
        native.library()


@pytest.fixture
def wandb_server(tmp_path: Path) -> Iterator[WandbServer]:
    """A Weights & Biases server on the loopback interface; the test fails if the client asked what it does not know."""
    with WandbServer(tmp_path / "wandb-home") as server:
        yield server
    assert not server.unknown, f"the stand-in server does not know: {server.unknown}"


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """The environment of a user without an account, in a home folder of their own."""
    home = tmp_path / "home"
    home.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG_", "NETRC"))}
    return clean | {"HOME": str(home), "NETRC": str(home / "netrc"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def wandb_user(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has the variables of a user of that server."""
    for name in os.environ:
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
