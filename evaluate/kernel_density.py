"""A Gaussian kernel density over all pairs of rows at once: scikit-learn's law, for many rows and bandwidths."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pushforward.evaluate.likelihood import Array

CHUNK_PAIRS = 1 << 17
"""Pairs of rows that a thread holds at a time, 2 MB: small enough to stay in cache over all the bandwidths."""

SMALLEST_EXPONENT = -60.0
"""Where a kernel's share of a sum, at most e**-60 of the largest one's, stops to shrink: numbers that are nearly too
small for float32 cost thirty times as much."""


def kernel_log_densities(train: Array, points: Array, bandwidths: Array) -> Array:
    r"""Log-densities of points under Gaussian kernels on the training rows, for several bandwidths at once.

    :math:`\log p_h(y) = -\log n - \tfrac{D}{2}\log 2\pi h^2 + \log\sum_i \exp(-|y - x_i|^2 / 2h^2)`, which is
    :class:`sklearn.neighbors.KernelDensity` with a single leaf. Every pair counts: the bounds of a tree cancel badly,
    and give rows in thin regions of ten columns densities that are whole nats too high
    (https://github.com/scikit-learn/scikit-learn/issues/25799). Numerics: squared distances come from one float64
    matrix product a chunk, with an absolute error near 1e-16 times the squared norms; the largest term of each sum is
    taken out in float64, so that points far from all rows keep a finite log-density, and only what is left goes
    through float32, whose error in a log-density is below 1e-5 nats. Cost: O(rows x points x (D + bandwidths));
    about 1 ns a pair and 0.5 ns a pair and bandwidth on two cores.

    Args:
        train: Rows ``(n, D)``, on a scale where one bandwidth suits all columns.
        points: Rows ``(m, D)``.
        bandwidths: Standard deviations of the kernel ``(b,)``.

    Returns:
        Log-densities ``(b, m)`` in nats.
    """
    n, features = train.shape
    scales = -0.5 / np.asarray(bandwidths, dtype=np.float64) ** 2
    centre = train.mean(axis=0)  # a small norm is a small error of the distances
    x, y = train - centre, points - centre
    # |y|^2 + |x|^2 - 2xy is itself a product of matrices.
    left = np.column_stack([y, np.square(y).sum(axis=1), np.ones(len(y))])
    right = np.ascontiguousarray(np.column_stack([-2.0 * x, np.ones(n), np.square(x).sum(axis=1)]).T)
    # Threads of our own, which share no step and so wait for nobody, also where other programs are busy.
    workers = min(os.cpu_count() or 1, 8, -(-len(y) * n // CHUNK_PAIRS) or 1)
    with ThreadPoolExecutor(workers) as pool:
        shares = [part for part in np.array_split(left, workers) if len(part)]
        sums = list(pool.map(lambda part: _log_sums(part, right, scales), shares))
    normalizers = 0.5 * features * np.log(-scales / math.pi) - math.log(n)
    return np.asarray(np.concatenate([np.empty((len(scales), 0)), *sums], axis=1) + normalizers[:, None])


def _log_sums(left: Array, right: Array, scales: Array) -> Array:
    """Logarithms of the sums of kernels ``(b, m)``, for squared distances ``left @ right`` of shape ``(m, n)``."""
    n = right.shape[1]
    step = max(1, min(CHUNK_PAIRS // n, len(left)))
    distances = np.empty((step, n))
    beyond, terms = np.empty((step, n), np.float32), np.empty((step, n), np.float32)
    out = np.empty((len(scales), len(left)))
    for start in range(0, len(left), step):
        part = left[start : start + step]
        squares, rest, term = (buffer[: len(part)] for buffer in (distances, beyond, terms))
        np.matmul(part, right, out=squares)
        nearest = np.maximum(squares.min(axis=1), 0.0)
        np.subtract(squares, nearest[:, None], out=rest, casting="same_kind")
        for row, scale in enumerate(scales.tolist()):
            np.multiply(rest, np.float32(scale), out=term)
            np.maximum(term, SMALLEST_EXPONENT, out=term)
            np.exp(term, out=term)
            out[row, start : start + len(part)] = np.log(term.sum(axis=1)) + scale * nearest
    return out
