"""The logarithmic map of heavy tails: its formula, its extremes, and the density that it gives."""

import math
from pathlib import Path

import pytest
import torch

from pushforward.flows import Chain, Flow, Gaussian, LogTails, load, save


def test_it_is_the_identity_up_to_the_bound_and_a_logarithm_beyond() -> None:
    x = torch.tensor([[-1e6, -3.0, 0.5], [2.0, 2.0 + math.e - 1, 4.0]], dtype=torch.float64)
    z, log_det = LogTails(3, bound=2.0, mapped=[True, True, False])(x)
    expected = [[-2.0 - math.log(1e6 - 1.0), -2.0 - math.log(2.0), 0.5], [2.0, 3.0, 4.0]]
    torch.testing.assert_close(z, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(log_det, torch.tensor([-math.log(1e6 - 1.0) - math.log(2.0), -1.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_points_stay_finite_in_both_directions(dtype: torch.dtype) -> None:
    layer = LogTails(1)
    largest = torch.tensor([[torch.finfo(dtype).max], [torch.finfo(dtype).min]], dtype=dtype)
    for value, log_det in (layer(largest), layer.inverse(largest)):
        assert value.isfinite().all()
        assert log_det.isfinite().all()


def test_features_that_are_not_mapped_stay_as_they_are_even_if_infinite() -> None:
    x = torch.tensor([[1.0, torch.inf], [20.0, -1e38]])
    z, log_det = LogTails(2, mapped=[True, False])(x)
    assert torch.equal(z[:, 1], x[:, 1])
    assert log_det.isfinite().all()


def test_a_density_behind_it_integrates_to_one() -> None:
    flow = Flow(Gaussian(1), Chain([LogTails(1, bound=1.0)], features=1)).double()
    u = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64)
    x = u.sinh()  # reaches 1e17
    mass = torch.trapezoid(flow.log_prob(x[:, None]).exp() * u.cosh(), u)
    assert float(mass.detach()) == pytest.approx(1.0, abs=1e-6)


def test_it_is_saved_with_its_flow(tmp_path: Path) -> None:
    flow = Flow(Gaussian(2), Chain([LogTails(2, bound=3.0, mapped=[False, True])], features=2))
    save(flow, tmp_path)
    points = torch.tensor([[10.0, 10.0], [0.0, -20.0]])
    assert torch.equal(load(tmp_path).log_prob(points), flow.log_prob(points))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"LogTails: expected a positive bound; got 0\.0"):
        LogTails(2, bound=0.0)
    with pytest.raises(ValueError, match=r"LogTails: expected 2 values in mapped; got 1"):
        LogTails(2, mapped=[True])
