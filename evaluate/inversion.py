"""Numerical errors of a flow's bijection: round trips, and log-determinants against automatic differentiation."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, as_tensor, device_of, evaluation_mode


class InvertibleMap(Protocol):
    """A bijection: each direction returns the mapped rows and the log-determinant of its Jacobian."""

    def forward(self, x: Tensor, context: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Data to base, ``(..., D) -> (..., D), (...)``."""
        ...

    def inverse(self, z: Tensor, context: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Base to data, ``(..., D) -> (..., D), (...)``."""
        ...


class HasBijection(Protocol):
    """A flow with an attribute ``bijection``."""

    @property
    def bijection(self) -> InvertibleMap:
        """The map from data to base."""
        ...


@dataclass(frozen=True)
class RoundTrip:
    """Error of mapping rows to the base and back; ``nan`` or ``inf`` if a value was not finite.

    Attributes:
        points: Largest absolute error of a value, in standard deviations of its column.
        log_det: Largest absolute sum of the two log-determinants, in nats; 0 for an exact inverse.
        rows: Number of rows.
        points_float32: As ``points``, with flow and rows in single precision; None if not requested.
        log_det_float32: As ``log_det``, in single precision.
    """

    points: float
    log_det: float
    rows: int
    points_float32: float | None = None
    log_det_float32: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))


@dataclass(frozen=True)
class LogDetError:
    """Error of the flow's log-determinant against its Jacobian by automatic differentiation.

    Attributes:
        error: Largest absolute difference over the rows, in nats.
        rows: Number of rows.
        error_float32: The flow's single-precision log-determinant against the same double-precision Jacobians;
            None if not requested.
    """

    error: float
    rows: int
    error_float32: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))


def round_trip(
    flow: HasBijection,
    x: Tensor | Array,
    context: Tensor | Array | None = None,
    *,
    std: Array | None = None,
    float32: bool = False,
) -> RoundTrip:
    """Map rows to the base and back, and measure the error.

    A log-determinant with the same error in both directions is not detected here: see :func:`log_det_error`.

    Args:
        flow: A flow in double precision.
        x: Rows ``(n, D)``.
        context: ``(n, C)`` or broadcast against it.
        std: Standard deviation of each column ``(D,)``; by default that of ``x``.
        float32: Whether to measure a single-precision copy too.
    """
    rows, contexts = _as_float64(flow, x, context, where="round_trip")
    scale = rows.std(dim=0, correction=0) if std is None else as_tensor(std).to(rows)
    # Constant columns (or a single row) have no scale: their error stays in data units.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    error, log_det = _round_trip(flow.bijection, rows, contexts, scale)
    if not float32:
        return RoundTrip(error, log_det, len(rows))
    single = _as_float32(flow)
    error32, log_det32 = _round_trip(
        single.bijection, rows.float(), None if contexts is None else contexts.float(), scale.float()
    )
    return RoundTrip(error, log_det, len(rows), error32, log_det32)


def log_det_error(
    flow: HasBijection,
    x: Tensor | Array,
    context: Tensor | Array | None = None,
    *,
    max_rows: int = 8,
    float32: bool = False,
) -> LogDetError:
    """Compare log-determinants with ``slogdet`` of Jacobians from automatic differentiation.

    Cost: D backward passes a row.

    Args:
        flow: A flow in double precision.
        x: Rows ``(n, D)``, of which the first ``max_rows`` are used.
        context: ``(n, C)`` or broadcast against it.
        max_rows: Maximum number of rows.
        float32: Whether to measure a single-precision copy too.
    """
    rows, contexts = _as_float64(flow, x, context, where="log_det_error")
    rows = rows[:max_rows]
    contexts = None if contexts is None else contexts[:max_rows]
    # Both precisions must use exactly the same rows.
    rows = rows.float().double() if float32 else rows
    contexts = contexts.float().double() if float32 and contexts is not None else contexts
    with evaluation_mode(flow), torch.enable_grad():
        expected = torch.stack([_jacobian_log_det(flow.bijection, rows, contexts, i) for i in range(len(rows))])
    with evaluation_mode(flow):
        error = _max_abs(flow.bijection.forward(rows, contexts)[1] - expected)
    if not float32:
        return LogDetError(error, len(rows))
    single = _as_float32(flow)
    with evaluation_mode(single):
        log_det = single.bijection.forward(rows.float(), None if contexts is None else contexts.float())[1]
    return LogDetError(error, len(rows), _max_abs(log_det.double() - expected))


Errors = TypeVar("Errors", RoundTrip, LogDetError)


def largest_errors(errors_of_flows: Sequence[Errors]) -> Errors:
    """Return the largest error of each kind among several flows; NaN if one is NaN."""
    first = errors_of_flows[0]
    errors: dict[str, Any] = {
        field.name: _max_or_nan([getattr(one, field.name) for one in errors_of_flows])
        for field in fields(first)
        if isinstance(getattr(first, field.name), float)
    }
    return replace(first, **errors)


def _jacobian_log_det(bijection: InvertibleMap, rows: Tensor, contexts: Tensor | None, i: int) -> Tensor:
    context = None if contexts is None else contexts[i : i + 1]

    def forward(x: Tensor) -> Tensor:
        return bijection.forward(x[None], context)[0][0]

    jacobian = cast(Tensor, torch.autograd.functional.jacobian(forward, rows[i]))
    log_det: Tensor = torch.linalg.slogdet(jacobian)[1].detach()
    return log_det


def _round_trip(bijection: InvertibleMap, rows: Tensor, contexts: Tensor | None, scale: Tensor) -> tuple[float, float]:
    errors, log_dets = [], []
    with evaluation_mode(bijection):
        for start in range(0, len(rows), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            context = None if contexts is None else contexts[batch]
            z, forward_log_det = bijection.forward(rows[batch], context)
            x, inverse_log_det = bijection.inverse(z, context)
            errors.append(_max_abs((x - rows[batch]) / scale))
            log_dets.append(_max_abs(forward_log_det + inverse_log_det))
    return _max_or_nan(errors), _max_or_nan(log_dets)


def _max_abs(values: Tensor) -> float:
    return float(values.abs().max())  # torch's maximum of NaN is NaN


def _max_or_nan(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _as_float32(flow: HasBijection) -> HasBijection:
    if not isinstance(flow, nn.Module):
        raise TypeError(f"float32: expected a torch module that can be copied; got {type(flow).__name__}")
    return cast(HasBijection, copy.deepcopy(flow).float())


def _as_float64(
    flow: HasBijection, x: Tensor | Array, context: Tensor | Array | None, *, where: str
) -> tuple[Tensor, Tensor | None]:
    """Rows ``(n, D)`` and, in the form that the bijection takes, their context."""
    rows = as_tensor(x)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"{where}: expected rows of shape (rows, features); got {tuple(rows.shape)}")
    device = device_of(flow) or rows.device
    rows = rows.detach().to(device, torch.float64)
    if context is None:
        return rows, None
    context = as_tensor(context)
    context = context.detach().to(device, torch.float64).expand(len(rows), context.shape[-1])
    embed = getattr(flow, "embed", None)
    if embed is None:
        return rows, context
    with evaluation_mode(flow):
        return rows, embed(context)
