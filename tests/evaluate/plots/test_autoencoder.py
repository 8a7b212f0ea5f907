"""Figures of an autoencoder: latent planes, reconstructions, grids of samples."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from pushforward.evaluate.plots import autoencoder as autoencoder_plots


def figures() -> dict[str, Callable[[Path], None]]:
    images, centres, names = torch.rand(30, 12), torch.randn(30, 3), ["a", "b", "c"] * 10
    return {
        "plane": lambda path: autoencoder_plots.latent_plane(centres[:, :2], path),
        "axes": lambda path: autoencoder_plots.latent_plane(centres, path, labels=names, prior=torch.randn(9, 3)),
        "line": lambda path: autoencoder_plots.latent_plane(centres[:, :1], path, labels=torch.arange(30) % 10),
        "few": lambda path: autoencoder_plots.reconstructions(images[:3], images[3:6], path, shape=(3, 4)),
        "many": lambda path: autoencoder_plots.reconstructions(images, images.numpy(), path, shape=(3, 4)),
        "samples": lambda path: autoencoder_plots.sample_grid(images[:, :9], path, limits=(0.0, 2.0)),
    }


@pytest.mark.parametrize("name", figures())
def test_figures_are_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    figures()[name](path)
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)
    assert min(pixels.shape[:2]) > 100
    assert pixels.std() > 5.0


def test_images_are_drawn_in_place(tmp_path: Path) -> None:
    """A row that is dark on the left only, above one that is dark on the right only."""
    left, right = np.zeros((1, 16)), np.zeros((1, 16))
    left[0, ::4], right[0, 3::4] = 1.0, 1.0
    autoencoder_plots.reconstructions(left, right, tmp_path / "picture.png", limits=(0.0, 1.0))
    dark = np.asarray(Image.open(tmp_path / "picture.png").convert("L")) < 10
    rows, columns = np.nonzero(ndimage.binary_erosion(dark, np.ones((9, 9))))  # erodes letters away
    middle = (rows.min() + rows.max()) / 2
    assert columns[rows < middle].max() < columns[rows > middle].min()


def test_wrong_figure_data_are_errors(tmp_path: Path) -> None:
    path, rows = tmp_path / "picture.png", torch.rand(4, 6)
    cases: list[tuple[str, Callable[[], None]]] = [
        ("square images, or a shape; got 6", lambda: autoencoder_plots.sample_grid(rows, path)),
        ("rows of 2 x 2 values; got 6", lambda: autoencoder_plots.sample_grid(rows, path, shape=(2, 2))),
        (r"\(4\); got 3", lambda: autoencoder_plots.reconstructions(rows, rows[:3], path, shape=(2, 3))),
        ("4 labels; got 2", lambda: autoencoder_plots.latent_plane(rows, path, labels=[1, 2])),
        ("6 features; got 5", lambda: autoencoder_plots.latent_plane(rows, path, prior=rows[:, :5])),
        ("two finite rows; got 0", lambda: autoencoder_plots.latent_plane(rows * math.nan, path)),
        ("different labels; got 30", lambda: autoencoder_plots.latent_plane(rows[[0] * 30], path, labels=range(30))),
        (r"shape \(rows, features\); got \(6,\)", lambda: autoencoder_plots.latent_plane(rows[0], path)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert not path.exists()
