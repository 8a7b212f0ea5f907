"""Baselines against closed forms and against scikit-learn itself."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity

from pushforward.evaluate import Baseline, baselines, fit_baselines
from pushforward.evaluate.kernel_density import kernel_log_densities

Array = np.ndarray[Any, np.dtype[np.float64]]


def by_name(fitted: list[Baseline]) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in fitted}


def bimodal(n: int, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    centres = np.where(generator.random(n) < 0.5, -3.0, 3.0)[:, None] * np.array([1.0, 100.0])
    points: Array = centres + generator.standard_normal((n, 2)) * np.array([1.0, 50.0])
    return points


@pytest.mark.parametrize("features", [1, 2, 10])
def test_kernel_density_is_that_of_scikit_learn(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    train = generator.standard_normal((300, features))
    points = np.concatenate([generator.standard_normal((70, features)), np.full((1, features), 40.0)])
    bandwidths = np.array([0.05, 0.3, 2.0])
    # A single leaf: the bounds of a deeper tree are off by hundreds of nats for the narrowest of these kernels.
    expected = [KernelDensity(bandwidth=h, leaf_size=300).fit(train).score_samples(points) for h in bandwidths]
    monkeypatch.setattr("pushforward.evaluate.kernel_density.CHUNK_PAIRS", 2_000)  # several chunks, one short
    found = kernel_log_densities(train, points, bandwidths)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-5)
    kernels = [stats.norm(train, h).logpdf(points[:, None]).sum(axis=2) for h in bandwidths]
    sums = np.asarray(logsumexp(kernels, axis=2))
    np.testing.assert_allclose(found, sums - math.log(300), rtol=1e-9, atol=1e-5)


def test_kernel_density_stays_accurate_where_rows_repeat_far_from_the_origin() -> None:
    train = np.repeat(np.array([[1e3, -1e3]]), 5, axis=0)
    value = kernel_log_densities(train, train[:1], np.array([0.01]))[0, 0]
    assert value == pytest.approx(-math.log(2 * math.pi * 0.01**2), abs=1e-4)  # squares of 1e6 leave 1e-10 / 1e-4


def test_gaussian_is_the_maximum_likelihood_one_in_the_units_of_the_data() -> None:
    generator = np.random.default_rng(1)
    mix = np.array([[2.0, 0.0, 0.0], [300.0, 40.0, 0.0], [0.01, 0.02, 0.005]])
    train, validation, test = (generator.standard_normal((n, 3)) @ mix.T + 5.0 for n in (500, 60, 80))
    gaussian = by_name(fit_baselines(train, validation, test, seed=0))["gaussian"]
    covariance = np.cov(train, rowvar=False, ddof=0)
    centred = test - train.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred @ np.linalg.inv(covariance), centred)
    expected = -0.5 * (squares + np.linalg.slogdet(2 * math.pi * covariance)[1])
    np.testing.assert_allclose(gaussian.log_probs, expected, rtol=1e-8)
    assert gaussian.nll.nll == pytest.approx(-gaussian.log_probs.mean())
    assert (gaussian.parameters, gaussian.rows_used) == (9, 500)
    assert "ridge" not in gaussian.detail


def test_every_baseline_is_a_density_in_the_units_of_the_data() -> None:
    train, validation = bimodal(400, 2)[:, 1:], bimodal(100, 3)[:, 1:]
    grid = np.linspace(-3_000, 3_000, 10_001)[:, None]
    for baseline in fit_baselines(train, validation, grid, seed=0):
        assert np.exp(baseline.log_probs).sum() * (grid[1, 0] - grid[0, 0]) == pytest.approx(1.0, abs=1e-3)


def test_mixture_finds_the_modes_and_beats_one_gaussian() -> None:
    fitted = by_name(fit_baselines(bimodal(1_500, 4), bimodal(400, 5), bimodal(400, 6), seed=0))
    mixture = fitted["gaussian-mixture"]
    components = int(mixture.detail.split()[0])
    assert components > 1
    assert mixture.label == f"Gaussian mixture ({components})"
    assert mixture.parameters == components - 1 + components * 5
    assert mixture.nll.nll < fitted["gaussian"].nll.nll - 0.3
    # The entropy of the true distribution: two distant Gaussians of equal weight.
    exact = math.log(2) + math.log(2 * math.pi * math.e) + math.log(50.0)
    assert mixture.nll.nll == pytest.approx(exact, abs=0.12)
    assert fitted["kde"].nll.nll == pytest.approx(exact, abs=0.2)


def test_mixture_stays_single_where_more_is_worse() -> None:
    generator = np.random.default_rng(7)
    train, validation, test = (generator.standard_normal((n, 3)) for n in (150, 1_000, 100))
    fitted = by_name(fit_baselines(train, validation, test, seed=0))
    assert fitted["gaussian-mixture"].detail.startswith("1 component of")
    np.testing.assert_allclose(fitted["gaussian-mixture"].log_probs, fitted["gaussian"].log_probs, atol=1e-3)


def test_mixture_stops_in_time_and_reports_it() -> None:
    fitted = by_name(fit_baselines(bimodal(300, 8), bimodal(100, 9), bimodal(50, 10), seed=0, seconds=0.0))
    assert fitted["gaussian-mixture"].detail.startswith("1 component ")
    assert "no time for 2" in fitted["gaussian-mixture"].detail


def test_bandwidth_is_near_the_best_for_the_test_rows_too() -> None:
    train, validation, test = bimodal(800, 11), bimodal(800, 12), bimodal(800, 13)
    kde = by_name(fit_baselines(train, validation, test, seed=0))["kde"]
    mean, std = train.mean(axis=0), train.std(axis=0)
    scores = kernel_log_densities((train - mean) / std, (test - mean) / std, np.geomspace(0.01, 2, 60))
    best = scores.mean(axis=1).max() - np.log(std).sum()
    assert -kde.nll.nll == pytest.approx(best, abs=0.02)
    found = re.search(r"bandwidth ([\d.]+) standard deviations", kde.detail)
    assert found is not None
    assert 0.05 < float(found.group(1)) < 0.5


def test_kernel_density_is_exact_in_regions_of_low_density() -> None:
    generator = np.random.default_rng(22)
    train, validation, test = (generator.standard_normal((n, 10)) for n in (1_500, 200, 300))
    test[:100] *= 3.0
    kde = by_name(fit_baselines(train, validation, test, seed=0))["kde"]
    mean, std = train.mean(axis=0), train.std(axis=0)
    found = re.search(r"bandwidth ([\d.]+) standard deviations", kde.detail)
    assert found is not None
    exact = kernel_log_densities((train - mean) / std, (test - mean) / std, np.array([float(found.group(1))]))[0]
    # The bandwidth is printed with three digits, so distant rows only agree to a few percent.
    np.testing.assert_allclose(kde.log_probs, exact - np.log(std).sum(), rtol=0.02)


def test_subsampling_is_reported_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SELECTION_ROWS", 50)
    parts = bimodal(500, 17), bimodal(120, 18), bimodal(60, 19)
    first, again, other = (by_name(fit_baselines(*parts, seed=seed, max_rows=200)) for seed in (0, 0, 1))
    assert "200 of 500 training rows" in first["kde"].detail
    assert "50 of 120 validation rows" in first["kde"].detail
    assert first["kde"].rows_used == 200
    assert first["gaussian"].rows_used == 500
    np.testing.assert_array_equal(first["kde"].log_probs, again["kde"].log_probs)
    assert not np.array_equal(first["kde"].log_probs, other["kde"].log_probs)
    # There is time to fit the chosen size to all rows, if that improves validation.
    assert first["gaussian-mixture"].rows_used in (200, 500)
    assert f"{first['gaussian-mixture'].rows_used}" in first["gaussian-mixture"].detail


def test_tiny_wide_collinear_and_constant_tables_keep_finite_scores() -> None:
    generator = np.random.default_rng(20)
    x = generator.standard_normal((178, 13))
    x[:, 3] = x[:, 1] - 2 * x[:, 2]
    x[:, 4] = 0.3
    x[:, 5] = x[:, 5].round()
    for baseline in fit_baselines(x[:142], x[142:160], x[160:], seed=0):
        assert math.isfinite(baseline.nll.nll), baseline.name
        assert baseline.nll.rows == 18
        out = baseline.to_dict()
        assert "log_probs" not in out
        assert json.loads(json.dumps(out, allow_nan=False))["nll"]["rows"] == 18
    assert "ridge" in fit_baselines(x[:142], x[142:160], x[160:], seed=0)[0].detail


@pytest.mark.parametrize("rows", [(3, 1, 1), (20, 2, 2)], ids=["three rows", "twenty rows"])
@pytest.mark.parametrize("features", [1, 2])
def test_a_handful_of_rows(rows: tuple[int, int, int], features: int) -> None:
    generator = np.random.default_rng(21)
    fitted = fit_baselines(*(generator.standard_normal((n, features)) for n in rows), seed=0)
    assert len(fitted) == 3
    assert all(len(baseline.log_probs) == rows[2] for baseline in fitted)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((np.zeros((5, 2)), np.zeros((5, 3)), np.zeros((5, 2))), r"validation rows of shape \(rows, 2\); got \(5, 3\)"),
        ((np.zeros((5, 2)), np.zeros((0, 2)), np.zeros((5, 2))), r"validation rows of shape \(rows, 2\); got \(0, 2\)"),
        ((np.zeros((5, 2)), np.zeros((5, 2)), np.full((5, 2), np.nan)), "finite test rows; got NaN or infinity"),
    ],
)
def test_errors_say_what_was_expected(parts: tuple[Array, Array, Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_baselines(*parts, seed=0)


def test_max_rows_is_checked() -> None:
    with pytest.raises(ValueError, match="max_rows of at least 2; got 1"):
        fit_baselines(*(np.zeros((5, 2)),) * 3, seed=0, max_rows=1)


def test_validation_nll_is_that_of_the_fitted_density() -> None:
    """Validation rows scored as test rows give the same number, up to the rows that chose the bandwidth."""
    generator = np.random.default_rng(5)
    train, validation = generator.normal(3.0, 2.0, (400, 2)), generator.normal(3.0, 2.0, (300, 2))
    for baseline in fit_baselines(train, validation, validation, seed=0, seconds=5.0):
        assert baseline.validation_nll == pytest.approx(baseline.nll.nll, abs=1e-9), baseline.name
