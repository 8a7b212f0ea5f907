"""Check a target before it is fitted."""

import math

import torch
from torch import Generator, Tensor

from pushforward.datasets.targets.base import (
    Target,
    TargetError,
    evaluate,
    show_point,
    value_and_gradient,
    wrong_shape,
)

# Distances of the far points in units of the spread: two bands, at least a decade apart.
_NEAR_BAND, _FAR_BAND = (1e2, 3e2), (3e3, 1e4)
_POINTS_IN_BAND = 8
_MAX_AXES, _DIRECTIONS = 16, 16
# An integrable tail falls faster than 1/r, so by more than log(1e4) from r = 1 to 1e4: a density that falls less, and
# is not lower in the far band than in the near one, probably has no finite integral.
_EXPECTED_FALL = 9.2
_FLAT = 1.0


def check_target(target: Target, x: Tensor, *, gradients: bool = True) -> None:
    """Raise if a flow cannot be fitted to a target; to be called with the first batch.

    Checks the shape, dtype and device of the log-densities and their gradients, and that they are finite; unless the
    target has bounds, also that the log-density decays along rays from the centre of the batch. Boxes, heavy tails and
    points of density zero are accepted.

    Args:
        target: The target.
        x: Points ``(n, D)``, such as a batch of the flow's samples.
        gradients: Whether to check gradients; the score-function (REINFORCE) estimator needs none.

    Raises:
        TargetError: If a check fails; the message names the point.

    Cost: an evaluation of the batch, another with gradients, and one of up to 768 far points.

    Example:
        >>> from pushforward.datasets.targets.base import FunctionTarget
        >>> check_target(FunctionTarget(lambda x: -x.square().sum(-1), 2), torch.randn(100, 2))
    """
    name = target.name or type(target).__name__
    if x.ndim != 2 or x.shape[1] != target.features or len(x) == 0:
        raise ValueError(f"check_target: expected points of shape (n, {target.features}); got {tuple(x.shape)}")
    with torch.no_grad():
        _check_form(name, x, evaluate(target, x.detach()))
    if gradients:
        value, gradient = value_and_gradient(target, x)
    else:
        with torch.no_grad():
            value, gradient = evaluate(target, x.detach()), torch.ones_like(x)
    _check_values(name, x, value, "log-density")
    finite = value.isfinite()
    if not bool(finite.any()):
        raise TargetError(
            f"{name}: the log-density is -inf at all {len(x)} points of the first batch, as at {show_point(x[0])}; say "
            f"where its mass is with target.bounds=low,high or a larger or smaller target.spread, now {target.spread:g}"
        )
    broken = finite & ~gradient.isfinite().all(-1)
    if bool(broken.any()):
        at = int(broken.nonzero()[0])
        raise TargetError(
            f"{name}: the log-density is {value[at]:.4g} at {show_point(x[at])} but its gradient is "
            f"{show_point(gradient[at])}; torch.where passes a NaN of the branch that is not taken to the gradient, "
            f"so keep the argument of that branch in its domain"
        )
    values = value[finite]
    if not bool(gradient[finite].any()) and bool((values != values[0]).any()):
        raise TargetError(
            f"{name}: the log-density varies, {values.min():.4g} to {values.max():.4g}, but its gradient is zero at "
            f"all {len(values)} points; compute it from x with torch, without detach(), item(), numpy or rounding, "
            f"or take train.gradient=score-function"
        )
    if target.bounds is None:
        _check_decay(name, target, x, float(values.max()))


def _check_form(name: str, x: Tensor, value: Tensor) -> None:
    if value.shape != x.shape[:-1]:
        raise wrong_shape(name, x, value)
    if not value.is_floating_point():
        raise TargetError(f"{name}: expected log-densities of a floating dtype such as {x.dtype}; got {value.dtype}")
    if value.device != x.device:
        raise TargetError(
            f"{name}: expected log-densities on {x.device}, where the points are; got {value.device}; "
            f"move the target's own tensors with .to(x)"
        )


def _check_values(name: str, x: Tensor, value: Tensor, what: str) -> None:
    bad = value.isnan() | (value == torch.inf)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise TargetError(
            f"{name}: expected a {what} below +inf; got {value[at]:g} at {show_point(x[at])} "
            f"({int(bad.sum())} of {len(x)} points)"
        )


@torch.no_grad()
def _check_decay(name: str, target: Target, x: Tensor, best: float) -> None:
    """Compare the far end of rays with their near end, and with the best point of the batch."""
    distances, directions = _rays(target.features)
    steps = target.spread * directions[:, None] * distances[:, None]
    points = x.median(0).values + steps.to(x)
    value = evaluate(target, points.reshape(-1, target.features)).reshape(points.shape[:-1]).double()
    # A NaN this far out comes from inf - inf and says nothing.
    value = value.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    near, far = value[:, :_POINTS_IN_BAND].amax(-1), value[:, _POINTS_IN_BAND:].amax(-1)
    flat = (far >= near - _FLAT) & (far >= best - _EXPECTED_FALL) & (far > -torch.inf)
    if bool(flat.any()):
        ray = int(far.masked_fill(~flat, -torch.inf).argmax())
        at = _POINTS_IN_BAND + int(value[ray, _POINTS_IN_BAND:].argmax())
        raise TargetError(
            f"{name}: the density seems to have no finite integral: the log-density is {best:.4g} at best in the "
            f"first batch and {value[ray, at]:.4g} as far out as {show_point(points[ray, at])}; restrict "
            f"it to a box with target.bounds=low,high, or raise target.spread, now {target.spread:g}, to its scale"
        )


def _rays(features: int) -> tuple[Tensor, Tensor]:
    """Return distances along a ray ``(16,)`` and unit vectors ``(rays, D)`` in both directions; always the same."""
    generator = Generator().manual_seed(0)
    bands = [
        torch.logspace(math.log10(low), math.log10(high), _POINTS_IN_BAND, dtype=torch.float64)
        for low, high in (_NEAR_BAND, _FAR_BAND)
    ]
    axes = torch.randperm(features, generator=generator)[:_MAX_AXES].sort().values
    along = torch.eye(features, dtype=torch.float64)[axes]
    random = torch.randn(_DIRECTIONS, features, dtype=torch.float64, generator=generator)
    random = random / torch.linalg.vector_norm(random, dim=-1, keepdim=True)
    return torch.cat(bands), torch.cat([along, -along, random])
