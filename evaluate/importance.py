"""Importance sampling diagnostics: estimate of log Z, effective sample sizes, Pareto k of the weights.

All functions take log importance weights ``log w = log p~(x) - log q(x)`` in nats, of the unnormalised target p~ and
the flow q. Weights are summed in float64 relative to the largest, so that none overflows. A log-weight of -inf, where
the target is zero, is a weight of zero.
"""

import math

import numpy as np
from torch import Tensor

from pushforward.evaluate.statistics import Array


def log_z_estimate(log_w: Tensor | Array) -> tuple[float, float]:
    """Estimate log Z, the log of the target's normalising constant, with its standard error, in nats.

    The mean weight is an unbiased estimate of Z; its logarithm is biased low by half its variance. The standard error
    is that of the mean weight divided by the mean weight (delta method). It is too small if few weights dominate: see
    ``pareto_k``.

    Args:
        log_w: Log-weights ``(n,)`` of samples of the flow.

    Returns:
        The estimate and its standard error; the error is ``nan`` for a single sample or an infinite estimate.

    Raises:
        ValueError: Without any weight.

    Example:
        >>> log_z_estimate(np.full(10, 3.0))
        (3.0, 0.0)
    """
    values, top = _shifted(log_w, "log_z_estimate")
    if not math.isfinite(top):
        return top, math.nan
    w = np.exp(values)
    mean = float(w.mean())
    se = float(w.std(ddof=1)) / (mean * math.sqrt(len(w))) if len(w) > 1 else math.nan
    return top + math.log(mean), se


def reverse_ess(log_w: Tensor | Array) -> float:
    """Effective sample size as a fraction of n, from samples of the flow: (mean w)^2 / mean w^2.

    It does not see modes of the target that the flow misses, and is at least 1 / n.

    Args:
        log_w: Log-weights ``(n,)`` of samples of the flow.

    Returns:
        A number in (0, 1]; ``nan`` if no weight is positive or one is undefined.

    Raises:
        ValueError: Without any weight.

    References:
        - Kong (1992), A note on importance sampling using standardized weights, University of Chicago
    """
    values, top = _shifted(log_w, "reverse_ess")
    if not math.isfinite(top):
        return math.nan
    w = np.exp(values)
    return min(1.0, float(w.mean() ** 2 / np.square(w).mean()))


def forward_ess(log_w: Tensor | Array, log_z: float | None = None) -> float:
    """Effective sample size as a fraction of n, from exact samples of the target: 1 / (mean w * mean 1/w).

    It sees modes of the target that the flow misses. Under the normalised target p = p~ / Z the mean of w is
    E_q[w^2] / Z and that of 1/w is 1 / Z, so that this is (E_q w)^2 / E_q[w^2] as well; an unknown Z cancels. A known Z
    is better than the mean of 1/w, whose variance is infinite for a flow that is much wider than the target.

    Args:
        log_w: Log-weights ``(n,)`` of exact samples of the target.
        log_z: Log of the target's normalising constant, in nats; estimated from the same weights if None.

    Returns:
        A number in [0, 1]; 0 if the flow has zero density at a sample (+inf), or the target at one of its own samples
        (-inf); ``nan`` if a weight is undefined.

    Raises:
        ValueError: Without any weight.

    References:
        - Nicoli et al. (2023), Detecting and mitigating mode-collapse for flow-based sampling of lattice field
          theories, https://arxiv.org/abs/2302.14082
    """
    values = _float64(log_w, "forward_ess")
    if np.isnan(values).any():
        return math.nan
    if np.isinf(values).any():
        return 0.0
    log_mean_inverse = _log_mean_exp(-values) if log_z is None else -log_z
    return min(1.0, math.exp(min(0.0, -_log_mean_exp(values) - log_mean_inverse)))


def pareto_k(log_w: Tensor | Array) -> float:
    """Shape k of the generalised Pareto tail of the weights; above 0.7 neither log Z nor its error is reliable.

    Moments of order 1/k and above are infinite: the variance for k >= 0.5, the mean for k >= 1. The tail is fitted to
    the largest min(n / 5, 3 sqrt(n)) weights, with a prior at 0.5 that counts as ten weights.

    Args:
        log_w: Log-weights ``(n,)`` of samples of the flow.

    Returns:
        The shape k; ``nan`` if fewer than 25 weights are positive, or one is infinite or undefined; -inf if the
        largest weights are all equal, so that there is no tail.

    Raises:
        ValueError: Without any weight.

    References:
        - Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, section 3,
          https://arxiv.org/abs/1507.02646
        - Zhang, Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution,
          https://doi.org/10.1198/tech.2009.08017
    """
    values, top = _shifted(log_w, "pareto_k")
    if not math.isfinite(top):
        return math.nan
    n = len(values)
    tail = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    values = np.sort(values[values > -np.inf])
    if tail < 5 or len(values) <= tail:
        return math.nan
    w = np.exp(values[-tail - 1 :])
    excess = w[1:] - w[0]
    excess = excess[excess > 0]
    if len(excess) < 5:
        return -math.inf
    return _generalized_pareto_shape(excess)


def _generalized_pareto_shape(excess: Array) -> float:
    """Estimate the shape from ascending positive excesses: Zhang and Stephens' posterior mean over a grid of theta."""
    n = len(excess)
    grid = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
    shape = np.log1p(-theta[:, None] * excess).mean(axis=1)
    log_likelihood = n * (np.log(-theta / shape) - shape - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    mean_theta = float((theta * weights).sum() / weights.sum())
    k = float(np.log1p(-mean_theta * excess).mean())
    return (n * k + 10 * 0.5) / (n + 10)


def _log_mean_exp(values: Array) -> float:
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).mean()))


def _shifted(log_w: Tensor | Array, where: str) -> tuple[Array, float]:
    """Return log-weights minus their maximum, and the maximum; unchanged log-weights if the maximum is not finite."""
    values = _float64(log_w, where)
    top = float(values.max())  # NaN if one is NaN
    return (values - top if math.isfinite(top) else values), top


def _float64(values: Tensor | Array, where: str) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(values) == 0:
        raise ValueError(f"{where}: expected at least one weight; got none")
    return values
