"""Bijections from a box or a half-line to all of space: values, digits at the ends, points outside."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pushforward.flows import Chain, Flow, Gaussian, Log, Logit, LULinear, Probit, build, check_bijection, load, save

F64 = torch.float64
Perturb = Callable[[nn.Module], nn.Module]


def test_contract_on_narrow_supports() -> None:
    share = torch.rand(64, 2, dtype=F64).clamp(1e-6, 1 - 1e-6)
    check_bijection(Logit(2), share)
    check_bijection(Logit(2, [-3.0, 10.0], [1.0, 10.5]), torch.tensor([-3.0, 10.0]) + torch.tensor([4.0, 0.5]) * share)
    check_bijection(Log(2), share * 50)
    check_bijection(Log(2, low=[-1.0, 3.0]), share + torch.tensor([-1.0, 3.0]))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_values_near_the_ends_keep_their_digits(dtype: torch.dtype) -> None:
    tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    x = torch.tensor([[tiny], [1e-20], [0.5], [1 - eps]], dtype=dtype)
    exact = [math.log(v) - math.log1p(-v) for v in x[:, 0].tolist()]
    z, log_det = Logit(1)(x)
    assert_close(z[:, 0], torch.tensor(exact, dtype=dtype))
    assert_close(log_det, torch.tensor([-math.log(v) - math.log1p(-v) for v in x[:, 0].tolist()], dtype=dtype))
    far = torch.tensor([[-1e4], [-90.0], [-20.0], [20.0], [90.0], [1e4]], dtype=dtype)
    for bijection in (Logit(1), Logit(1, -3.0, 5.0), Log(1), Log(1, low=2.0)):
        back, slope = bijection.inverse(far)
        again, log_det = bijection(back)
        assert bool(torch.stack([back[:, 0], slope, again[:, 0], log_det]).isfinite().all())
        (low, high) = bijection.domain[0]
        assert bool(((back > low) & (back < high)).all())
        assert bool((back.diff(dim=0) >= 0).all())
    small = torch.tensor([[-math.exp(-20.0)]], dtype=dtype)  # next to an end that is zero
    assert_close(Logit(1, -1.0, 0.0).inverse(far[3:4])[0], small, rtol=1e-6, atol=0)
    # The log-determinant is accurate where the point is rounded.
    assert_close(Logit(1).inverse(far)[1], -far[:, 0].abs())
    assert_close(Log(1).inverse(far)[1], far[:, 0])


@pytest.mark.parametrize("outside", [-0.5, 0.0, 1.0, 7.0, -math.inf, math.inf])
def test_the_density_outside_is_zero(outside: float) -> None:
    x = torch.tensor([[0.5, 0.5], [outside, 0.5]], requires_grad=True)
    flow = Flow(Gaussian(2), Chain([Logit(2), LULinear(2)]))
    density = flow.log_prob(x)
    assert density[0].isfinite()
    assert density[1] == -torch.inf
    density[0].backward(retain_graph=True)
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    if outside <= 0:
        flow = Flow(Gaussian(2), Chain([Log(2), LULinear(2)]))
        assert flow.log_prob(x)[1] == -torch.inf
        assert flow.log_prob(x)[0].isfinite()


def test_a_flow_on_a_box_integrates_to_one(perturb: Perturb) -> None:
    inner = build("nsf-ar", 2, layers=1, hidden=8)
    flow = Flow(inner.base, Chain([Logit(2, [0.0, -2.0], [1.0, 2.0]), inner.bijection])).double().eval()
    perturb(flow)
    axis = (torch.arange(400, dtype=F64) + 0.5) / 400
    grid = torch.cartesian_prod(axis, 4 * axis - 2)
    assert float(flow.log_prob(grid).exp().mean().detach()) * 4 == pytest.approx(1.0, abs=3e-3)
    points = flow.sample(1000)
    assert bool(((points[:, 0] > 0) & (points[:, 0] < 1) & (points[:, 1].abs() < 2)).all())


@pytest.mark.parametrize("kind", [Logit, Probit])
def test_a_saved_box_is_the_same(kind: type[Logit] | type[Probit], tmp_path: Path) -> None:
    save(Flow(Gaussian(2), kind(2, [0.0, -2.0], [1.0, 2.0])), tmp_path)
    box = load(tmp_path).bijection
    assert type(box) is kind
    assert box.config() == {"features": 2, "low": [0.0, -2.0], "high": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logit(2, 1.0, [2.0, 1.0]), "Logit: expected every low below its high; got [1.0, 1.0] and [2.0, 1.0]"),
        (lambda: Probit(1, 1.0, 1.0), "Probit: expected every low below its high; got [1.0] and [1.0]"),
        (lambda: Logit(2, high=math.inf), "Logit: expected high as one finite number or 2 of them; got inf"),
        (lambda: Log(2, low=[0.0]), "Log: expected low as one finite number or 2 of them; got [0.0]"),
    ],
)
def test_message(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert str(error.value) == message
