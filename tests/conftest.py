"""Fixtures of all tests.

torch is imported inside the fixtures, because the process that distributes the tests does not need it.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.fixtures.browser import browser as browser
from tests.fixtures.shared_caches import share_caches
from tests.fixtures.wandb_server import WandbServer

if TYPE_CHECKING:
    from torch import nn

Module = TypeVar("Module", bound="nn.Module")

collect_ignore = ["fixtures/plugin.py"]  # importing it registers what no other test expects


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same seeds and leaves torch's generators as it found them."""
    import numpy as np
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  (for code under test that uses the global generator)
        random.seed(0)
        yield


@pytest.fixture
def perturb() -> Callable[[Module], Module]:
    """Return a function that adds noise to every parameter of a module, and returns the module."""
    import torch

    def perturbed(module: Module, size: float = 0.3) -> Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((size * noise / fan_in**0.5).to(parameter.dtype))
        return module

    return perturbed


@pytest.fixture(autouse=True, scope="session")
def _kernels() -> None:
    """Build the kernels once, without the warning if that fails: most tests do not depend on them."""
    from pushforward.flows.kernels import native

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", native.NativeWarning)
        native.library()


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that fills a folder once for all test processes, and returns its path."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base  # with xdist each process has its own base

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        import fcntl

        folder = shared / name
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = tmp_path_factory.mktemp(name)
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture
def wandb_server(tmp_path: Path) -> Iterator[WandbServer]:
    """A stand-in Weights & Biases server; the test fails if the client sent requests that it does not know."""
    with WandbServer(tmp_path / "wandb-home") as server:
        yield server
    assert not server.unknown, f"the stand-in server does not know: {server.unknown}"


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a user without a W&B account, with an empty home folder."""
    home = tmp_path / "home"
    home.mkdir()
    share_caches(home / ".cache")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG_", "NETRC"))}
    return clean | {"HOME": str(home), "NETRC": str(home / "netrc"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def wandb_user(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment variables of a user of the stand-in server."""
    for name in os.environ:
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
