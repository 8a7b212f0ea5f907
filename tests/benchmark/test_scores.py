"""Standard errors of mean test scores, against formulas and simulation."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from pushforward.benchmark.scores import RowScores, difference, estimate
from tests.fixtures.benchmark import Array


def of(values: "Sequence[float] | Array", rows: "Sequence[int] | Array | None" = None) -> RowScores:
    return RowScores(np.asarray(range(len(values)) if rows is None else rows), np.asarray(values, dtype=float))


def test_standard_errors_of_one_run_and_of_folds() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)
    one = estimate({(0, 0): of(values)})
    assert one.mean == pytest.approx(values.mean())
    assert one.se_rows == pytest.approx(values.std(ddof=1) / 10)
    assert (one.runs, math.isnan(one.se_runs)) == (1, True)
    folds = {(k, 0): of(values[20 * k : 20 * k + 20], range(20 * k, 20 * k + 20)) for k in range(5)}
    ten = estimate(folds)
    assert ten.se_rows == pytest.approx(one.se_rows)
    means = values.reshape(5, 20).mean(axis=1)
    assert ten.se_runs == pytest.approx(means.std(ddof=1) / math.sqrt(5))
    assert ten.runs == 5
    assert ten.mean == pytest.approx(values.mean())


def test_a_row_that_is_scored_twice_counts_as_one_observation() -> None:
    """More seeds score the same rows, and do not reduce the error over rows as independent rows would."""
    values = np.random.default_rng(0).normal(size=400)
    one, seeds = estimate({(0, 0): of(values)}), estimate({(0, s): of(values) for s in range(4)})
    assert seeds.se_rows == pytest.approx(one.se_rows)
    assert (seeds.se_runs, seeds.runs) == (0, 4)
    shifted = estimate({(0, s): of(values + s) for s in range(4)})
    assert shifted.se_runs == pytest.approx(np.std(range(4), ddof=1) / 2)
    assert shifted.se_rows == pytest.approx(one.se_rows)
    # Seeds of several folds count by their mean.
    both = estimate({(f, s): of(values[f::2] + s, range(f, 400, 2)) for f in range(2) for s in range(3)})
    assert both.runs == 2
    assert both.se_runs == pytest.approx(np.std([values[0::2].mean(), values[1::2].mean()], ddof=1) / math.sqrt(2))


def test_the_error_over_rows_covers_halves_that_overlap() -> None:
    """By simulation: the estimate is the standard deviation of means over five random halves."""
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        values = rng.normal(size=80)
        halves = {(k, 0): rng.permutation(80)[:40] for k in range(5)}
        found = estimate({run: of(values[rows], rows) for run, rows in halves.items()})
        means.append(found.mean)
        errors.append(found.se_rows)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_the_error_over_halves_is_corrected() -> None:
    """By simulation with fixed scores: the corrected variance is right, and s / sqrt(J) far too small."""
    rng = np.random.default_rng(2)
    means, plain, corrected = [], [], []
    for _ in range(600):
        values = rng.normal(size=100)
        halves = {(k, 0): rng.permutation(100)[:50] for k in range(5)}
        scores = {run: of(values[rows], rows) for run, rows in halves.items()}
        found = estimate({run: part._replace(overlap=1.0) for run, part in scores.items()})
        means.append(found.mean)
        corrected.append(found.se_runs**2)
        plain.append(estimate(scores).se_runs ** 2)
    assert np.mean(corrected) == pytest.approx(np.var(means), rel=0.1)
    assert np.mean(plain) == pytest.approx(np.var(means) / 6, rel=0.15)
    # Seeds are averaged first; the error over the seeds of one division is not corrected.
    values = rng.normal(size=40)
    seeds = {(f, s): of(values[20 * f : 20 * f + 20] + s)._replace(overlap=0.25) for f in range(2) for s in range(3)}
    folds = np.std([values[:20].mean(), values[20:].mean()], ddof=1)
    assert estimate(seeds).se_runs == pytest.approx(folds * math.sqrt(1 / 2 + 0.25))
    gap = difference(seeds, {run: part._replace(values=0 * part.values) for run, part in seeds.items()})
    assert gap is not None
    assert gap.se_runs == pytest.approx(folds * math.sqrt(1 / 2 + 0.25))
    one = {run: part for run, part in seeds.items() if run[0] == 0}
    assert estimate(one).se_runs == pytest.approx(1 / math.sqrt(3))


def test_paired_differences() -> None:
    rng = np.random.default_rng(0)
    base, noise = 10 * rng.normal(size=200), 0.1 * rng.normal(size=200)
    gap = difference({(0, 0): of(base + 1 + noise), (1, 0): of(base)}, {(0, 0): of(base)})
    assert gap is not None
    assert gap.mean == pytest.approx(1 + noise.mean())
    assert gap.se_rows == pytest.approx(noise.std(ddof=1) / math.sqrt(200))
    other = of(base)._replace(fingerprint="other rows")
    assert difference({(0, 0): of(base)}, {(0, 0): other}) is None
    assert difference({(0, 0): of(base)}, {(1, 0): of(base)}) is None


def test_scores_that_are_not_finite() -> None:
    found = estimate({(0, 0): of([1.0, -math.inf]), (1, 0): of([1.0, 2.0])})
    assert found.mean == -math.inf
    assert math.isnan(found.se_rows)
    assert math.isnan(found.se)
