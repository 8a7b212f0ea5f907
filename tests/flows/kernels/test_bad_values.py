"""NaN, infinity and extreme values in the kernels: a bad row stays visible and affects no other row."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import RationalQuadraticSpline
from pushforward.flows.kernels import native
from tests.fixtures.bijections import SPLINE
from tests.fixtures.kernels import (
    DOUBLE,
    LAYERS,
    MAPS,
    Perturb,
    assert_engines_agree,
    both_directions,
    both_layers,
    both_maps,
    both_tails,
    evaluated,
)

R_MISSING = 0x7FF80000000007A2
"""The bits of R's NA: a NaN with a payload."""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), "NA"], ids=str)
@both_directions
@both_layers
@both_maps
def test_a_bad_row_stays_visible_and_affects_no_other(
    univariate: str, kind: str, direction: str, bad: float | str, perturb: Perturb
) -> None:
    layer = perturb(LAYERS[kind](4, MAPS[univariate], 1))
    apply = getattr(layer, direction)
    points, context = torch.randn(70, 4, dtype=DOUBLE), torch.randn(70, 1, dtype=DOUBLE)
    clean = apply(points, context)
    wrong = np.array([R_MISSING], dtype=np.uint64).view(np.float64)[0] if bad == "NA" else bad
    others = torch.arange(70) != 7
    weights = list(layer.parameters())
    for broken in (points, context):
        kept = broken[7].clone()
        for column in range(broken.shape[1]):
            broken.numpy()[7, column] = wrong
            value, log_det = apply(points, context)
            assert_close((value[others], log_det[others]), (clean[0][others], clean[1][others]), rtol=0, atol=0)
            assert not bool(value[7].isfinite().all())
            gradients = []  # of a loss without the row; zero times NaN is NaN where torch has it too
            for engine in (torch.enable_grad, native.disabled):
                with engine():
                    value, log_det = apply(points, context)
                    loss = value[others].sum() + log_det[others].sum()
                    gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
            finite = gradients[1].isfinite()
            assert_close(gradients[0][finite], gradients[1][finite])
            broken[7] = kept


@both_directions
@both_tails
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_a_spline_with_bad_parameters_is_not_finite(
    dtype: torch.dtype, direction: str, spline: RationalQuadraticSpline
) -> None:
    apply = getattr(spline, direction)
    bad = torch.tensor([float("nan"), float("inf"), 0.0], dtype=dtype)
    if dtype == DOUBLE:
        bad.numpy().view(np.uint64)[1] = R_MISSING
    parameters = bad[:, None].repeat(1, spline.size)
    for engine in (torch.enable_grad, native.disabled):
        with engine():
            value, log_derivative = apply(torch.full((3,), 0.5, dtype=dtype), parameters)
        assert value.isfinite().tolist() == [False, False, True]
        assert log_derivative.isfinite().tolist() == [False, False, True]


@both_layers
@both_tails
def test_points_beyond_the_bound(kind: str, spline: RationalQuadraticSpline, perturb: Perturb) -> None:
    layer = perturb(LAYERS[kind](3, spline))
    values = [-1e300, -1e4, -3.0, -3.0 + 1e-9, 3.0 - 1e-9, 3.0, 3.0 + 1e-15, 1e4]
    points = torch.tensor(values, dtype=DOUBLE)[:, None].expand(-1, 3) * torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE)
    for direction in ("forward", "inverse"):
        moderate = points[1:]
        assert_engines_agree(layer, direction, moderate, rtol=1e-7, atol=1e-7)
        if spline is SPLINE:  # a learned slope far out is unbounded, because the network reads such points
            assert bool(getattr(layer, direction)(points)[0][0].isfinite().all())


@pytest.mark.parametrize("size", [30.0, 1e4])
@both_directions
@both_layers
def test_extreme_networks(kind: str, direction: str, size: float, perturb: Perturb) -> None:
    layer = LAYERS[kind](4, SPLINE, 1)
    perturb(layer.conditioner.last, size)
    points, context = torch.randn(70, 4, dtype=DOUBLE), torch.randn(70, 1, dtype=DOUBLE)
    found = evaluated(layer, direction, points, context, kernel=True)
    assert all(bool(t.isfinite().all()) for t in found.values())
    if kind == "coupling":  # so steep an autoregressive layer magnifies rounding errors
        assert_engines_agree(layer, direction, points, context, rtol=1e-5, atol=1e-5)
