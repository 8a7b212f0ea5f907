"""Check that a bijection, also one of your own, fulfils its contract."""

import copy

import torch
from torch import Tensor

from pushforward.flows.bijections.base import Bijection


def check_bijection(
    bijection: Bijection,
    points: Tensor | None = None,
    context: Tensor | None = None,
    *,
    tolerance: float = 1e-9,
) -> None:
    """Check shapes, dtype, round trip and log-determinants of a bijection in float64.

    Log-determinants are compared with those of Jacobians by automatic differentiation, so that an error that cancels
    between the two directions is found too. The bijection is copied and stays unchanged.

    Args:
        bijection: The bijection with the parameters to test; the copy is checked in evaluation mode.
        points: Points ``(n, features)`` to check at; by default 16 standard-normal ones from a fixed seed.
        context: Context ``(n, context)``; by default drawn in the same way.
        tolerance: Largest allowed error of a coordinate and of a log-determinant.

    Raises:
        AssertionError: If the contract is broken; the message names the check and the size of the error.
    """
    name = type(bijection).__name__
    bijection = copy.deepcopy(bijection).double().eval()
    generator = torch.Generator().manual_seed(0)
    if points is None:
        points = torch.randn(16, bijection.features, generator=generator, dtype=torch.float64)
    if context is None and bijection.context:
        context = torch.randn(len(points), bijection.context, generator=generator, dtype=torch.float64)
    points = points.double()
    context = None if context is None else context.double()

    with torch.no_grad():
        z, log_det = bijection(points, context)
        back, log_det_back = bijection.inverse(z, context)
    for what, value, shape in (
        ("forward", z, points.shape),
        ("inverse", back, points.shape),
        ("log_det of forward", log_det, points.shape[:-1]),
        ("log_det of inverse", log_det_back, points.shape[:-1]),
    ):
        assert value.shape == shape, f"{name}: {what}: expected shape {tuple(shape)}; got {tuple(value.shape)}"
        assert value.dtype == torch.float64, f"{name}: {what}: expected float64; got {value.dtype}"
        assert bool(value.isfinite().all()), f"{name}: {what}: expected finite values"
    _assert_small(f"{name}: round trip", back - points, tolerance)
    _assert_small(f"{name}: log_det of forward plus that of inverse", log_det + log_det_back, tolerance)
    for direction, where, stated in ((bijection, points, log_det), (bijection.inverse, z, log_det_back)):
        exact = torch.stack(
            [_log_det_by_autograd(direction, p, None if context is None else context[i]) for i, p in enumerate(where)]
        )
        which = "forward" if direction is bijection else "inverse"
        _assert_small(f"{name}: log_det of {which} against autograd", stated - exact, tolerance)


def _log_det_by_autograd(direction: object, point: Tensor, context: Tensor | None) -> Tensor:
    def value(p: Tensor) -> Tensor:
        result: Tensor = direction(p, context)[0]  # type: ignore[operator]
        return result

    jacobian = torch.autograd.functional.jacobian(value, point)
    assert isinstance(jacobian, Tensor)
    log_det: Tensor = torch.linalg.slogdet(jacobian).logabsdet
    return log_det


def _assert_small(what: str, error: Tensor, tolerance: float) -> None:
    worst = float(error.abs().max()) if error.numel() else 0.0
    assert worst <= tolerance, f"{what}: expected at most {tolerance:g}; got {worst:g}"
