"""Gaussian kernel density estimate over all pairs of rows: as in scikit-learn, but for several bandwidths at once."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pushforward.evaluate.likelihood import Array

CHUNK_PAIRS = 1 << 17
"""Number of row pairs in a chunk, 2 MB a thread: small enough to stay in cache over all bandwidths."""

SMALLEST_EXPONENT = -60.0
"""Lower limit of the exponents relative to the largest: arithmetic on subnormal float32 numbers costs thirty times as
much, and terms below e**-60 do not matter."""


def kernel_log_densities(train: Array, rows: Array, bandwidths: Array) -> Array:
    r"""Log-densities of rows under a Gaussian kernel density estimate, for several bandwidths at once.

    :math:`\log p_h(y) = -\log n - \tfrac{D}{2}\log 2\pi h^2 + \log\sum_i \exp(-|y - x_i|^2 / 2h^2)`, which is
    :class:`sklearn.neighbors.KernelDensity` with a single leaf. All pairs are summed: the bounds of a tree suffer from
    cancellation, and in ten columns give rows in regions of low density log-densities that are several nats too high
    (https://github.com/scikit-learn/scikit-learn/issues/25799). Numerics: squared distances come from one float64
    matrix product per chunk, with an absolute error near 1e-16 times the squared norms. The largest term of each sum
    is factored out in float64, so that rows far from all training rows keep a finite log-density; the rest is summed
    in float32, with an error below 1e-5 nats. Cost: O(n m (D + b)); about 1 ns a pair and 0.5 ns a pair and bandwidth
    on two cores.

    Args:
        train: Training rows ``(n, D)``, scaled so that one bandwidth suits all columns.
        rows: Rows to score ``(m, D)``.
        bandwidths: Standard deviations of the kernel ``(b,)``.

    Returns:
        Log-densities ``(b, m)`` in nats.
    """
    n, features = train.shape
    scales = -0.5 / np.asarray(bandwidths, dtype=np.float64) ** 2
    centre = train.mean(axis=0)  # smaller norms give smaller errors of the distances
    x, y = train - centre, rows - centre
    # |y|^2 + |x|^2 - 2xy as one matrix product.
    left = np.column_stack([y, np.square(y).sum(axis=1), np.ones(len(y))])
    right = np.ascontiguousarray(np.column_stack([-2.0 * x, np.ones(n), np.square(x).sum(axis=1)]).T)
    # Python threads rather than BLAS threads: they never wait for each other, even on a busy machine.
    workers = min(os.cpu_count() or 1, 8, -(-len(y) * n // CHUNK_PAIRS) or 1)
    with ThreadPoolExecutor(workers) as pool:
        parts = [part for part in np.array_split(left, workers) if len(part)]
        sums = list(pool.map(lambda part: _log_sums(part, right, scales), parts))
    normalizers = 0.5 * features * np.log(-scales / math.pi) - math.log(n)
    return np.asarray(np.concatenate([np.empty((len(scales), 0)), *sums], axis=1) + normalizers[:, None])


def _log_sums(left: Array, right: Array, scales: Array) -> Array:
    """Log of the kernel sums ``(b, m)``, for squared distances ``left @ right`` of shape ``(m, n)``."""
    n = right.shape[1]
    step = max(1, min(CHUNK_PAIRS // n, len(left)))
    distances = np.empty((step, n))
    excesses, terms = np.empty((step, n), np.float32), np.empty((step, n), np.float32)
    out = np.empty((len(scales), len(left)))
    for start in range(0, len(left), step):
        part = left[start : start + step]
        squares, excess, term = (buffer[: len(part)] for buffer in (distances, excesses, terms))
        np.matmul(part, right, out=squares)
        nearest = np.maximum(squares.min(axis=1), 0.0)
        np.subtract(squares, nearest[:, None], out=excess, casting="same_kind")
        for row, scale in enumerate(scales.tolist()):
            np.multiply(excess, np.float32(scale), out=term)
            np.maximum(term, SMALLEST_EXPONENT, out=term)
            np.exp(term, out=term)
            out[row, start : start + len(part)] = np.log(term.sum(axis=1)) + scale * nearest
    return out
