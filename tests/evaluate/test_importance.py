"""Importance weights: estimates against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pushforward.datasets import load_target
from pushforward.evaluate.importance import forward_ess, log_z_estimate, pareto_k, reverse_ess

INF, NAN = math.inf, math.nan


def normals(scale: float, n: int, log_z: float = 0.0, features: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Log-weights of exp(log_z) N(0, I) over N(0, scale^2 I), for samples of the latter and of the former."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((2, n, features))

    def log_w(x: np.ndarray) -> np.ndarray:
        return np.asarray((log_z - 0.5 * x**2 * (1 - scale**-2) + math.log(scale)).sum(-1))

    return log_w(scale * noise[0]), log_w(noise[1])


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.3, 2.0])
def test_both_ess_are_the_closed_form_of_two_gaussians(scale: float) -> None:
    exact = math.sqrt(2 * scale**2 - 1) / scale**2  # (E_q w)^2 / E_q w^2
    from_flow, from_target = normals(scale, 200_000, log_z=700.0)
    assert reverse_ess(from_flow) == pytest.approx(exact, abs=0.01)
    assert forward_ess(from_target, log_z=700.0) == pytest.approx(exact, abs=0.01)
    if scale**2 < 2:  # otherwise E_p[(q / p)^2] is infinite
        assert forward_ess(from_target) == pytest.approx(exact, abs=0.01)
    if scale == 1.0:
        assert reverse_ess(from_flow) == forward_ess(from_target) == 1.0


@pytest.mark.parametrize("log_z", [-800.0, 0.0, 800.0])
def test_log_z_of_a_gaussian_integral_within_its_error(log_z: float) -> None:
    estimate, se = log_z_estimate(normals(1.5, 20_000, log_z=log_z)[0])
    assert 0 < se < 0.02
    assert abs(estimate - log_z) < 4 * se


def test_the_standard_error_agrees_with_repetitions() -> None:
    scale, n = 1.5, 500
    log_w = normals(scale, n * 2000)[0].reshape(2000, n)
    found = np.array([log_z_estimate(part) for part in log_w])
    assert found[:, 0].std() == pytest.approx(found[:, 1].mean(), rel=0.1)
    # And the delta method: Var(w) / (n E[w]^2) = (1 / ESS - 1) / n.
    exact = math.sqrt((scale**2 / math.sqrt(2 * scale**2 - 1) - 1) / n)
    assert found[:, 1].mean() == pytest.approx(exact, rel=0.05)


def test_log_z_of_known_targets() -> None:
    for name, features, deviation in (("gaussian", 2, 1.3), ("double-well", None, 2.0), ("gaussian-mixture", 4, 1.4)):
        target = load_target(name, features)
        assert target.log_z is not None
        flow = Normal(torch.zeros(target.features).double(), deviation)
        x = flow.sample((100_000,))
        log_w = target.log_prob(x) - flow.log_prob(x).sum(-1)
        estimate, se = log_z_estimate(log_w)
        assert se < 0.02
        assert abs(estimate - target.log_z) < 4 * se
        exact = target.sample(100_000, seed=1)
        assert exact is not None
        forward = forward_ess(target.log_prob(exact) - flow.log_prob(exact).sum(-1), target.log_z)
        assert forward == pytest.approx(reverse_ess(log_w), rel=0.05)


def test_only_forward_sees_a_missing_mode() -> None:
    # The target has modes at -6 and 6, the flow only the right one: there w is 1/2, and huge on the left.
    generator = np.random.default_rng(3)
    right = 6 + generator.standard_normal(2000)
    exact = np.where(generator.random(2000) < 0.5, -1, 1) * (6 + generator.standard_normal(2000))

    def log_w(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.logaddexp(0.0, -12 * x) - math.log(2))

    assert reverse_ess(log_w(right)) == pytest.approx(1.0, abs=1e-3)
    assert log_z_estimate(log_w(right))[0] == pytest.approx(-math.log(2), abs=1e-3)
    assert forward_ess(log_w(exact)) < 1e-20


def test_direct_sums_agree() -> None:
    log_w = np.random.default_rng(1).normal(size=50)
    w = np.exp(log_w)
    log_sum = float(np.logaddexp.reduce(log_w))
    assert log_z_estimate(log_w) == pytest.approx((log_sum - math.log(50), w.std(ddof=1) / w.mean() / 50**0.5))
    assert reverse_ess(log_w) == pytest.approx(w.mean() ** 2 / (w**2).mean())
    assert forward_ess(log_w) == pytest.approx(1 / (w.mean() * (1 / w).mean()))
    assert reverse_ess(torch.from_numpy(log_w).float()) == pytest.approx(reverse_ess(log_w), rel=1e-5)
    assert reverse_ess(log_w + 1e5) == pytest.approx(reverse_ess(log_w))


def test_weights_of_zero() -> None:
    # A flow on twice the box: half of the weights are zero.
    half = np.where(np.arange(1000) % 2, math.log(2.0), -INF)
    estimate, se = log_z_estimate(half)
    assert (estimate, se) == pytest.approx((0.0, 1 / math.sqrt(999)))
    assert reverse_ess(half) == pytest.approx(0.5)
    assert forward_ess(half) == 0.0
    none = np.full(10, -INF)
    assert log_z_estimate(none) == pytest.approx((-INF, NAN), nan_ok=True)
    assert math.isnan(reverse_ess(none))
    assert math.isnan(pareto_k(none))


@pytest.mark.parametrize(
    ("log_w", "log_z", "forward"),
    [([0.0, NAN], NAN, NAN), ([0.0, INF], INF, 0.0), ([-INF, INF], INF, 0.0), ([INF, NAN], NAN, NAN)],
)
def test_weights_that_are_not_finite(log_w: list[float], log_z: float, forward: float) -> None:
    values = np.array(log_w)
    assert log_z_estimate(values) == pytest.approx((log_z, NAN), nan_ok=True)
    assert math.isnan(reverse_ess(values))
    assert forward_ess(values) == pytest.approx(forward, nan_ok=True)
    assert math.isnan(pareto_k(values))


def test_one_weight_and_none() -> None:
    assert log_z_estimate(np.array([2.0])) == pytest.approx((2.0, NAN), nan_ok=True)
    assert reverse_ess(np.array([2.0])) == forward_ess(np.array([2.0])) == 1.0
    assert math.isnan(pareto_k(np.array([2.0])))
    for function in (log_z_estimate, reverse_ess, forward_ess, pareto_k):
        with pytest.raises(ValueError, match=f"{function.__name__}: expected at least one weight; got none"):
            function(np.array([]))


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_pareto_k_of_a_pareto_distribution(k: float) -> None:
    # The log of a Pareto variable of index 1 / k is exponential of mean k.
    log_w = k * np.random.default_rng(2).exponential(size=100_000) + 900
    assert pareto_k(log_w) == pytest.approx(k, abs=0.15)


def test_pareto_k_is_large_for_a_narrow_flow_only() -> None:
    # For N(0, 1) over N(0, s^2) with s < 1, P(w > t) falls as t^(-1 / (1 - s^2)); for s > 1 weights are bounded.
    assert pareto_k(normals(0.4, 100_000)[0]) == pytest.approx(1 - 0.16, abs=0.2)
    assert pareto_k(normals(0.4, 100_000)[0]) > 0.7
    assert pareto_k(normals(1.3, 100_000)[0]) < 0.3
    assert pareto_k(np.zeros(1000)) == -INF
