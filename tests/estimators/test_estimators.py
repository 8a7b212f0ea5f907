"""The estimators of scikit-learn: its own checks, and what people do with estimators."""

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from pushforward import ConditionalDensity, FlowDensity
from pushforward.common.errors import ConfigError

SMALL: dict[str, Any] = {"flow": "maf", "steps": 10, "keys": {"hidden": 8, "layers": 1}}
# Batches are drawn from rows: a weight of two and a row that is there twice train on other batches.
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": "a weighted row is not in the batches of a repeated one"}


@pytest.mark.parametrize("kind", [FlowDensity, ConditionalDensity])
def test_the_checks_of_scikit_learn(kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(kind(**SMALL), on_fail=None, expected_failed_checks=EXPECTED)
    failed = {one["check_name"]: str(one["exception"]) for one in found if one["status"] == "failed"}
    assert not failed
    assert len(found) > 40


def rows(n: int = 300) -> Any:
    return np.random.default_rng(0).normal(size=(n, 2)).cumsum(1)


def test_fitting_twice_gives_the_same_and_other_seeds_do_not() -> None:
    x = rows()
    scores = [FlowDensity(**SMALL, random_state=seed).fit(x).score_samples(x) for seed in (0, 0, 1)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])
    assert FlowDensity(**SMALL).fit(x).score(x) == pytest.approx(scores[0].mean())


def test_clones_pickles_and_names() -> None:
    frame = pd.DataFrame(rows(), columns=["a", "b"])
    model = FlowDensity(**SMALL).fit(frame)
    assert list(model.feature_names_in_) == ["a", "b"]
    assert clone(model).get_params() == model.get_params()
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.score_samples(frame), model.score_samples(frame))
    drawn = model.sample(5, random_state=1)
    assert list(drawn.columns) == ["a", "b"]
    assert drawn.equals(again.sample(5, random_state=1))
    with pytest.raises(ValueError, match="feature names"):
        model.score_samples(frame[["b", "a"]])
    with pytest.raises(NotFittedError):
        FlowDensity().sample()


def test_pipelines_and_grid_searches() -> None:
    x = rows()
    pipeline = make_pipeline(StandardScaler(), FlowDensity(**SMALL)).fit(x)
    assert pipeline.score_samples(x).shape == (300,)
    search = GridSearchCV(FlowDensity(**SMALL), {"flow": ["maf", "gaussian"], "keys": [{}]}, cv=2).fit(x)
    assert search.best_params_["flow"] in ("maf", "gaussian")
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_wrong_key_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"flow.components: has no effect with flow=maf"):
        FlowDensity("maf", keys={"components": 3}).fit(rows())


def heteroscedastic(n: int = 2_000) -> tuple[Any, Any]:
    """The mean is 2 x, the standard deviation exp(x / 2) / 2."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, size=(n, 2))
    return x, 2 * x[:, 0] + 0.5 * np.exp(x[:, 0] / 2) * rng.normal(size=n)


@pytest.mark.parametrize("flow", ["maf", "bayesian-network"])
def test_a_conditional_density_knows_mean_and_spread(flow: str) -> None:
    x, y = heteroscedastic()
    keys: dict[str, Any] = {"maf": {"hidden": 32, "layers": 2, "dropout": 0.0}, "bayesian-network": {"hidden": 20}}
    model = ConditionalDensity(flow, steps=600, keys=keys[flow]).fit(x, y)
    probe = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    truth = 0.5 * np.exp(probe[:, 0] / 2)
    assert np.allclose(model.predict(probe), 2 * probe[:, 0], atol=0.15)
    low, high = model.interval(probe, 0.9).T
    assert np.allclose((high - low) / (2 * 1.645), truth, rtol=0.25)
    drawn = model.sample(probe, 4_000, random_state=0)
    assert drawn.shape == (4_000, 3)
    assert np.allclose(drawn.mean(0), model.predict(probe), atol=0.06)
    # The best possible score is minus the entropy.
    fresh_x, fresh_y = heteroscedastic(1_000)
    best = -(0.5 + 0.5 * np.log(2 * np.pi) + np.log(0.5) + fresh_x[:, 0].mean() / 2)
    assert best - 0.15 < model.score(fresh_x, fresh_y) < best + 0.1
    # Means are those of the row alone.
    assert np.allclose(model.predict(probe[:1]), model.predict(probe)[:1], rtol=1e-9)


def test_several_targets() -> None:
    x, y = heteroscedastic(400)
    model = ConditionalDensity(**SMALL).fit(x, np.stack([y, -y + x[:, 1]], 1))
    assert model.predict(x[:5]).shape == (5, 2)
    assert model.sample(x[:5], 3).shape == (3, 5, 2)
    assert model.log_prob(x, np.stack([y, y], 1)).shape == (400,)
    # The mean of a row is its own, whatever stands beside it.
    assert np.array_equal(model.predict(x[3:5]), model.predict(x)[3:5])
    with pytest.raises(ValueError, match="a single target"):
        model.quantiles(x, [0.5])


def test_a_single_target_may_be_a_column() -> None:
    x, y = heteroscedastic(300)
    flat, column = ConditionalDensity(**SMALL).fit(x, y), ConditionalDensity(**SMALL).fit(x, y[:, None])
    assert column.predict(x[:4]).shape == (4, 1)
    assert column.sample(x[:4], 3).shape == (3, 4, 1)
    assert np.array_equal(column.predict(x)[:, 0], flat.predict(x))
    assert np.array_equal(column.interval(x), flat.interval(x))


def test_a_column_that_numbers_the_rows_is_modelled_too() -> None:
    frame = pd.DataFrame(rows(), columns=["a", "b"]).reset_index()
    model = FlowDensity(**SMALL).fit(frame)
    assert list(model.sample(3).columns) == ["index", "a", "b"]
    assert model.score_samples(frame).shape == (300,)


def test_a_budget_in_seconds_replaces_the_default_steps() -> None:
    model = FlowDensity("gaussian", seconds=0.2, keys={"batch_size": 300}).fit(rows())
    assert FlowDensity().get_params()["steps"] is None
    assert np.isfinite(model.score(rows()))


@pytest.mark.parametrize(
    "context", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference_mode", "default device"]
)
def test_torchs_defaults_change_nothing(context: Any) -> None:
    x, y = heteroscedastic(300)

    def numbers() -> Any:
        model = ConditionalDensity(**SMALL).fit(x, y)
        drawn = model.sample(x, 1, random_state=0)[0]
        return np.stack([model.predict(x), *model.interval(x).T, model.log_prob(x, y), drawn])

    with context():
        found = numbers()
    assert np.array_equal(found, numbers())


def test_a_grid_of_flows_and_steps_for_frames() -> None:
    x, y = heteroscedastic(120)
    inputs, targets = pd.DataFrame(x, columns=["a", "b"]), pd.DataFrame({"t": y, "u": y + x[:, 1]})
    grid = {"flow": ["gaussian", "maf"], "steps": [2, 3]}
    search = GridSearchCV(ConditionalDensity(keys={}), grid, cv=2).fit(inputs, targets)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    model = search.best_estimator_
    again = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), clone(model).fit(inputs, targets)]
    for each in again:
        assert each.score(inputs, targets[["u", "t"]]) == model.score(inputs, targets)
    pipeline = make_pipeline(StandardScaler(), ConditionalDensity(**SMALL)).fit(inputs, targets)
    assert pipeline.score(inputs, targets[["u", "t"]]) == pipeline.score(inputs, targets)


@pytest.mark.parametrize("keys", ["abc", [("layers", 1)], {1: 2}])
def test_keys_are_a_mapping_from_names(keys: Any) -> None:
    with pytest.raises(ConfigError, match=r"^keys: expected a mapping from names to values, or None; got "):
        FlowDensity(keys=keys).fit(rows())
