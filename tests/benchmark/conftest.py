"""Fixtures of the benchmark tests: a small table of rows, and no downloaded data sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not see data sets that the user has downloaded."""
    monkeypatch.setenv("PUSHFORWARD_DATA", str(tmp_path_factory.getbasetemp() / "no-data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data(made_once: Callable[..., Path]) -> Path:
    """A CSV file with 200 rows and two columns."""

    def fill(folder: Path) -> None:
        rng = np.random.default_rng(0)
        angle = rng.uniform(0, 2 * np.pi, 200)
        points = np.stack([30 * np.cos(angle), 4 * np.sin(angle)], axis=1) + rng.normal(0, 0.3, (200, 2))
        np.savetxt(folder / "ring.csv", points, delimiter=",", header="x,y", comments="")

    return made_once("ring", fill) / "ring.csv"
