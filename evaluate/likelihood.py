"""Log-densities in bounded memory, and mean negative log-likelihoods with standard errors."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pushforward.common.errors import UserError
from pushforward.common.files import json_safe
from pushforward.evaluate.statistics import Array as Array, mean_and_se

BATCH_SIZE = 8_192
"""Rows a batch: large enough to hide kernel launches, small enough for the memory of a spline's parameters."""


class UndefinedDensityError(UserError, ArithmeticError):
    """A model gives no log-density for finite rows, or samples that are not numbers: it has diverged."""

    exit_code = 4


class Density(Protocol):
    """A density that can be scored and sampled; arguments are passed by position.

    Shapes:
        rows ``(..., D)``, context ``(..., C)`` or None; log-densities ``(...)`` in nats.
    """

    def log_prob(self, x: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Log-density of rows in nats per unit volume of the data, ``(..., D) -> (...)``."""
        ...

    def sample(self, n: int | tuple[int, ...], context: Tensor | None = None, /) -> Tensor:
        """Draw samples ``(n, ..., D)``, one or ``n`` for each row of the context."""
        ...


@dataclass(frozen=True)
class Nll:
    """A mean negative log-likelihood (NLL) with its standard error.

    Attributes:
        nll: Mean of -log p over the rows, in nats; ``inf`` if a row has zero density, ``nan`` if a log-density is
            undefined.
        se: Standard error of the mean, std / sqrt(rows) with n - 1 degrees of freedom; ``nan`` for a single row,
            ``inf`` if the mean is infinite.
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
        """Format as in ``1.234 ± 0.012 nats``."""
        warning = f" ({self.non_finite} of {self.rows} rows not finite)" if self.non_finite else ""
        return f"{with_error(self.nll, self.se, 3)} nats{warning}"


def with_error(value: float, se: float, decimals: int) -> str:
    """Format a number with its standard error, as in ``1.234 ± 0.012``; alone if the error is NaN."""
    return f"{value:.{decimals}f}" if math.isnan(se) else f"{value:.{decimals}f} ± {se:.{decimals}f}"


def device_of(flow: object) -> torch.device | None:
    """Return the device of a module's first parameter or buffer; None without any."""
    if not isinstance(flow, nn.Module):
        return None
    first = next(itertools.chain(flow.parameters(), flow.buffers()), None)
    return None if first is None else first.device


@contextlib.contextmanager
def evaluation_mode(flow: object) -> Iterator[None]:
    """Switch to evaluation mode without gradients inside the block; restore each submodule's own mode afterwards.

    ``flow.train()`` at the end would also switch submodules that the user had frozen in evaluation mode.
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
    """Compute log-densities without gradients, in evaluation mode, batch by batch in bounded memory.

    Batches are moved to the flow's device; there is no synchronisation if the rows are already there.

    Args:
        flow: The density.
        x: Rows ``(..., D)``, in the units of the flow's data; integers become float64.
        context: ``(..., C)``, broadcast against the leading dimensions of the rows.
        batch_size: Rows a batch.

    Returns:
        Log-densities ``(...)`` in nats, in the flow's dtype, on the device of the rows.

    Raises:
        ValueError: For rows without a feature dimension or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"log_prob: expected a batch_size of at least 1; got {batch_size}")
    x = as_tensor(x)
    if x.ndim == 0:
        raise ValueError("log_prob: expected rows of shape (..., features); got a single number")
    leading = x.shape[:-1]
    rows = x.reshape(math.prod(leading), x.shape[-1])
    contexts = None
    if context is not None:
        context = as_tensor(context)
        contexts = context.expand(*leading, context.shape[-1]).reshape(len(rows), context.shape[-1])
    device = device_of(flow) or x.device
    out = []
    with evaluation_mode(flow):
        # Without rows there is still one pass: it decides the dtype of the result.
        for start in range(0, max(len(rows), 1), batch_size):
            batch = slice(start, start + batch_size)
            # Modules of others may take no context at all.
            given = () if contexts is None else (contexts[batch].to(device),)
            out.append(flow.log_prob(rows[batch].to(device), *given).to(x.device))
    return torch.cat(out).reshape(leading)


def check_defined(
    log_probs: Array, rows: Array, context: Array | None, numbers: Array | None = None, *, what: str = "row"
) -> None:
    """Raise an error if a finite row has no log-density; minus infinity is one, where the density is zero.

    Args:
        log_probs: Log-densities ``(n,)``.
        rows: Their rows ``(n, D)``; those that are not finite are left out.
        context: Their context ``(n, C)``.
        numbers: Numbers ``(n,)`` of the rows in their table, from 0, for the message; by default these are all rows.
        what: What a row is called in the message, such as ``test row``.

    Raises:
        UndefinedDensityError: If a log-density is NaN or plus infinity.
    """
    if bool((log_probs < math.inf).all()):
        return
    finite = np.isfinite(rows).all(axis=-1)
    if context is not None:
        finite &= np.isfinite(context).all(axis=-1)
    places = np.flatnonzero(finite & ~(log_probs < math.inf))
    wrong = 1 + (places if numbers is None else numbers[places])
    if len(wrong):
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise UndefinedDensityError(
            f"the model gives no log-density (NaN or infinity) for {what} {', '.join(map(str, wrong[:3]))}{more}, "
            f"though the values are finite: {why_undefined(has_context=context is not None)}"
        )


def why_undefined(*, has_context: bool) -> str:
    """Return why a model gives no numbers, and what to do, for the end of a message."""
    why = "the fit diverged; fit again with a lower train.learning_rate"
    return f"the given values lie too far outside the training data, or {why}" if has_context else why


def nll(
    flow: Density, x: Tensor | Array, context: Tensor | Array | None = None, *, batch_size: int = BATCH_SIZE
) -> Nll:
    """Compute the mean negative log-likelihood of rows, in nats, with its standard error.

    Args:
        flow: The density.
        x: Rows ``(..., D)``.
        context: ``(..., C)``, broadcast against the leading dimensions of the rows.
        batch_size: Rows a batch.
    """
    return nll_from(log_prob(flow, x, context, batch_size=batch_size))


def nll_from(log_probs: Tensor | Array, weights: Tensor | Array | None = None) -> Nll:
    """Compute the mean negative log-likelihood from log-densities, summed in float64.

    Args:
        log_probs: Log-densities, any shape, in nats.
        weights: Weights of the rows, the same shape; None for equal ones.

    Raises:
        ValueError: Without any row.

    Example:
        >>> nll_from(np.array([-1.0, -3.0]))
        Nll(nll=2.0, se=1.0, rows=2, non_finite=0)
    """
    values = _float64(log_probs)
    mean, se = mean_and_se(-values, None if weights is None else _float64(weights), where="nll_from")
    return Nll(mean, se, len(values), int(np.count_nonzero(~np.isfinite(values))))


class RunningNll:
    """:func:`nll_from` for rows that arrive batch by batch, in constant memory.

    Means and squared deviations of the batches are merged in float64, without cancellation even if the mean is far
    from zero.

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
        self._squared_deviations = 0.0
        self._non_finite_sum = 0.0  # infinite, or NaN

    def add(self, log_probs: Tensor | Array) -> None:
        """Add log-densities, any shape, in nats."""
        values = -_float64(log_probs)
        finite = values[np.isfinite(values)]
        self._rows += len(values)
        if len(finite) < len(values):
            with np.errstate(invalid="ignore"):
                self._non_finite_sum += float(values[~np.isfinite(values)].sum())
        if len(finite):
            mean = float(finite.mean())
            delta, total = mean - self._mean, self._finite + len(finite)
            squares = float(np.square(finite - mean).sum())
            self._squared_deviations += squares + delta * delta * self._finite * len(finite) / total
            self._mean += delta * len(finite) / total
            self._finite = total

    def nll(self) -> Nll:
        """Return the mean over all rows so far.

        Raises:
            ValueError: Without any row.
        """
        if not self._rows:
            raise ValueError("RunningNll: expected at least one row; got none")
        non_finite = self._rows - self._finite
        if non_finite:
            mean = self._non_finite_sum
            return Nll(mean, math.nan if math.isnan(mean) else math.inf, self._rows, non_finite)
        se = math.sqrt(self._squared_deviations / (self._rows - 1) / self._rows) if self._rows > 1 else math.nan
        return Nll(self._mean, se, self._rows)


def paired_difference(
    log_p: Tensor | Array, log_q: Tensor | Array, weights: Tensor | Array | None = None
) -> tuple[float, float]:
    """Compute the mean of log p - log q over the same rows, and its paired standard error, both in nats.

    Log-densities of the same rows are correlated, so the paired standard error is far smaller than that of either mean.

    Args:
        log_p: Log-densities ``(n,)``; the result is positive if these are larger.
        log_q: Log-densities ``(n,)`` of the same rows.
        weights: Weights of the rows ``(n,)``; None for equal ones.

    Raises:
        ValueError: If lengths differ, or without any row.
    """
    p, q = _float64(log_p), _float64(log_q)
    if p.shape != q.shape:
        raise ValueError(f"paired_difference: expected as many rows on both sides; got {len(p)} and {len(q)}")
    with np.errstate(invalid="ignore"):  # -inf - -inf = nan where both densities are zero
        return mean_and_se(p - q, None if weights is None else _float64(weights), where="paired_difference")


def kl_to_truth(log_p_true: Tensor | Array, log_q: Tensor | Array) -> tuple[float, float]:
    """Estimate the Kullback-Leibler divergence KL(p || q) of the true distribution p, in nats, with its standard error.

    The estimate is unbiased and may be slightly negative for an excellent fit: read it with the standard error.

    Args:
        log_p_true: Log-densities ``(n,)`` under p of samples from p.
        log_q: Log-densities ``(n,)`` of the same samples under the fit q.
    """
    return paired_difference(log_p_true, log_q)


def as_tensor(x: Tensor | Array) -> Tensor:
    """Convert an array to a tensor, without a copy if possible; integers become float64."""
    if not isinstance(x, Tensor):
        array = np.asarray(x)
        # torch rejects negative strides and warns about read-only memory, such as that of a data frame.
        x = torch.as_tensor(array if array.flags.c_contiguous and array.flags.writeable else array.copy(order="C"))
    return x if x.is_floating_point() else x.to(torch.float64)


def _float64(values: Tensor | Array) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64).reshape(-1)
