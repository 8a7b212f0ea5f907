"""Numbers about a conditional density: CRPS, CDE loss, prediction intervals, PIT and the error of the mean.

Each comes from draws of the density for every row of its context, so that they are the same for all kinds of models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pushforward.common.files import json_safe
from pushforward.datasets.tables.splits import evenly_spaced
from pushforward.evaluate.calibration import PIT_BINS
from pushforward.evaluate.draws import DRAWS, draw_each, sample_quantiles
from pushforward.evaluate.likelihood import (
    BATCH_SIZE,
    Array,
    Density,
    as_tensor,
    device_of,
    evaluation_mode,
    with_error,
)
from pushforward.evaluate.statistics import mean_and_se

LEVELS = (0.5, 0.9, 0.95)
"""Levels of the prediction intervals."""

DENSITY_DRAWS = 100
"""How many draws of each row are scored for the CDE loss."""

MOST_ROWS = 5_000
"""Most rows of a report: with more, draws take minutes and standard errors hardly shrink."""


def crps(samples: Array, y: Array) -> Array:
    r"""Continuous ranked probability score :math:`E|X - y| - \frac12 E|X - X'|`, unbiased; lower is better.

    Args:
        samples: Draws ``(n, s)`` of each row's distribution, two or more.
        y: Values ``(n,)``.

    Returns:
        ``(n,)`` in the units of ``y``. Cost: sorting ``s`` numbers a row.

    References:
        - Gneiting & Raftery (2007), https://doi.org/10.1198/016214506000001437, eq. 20-21.
        - Ferro (2014), https://doi.org/10.1002/qj.2270: the fair score, whose mean does not depend on ``s``.
    """
    _check_draws("crps", samples, y)
    s = samples.shape[1]
    if s < 2:
        raise ValueError(f"crps: expected two or more draws of each row; got {s}")
    distances = np.sort(samples - y[:, None], axis=1)
    ranks = 2.0 * np.arange(s) - (s - 1)
    scores: Array = np.abs(distances).mean(1) - distances @ ranks / (s * (s - 1))
    return scores


def cde_loss(own_log_probs: Array, log_probs: Array) -> Array:
    r"""Conditional density estimation loss :math:`\int f(t)^2 dt - 2 f(y)`, unbiased; lower is better.

    Its mean is the integrated squared error of the density, up to a constant of the data.

    Args:
        own_log_probs: Log-densities ``(n, s)`` of draws of each row's own density, whose mean is the integral.
        log_probs: Log-densities ``(n,)`` of the recorded values.

    Returns:
        ``(n,)`` in the units of a density.

    References:
        - Izbicki & Lee (2017), https://doi.org/10.1214/17-EJS1302, eq. 7.
    """
    _check_draws("cde_loss", own_log_probs, log_probs)
    losses: Array = np.exp(own_log_probs).mean(1) - 2.0 * np.exp(log_probs)
    return losses


def pit(samples: Array, y: Array, *, seed: int = 0) -> Array:
    """Probability integral transform from the rank among draws: exactly uniform if they have the distribution of ``y``.

    Args:
        samples: Draws ``(n, s)``.
        y: Values ``(n,)``.
        seed: Seed of the place within the rank, and of the order of ties.

    Returns:
        ``(n,)`` between 0 and 1.
    """
    _check_draws("pit", samples, y)
    place = np.random.default_rng(seed).random(len(y))
    below, equal = (samples < y[:, None]).sum(1), (samples == y[:, None]).sum(1)
    values: Array = (below + place * (equal + 1.0)) / (samples.shape[1] + 1.0)
    return values


def pit_report(values: Array, weights: Array | None = None) -> "PitReport":
    """Compare PIT values ``(n,)`` with the uniform distribution; rows count by their weights ``(n,)``.

    With weights, the p-value is that of the effective number of rows, ``(sum w)^2 / sum w^2``.
    """
    from scipy import stats

    edges = np.linspace(0.0, 1.0, int(np.clip(len(values) // 10, 4, PIT_BINS)) + 1)
    rows = np.ones(len(values)) if weights is None else weights * (len(values) / weights.sum())
    shares, order = rows / len(values), np.argsort(values)
    above = np.cumsum(shares[order])  # the empirical distribution function at each value, and just before it
    ks = float(max((above - values[order]).max(), (values[order] - above + shares[order]).max()))
    counts = np.histogram(values, edges, weights=rows)[0]
    p_value = float(stats.kstwo.sf(ks, round(1.0 / np.square(shares).sum())))
    return PitReport(edges.tolist(), counts.tolist(), ks, p_value)


def interval_coverage(
    quantiles: Array, y: Array, levels: Sequence[float] = LEVELS, weights: Array | None = None
) -> "list[Interval]":
    """Share of values within central prediction intervals, and the widths of these.

    Args:
        quantiles: Quantiles ``(n, 2 k)`` of each row at :func:`interval_levels`.
        y: Values ``(n,)``.
        levels: Levels of the intervals ``(k,)``.
        weights: Weights of the rows ``(n,)``; None for equal ones.

    References:
        - Agresti & Coull (1998), https://doi.org/10.1080/00031305.1998.10480550: standard errors of shares near 0 or 1.
    """
    if quantiles.shape != (len(y), 2 * len(levels)):
        raise ValueError(
            f"interval_coverage: expected quantiles of shape ({len(y)}, {2 * len(levels)}); got {quantiles.shape}"
        )
    shares = np.full(len(y), 1.0 / len(y)) if weights is None else weights / weights.sum()
    out = []
    for level, low, high in zip(levels, quantiles.T[0::2], quantiles.T[1::2], strict=True):
        coverage = float(np.average((low <= y) & (y <= high), weights=weights))
        # As after two more rows within and two outside: an interval that misses no row is not certain.
        n = 4.0 + 1.0 / float(np.square(shares).sum())
        share = coverage + (2.0 - 4.0 * coverage) / n
        se = math.sqrt(share * (1.0 - share) / n)
        out.append(Interval(level, coverage, se, *mean_and_se(high - low, weights, where="interval_coverage")))
    return out


def interval_levels(levels: Sequence[float] = LEVELS) -> list[float]:
    """Levels of the lower and the upper end of each central interval."""
    return [end for level in levels for end in (0.5 - 0.5 * level, 0.5 + 0.5 * level)]


@dataclass(frozen=True)
class Interval:
    """Central prediction intervals of one level: the share of values within them, their mean width; standard errors."""

    level: float
    coverage: float
    coverage_se: float
    width: float
    width_se: float


@dataclass(frozen=True)
class PitReport:
    """Values of the probability integral transform against the uniform distribution.

    Attributes:
        edges: Bin edges of the histogram ``(B + 1,)``, from 0 to 1.
        counts: Rows in each bin ``(B,)``, by their weights.
        ks: Kolmogorov-Smirnov distance.
        ks_p_value: Its p-value.
    """

    edges: list[float]
    counts: list[float]
    ks: float
    ks_p_value: float


@dataclass(frozen=True)
class ResponseReport:
    """Numbers about one response given the context, in its own units; ``*_se`` are standard errors.

    Attributes:
        name: Name of the column.
        crps: Mean continuous ranked probability score.
        crps_se: Its standard error.
        rmse: Root mean squared error of the mean.
        rmse_se: Its standard error.
        intervals: Central prediction intervals.
        pit: The probability integral transform.
    """

    name: str
    crps: float
    crps_se: float
    rmse: float
    rmse_se: float
    intervals: list[Interval]
    pit: PitReport


@dataclass(frozen=True)
class RegressionReport:
    """Numbers about a conditional density on rows that it was not fitted to.

    Attributes:
        rows: Number of rows.
        draws: Draws of each.
        cde_loss: Mean CDE loss of all responses together, in the units of their density.
        cde_loss_se: Its standard error.
        responses: Each response by itself.
    """

    rows: int
    draws: int
    cde_loss: float
    cde_loss_se: float
    responses: list[ResponseReport]

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dicts, safe for JSON."""
        return dict(json_safe(self))

    def summary(self) -> dict[str, float]:
        """The numbers of the first response by name, such as ``crps`` and ``within_0.9``, for lists of fits."""
        first = self.responses[0]
        within = {f"within_{interval.level:g}": interval.coverage for interval in first.intervals}
        return {"crps": first.crps, "rmse": first.rmse, "cde_loss": self.cde_loss, **within, "pit_ks": first.pit.ks}

    def lines(self) -> list[str]:
        """The report as lines of plain text."""
        out = [f"CDE loss             {with_error(self.cde_loss, self.cde_loss_se, 4)}"]
        for found in self.responses:
            of = f" of {found.name}" if len(self.responses) > 1 else ""
            within = ", ".join(
                f"{i.level:.0%}: {i.coverage:.1%} ± {i.coverage_se:.1%}, width {i.width:.4g}" for i in found.intervals
            )
            out += [
                f"CRPS{of}".ljust(21) + with_error(found.crps, found.crps_se, 4),
                f"RMSE{of}".ljust(21) + with_error(found.rmse, found.rmse_se, 4),
                f"intervals{of}".ljust(21) + within,
                f"PIT{of}".ljust(21) + f"KS distance {found.pit.ks:.4f} from uniform (p = {found.pit.ks_p_value:.2g})",
            ]
        return out


def regression_report(
    density: Density,
    y: Array,
    context: Array,
    names: Sequence[str],
    *,
    weights: Array | None = None,
    draws: int = DRAWS,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> RegressionReport:
    """Evaluate a conditional density on rows that it was not fitted to; ``MOST_ROWS`` of them, evenly spaced.

    Args:
        density: The density, in the units of the data.
        y: Responses ``(n, D)``.
        context: Context rows ``(n, C)``.
        names: Names of the responses.
        weights: Weights of the rows ``(n,)``; None for equal ones.
        draws: Draws for each row.
        levels: Levels of the prediction intervals.
        seed: Seed of the draws.

    Raises:
        ValueError: If the shapes do not go together, or there are no rows.

    Cost:
        ``draws`` samples and ``DENSITY_DRAWS`` passes for each row.
    """
    if y.ndim != 2 or y.shape[1] != len(names) or len(context) != len(y) or not len(y):
        raise ValueError(
            f"regression_report: expected responses of shape (1 or more, {len(names)}) and as many rows of context; "
            f"got {y.shape} and {context.shape}"
        )
    kept = evenly_spaced(len(y), MOST_ROWS)
    y, context, weights = y[kept], context[kept], None if weights is None else weights[kept]
    losses, scores, errors, ends, ranks = [], [], [], [], []
    start = 0
    for samples in draw_each(density, context, draws, seed=seed):
        rows = slice(start, start + len(samples))
        start = rows.stop
        drawn = np.concatenate([samples[:, :DENSITY_DRAWS], y[rows, None]], axis=1)  # the recorded value is the last
        log_probs = _log_probs(density, drawn, context[rows])
        losses.append(cde_loss(log_probs[:, :-1], log_probs[:, -1]))
        columns = list(zip(np.moveaxis(samples, -1, 0), y[rows].T, strict=True))
        scores.append(np.stack([crps(x, value) for x, value in columns], 1))
        ranks.append(np.stack([pit(x, value, seed=seed + rows.start) for x, value in columns], 1))
        errors.append((samples.mean(1) - y[rows]) ** 2)
        ends.append(sample_quantiles(samples, interval_levels(levels)))
    squares, score, end, rank = (np.concatenate(parts) for parts in (errors, scores, ends, ranks))
    responses = []
    for d, name in enumerate(names):
        mse, mse_se = mean_and_se(squares[:, d], weights, where="regression_report")
        rmse = math.sqrt(mse)
        intervals = interval_coverage(end[..., d], y[:, d], levels, weights)
        mean_score = mean_and_se(score[:, d], weights, where="regression_report")
        rmse_se = mse_se / (2.0 * rmse) if rmse else 0.0
        responses.append(ResponseReport(name, *mean_score, rmse, rmse_se, intervals, pit_report(rank[:, d], weights)))
    loss = mean_and_se(np.concatenate(losses), weights, where="regression_report")
    return RegressionReport(len(y), draws, *loss, responses)


@torch.no_grad()
def _log_probs(density: Density, points: Array, context: Array) -> Array:
    """Log-densities ``(n, k)`` of points ``(n, k, D)``, each row with its context ``(n, C)``."""
    device = device_of(density) or torch.device("cpu")
    x, given = as_tensor(points).to(device), as_tensor(context).to(device)
    rows = max(1, BATCH_SIZE // points.shape[1])
    out = []
    with evaluation_mode(density):
        for part, seen in zip(x.split(rows), given.split(rows), strict=True):
            # Each row of context once, for all points of the row: some densities then take fewer passes.
            out.append(density.log_prob(part.transpose(0, 1), seen).T.double().cpu().numpy())
    return np.concatenate(out)


def _check_draws(where: str, samples: Array, y: Array) -> None:
    if samples.ndim != 2 or y.shape != samples.shape[:1]:
        raise ValueError(
            f"{where}: expected draws of shape (n, s) and values of shape (n,); got {samples.shape} and {y.shape}"
        )
