"""Pictures: size, content, no side effects."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pushforward.evaluate.plots import density as plots
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.training import training_curves

Array = np.ndarray[Any, np.dtype[np.float64]]


class Normal2d:
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -0.5 * x.square().sum(-1) - math.log(2 * math.pi)

    def sample(self, n: int | tuple[int, ...], context: Tensor | None = None) -> Tensor:
        return torch.zeros(n if isinstance(n, int) else 1, 2)


def true_log_prob(x: Array) -> Array:
    return np.asarray(-0.5 * (x**2).sum(axis=1) - math.log(2 * math.pi))


def normal(rows: int, features: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, features))


def metrics(steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(0, steps, 10):
        value = 1.0 + math.exp(-step / 100)
        terms = {"train/base": -1.4, "train/log_det": 1.4 - value, "train/grad_norm": 2.0, "train/learning_rate": 1e-3}
        rows.append({"step": step, "train/nll": value, **terms})
        if step % 100 == 0:
            rows.append({"step": step, "val/nll": value + 0.1, "val/nll_se": 0.01})
    return rows


def read(path: Path) -> Array:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)


CASES: dict[str, Callable[[Path], None]] = {
    "density": lambda path: plots.density_2d(Normal2d(), normal(500, 2), normal(500, 2, 1), true_log_prob, path),
    "density-unknown-truth": lambda path: plots.density_2d(
        Normal2d(), torch.from_numpy(normal(20, 2)), normal(20, 2, 1), None, path, columns=("a (m)", "b (s)")
    ),
    "corner": lambda path: corner(normal(800, 3), normal(300, 3, 1), ["a", "b", "c"], path),
    "corner-one-column": lambda path: corner(normal(90, 1), normal(30, 1, 1), ["a"], path),
    "corner-constant-column": lambda path: corner(normal(90, 2) * [1, 0], normal(30, 2, 1) * [1, 0], ["a", "b"], path),
    "curves": lambda path: training_curves(metrics(2_000), path, {"Gaussian": 1.2, "far": 9.0, "none": math.inf}),
    "curves-training-only": lambda path: training_curves([{"step": 0, "train/nll": 2.0}], path),
    "curves-validation-only": lambda path: training_curves([{"step": 5, "val/nll": 2.0}], path, None),
    "latent": lambda path: plots.latent(normal(400, 4), path),
    "latent-one-feature": lambda path: plots.latent(torch.from_numpy(normal(50, 1)), path),
}


@pytest.mark.parametrize("name", CASES)
def test_picture_is_written_and_not_blank(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"{name}.png"
    CASES[name](path)
    image = read(path)
    assert 300 < min(image.shape[:2]) <= max(image.shape[:2]) < 1_600
    assert path.stat().st_size < 400_000
    assert 0.01 < (image.min(axis=2) < 250).mean() < 0.9


def test_true_and_fitted_density_share_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "same.png"
    plots.density_2d(Normal2d(), normal(500, 2), normal(500, 2, 1), true_log_prob, path)
    image = read(path)
    dark = np.flatnonzero((np.abs(image - [68, 1, 84]).sum(axis=2) < 3).sum(axis=0) > 20)
    left, right = np.split(dark, [int(np.argmax(np.diff(dark))) + 1])
    top = [image[:, panel].reshape(-1, 3) for panel in (left, right)]
    # Two equal densities on one scale: the brightest yellow appears in both panels.
    assert all((np.abs(part - [253, 231, 36]).sum(axis=1) < 12).any() for part in top)


def test_many_columns_keep_those_that_differ_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.figure

    titles: list[str] = []
    original = matplotlib.figure.Figure.suptitle

    def suptitle(self: Any, text: str, **options: Any) -> Any:
        titles.append(text)
        labels.extend(axis.get_xlabel() for axis in self.axes if axis.get_xlabel())
        return original(self, text, **options)

    labels: list[str] = []
    monkeypatch.setattr(matplotlib.figure.Figure, "suptitle", suptitle)
    samples = normal(400, 5)
    samples[:, [1, 3]] += 2.0
    corner(samples, normal(400, 5, 1), list("abcde"), tmp_path / "c.png", max_columns=2)
    assert labels == ["b", "d"]
    assert titles == ["Flow against held-out rows: the 2 of 5 columns that differ most"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: training_curves([{"step": 1}], path), "expected rows with train/nll or val/nll; got none"),
        (lambda path: corner(normal(3, 2), normal(3, 2), ["a"], path), r"shape \(rows, 1\); got \(3, 2\)"),
        (lambda path: plots.latent(np.full((4, 2), np.nan), path), "at least two finite rows"),
        (
            lambda path: plots.density_2d(Normal2d(), normal(3, 3), normal(3, 2), None, path),
            r"samples of shape \(rows, 2\); got \(3, 3\)",
        ),
    ],
)
def test_errors_say_what_was_expected_and_write_nothing(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_drawing_changes_no_settings_and_importing_draws_nothing(tmp_path: Path) -> None:
    script = f"""
import sys, pushforward.evaluate.plots as plots
assert not {{"matplotlib", "sklearn", "scipy"}} & set(sys.modules), "heavy imports"
import matplotlib, numpy as np
def settings():  # all but the backend: merely reading that one starts pyplot
    return [matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"]
before = settings()
plots.latent(np.random.default_rng(0).standard_normal((9, 2)), {str(tmp_path / "p.png")!r})
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
