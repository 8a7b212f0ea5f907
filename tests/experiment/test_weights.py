"""Weights of rows in the evaluation of a fit."""

from typing import Any

import numpy as np

from pushforward.config.read import make_config
from pushforward.datasets.dataset import MEMORY
from pushforward.evaluate.evaluation import SplitRows
from pushforward.train import fitting
from pushforward.train.data import load_data
from pushforward.train.defaults import data_options
from pushforward.train.problems.registry import plan


def test_samples_of_a_weighted_fit_are_compared_with_rows_drawn_by_weight() -> None:
    """Large contexts weigh more: samples at the contexts of unweighted rows would be told from weighted rows."""
    rng = np.random.default_rng(0)
    context = rng.normal(size=(4_000, 1))
    rows, weights = 3 * context + 0.3 * rng.normal(size=(4_000, 1)), np.exp(context[:, 0]).clip(max=3.0)
    keys = {"flow": "maf", "layers": 1, "hidden": 8, "steps": 300, "learning_rate": 1e-2}
    asked = make_config(MEMORY, keys).model_dump()
    problem: Any = plan(asked, load_data(data_options(asked), source=rows, given=context, weight=weights))
    fitted = fitting.fit(problem)
    evaluation = problem.evaluate(fitted.density, problem.score(fitted.density))
    assert evaluation.numbers["samples"]["c2st"]["auc"] < 0.6
    drawn, shown = evaluation.samples
    assert np.abs(drawn - 3 * shown).mean() < 0.5  # samples.csv has the contexts that they were drawn at


def test_rows_drawn_by_weight_keep_their_context_and_are_copies_only_if_few_would_be_left() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4_000, 1))
    weights = np.where(rows[:, 0] > 0, 3.0, 1.0)
    one = np.zeros(4_000)
    one[:3] = 1.0
    none = np.zeros(4_000)
    parts = SplitRows(rows, rows, rows, (2 * rows, 2 * rows, 2 * rows), (weights, one, none)).by_weight(0)
    assert parts.contexts is not None
    for part, context in zip((parts.train, parts.validation, parts.test), parts.contexts, strict=True):
        assert np.array_equal(context, 2 * part)
    assert len(np.unique(parts.train)) == len(parts.train)
    assert abs((parts.train > 0).mean() - 0.75) < 0.03
    assert set(parts.validation[:, 0]) == set(rows[:3, 0])
    assert 90 < len(parts.validation) < 110
    assert np.array_equal(parts.test, rows)
