"""Is the flow the bijection it says it is: round trips, and log-determinants against automatic differentiation."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, as_points, device_of, evaluating


class TwoWay(Protocol):
    """A bijection: both directions return the point and the log-determinant of the map just applied."""

    def forward(self, x: Tensor, context: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Data to base, ``(..., D) -> (..., D), (...)``."""
        ...

    def inverse(self, z: Tensor, context: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Base to data, ``(..., D) -> (..., D), (...)``."""
        ...


class Invertible(Protocol):
    """A flow whose bijection can be reached."""

    @property
    def bijection(self) -> TwoWay:
        """The map between data and base."""
        ...


@dataclass(frozen=True)
class RoundTrip:
    """What is lost on the way to the base and back; ``nan`` or ``inf`` when something was not finite.

    Attributes:
        points: Largest absolute error of a value, in standard deviations of its column.
        log_det: Largest absolute sum of the two log-determinants, in nats; 0 for an exact inverse.
        rows: Rows tried.
        points_float32: As ``points``, with flow and rows in single precision; ``None`` when not asked for.
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
    """The flow's log-determinant against the determinant of its Jacobian.

    Attributes:
        error: Largest absolute difference over the rows, in nats.
        rows: Rows tried.
        error_float32: The flow's single-precision log-determinant against the same double-precision Jacobians;
            ``None`` when not asked for.
    """

    error: float
    rows: int
    error_float32: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))


def round_trip(
    flow: Invertible,
    x: Tensor | Array,
    context: Tensor | Array | None = None,
    *,
    std: Array | None = None,
    float32: bool = False,
) -> RoundTrip:
    """Send points to the base and back.

    A log-determinant that is wrong in both directions alike passes here: see :func:`log_det_error`.

    Args:
        flow: A flow in double precision.
        x: Points ``(n, D)``.
        context: ``(n, C)`` or broadcast against it.
        std: Standard deviation of each column ``(D,)``; that of ``x`` unless given.
        float32: Whether to try a single-precision copy too.
    """
    points, contexts = _double(flow, x, context, where="round_trip")
    scale = points.std(dim=0, correction=0) if std is None else as_points(std).to(points)
    # A constant column (or a single row) has no scale of its own: its error is then in its own units.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    error, log_det = _round_trip(flow.bijection, points, contexts, scale)
    if not float32:
        return RoundTrip(error, log_det, len(points))
    single = _single(flow)
    error32, log_det32 = _round_trip(
        single.bijection, points.float(), None if contexts is None else contexts.float(), scale.float()
    )
    return RoundTrip(error, log_det, len(points), error32, log_det32)


def log_det_error(
    flow: Invertible,
    x: Tensor | Array,
    context: Tensor | Array | None = None,
    *,
    rows: int = 8,
    float32: bool = False,
) -> LogDetError:
    """Compare log-determinants with ``slogdet`` of Jacobians from automatic differentiation.

    Cost: D backward passes a row.

    Args:
        flow: A flow in double precision.
        x: Points ``(n, D)``, of which the first ``rows`` are used.
        context: ``(n, C)`` or broadcast against it.
        rows: Rows to try.
        float32: Whether to try a single-precision copy too.
    """
    points, contexts = _double(flow, x, context, where="log_det_error")
    points = points[:rows]
    contexts = None if contexts is None else contexts[:rows]
    # The Jacobian must be that of the very points a single-precision copy sees.
    points = points.float().double() if float32 else points
    contexts = contexts.float().double() if float32 and contexts is not None else contexts
    with evaluating(flow), torch.enable_grad():
        truth = torch.stack([_log_det(flow.bijection, points, contexts, row) for row in range(len(points))])
    with evaluating(flow):
        error = _largest(flow.bijection.forward(points, contexts)[1] - truth)
    if not float32:
        return LogDetError(error, len(points))
    single = _single(flow)
    with evaluating(single):
        log_det = single.bijection.forward(points.float(), None if contexts is None else contexts.float())[1]
    return LogDetError(error, len(points), _largest(log_det.double() - truth))


Found = TypeVar("Found", RoundTrip, LogDetError)


def worst(found: Sequence[Found]) -> Found:
    """The largest errors among several flows."""
    first = found[0]
    errors: dict[str, Any] = {
        field.name: _worst([getattr(one, field.name) for one in found])
        for field in fields(first)
        if isinstance(getattr(first, field.name), float)
    }
    return replace(first, **errors)


def _log_det(bijection: TwoWay, points: Tensor, contexts: Tensor | None, row: int) -> Tensor:
    context = None if contexts is None else contexts[row : row + 1]

    def one(x: Tensor) -> Tensor:
        return bijection.forward(x[None], context)[0][0]

    jacobian = cast(Tensor, torch.autograd.functional.jacobian(one, points[row]))
    log_det: Tensor = torch.linalg.slogdet(jacobian)[1].detach()
    return log_det


def _round_trip(bijection: TwoWay, points: Tensor, contexts: Tensor | None, scale: Tensor) -> tuple[float, float]:
    errors, log_dets = [], []
    with evaluating(bijection):
        for start in range(0, len(points), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            context = None if contexts is None else contexts[part]
            z, there = bijection.forward(points[part], context)
            x, back = bijection.inverse(z, context)
            errors.append(_largest((x - points[part]) / scale))
            log_dets.append(_largest(there + back))
    return _worst(errors), _worst(log_dets)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())  # torch's maximum hands NaN on: a failure stays visible


def _worst(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _single(flow: Invertible) -> Invertible:
    if not isinstance(flow, nn.Module):
        raise TypeError(f"float32: expected a torch module, to be copied; got {type(flow).__name__}")
    return cast(Invertible, copy.deepcopy(flow).float())


def _double(
    flow: Invertible, x: Tensor | Array, context: Tensor | Array | None, *, where: str
) -> tuple[Tensor, Tensor | None]:
    points = as_points(x)
    if points.ndim != 2 or len(points) == 0:
        raise ValueError(f"{where}: expected points of shape (rows, features); got {tuple(points.shape)}")
    device = device_of(flow) or points.device
    points = points.detach().to(device, torch.float64)
    if context is None:
        return points, None
    given = as_points(context)
    return points, given.detach().to(device, torch.float64).expand(len(points), given.shape[-1])
