"""The kernel density of a stacked fit: its bandwidth and its points."""

import math

import numpy as np
import pytest
import torch

from pushforward.flows import Flow, KernelDensity
from pushforward.train.stacking import MOST_ROWS, kernel_flow


def bandwidth_of(flow: Flow) -> float:
    assert isinstance(flow.base, KernelDensity)
    return float(flow.base.log_bandwidth.exp())


def test_bandwidth_is_nearly_optimal_for_new_rows() -> None:
    train, new = torch.randn(300, 2), torch.randn(2_000, 2)
    flow = kernel_flow(train)
    reached = float(flow.log_prob(new).mean())
    best = max(float(KernelDensity(train, float(h)).log_prob(new).mean()) for h in np.geomspace(0.05, 2.0, 25))
    assert reached > best - 0.02
    assert 0.2 < bandwidth_of(flow) < 0.6


def test_repeated_rows_count_once() -> None:
    """Otherwise cross-validation would choose a bandwidth of zero for a table with repeated rows."""
    x = torch.randn(80, 2)
    once, often = kernel_flow(x), kernel_flow(x.repeat(10, 1))
    assert bandwidth_of(often) == pytest.approx(bandwidth_of(once), rel=1e-6)
    assert isinstance(often.base, KernelDensity)
    assert often.base.points.shape == (80, 2)


def test_the_number_of_stored_points_is_limited() -> None:
    flow = kernel_flow(torch.randn(MOST_ROWS + MOST_ROWS // 2, 1))
    assert isinstance(flow.base, KernelDensity)
    assert len(flow.base.points) == MOST_ROWS
    assert float(flow.base.points.mean()) == pytest.approx(0.0, abs=0.1)  # a random subsample, not the smallest values


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_one_to_three_rows(rows: int) -> None:
    flow = kernel_flow(torch.randn(rows, 2))
    assert math.isfinite(bandwidth_of(flow))
    assert bool(flow.log_prob(torch.zeros(3, 2)).isfinite().all())
