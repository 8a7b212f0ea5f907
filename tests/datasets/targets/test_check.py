"""Targets that a flow cannot be fitted to are refused before the fit; all others are accepted."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pushforward.datasets import TARGETS, FunctionTarget, Target, TargetError, check_target, load_target
from pushforward.datasets.targets.energies import U1
from tests.fixtures.targets import small_target

Function = Callable[[Tensor], Tensor]


def student(x: Tensor, degrees: float = 1.0) -> Tensor:
    return -0.5 * (degrees + x.shape[-1]) * torch.log1p(x.square().sum(-1) / degrees)


def flat_box(x: Tensor) -> Tensor:
    return torch.where((x.abs() > 3).any(-1), -torch.inf, 0.0)


PROPER: dict[str, tuple[Function, int]] = {
    "normal": (lambda x: -0.5 * x.square().sum(-1), 3),
    "shifted": (lambda x: -0.5 * (x - 40).square().sum(-1), 3),
    "wide": (lambda x: -0.5 * (x / 1000).square().sum(-1), 3),
    "narrow": (lambda x: -0.5 * (x / 1e-3).square().sum(-1), 3),
    "student 1": (student, 1),
    "student 2": (student, 2),
    "student 20": (student, 20),
    "student 1/2": (lambda x: student(x, 0.5), 1),
    "independent Cauchys": (lambda x: -torch.log1p(x.square()).sum(-1), 8),
    "wide Cauchys": (lambda x: -torch.log1p((x / 300).square()).sum(-1), 2),
    "Laplace": (lambda x: -x.abs().sum(-1), 2),
    "flat box": (flat_box, 2),
    "flat box with a graph": (lambda x: flat_box(x) + 0 * x.sum(-1), 2),
    "half-line": (lambda x: torch.where(x > 0, -x, -torch.inf).sum(-1), 2),
    "big constant": (lambda x: 1e6 - x.square().sum(-1), 2),
}


@pytest.mark.parametrize("name", PROPER)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_proper_targets_pass(name: str, scale: float) -> None:
    function, features = PROPER[name]
    check_target(FunctionTarget(function, features), scale * torch.randn(64, features).abs())


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("name", TARGETS)
def test_named_targets_pass(name: str, scale: float) -> None:
    for target in (small_target(name), load_target(name)):
        for dtype in (torch.float32, torch.float64):
            check_target(target, scale * target.spread * torch.randn(64, target.features, dtype=dtype))


def test_a_funnel_of_many_features_passes() -> None:
    check_target(load_target("funnel", 200), torch.randn(64, 200))


def unboxed(name: str) -> Function:
    """Return U2, U3 or U4 without the box: an infinite band."""
    target: Any = load_target(name)
    return lambda x: target.band_log_prob(x[..., 0], x[..., 1])


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(
    ("function", "features"),
    [
        pytest.param(unboxed("u2"), 2, id="u2"),
        pytest.param(unboxed("u3"), 2, id="u3"),
        pytest.param(unboxed("u4"), 2, id="u4"),
        pytest.param(lambda x: 0 * x.sum(-1), 2, id="constant"),
        pytest.param(lambda x: x.sum(-1), 3, id="linear"),
        pytest.param(lambda x: x.square().sum(-1), 3, id="sign"),
        pytest.param(lambda x: x.pow(4).sum(-1).exp(), 3, id="overflows"),
        pytest.param(lambda x: -x[..., :2].square().sum(-1), 5, id="a coordinate forgotten"),
        pytest.param(lambda x: -0.1 * torch.log1p(x.square().sum(-1)), 2, id="a tail too heavy"),
    ],
)
def test_targets_that_do_not_decay_are_refused(function: Function, features: int, scale: float) -> None:
    x = (scale * torch.randn(64, features)).clamp(-2, 2)
    with pytest.raises(TargetError, match=r"no finite integral: .* as far out as \[.*target.bounds=low,high"):
        check_target(FunctionTarget(function, features), x)
    check_target(FunctionTarget(function, features, bounds=(-3.0, 3.0)), x)


def without_graph(x: Tensor) -> Tensor:
    return torch.from_numpy(-(x.detach().numpy() ** 2).sum(-1))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x[:, 0] - 1).log() - x.square().sum(-1), r"below \+inf; got nan at \[0, 0, 0\] \(2 of 3 points\)"),
        (lambda x: -x[:, 0].log() - x.square().sum(-1), r"below \+inf; got inf at \[0, 0, 0\] \(1 of 3"),
        (lambda x: x.sum(), r"f: expected log-densities of shape \(3,\) for points of shape \(3, 3\); got \(\)"),
        (lambda x: -x, r"expected log-densities of shape \(3,\) for points of shape \(3, 3\); got \(3, 3\)"),
        (lambda x: -x.sum(-1, keepdim=True), r"of shape \(3,\) .* got \(3, 1\)"),
        (lambda x: 1.5, r"f: expected a torch tensor; got float"),
        (
            lambda x: x.sum(-1).long(),
            r"expected log-densities of a floating dtype such as torch\.float32; got torch\.int64",
        ),
        (lambda x: x.sum(-1) + 1j, r"of a floating dtype such as torch\.float32; got torch\.complex64"),
        (lambda x: torch.empty(len(x), device="meta"), r"expected log-densities on cpu, .*; got meta; move"),
        (without_graph, r"the log-density varies, -3 to -0, but its gradient is zero at all 3 points; .* detach"),
        (lambda x: -x.numpy().sum(-1), r"expected a torch tensor; got ndarray"),
        (lambda x: torch.from_numpy(-x.numpy().sum(-1)), r"computing its log-density raised RuntimeError: Can't call"),
        (lambda x: -x.round().sum(-1), r"the log-density varies, .* but its gradient is zero"),
        (
            lambda x: torch.full_like(x[:, 0], -torch.inf),
            r"is -inf at all 3 points of the first batch, as at \[0, 0, 0\]",
        ),
        (
            lambda x: torch.where(
                x > 0, -x * x.sqrt(), -x.square() * (x - 0.5).clamp(max=-1.0).sqrt().nan_to_num()
            ).sum(-1),
            r"but its gradient is \[nan",
        ),
        (
            lambda x: -(x.square().sum(-1).sqrt()),
            r"log-density is -0 at \[0, 0, 0\] but its gradient is \[nan, nan, nan\]",
        ),
        (lambda x: x @ torch.ones(4), r"f: computing its log-density raised RuntimeError: .*3.*4"),
    ],
)
def test_messages_about_bad_log_densities(function: Function, message: str) -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.25, 0.125], [1.0, 1.0, 1.0]])
    with pytest.raises(TargetError, match=message) as caught:
        check_target(FunctionTarget(function, 3, name="f"), x)
    assert "\n" not in str(caught.value)


class Unchecked(Target):
    """A target with a given log_prob, without the checks of ``FunctionTarget``."""

    features = 3

    def __init__(self, function: Function) -> None:
        self.function = function

    def log_prob(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: -x.square().sum(), r"Unchecked: expected log-densities of shape \(3,\) .* got \(\)"),
        (lambda x: None, r"Unchecked: expected a torch tensor; got NoneType"),
        (lambda x: x @ torch.ones(4), r"Unchecked: computing its log-density raised RuntimeError"),
    ],
)
def test_target_classes_are_checked(function: Function, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        check_target(Unchecked(function), torch.rand(3, 3))
    check_target(Unchecked(lambda x: -x.square().sum(-1)), torch.rand(3, 3))


def test_points_of_many_coordinates_are_abbreviated() -> None:
    x = torch.arange(32.0).repeat(2, 1) / 3
    with pytest.raises(
        TargetError, match=r"got nan at \[0, 0\.3333, 0\.6667, 1, 1\.333, 1\.667, 2, 2\.333, and 24 more\]"
    ):
        check_target(FunctionTarget(lambda x: x.sum(-1) * math.nan, 32), x)


def test_zero_density_is_accepted_and_gradients_are_not_accumulated() -> None:
    x = torch.randn(100, 2, requires_grad=True)
    weight = torch.ones(2, requires_grad=True)
    target = FunctionTarget(lambda x: torch.where(x[:, 0] > 0, -(x * weight).square().sum(-1), -torch.inf), 2)
    check_target(target, x)
    assert x.grad is None
    assert weight.grad is None
    # A log-density that depends on parameters but not on the point is constant.
    with pytest.raises(TargetError, match="no finite integral"):
        check_target(FunctionTarget(lambda x: weight.sum().expand(len(x)), 2), x)


def test_nan_gradients_at_points_of_zero_density_are_accepted() -> None:
    # The square root of a negative number, in the branch not taken, makes the gradient NaN where the density is zero.
    target = FunctionTarget(lambda x: torch.where(x[:, 0] > 0, -x[:, 0].sqrt() - x[:, 0], -torch.inf), 1)
    x = torch.tensor([[-1.0], [1.0], [2.0]])
    assert target.score_function(x)[0].isnan()
    check_target(target, x)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (0, 2)])
def test_the_batch_must_have_the_right_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"check_target: expected points of shape \(n, 2\); got \("):
        check_target(U1(), torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (1.0, 1.0)}, r"f: expected bounds \(low, high\) with low < high; got \(1\.0, 1\.0\)"),
        ({"spread": 0.0}, r"f: expected a positive spread; got 0\.0"),
        ({"spread": math.nan}, r"f: expected a positive spread; got nan"),
        ({"features": 0}, r"f: expected features of at least 1; got 0"),
    ],
)
def test_bad_options_of_a_function_target(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"features": 2, "name": "f"} | options
    with pytest.raises(TargetError, match=message):
        FunctionTarget(student, **given)
