"""The distribution of one column given others: its CDF, quantiles and mean, by passes of the model alone.

Nothing is drawn: the numbers of a row depend on its context alone, and not on the other rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pushforward.evaluate.likelihood import (
    Array,
    UndefinedDensityError,
    as_tensor,
    device_of,
    evaluation_mode,
    why_undefined,
)
from pushforward.flows import Mixture
from pushforward.flows.torch_defaults import usual_defaults

_ROWS = 16_384
"""Pairs of a row and a level in a pass."""

_EXPANSIONS = 200
_ITERATIONS = 200
_TOLERANCE = 1e-12

# The mean is the integral of the quantile function; F is integrated between these levels, where it is smooth.
_LEVELS = np.concatenate([[1e-6, 1e-4, 3e-3, 0.03], np.linspace(0.1, 0.9, 9), [0.97, 1 - 3e-3, 1 - 1e-4, 1 - 1e-6]])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)


@usual_defaults()
@torch.no_grad()
def cdf(model: Any, y: Array | Tensor, context: Array | Tensor) -> Array:
    """The conditional cumulative distribution function at values.

    Args:
        model: A density of one column given others: a flow, a mixture of flows, or a module with ``latents``.
        y: Values ``(n,)``.
        context: Context rows ``(n, C)``.

    Returns:
        Probabilities ``(n,)`` in float64. Cost: one pass for each row.
    """
    device = device_of(model) or torch.device("cpu")
    points, given = as_tensor(np.asarray(y)).to(device)[:, None], as_tensor(np.asarray(context)).to(device)
    out = []
    with evaluation_mode(model):
        for x, c in zip(points.split(_ROWS), given.split(_ROWS), strict=True):
            out.append(_cdf(model, x, c))
    return np.concatenate(out) if out else np.empty(0)


def _cdf(model: Any, x: Tensor, context: Tensor) -> Array:
    members = list(zip(model.members, model.weights, strict=True)) if isinstance(model, Mixture) else [(model, 1.0)]
    total: Any = 0.0
    for member, weight in members:
        z = member.latents(x, context if member.context else None)[..., 0].double()
        total = total + weight * torch.special.ndtr(z)
    return np.asarray(total.cpu().numpy(), dtype=np.float64)


def quantiles(
    model: Any,
    context: Array,
    levels: Sequence[float] | Array,
    start: tuple[float, float],
    *,
    accuracy: float = 1e-12,
) -> Array:
    """Conditional quantiles, by inverting the CDF.

    Args:
        model: As for :func:`cdf`.
        context: Context rows ``(n, C)``.
        levels: Levels ``(k,)`` between 0 and 1.
        start: An interval to search first, such as the range of the recorded values; it is widened where needed.
        accuracy: Largest relative error of the level of a quantile, or of its distance from 0 and 1.

    Returns:
        Quantiles ``(n, k)``.

    Raises:
        ValueError: If a level is not between 0 and 1.
        UndefinedDensityError: If a row has no quantile within about 1e60 times the interval, or no CDF.

    Cost:
        About twenty passes for each row and level.
    """
    p = np.asarray(levels, dtype=np.float64).reshape(-1)
    if not ((p > 0) & (p < 1)).all():
        raise ValueError(f"quantiles: expected levels above 0 and below 1; got {np.asarray(levels).tolist()}")
    blocks = _blocks(context, len(p))
    return np.concatenate([_quantiles(model, block, p, start, accuracy, first) for first, block in blocks])


def _blocks(context: Array, k: int) -> list[tuple[int, Array]]:
    """Blocks of a context of about ``_ROWS`` pairs with ``k`` levels, for bounded memory, each after its first row."""
    size = max(1, _ROWS // max(1, k))
    return [(i, context[i : i + size]) for i in range(0, max(1, len(context)), size)]


def _quantiles(model: Any, context: Array, p: Array, start: tuple[float, float], accuracy: float, first: int) -> Array:
    n, k = len(context), len(p)
    given = np.repeat(np.asarray(context, dtype=np.float64), k, axis=0)
    target = np.tile(p, n)
    width = max(start[1] - start[0], 1e-12 * max(1.0, abs(start[0]), abs(start[1])))
    low, high = (np.full(n * k, float(end), dtype=np.float64) for end in start)
    for end, sign in ((low, -1.0), (high, 1.0)):
        step = np.full(n * k, float(width))
        for _ in range(_EXPANSIONS):
            # NaN also counts as outside, and stays there.
            outside = np.flatnonzero(~(sign * (cdf(model, end, given) - target) >= 0))
            if not len(outside):
                break
            end[outside] += sign * step[outside]
            step[outside] *= 2.0
        else:
            raise UndefinedDensityError(
                f"the density given row {first + outside[0] // k + 1} has no finite quantile within reach: "
                f"{why_undefined(has_context=True)}"
            )
    return _solve(model, given, target, low, high, accuracy).reshape(n, k)


def _solve(model: Any, context: Array, target: Array, low: Array, high: Array, accuracy: float) -> Array:
    """Invert the CDF within brackets: the Illinois variant of regula falsi, with a bisection every third step."""
    below = cdf(model, low, context) - target
    above = cdf(model, high, context) - target
    active = np.arange(len(target))
    for iteration in range(_ITERATIONS):
        scale = np.maximum(np.abs(low[active]), np.abs(high[active]))
        active = active[high[active] - low[active] > _TOLERANCE * np.maximum(scale, 1e-300)]
        if not len(active):
            break
        a, b, fa, fb = low[active], high[active], below[active], above[active]
        middle = 0.5 * (a + b)
        if iteration % 3 < 2:
            with np.errstate(invalid="ignore", divide="ignore"):
                secant = b - fb * (b - a) / (fb - fa)
            middle = np.where((secant > a) & (secant < b), secant, middle)
        f = cdf(model, middle, context[active]) - target[active]
        is_exact = np.abs(f) <= accuracy * np.minimum(target[active], 1.0 - target[active])
        left = f < 0
        low[active], high[active] = np.where(left, middle, a), np.where(left, b, middle)
        # The Illinois rule: halve the value at the end that did not move, so that it moves next.
        below[active], above[active] = np.where(left, f, 0.5 * fa), np.where(left, 0.5 * fb, f)
        low[active[is_exact]] = high[active[is_exact]] = middle[is_exact]
    return 0.5 * (low + high)


def mean(model: Any, context: Array, start: tuple[float, float]) -> Array:
    """The conditional mean ``(n,)``, as an integral of the CDF between quantiles.

    Arguments and errors as for :func:`quantiles`. The parts beyond the levels 1e-6 and 1 - 1e-6 count as if they were
    there.
    """
    context = np.asarray(context, dtype=np.float64)
    blocks = _blocks(context, len(_LEVELS) * len(_NODES))
    return np.concatenate([_mean(model, block, start, first) for first, block in blocks])


def _mean(model: Any, context: Array, start: tuple[float, float], first: int) -> Array:
    ends = _quantiles(model, context, _LEVELS, start, 0.3, first)  # panels need no more
    a, b = ends[:, :-1], ends[:, 1:]
    half = 0.5 * (b - a)
    points = (0.5 * (a + b))[..., None] + half[..., None] * _NODES
    given = np.repeat(context, points[0].size, axis=0) if len(context) else context
    f = cdf(model, points.reshape(-1), given).reshape(points.shape)
    # E y = high - integral of F, with all probability within the outermost quantiles.
    out: Array = ends[:, -1] - ((f * _WEIGHTS).sum(-1) * half).sum(-1)
    return out
