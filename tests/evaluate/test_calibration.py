"""Calibration and extreme rows: numbers against known distributions, and the pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pushforward.evaluate.calibration import LEVELS, PIT_BINS, Calibration, calibrate
from pushforward.evaluate.extremes import extreme_rows
from pushforward.evaluate.plots.calibration import pit, quantiles


def normals(rows: int, features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, features))


def calibration(rows: int = 5_000, scale: float = 1.0) -> Calibration:
    """Calibrate latents of the given scale, with held-out rows and samples of N(3, 2^2)."""
    latents = normals(rows, 2) * scale
    return calibrate(latents, 3.0 + 2.0 * normals(rows, 2, 1), 3.0 + 2.0 * normals(2 * rows, 2, 2), ["a", "b"])


def test_pit_of_normal_latents_is_uniform() -> None:
    counts = np.array(calibration().pit_counts)
    assert counts.shape == (2, PIT_BINS)
    assert counts.sum(axis=1).tolist() == [5_000, 5_000]
    assert all(stats.chisquare(row).pvalue > 1e-4 for row in counts)


def test_pit_of_latents_that_are_too_narrow_peaks_in_the_middle() -> None:
    scale = 0.5
    edges = np.array(calibration(scale=scale).pit_edges)
    expected = 5_000 * np.diff(stats.norm.cdf(stats.norm.ppf(edges) / scale))
    for row in calibration(scale=scale).pit_counts:
        assert stats.chisquare(row, expected * sum(row) / expected.sum()).pvalue > 1e-4


def test_quantiles_of_held_out_rows_and_samples() -> None:
    found = calibration(100_000)
    assert found.levels == list(LEVELS)
    expected = 3.0 + 2.0 * stats.norm.ppf(LEVELS)
    for side in (found.held_out, found.samples):
        np.testing.assert_allclose(side, [expected, expected], atol=0.15)
    assert found.held_out != found.samples


def test_few_rows_have_few_bins_and_no_tails() -> None:
    found = calibrate(normals(20, 1), normals(20, 1), normals(500, 1), ["a"])
    assert len(found.pit_counts[0]) == 4
    assert min(found.levels) == pytest.approx(0.05)
    assert calibrate(normals(1, 1), normals(1, 1), normals(1, 1), ["a"]).levels == [0.5]


def test_rows_that_are_not_finite_are_left_out() -> None:
    latents = normals(100, 1)
    latents[:10] = np.nan
    found = calibrate(latents, normals(100, 1), normals(100, 1), ["a"])
    assert sum(found.pit_counts[0]) == 90
    with pytest.raises(ValueError, match=r"calibrate: expected finite latents of shape \(rows, 1\); got \(100, 1\)"):
        calibrate(latents * np.nan, normals(100, 1), normals(100, 1), ["a"])
    with pytest.raises(ValueError, match=r"calibrate: expected finite samples of shape \(rows, 1\); got \(100, 2\)"):
        calibrate(normals(100, 1), normals(100, 1), normals(100, 2), ["a"])


def test_calibration_is_strict_json() -> None:
    written = json.loads(json.dumps(calibration().to_dict(), allow_nan=False))
    assert set(written) == {"rows", "columns", "pit", "quantiles"}
    assert len(written["quantiles"]["samples"][1]) == len(written["quantiles"]["levels"])


@pytest.mark.parametrize("features", [1, 3, 30])
def test_pictures_of_few_and_many_columns(features: int, tmp_path: Path) -> None:
    names = [f"column {i}" for i in range(features)]
    found = calibrate(normals(300, features), normals(300, features, 1), normals(900, features, 2), names)
    for draw in (quantiles, pit):
        path = tmp_path / f"{draw.__name__}.png"
        draw(found, path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.shape[0] > 250
        assert pixels.std() > 5


def test_extreme_rows() -> None:
    scores = np.array([-1.0, np.nan, -7.0, 2.0, 0.0, -np.inf])
    rows = np.arange(12.0).reshape(6, 2)
    found = extreme_rows(scores, rows, np.arange(6) + 100, ["a", "b"], count=2)
    assert [row.row for row in found.worst] == [101, 105]
    assert [row.row for row in found.best] == [103, 104]
    assert found.best[0].values == {"a": 6.0, "b": 7.0}
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["log_prob"] for row in written["worst"]] == [None, None]


def test_a_row_is_extreme_at_one_end_only() -> None:
    found = extreme_rows(np.arange(5.0), np.zeros((5, 1)), np.arange(5), ["a"])
    assert [row.row for row in found.worst] == [0, 1]
    assert [row.row for row in found.best] == [4, 3]
    with pytest.raises(ValueError, match="extreme_rows: expected as many scores, rows and numbers"):
        extreme_rows(np.arange(5.0), np.zeros((4, 1)), np.arange(5), ["a"])
