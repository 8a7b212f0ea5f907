"""``ActNorm`` and ``Standardize``."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from pushforward.flows import ActNorm, Standardize


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
