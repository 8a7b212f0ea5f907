"""``ActNorm`` and ``Standardize``."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import ActNorm, Standardize, build


def test_act_norm_standardizes_only_its_first_training_batch() -> None:
    layer = ActNorm(3)
    first = torch.randn(64, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5.0
    z, _ = layer(first)
    assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert_close(z.std(0), torch.ones(3))
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(64, 3))
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_act_norm_is_the_identity_before() -> None:
    layer = ActNorm(3).eval()
    points = torch.randn(8, 3) * 7.0
    assert_close(layer(points)[0], points, rtol=0, atol=0)
    assert not bool(layer.initialized)
    layer.train()
    layer.inverse(points)
    layer(points[:1])  # a single point has no scale
    assert not bool(layer.initialized)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38, -1e30])
def test_act_norm_starts_from_the_rows_that_are_usable(bad: float) -> None:
    rows = torch.randn(64, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5.0
    clean, layer = ActNorm(3), ActNorm(3)
    clean(rows)
    spoiled = torch.cat([rows, rows[:2]])[torch.randperm(66, generator=torch.Generator().manual_seed(0))]
    place = (spoiled == rows[0]).all(-1) | (spoiled == rows[1]).all(-1)
    spoiled[int(place.nonzero()[0]), 1] = bad
    spoiled[int(place.nonzero()[-1])] = bad
    layer(spoiled)
    others = ActNorm(3)
    others(spoiled[(spoiled.abs() < 1e6).all(-1)])
    assert_close(layer.state_dict(), others.state_dict())
    assert bool(layer.eval()(rows)[0].isfinite().all())


@pytest.mark.parametrize("usable", [0, 1])
def test_act_norm_refuses_a_batch_without_usable_rows(usable: int) -> None:
    rows = torch.full((5, 2), float("nan"))
    rows[:usable] = 1.0
    layer = ActNorm(2)
    with pytest.raises(ValueError, match=rf"ActNorm: expected at least 2 rows .*; got {usable} of 5"):
        layer(rows)
    assert not bool(layer.initialized)
    layer(torch.randn(5, 2))  # the next batch is better
    assert bool(layer.initialized)


@pytest.mark.parametrize("name", ["realnvp", "maf", "iaf"])
def test_a_flow_survives_a_nan_in_its_first_batch(name: str) -> None:
    flow = build(name, 3, layers=2, hidden=8)
    x = torch.randn(64, 3)
    x[3, 1] = float("nan")
    flow.train()(x)
    assert bool(flow.eval()(torch.randn(4, 3)).isfinite().all())


def test_act_norm_keeps_the_scale_of_a_constant_feature() -> None:
    layer = ActNorm(2)
    layer(torch.tensor([[4.0, 1.0], [4.0, 2.0], [4.0, 3.0]]))
    assert_close(layer.log_scale.detach(), torch.zeros(2))


@pytest.mark.parametrize("how", ["state_dict", "state_dict assign", "deepcopy", "pickle"])
@pytest.mark.parametrize("initialized", [True, False])
def test_copies_of_act_norm_know_whether_it_was_initialized(how: str, initialized: bool) -> None:
    layer = ActNorm(2)
    if initialized:
        layer(torch.randn(32, 2) * 4.0 + 1.0)
    twin = ActNorm(2)
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        twin.load_state_dict(copy.deepcopy(layer.state_dict()), assign="assign" in how)
    before = copy.deepcopy(twin.state_dict())
    assert twin.training
    twin(torch.randn(32, 2) * 0.1)
    changed = not torch.equal(twin.state_dict()["log_scale"], before["log_scale"])
    assert changed is not initialized


def test_standardize_keeps_the_digits_of_a_large_offset() -> None:
    layer = Standardize([1e9 + 1.0], [1e-3]).float()  # float32 would round the offset to 1e9
    x = torch.tensor([[1e9 + 1.0 + 2e-3]], dtype=torch.float64)
    assert_close(layer(x)[0], torch.tensor([[2.0]], dtype=torch.float64), rtol=1e-3, atol=0)  # 1e9 has 1e-7 left
    assert layer.log_det == pytest.approx(6.907755278982137)
