"""Means of test scores with two standard errors: over the test points, and over the runs that make them.

The two answer different questions. That over test points says how well this density's score is known from so many rows;
that over folds or seeds says how much another choice of runs would change it. Papers give one or the other, seldom
saying which. Where the divisions of the rows are drawn at random they overlap, and runs are not independent: their
variance is corrected (:func:`over_runs`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Run = tuple[int, int]
"""A fold and a seed."""


class RowScores(NamedTuple):
    """Scores of the test rows of one run.

    Attributes:
        rows: Which rows of the data they are ``(n,)``; the same number in another run is the same row.
        values: Their scores ``(n,)``, in nats.
        fingerprint: Of the rows; runs of one fold with other fingerprints were scored on other rows.
        overlap: Test rows over all other rows, where the division is one of several drawn at random from the same
            rows; 0 where the test rows of other folds are others, as in a cross-validation.
    """

    rows: npt.NDArray[np.int64]
    values: Array
    fingerprint: str = ""
    overlap: float = 0.0


class Estimate(NamedTuple):
    """A mean over runs.

    Attributes:
        mean: Every run counts the same, and within a run every row.
        se_points: Standard error over test rows; NaN where it is unknown.
        se_runs: Standard error over folds, corrected where they overlap, or over seeds where there is one fold; NaN
            for a single run.
        runs: How many folds, or seeds, that is over.
    """

    mean: float
    se_points: float
    se_runs: float
    runs: int

    @property
    def se(self) -> float:
        """The larger of the two: what a comparison is decided by."""
        known = [se for se in (self.se_points, self.se_runs) if math.isfinite(se)]
        return max(known, default=math.nan)


def estimate(scores: Mapping[Run, RowScores]) -> Estimate:
    """Mean score of runs, with its standard errors.

    Rows are what is drawn at random: a row that is scored in several runs, by several seeds or in halves that overlap,
    is one observation, the sum of its weighted deviations. Within disjoint folds this is the pooled standard deviation
    over the square root of the number of rows, and for a single run the usual ``std / sqrt(n)``.

    Args:
        scores: Scores by run, one run or more.

    References:
        - Liang and Zeger (1986), Longitudinal data analysis using generalized linear models (the sandwich estimator
          for clusters), https://doi.org/10.1093/biomet/73.1.13
        - Nadeau and Bengio (2003), Inference for the generalization error, section 3 (the corrected resampled variance,
          of ``se_runs``), https://doi.org/10.1023/A:1024068626366

    Example:
        >>> rows = np.arange(4)
        >>> found = estimate({(0, 0): RowScores(rows, np.array([1.0, 2.0, 3.0, 4.0]))})
        >>> found.mean, round(found.se_points, 4), found.runs
        (2.5, 0.6455, 1)
    """
    means = {run: _mean(part.values) for run, part in scores.items()}
    mean = _mean(np.array(list(means.values())))
    se_runs, runs = over_runs(means, float(np.mean([part.overlap for part in scores.values()])))
    if not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, runs)
    rows = np.concatenate([part.rows for part in scores.values()])
    pulls = np.concatenate([(part.values - mean) / (len(part.values) * len(scores)) for part in scores.values()])
    # In a single run every row stands once.
    sums = pulls if len(scores) == 1 else np.bincount(np.unique(rows, return_inverse=True)[1], weights=pulls)
    n = len(sums)
    se_points = math.sqrt(n / (n - 1) * float(np.square(sums).sum())) if n > 1 else math.nan
    return Estimate(mean, se_points, se_runs, runs)


def difference(first: Mapping[Run, RowScores], second: Mapping[Run, RowScores]) -> Estimate | None:
    """Score of the first minus that of the second over the runs they share, row by row; None where they share none.

    Rows and folds are hard or easy for everybody, so that differences are known better than either score.
    """
    shared: dict[Run, RowScores] = {}
    for run in first.keys() & second.keys():
        p, q = first[run], second[run]
        if p.fingerprint == q.fingerprint and np.array_equal(p.rows, q.rows):
            with np.errstate(invalid="ignore"):  # no density under both: the difference of that row is undefined
                shared[run] = p._replace(values=p.values - q.values)
    return estimate(dict(sorted(shared.items()))) if shared else None


def over_runs(means: Mapping[Run, float], overlap: float = 0.0) -> tuple[float, int]:
    """Standard error over folds of the means of their seeds, or over seeds where there is one fold; and how many.

    Of ``J`` folds with other test rows each it is ``s / sqrt(J)``. Halves and other parts that are drawn at random
    share rows, and more of them tell less than as many new ones; it is then ``s sqrt(1 / J + overlap)`` (Nadeau and
    Bengio 2003), which is exact for a density that does not depend on its training rows.

    Args:
        means: Mean scores by run.
        overlap: Test rows over all other rows where divisions are drawn at random; else 0.
    """
    folds: dict[int, list[float]] = {}
    for (fold, _), mean in means.items():
        folds.setdefault(fold, []).append(mean)
    values = [_mean(np.array(seeds)) for seeds in folds.values()] if len(folds) > 1 else list(means.values())
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan, len(values)
    correction = overlap if len(folds) > 1 else 0.0  # seeds of one division differ in their fits alone
    return float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + correction), len(values)


def mean_and_se(values: Array) -> tuple[float, float]:
    """Mean and standard error of the scores of a single run ``(n,)``."""
    found = estimate({(0, 0): RowScores(np.arange(len(values)), values)})
    return found.mean, found.se_points


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 for the largest; equal ones share the mean of their ranks, NaN comes last.

    Example:
        >>> ranks([1.0, 3.0, 3.0, float("nan")])
        [3.0, 1.5, 1.5, 4.0]
    """
    clean = [-math.inf if math.isnan(value) else value for value in values]
    return [
        1 + sum(other > value for other in clean) + (sum(other == value for other in clean) - 1) / 2 for value in clean
    ]


def _mean(values: npt.NDArray[Any]) -> float:
    if not len(values):
        return math.nan
    with np.errstate(invalid="ignore"):  # inf and -inf together have no mean
        return float(values.mean())
