"""Mean test scores with two standard errors: over the test rows, and over the runs (folds or seeds).

The first says how precisely the test rows determine the score of these models; the second how much it would change with
other folds or seeds. Papers give one or the other, and seldom say which. Random divisions of the rows overlap, so that
runs are not independent; their variance is corrected (:func:`over_runs`).
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
        rows: Numbers of the rows in the data ``(n,)``; the same number in another run is the same row.
        values: Their scores ``(n,)``, in nats.
        fingerprint: Hash of the rows; runs of one fold with different fingerprints were scored on different rows.
        overlap: Test rows divided by all other rows if the division is one of several random ones; 0 if the folds have
            different test rows, as in cross-validation.
    """

    rows: npt.NDArray[np.int64]
    values: Array
    fingerprint: str = ""
    overlap: float = 0.0


class Estimate(NamedTuple):
    """A mean over runs.

    Attributes:
        mean: Mean over runs of the mean over rows.
        se_rows: Standard error over test rows; NaN if unknown.
        se_runs: Standard error over folds, corrected if they overlap, or over seeds if there is one fold; NaN for a
            single run.
        runs: Number of these folds or seeds.
    """

    mean: float
    se_rows: float
    se_runs: float
    runs: int

    @property
    def se(self) -> float:
        """The larger of the two standard errors, which decides comparisons; NaN if both are unknown."""
        known = [se for se in (self.se_rows, self.se_runs) if math.isfinite(se)]
        return max(known, default=math.nan)


def estimate(scores: Mapping[Run, RowScores]) -> Estimate:
    """Compute the mean score of runs, with its standard errors.

    Rows are the random units: a row that is scored in several runs, by several seeds or in overlapping halves, is one
    observation, the sum of its weighted deviations. For disjoint folds this is the pooled standard deviation divided by
    the square root of the number of rows, and for a single run the usual ``std / sqrt(n)``.

    Args:
        scores: Scores by run, at least one.

    References:
        - Liang and Zeger (1986), Longitudinal data analysis using generalized linear models (the sandwich estimator
          for clusters), https://doi.org/10.1093/biomet/73.1.13
        - Nadeau and Bengio (2003), Inference for the generalization error, section 3 (the corrected resampled variance,
          of ``se_runs``), https://doi.org/10.1023/A:1024068626366

    Example:
        >>> rows = np.arange(4)
        >>> found = estimate({(0, 0): RowScores(rows, np.array([1.0, 2.0, 3.0, 4.0]))})
        >>> found.mean, round(found.se_rows, 4), found.runs
        (2.5, 0.6455, 1)
    """
    means = {run: _mean(part.values) for run, part in scores.items()}
    mean = _mean(np.array(list(means.values())))
    se_runs, runs = over_runs(means, float(np.mean([part.overlap for part in scores.values()])))
    if not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, runs)
    rows = np.concatenate([part.rows for part in scores.values()])
    deviations = np.concatenate([(part.values - mean) / (len(part.values) * len(scores)) for part in scores.values()])
    # In a single run every row occurs once.
    sums = deviations if len(scores) == 1 else np.bincount(np.unique(rows, return_inverse=True)[1], weights=deviations)
    n = len(sums)
    se_rows = math.sqrt(n / (n - 1) * float(np.square(sums).sum())) if n > 1 else math.nan
    return Estimate(mean, se_rows, se_runs, runs)


def difference(first: Mapping[Run, RowScores], second: Mapping[Run, RowScores]) -> Estimate | None:
    """Estimate the score of the first minus that of the second, row by row on shared runs; None if there are none.

    Hard rows and folds are hard for both, so that the difference has a smaller standard error than either score.
    """
    shared: dict[Run, RowScores] = {}
    for run in first.keys() & second.keys():
        p, q = first[run], second[run]
        if p.fingerprint == q.fingerprint and np.array_equal(p.rows, q.rows):
            with np.errstate(invalid="ignore"):  # -inf - -inf: the difference of that row is undefined
                shared[run] = p._replace(values=p.values - q.values)
    return estimate(dict(sorted(shared.items()))) if shared else None


def over_runs(means: Mapping[Run, float], overlap: float = 0.0) -> tuple[float, int]:
    """Compute the standard error over folds (of the mean over seeds), or over seeds if there is one fold.

    For ``J`` folds with disjoint test rows it is ``s / sqrt(J)``. Random halves and other random divisions share rows
    and are less informative; for them it is ``s sqrt(1 / J + overlap)`` (Nadeau and Bengio 2003), which is exact for a
    density that does not depend on its training rows.

    Args:
        means: Mean scores by run.
        overlap: Test rows divided by all other rows if divisions are random; else 0.

    Returns:
        The standard error, NaN for fewer than two, and the number of folds or seeds.
    """
    folds: dict[int, list[float]] = {}
    for (fold, _), mean in means.items():
        folds.setdefault(fold, []).append(mean)
    values = [_mean(np.array(seeds)) for seeds in folds.values()] if len(folds) > 1 else list(means.values())
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan, len(values)
    correction = overlap if len(folds) > 1 else 0.0  # seeds of one division have the same rows
    return float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + correction), len(values)


def ranks(values: Sequence[float]) -> list[float]:
    """Rank values from 1 for the largest; equal values get their mean rank, NaN comes last.

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
