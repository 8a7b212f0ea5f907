"""Log-densities in bounded memory, and what their mean says: one function for validation and for reports."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pushforward.common.files import json_safe

Array = np.ndarray[Any, np.dtype[Any]]

BATCH_SIZE = 8_192
"""Rows a pass: large enough to hide the cost of launching kernels, small enough for a spline's parameters."""


class Density(Protocol):
    """What the scores need of a flow; arguments are passed by position.

    Shape:
        points ``(..., D)``, context ``(..., C)`` or ``None``; log-densities ``(...)`` in nats.
    """

    def log_prob(self, x: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Log-density of the points, in nats per unit volume of the data, ``(..., D) -> (...)``."""
        ...

    def sample(self, n: int | tuple[int, ...], context: Tensor | None = None, /) -> Tensor:
        """Draw points ``(n, ..., D)``, one or ``n`` for each row of the context."""
        ...


@dataclass(frozen=True)
class Nll:
    """Mean negative log-likelihood.

    Attributes:
        nll: Mean of -log p over the rows, in nats; ``inf`` when a row has zero density, ``nan`` when a
            log-density is undefined.
        se: Standard error of that mean, std / sqrt(rows) with one degree of freedom taken off; ``nan`` for a
            single row, ``inf`` when the mean is infinite.
        rows: Number of rows.
        non_finite: Number of rows whose log-density is infinite or undefined.
    """

    nll: float
    se: float
    rows: int
    non_finite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))

    def __str__(self) -> str:
        """One short phrase, as in ``1.234 ± 0.012 nats``."""
        trouble = f" ({self.non_finite} of {self.rows} rows not finite)" if self.non_finite else ""
        return f"{with_error(self.nll, self.se, 3)} nats{trouble}"


def with_error(value: float, se: float, decimals: int) -> str:
    """A number with its standard error, as in ``1.234 ± 0.012``; alone where there is none, as of a single row."""
    return f"{value:.{decimals}f}" if math.isnan(se) else f"{value:.{decimals}f} ± {se:.{decimals}f}"


def device_of(flow: object) -> torch.device | None:
    """The device of a module's first parameter or buffer; ``None`` where there is none to ask."""
    if not isinstance(flow, nn.Module):
        return None
    first = next(itertools.chain(flow.parameters(), flow.buffers()), None)
    return None if first is None else first.device


@contextlib.contextmanager
def evaluating(flow: object) -> Iterator[None]:
    """Put every submodule in evaluation mode, without gradients, and each back in its own mode afterwards.

    ``flow.train()`` at the end would also wake submodules that their owner had frozen in evaluation mode.
    """
    modes = [(module, module.training) for module in flow.modules()] if isinstance(flow, nn.Module) else []
    try:
        if isinstance(flow, nn.Module):
            flow.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def log_prob(
    flow: Density, x: Tensor | Array, context: Tensor | Array | None = None, *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """Log-densities without gradients, in evaluation mode, streamed so that memory does not grow with the rows.

    Batches go to the flow's device; nothing waits for an accelerator as long as the rows are there already.

    Args:
        flow: The density.
        x: Points ``(..., D)``, in the units of the flow's data. Integers are read as float64.
        context: ``(..., C)``, broadcast against the leading dimensions of the points.
        batch_size: Rows a pass.

    Returns:
        Log-densities ``(...)`` in nats, with the dtype the flow gives, on the device of the points.

    Raises:
        ValueError: For points without a feature dimension or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"log_prob: expected a batch_size of at least 1; got {batch_size}")
    points = as_points(x)
    if points.ndim == 0:
        raise ValueError("log_prob: expected points of shape (..., features); got a single number")
    leading = points.shape[:-1]
    rows = points.reshape(math.prod(leading), points.shape[-1])
    contexts = None
    if context is not None:
        given = as_points(context)
        contexts = given.expand(*leading, given.shape[-1]).reshape(len(rows), given.shape[-1])
    device = device_of(flow) or points.device
    out = []
    with evaluating(flow):
        # An empty set still makes one pass: it is the flow that knows the dtype of its answer.
        for start in range(0, max(len(rows), 1), batch_size):
            part = slice(start, start + batch_size)
            given_part = None if contexts is None else contexts[part].to(device)
            out.append(flow.log_prob(rows[part].to(device), given_part).to(points.device))
    return torch.cat(out).reshape(leading)


def nll(
    flow: Density, x: Tensor | Array, context: Tensor | Array | None = None, *, batch_size: int = BATCH_SIZE
) -> Nll:
    """Mean negative log-likelihood of the points, in nats, with its standard error.

    Args:
        flow: The density.
        x: Points ``(..., D)``.
        context: ``(..., C)``, broadcast against the leading dimensions of the points.
        batch_size: Rows a pass.
    """
    return nll_from(log_prob(flow, x, context, batch_size=batch_size))


def nll_from(log_probs: Tensor | Array) -> Nll:
    """Mean negative log-likelihood from log-densities that were already computed, summed in float64.

    Args:
        log_probs: Log-densities, any shape, in nats.

    Raises:
        ValueError: Without any row.

    Example:
        >>> nll_from(np.array([-1.0, -3.0]))
        Nll(nll=2.0, se=1.0, rows=2, non_finite=0)
    """
    values = _float64(log_probs)
    mean, se = mean_and_se(-values, where="nll_from")
    return Nll(mean, se, len(values), int(np.count_nonzero(~np.isfinite(values))))


class RunningNll:
    """The mean of :func:`nll_from` over rows that come part by part, in memory that does not grow.

    Means and squared deviations of the parts are merged in float64, which loses nothing to cancellation however far
    the mean is from zero.

    References:
        - Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equations 2.1,
          https://doi.org/10.1080/00031305.1983.10483115

    Example:
        >>> total = RunningNll()
        >>> total.add(np.array([-1.0]))
        >>> total.add(np.array([-3.0]))
        >>> total.nll()
        Nll(nll=2.0, se=1.0, rows=2, non_finite=0)
    """

    def __init__(self) -> None:
        self._rows = 0
        self._finite = 0
        self._mean = 0.0
        self._squares = 0.0
        self._others = 0.0  # the sum of what is not finite: infinite, or NaN where it has no sign

    def add(self, log_probs: Tensor | Array) -> None:
        """Take in more log-densities, any shape, in nats."""
        values = -_float64(log_probs)
        finite = values[np.isfinite(values)]
        self._rows += len(values)
        if len(finite) < len(values):
            with np.errstate(invalid="ignore"):
                self._others += float(values[~np.isfinite(values)].sum())
        if len(finite):
            mean = float(finite.mean())
            gap, both = mean - self._mean, self._finite + len(finite)
            self._squares += float(np.square(finite - mean).sum()) + gap * gap * self._finite * len(finite) / both
            self._mean += gap * len(finite) / both
            self._finite = both

    def nll(self) -> Nll:
        """The mean over all rows so far.

        Raises:
            ValueError: Without any row.
        """
        if not self._rows:
            raise ValueError("RunningNll: expected at least one row; got none")
        non_finite = self._rows - self._finite
        if non_finite:
            return Nll(self._others, math.nan if math.isnan(self._others) else math.inf, self._rows, non_finite)
        se = math.sqrt(self._squares / (self._rows - 1) / self._rows) if self._rows > 1 else math.nan
        return Nll(self._mean, se, self._rows)


def paired_difference(log_p: Tensor | Array, log_q: Tensor | Array) -> tuple[float, float]:
    """Mean of log p - log q over the same rows, and its standard error, both in nats.

    Differences are taken row by row first: two densities find the same rows hard, so the difference is known
    far better than either mean.

    Args:
        log_p: Log-densities ``(n,)``; a positive answer says that these are the larger ones.
        log_q: Log-densities ``(n,)`` of the same rows.

    Raises:
        ValueError: For lengths that differ, or no row.
    """
    p, q = _float64(log_p), _float64(log_q)
    if p.shape != q.shape:
        raise ValueError(f"paired_difference: expected as many rows on both sides; got {len(p)} and {len(q)}")
    with np.errstate(invalid="ignore"):  # -inf - -inf: both give the row zero density; the answer is nan
        return mean_and_se(p - q, where="paired_difference")


def kl_to_truth(log_p_true: Tensor | Array, log_q: Tensor | Array) -> tuple[float, float]:
    """Kullback-Leibler divergence KL(truth || q) in nats, and its standard error, from points of the truth.

    Unbiased, so that an excellent fit may give a slightly negative number: read it with the standard error.

    Args:
        log_p_true: The true law's log-densities ``(n,)`` at points drawn from it.
        log_q: The fitted log-densities ``(n,)`` at the same points.
    """
    return paired_difference(log_p_true, log_q)


def mean_and_se(values: Array, *, where: str) -> tuple[float, float]:
    """Mean and standard error (one degree of freedom taken off) of ``(n,)`` values that may be infinite."""
    if len(values) == 0:
        raise ValueError(f"{where}: expected at least one row; got none")
    with np.errstate(invalid="ignore"):  # inf and -inf together have no mean
        mean = float(values.mean())
    if not math.isfinite(mean):
        return mean, math.nan if math.isnan(mean) else math.inf
    return mean, float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def as_points(x: Tensor | Array) -> Tensor:
    """Points as a tensor that shares their memory if it can; whole numbers become float64."""
    if not isinstance(x, Tensor):
        array = np.asarray(x)
        # torch takes neither negative strides nor, without a warning, read-only memory such as a data frame's.
        x = torch.as_tensor(array if array.flags.c_contiguous and array.flags.writeable else array.copy(order="C"))
    return x if x.is_floating_point() else x.to(torch.float64)


def _float64(values: Tensor | Array) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64).reshape(-1)
