"""Compare samples with held-out rows: distances, and a classifier two-sample test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import Array
from pushforward.evaluate.one_thread import one_thread

C2ST_ROWS = 4_000
"""Maximum number of rows on each side of the classifier: the standard error of its accuracy is then 0.006."""


@dataclass(frozen=True)
class C2st:
    """Result of a classifier two-sample test; an accuracy of 0.5 means that the classifier finds no difference.

    Attributes:
        accuracy: Share of correctly classified rows, each by a classifier that was not trained on it.
        se: Binomial standard error of the accuracy.
        auc: Area under the receiver operating characteristic (ROC) curve of the same out-of-fold scores.
        rows: Number of rows on each side.
    """

    accuracy: float
    se: float
    auc: float
    rows: int


@dataclass(frozen=True)
class SampleReport:
    """Distances between samples of a flow and held-out rows, in standard deviations of the reference rows.

    Each ``*_reference`` is the same distance between reference (training) rows and held-out rows: what sampling noise
    alone gives. A distance near its reference cannot be distinguished from a perfect fit.

    Attributes:
        rows: Number of samples, and of the reference rows for the ``*_reference`` distances.
        held_out_rows: Number of held-out rows.
        non_finite: Number of samples left out because a value was NaN or infinite.
        sliced_wasserstein: Sliced 2-Wasserstein distance, in standard deviations.
        sliced_wasserstein_reference: The same for reference rows.
        c2st: Classifier two-sample test of samples against held-out rows.
        ks: Kolmogorov-Smirnov distance of each column.
        ks_reference: The same for reference rows.
        correlation_difference: Largest absolute difference between two entries of the correlation matrices.
        correlation_difference_reference: The same for reference rows.
    """

    rows: int
    held_out_rows: int
    non_finite: int
    sliced_wasserstein: float
    sliced_wasserstein_reference: float
    c2st: C2st
    ks: dict[str, float]
    ks_reference: dict[str, float]
    correlation_difference: float
    correlation_difference_reference: float

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))

    def lines(self) -> list[str]:
        """The report as lines of plain text."""
        worst = max(self.ks, key=lambda name: self.ks[name])
        out = [
            f"sliced Wasserstein   {self.sliced_wasserstein:.4f} std"
            f" (training rows {self.sliced_wasserstein_reference:.4f})",
            f"classifier test      accuracy {self.c2st.accuracy:.3f} ± {self.c2st.se:.3f}, AUC {self.c2st.auc:.3f}"
            " (0.5 is chance)",
            f"largest KS distance  {self.ks[worst]:.4f} in {worst}"
            f" (training rows at most {max(self.ks_reference.values()):.4f})",
            f"correlations         differ by at most {self.correlation_difference:.4f}"
            f" (training rows {self.correlation_difference_reference:.4f})",
        ]
        if self.non_finite:
            out.append(f"not finite           {self.non_finite:,} samples, left out of the above")
        return out


def compare_samples(
    samples: Array, held_out: Array, reference: Array, columns: Sequence[str], seed: int
) -> SampleReport:
    """Compare samples with held-out rows, both standardised by the reference (training) rows.

    Cost: seconds, nearly all of it for the classifier.

    Args:
        samples: Samples of the flow ``(n, D)``, in the units of the data.
        held_out: Rows that the flow was not fitted to ``(m, D)``.
        reference: Training rows ``(k, D)``: they set the scale and give the reference distances. At most k samples are
            compared.
        columns: Names of the columns.
        seed: Seed of projections, folds and subsamples.

    Raises:
        ValueError: If tables differ in columns, or with fewer than two finite samples.
    """
    tables = {"samples": samples, "held_out": held_out, "reference": reference}
    x, y, r = (np.asarray(table, dtype=np.float64) for table in tables.values())
    for name, table in zip(tables, (x, y, r), strict=True):
        if table.ndim != 2 or table.shape[1] != len(columns) or len(table) < 2:
            raise ValueError(
                f"compare_samples: expected {name} of shape (2 or more, {len(columns)}); got {table.shape}"
            )
    finite = np.isfinite(x).all(axis=1)
    non_finite = int(np.count_nonzero(~finite))
    if len(x) - non_finite < 2:
        raise ValueError(f"compare_samples: expected finite samples; got {non_finite} of {len(x)} not finite")
    mean, std = r.mean(axis=0), r.std(axis=0)
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    x, y, r = ((table - mean) / std for table in (x[finite], y, r))
    # Equal numbers of rows: distances shrink with the number of rows.
    rows = min(len(x), len(r))
    x, r = x[:rows], np.random.default_rng(seed).permutation(r)[:rows]
    return SampleReport(
        rows=rows,
        held_out_rows=len(y),
        non_finite=non_finite,
        sliced_wasserstein=sliced_wasserstein(x, y, seed=seed),
        sliced_wasserstein_reference=sliced_wasserstein(r, y, seed=seed),
        c2st=classifier_two_sample_test(x, y, seed),
        ks=dict(zip(columns, ks_distances(x, y).tolist(), strict=True)),
        ks_reference=dict(zip(columns, ks_distances(r, y).tolist(), strict=True)),
        correlation_difference=correlation_difference(x, y),
        correlation_difference_reference=correlation_difference(r, y),
    )


def sliced_wasserstein(x: Array, y: Array, *, projections: int = 128, order: int = 2, seed: int) -> float:
    r"""Sliced Wasserstein distance: mean Wasserstein distance over random one-dimensional projections.

    :math:`(\mathbb{E}_\theta W_p^p(\theta^\top x, \theta^\top y))^{1/p}` over unit vectors. In one dimension the
    optimal plan matches quantiles, so each projection is exact, also for different numbers of rows. The distance
    between two finite samples of the same distribution is above zero: compare it with a reference distance.
    Cost: O(projections x (n + m) log(n + m)).

    Args:
        x: Rows ``(n, D)``, with comparable scales in all columns.
        y: Rows ``(m, D)``.
        projections: Number of random directions.
        order: The exponent p, at least 1.
        seed: Seed of the directions.

    Returns:
        The distance, in the units of the rows.

    References:
        - Bonneel et al. (2015), Sliced and Radon Wasserstein Barycenters of Measures,
          https://doi.org/10.1007/s10851-014-0506-3
    """
    n, m = len(x), len(y)
    directions = np.random.default_rng(seed).standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    # Both quantile functions are piecewise constant on the merged grid of k/n and k/m; integers keep it exact.
    cuts = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    weights = np.diff(cuts, prepend=0) / (n * m)
    from_x, from_y = (cuts - 1) // m, (cuts - 1) // n
    total = 0.0
    for direction in directions.T:
        gap = np.abs(np.sort(x @ direction)[from_x] - np.sort(y @ direction)[from_y])
        total += float(weights @ gap**order)
    return float((total / projections) ** (1 / order))


def classifier_two_sample_test(x: Array, y: Array, seed: int) -> C2st:
    """Classify rows of the two sides with gradient-boosted trees in a five-fold cross-validation.

    Both sides are subsampled to the same size, at most ``C2ST_ROWS``.

    Args:
        x: Rows ``(n, D)``.
        y: Rows ``(m, D)``.
        seed: Seed of the subsamples, the folds and the trees.

    References:
        - Lopez-Paz and Oquab (2017), Revisiting Classifier Two-Sample Tests, https://arxiv.org/abs/1610.06545
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = min(len(x), len(y), C2ST_ROWS)
    if rows < 2:
        return C2st(math.nan, math.nan, math.nan, rows)
    generator = np.random.default_rng(seed)
    table = np.concatenate([generator.permutation(x)[:rows], generator.permutation(y)[:rows]])
    labels = np.repeat([0, 1], rows)
    early: Any = False  # type stubs only allow the default
    classifier = HistGradientBoostingClassifier(max_iter=100, early_stopping=early, random_state=seed)
    folds = StratifiedKFold(n_splits=min(5, rows), shuffle=True, random_state=seed)
    with one_thread():
        probabilities = cross_val_predict(classifier, table, labels, cv=folds, method="predict_proba")
    scores: Array = np.asarray(probabilities)[:, 1]
    # A score of exactly one half is a tie, and counts half.
    correct = np.where(scores == 0.5, 0.5, (scores > 0.5) == labels)
    accuracy = float(correct.mean())
    se = math.sqrt(accuracy * (1 - accuracy) / (2 * rows))
    return C2st(accuracy, se, float(roc_auc_score(labels, scores)), rows)


def ks_distances(x: Array, y: Array) -> Array:
    """Two-sample Kolmogorov-Smirnov distance of each column: ``(n, D), (m, D) -> (D,)``, from 0 to 1."""
    distances = np.empty(x.shape[1])
    for column in range(x.shape[1]):
        a, b = np.sort(x[:, column]), np.sort(y[:, column])
        values = np.concatenate([a, b])
        cdf_a = np.searchsorted(a, values, side="right") / len(a)
        cdf_b = np.searchsorted(b, values, side="right") / len(b)
        distances[column] = np.abs(cdf_a - cdf_b).max()
    return distances


def correlation_difference(x: Array, y: Array) -> float:
    """Largest absolute difference between two entries of the correlation matrices; 0 for a single column."""
    if x.shape[1] < 2:
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant column has no correlation
        difference = np.nan_to_num(np.corrcoef(x, rowvar=False)) - np.nan_to_num(np.corrcoef(y, rowvar=False))
    np.fill_diagonal(difference, 0.0)
    return float(np.abs(difference).max())
