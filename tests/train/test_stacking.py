"""Stacking: weights by the likelihood of validation rows, and the kernel density of a stack."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, special

from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.evaluate.likelihood import log_prob
from pushforward.flows import (
    Flow,
    Gaussian,
    KernelDensity,
    Mixture,
    Model,
    build,
)
from pushforward.train import stacking
from pushforward.train.data import Prepared, load_data, prepare
from pushforward.train.defaults import data_options
from pushforward.train.stacking import FLOW, GAUSSIAN, KERNEL, MOST_ROWS, kernel_flow, stack, stacking_weights
from tests.fixtures.tables import bent, write_csv


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_csv(tmp_path_factory.mktemp("data") / "bent.csv", bent(300)))


def held_out(n: int, k: int, seed: int) -> np.ndarray[Any, Any]:
    """Log-densities of rows under parts, each of which is the best one for some rows."""
    rng = np.random.default_rng(seed)
    return rng.normal(-2.0, 1.0, (n, 1)) + rng.normal(0.0, 1.5, (n, k))


@pytest.mark.parametrize(("n", "k"), [(1, 2), (12, 2), (40, 3), (300, 3)])
def test_stacking_weights_are_optimal(n: int, k: int) -> None:
    """Expectation maximisation against a general optimiser of the same likelihood with a prior of one row."""
    for seed in range(3):
        scores = held_out(n, k, seed)

        def loss(free: np.ndarray[Any, Any], scores: np.ndarray[Any, Any] = scores) -> float:
            log_weights = special.log_softmax(np.append(free, 0.0))
            return -float(special.logsumexp(scores + log_weights, axis=1).sum() + log_weights.mean())

        best = min(optimize.minimize(loss, start * np.ones(k - 1), tol=1e-12).fun for start in (-1.0, 0.0, 1.0))
        weights = stacking_weights(scores)
        assert weights.sum() == pytest.approx(1.0)
        assert bool((weights > 0).all())
        assert loss(np.log(weights[:-1] / weights[-1])) == pytest.approx(best, abs=1e-5)


def test_weights_of_parts_that_explain_no_row() -> None:
    scores = np.array([[-1.0, -50.0, -np.inf]] * 100)
    weights = stacking_weights(scores)
    np.testing.assert_allclose(weights, [(100 + 1 / 3) / 101, 1 / 303, 1 / 303], rtol=1e-9)


def test_a_row_impossible_under_all_parts_is_left_out() -> None:
    scores = held_out(40, 3, 0)
    weights = stacking_weights(np.concatenate([scores[:20], np.full((2, 3), -np.inf), scores[20:]]))
    np.testing.assert_array_equal(weights, stacking_weights(scores))
    np.testing.assert_allclose(stacking_weights(np.full((1, 3), -np.inf)), np.full(3, 1 / 3))


def prepared_rows(config: Config) -> Prepared:
    options = data_options(config.model_dump())
    return prepare(load_data(options), options)


@pytest.fixture(scope="module")
def small(source: str) -> Prepared:
    return prepared_rows(load_config(source))


def gaussian_at(mean: float, log_scale: float = 0.0) -> Flow:
    flow = build("gaussian", 3)
    with torch.no_grad():
        for name, parameter in flow.base.named_parameters():
            parameter.fill_(mean if name == "location" else log_scale)
    return flow


def test_a_stack_is_the_average_of_its_parts(small: Prepared) -> None:
    flow = gaussian_at(0.0)
    model, weights = stack(small, flow)
    assert isinstance(model, Mixture)
    assert list(weights) == [part for part in (FLOW, GAUSSIAN, KERNEL) if part in weights]
    assert KERNEL in weights  # the data are a curve, not a Gaussian
    assert sum(weights.values()) == pytest.approx(1.0)
    assert model.weights == pytest.approx(list(weights.values()))
    x = small.validation_rows(torch.device("cpu")).x
    best = -math.inf
    for part, weight in zip(model.members, weights.values(), strict=True):
        alone = log_prob(part, x).double()
        assert bool((log_prob(model, x).double() >= alone + math.log(weight) - 1e-4).all())
        best = max(best, float(alone.mean()))
    assert float(log_prob(model, x).double().mean()) > best - 0.05
    kinds = [type(part.base) for part in model.members if part is not flow]
    assert kinds == [kind for part, kind in ((GAUSSIAN, Gaussian), (KERNEL, KernelDensity)) if part in weights]


def test_members_of_a_mixture_share_the_weight_of_the_flow(small: Prepared) -> None:
    parts = Mixture([gaussian_at(0.0), gaussian_at(0.1)], [0.25, 0.75])
    model, weights = stack(small, parts)
    assert isinstance(model, Mixture)
    assert model.members[:2] == parts.members
    assert model.weights[:2] == pytest.approx([0.25 * weights[FLOW], 0.75 * weights[FLOW]])
    x = torch.randn(9, 3)
    each: list[Model] = [parts, *model.members[2:]]
    joint = [math.log(w) + log_prob(part, x) for w, part in zip(weights.values(), each, strict=True)]
    torch.testing.assert_close(log_prob(model, x), torch.stack(joint).logsumexp(0), rtol=1e-4, atol=1e-4)


def gaussian_table(tmp_path: Path, rows: int) -> Prepared:
    source = write_csv(tmp_path / "plain.csv", np.random.default_rng(0).standard_normal((rows, 3)))
    return prepared_rows(load_config(str(source), overrides=("data.validation_fraction=0.5",)))


def test_a_single_remaining_part_is_returned_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = gaussian_table(tmp_path, 400)
    hopeless, good = gaussian_at(30.0), gaussian_at(0.0)
    monkeypatch.setattr(stacking, "LEAST_WEIGHT", 0.4)
    model, weights = stack(prepared, hopeless)
    assert list(weights) in ([GAUSSIAN], [KERNEL])
    assert list(weights.values()) == [1.0]
    assert isinstance(model, Flow)
    assert model is not hopeless
    monkeypatch.setattr(stacking, "gaussian_flow", lambda *_, **__: gaussian_at(30.0))
    model, weights = stack(prepared, good)
    assert (model, weights) == (good, {FLOW: 1.0})
    mixture = Mixture([good, gaussian_at(0.01)])
    assert stack(prepared, mixture) == (mixture, {FLOW: 1.0})


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
