"""Baselines that a flow should beat on the same split: a Gaussian, a Gaussian mixture, a kernel density estimate."""

import copy
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from pushforward.common.files import json_safe
from pushforward.evaluate.kernel_density import kernel_log_densities
from pushforward.evaluate.likelihood import Array, Nll, nll_from
from pushforward.evaluate.one_thread import one_thread

SELECTION_ROWS = 2_000
"""Maximum number of validation rows that choose a bandwidth: as good a choice as with all of them, in seconds."""

MIXTURE_ROWS = 50_000
"""Maximum number of training rows of the final mixture: all 200,000 rows of moons gave a test NLL only 0.0007 nats
lower, a seventh of its standard error."""

SMALLEST_VARIANCE = 1e-10
"""Minimum variance of the Gaussian in any direction, in units of the columns' variances."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """A density fitted for comparison, with its test NLL in the units of the data.

    Attributes:
        name: ``gaussian``, ``gaussian-mixture`` or ``kde``.
        label: Name in tables.
        nll: NLL of the test rows.
        validation_nll: Mean NLL of the validation rows that chose it, in nats; drawn beside validation curves.
        log_probs: Log-densities of the test rows ``(n,)`` in nats, in their order.
        parameters: Number of stored values; a kernel density stores its rows.
        detail: What was chosen, on which rows, in words.
        seconds: Wall-clock time to choose, fit and score.
        rows_used: Number of training rows of the fitted density.
    """

    name: str
    label: str
    nll: Nll
    validation_nll: float
    log_probs: Array
    parameters: int
    detail: str
    seconds: float
    rows_used: int

    def to_dict(self) -> dict[str, Any]:
        """All fields except the log-densities, safe for JSON."""
        return {key: json_safe(value) for key, value in vars(self).items() if key not in ("log_probs", "nll")} | {
            "nll": self.nll.to_dict()
        }


def fit_baselines(
    train: Array, validation: Array, test: Array, *, seed: int, max_rows: int = 10_000, seconds: float = 60.0
) -> list[Baseline]:
    """Fit the three baselines and score them on the test rows.

    Columns are standardised by the training rows; log-densities include the Jacobian. The test rows choose nothing.
    Cost: seconds; the mixture stops growing when its next size would exceed ``seconds``.

    Args:
        train: Rows ``(n, D)``, in the units of the data; collinear and constant columns are allowed.
        validation: Rows ``(m, D)`` that choose the number of components and the bandwidth.
        test: Rows ``(k, D)`` to score.
        seed: Seed of the subsamples and of the mixtures' initialisation.
        max_rows: Maximum number of training rows of the kernel density, and for choosing the mixture's size.
        seconds: Time limit of the mixture; within it, the final fit uses ``MIXTURE_ROWS`` training rows.

    Returns:
        The baselines ``gaussian``, ``gaussian-mixture`` and ``kde``, in this order.

    Raises:
        ValueError: If a table is empty, columns differ, a value is not finite, or max_rows < 2.
    """
    tables = {"train": train, "validation": validation, "test": test}
    rows = {name: np.asarray(table, dtype=np.float64) for name, table in tables.items()}
    for name, table in rows.items():
        if table.ndim != 2 or table.shape[0] < 1 or table.shape[1:] != rows["train"].shape[1:]:
            raise ValueError(
                f"fit_baselines: expected {name} rows of shape (rows, {rows['train'].shape[-1]}); got {table.shape}"
            )
        if not np.isfinite(table).all():
            raise ValueError(f"fit_baselines: expected finite {name} rows; got NaN or infinity")
    if max_rows < 2:
        raise ValueError(f"fit_baselines: expected max_rows of at least 2; got {max_rows}")
    mean, std = rows["train"].mean(axis=0), rows["train"].std(axis=0)
    # Constant columns are not scaled; rounding gives them a std of about 1e-16 of their size.
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    fit_rows, selection_rows, test_rows = ((rows[name] - mean) / std for name in tables)
    log_det = -float(np.log(std).sum())
    with one_thread():
        return [
            _gaussian(fit_rows, selection_rows, test_rows, log_det),
            _gaussian_mixture(
                fit_rows, selection_rows, test_rows, log_det, seed=seed, max_rows=max_rows, seconds=seconds
            ),
            _kde(fit_rows, selection_rows, test_rows, log_det, seed=seed, max_rows=max_rows),
        ]


def _gaussian(train: Array, validation: Array, test: Array, log_det: float) -> Baseline:
    start_time = time.perf_counter()
    rows, features = train.shape
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(train, rowvar=False, ddof=0)))
    # The likelihood of collinear columns is unbounded; this is the smallest ridge that keeps it finite.
    ridge = max(0.0, SMALLEST_VARIANCE - float(variances[0]))
    variances = variances + ridge
    mean, constant = train.mean(axis=0), np.log(variances).sum() + features * math.log(2 * math.pi)

    def score(table: Array) -> Array:
        centred = (table - mean) @ axes
        log_probs: Array = log_det - 0.5 * ((centred**2 / variances).sum(axis=1) + constant)
        return log_probs

    log_probs = score(test)
    detail = f"full covariance, maximum likelihood on {rows:,} rows"
    if ridge:
        detail += f", ridge {ridge:.1e} for collinear columns"
    parameters = features + features * (features + 1) // 2
    seconds = time.perf_counter() - start_time
    validation_nll = -float(score(validation).mean())
    return Baseline(
        "gaussian", "Gaussian", nll_from(log_probs), validation_nll, log_probs, parameters, detail, seconds, rows
    )


def _gaussian_mixture(
    train: Array, validation: Array, test: Array, log_det: float, *, seed: int, max_rows: int, seconds: float
) -> Baseline:
    start_time = time.perf_counter()
    rows = _subsample(train, max_rows, seed)
    best, best_score, best_seconds = None, -math.inf, 0.0
    components, failures, reason = 1, 0, "validation stopped improving"
    while True:
        attempt_start = time.perf_counter()
        score, mixture = _fit_mixture(components, rows, validation, seed)
        attempt_seconds = time.perf_counter() - attempt_start
        if mixture is not None and score > best_score:
            best, best_score, best_seconds, failures = mixture, score, attempt_seconds, 0
        else:
            failures += 1
        # One failure may be an unlucky initialisation; two in a row end the search.
        if failures == 2:
            break
        components *= 2
        if components > len(rows):
            reason = "no more rows"
            break
        if time.perf_counter() - start_time + 3.0 * attempt_seconds > seconds:
            reason = f"no time for {components}"
            break
    if best is None:
        raise ValueError(f"fit_baselines: expected rows that a Gaussian mixture can fit; got {train.shape}")
    fitted_rows = len(rows)
    # If there is time, continue the chosen mixture on more rows. A warm start takes a few iterations; its score was
    # sometimes better and sometimes worse than that of a new initialisation.
    remaining = seconds - (time.perf_counter() - start_time)
    more_rows = _subsample(train, max(max_rows, MIXTURE_ROWS), seed)
    if len(rows) < len(more_rows) and best_seconds * len(more_rows) / len(rows) < remaining:
        score, refitted = _fit_mixture(int(best.n_components), more_rows, validation, seed, start=best)
        if refitted is not None and score > best_score:
            best, best_score, fitted_rows = refitted, score, len(more_rows)
    log_probs = np.asarray(best.score_samples(test)) + log_det
    count, features = int(best.n_components), train.shape[1]
    parameters = count - 1 + count * (features + features * (features + 1) // 2)
    detail = (
        f"{count} component{'s' if count > 1 else ''} of full covariance, chosen on {len(validation):,} validation"
        f" rows ({reason}); fitted on {_share(fitted_rows, len(train), 'training')}"
    )
    return Baseline(
        "gaussian-mixture",
        f"Gaussian mixture ({count})",
        nll_from(log_probs),
        -(best_score + log_det),
        log_probs,
        parameters,
        detail,
        time.perf_counter() - start_time,
        fitted_rows,
    )


def _fit_mixture(components: int, rows: Array, validation: Array, seed: int, *, start: Any = None) -> tuple[float, Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(components, covariance_type="full", random_state=seed)
    if start is not None:
        mixture = copy.deepcopy(start).set_params(warm_start=True)
    try:
        with warnings.catch_warnings():
            # Few iterations and repeated rows give poor fits, which validation rejects.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            return float(mixture.fit(rows).score(validation)), mixture
    except ValueError:  # a component collapsed beyond what the regularisation holds, or a single row
        return -math.inf, None


def _kde(train: Array, validation: Array, test: Array, log_det: float, *, seed: int, max_rows: int) -> Baseline:
    start_time = time.perf_counter()
    rows = _subsample(train, max_rows, seed)
    selection = _subsample(validation, SELECTION_ROWS, seed)

    def best_of(bandwidths: Array) -> tuple[float, float]:
        scores = kernel_log_densities(rows, selection, bandwidths).mean(axis=1)
        best = int(np.argmax(scores))
        return float(bandwidths[best]), float(scores[best])

    coarse = np.geomspace(0.003, 3.0, 16)
    ratio = coarse[1] / coarse[0]
    bandwidth, _ = best_of(coarse)
    bandwidth, score = best_of(bandwidth * np.geomspace(1 / ratio, ratio, 9))
    log_probs = kernel_log_densities(rows, test, np.array([bandwidth]))[0] + log_det
    detail = (
        f"Gaussian kernel, bandwidth {bandwidth:.3g} standard deviations chosen on"
        f" {_share(len(selection), len(validation), 'validation')}; {_share(len(rows), len(train), 'training')}"
    )
    seconds = time.perf_counter() - start_time
    parameters = rows.size + 1
    return Baseline(
        "kde",
        "Kernel density",
        nll_from(log_probs),
        -(score + log_det),
        log_probs,
        parameters,
        detail,
        seconds,
        len(rows),
    )


def _subsample(rows: Array, max_rows: int, seed: int) -> Array:
    if len(rows) <= max_rows:
        return rows
    chosen: Array = rows[np.sort(np.random.default_rng(seed).choice(len(rows), size=max_rows, replace=False))]
    return chosen


def _share(used: int, available: int, part: str) -> str:
    return f"{used:,} of {available:,} {part} rows (drawn at random)" if used < available else f"{used:,} {part} rows"
