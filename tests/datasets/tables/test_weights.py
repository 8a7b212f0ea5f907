"""Weights of rows stay with their rows, are not a column of the density, and are checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from pushforward.common.errors import DataError
from pushforward.datasets import Dataset, load
from pushforward.datasets.tables.weights import scale_weights
from tests.fixtures.tables import write_file

N = 40
WEIGHTS = np.arange(N) % 7 / 2
ROWS = np.random.default_rng(0).normal(size=(N, 3))
FRAME = pd.DataFrame({"a": ROWS[:, 0], "w": WEIGHTS, "b": ROWS[:, 1], "c": ROWS[:, 2]})


def weights_of(dataset: Dataset) -> list[float]:
    assert dataset.weights is not None
    assert dataset.weights.dtype == np.float64
    return list(dataset.weights)


def test_without_weights_there_are_none() -> None:
    assert load(FRAME).weights is None
    assert load("moons", rows=20).weights is None


@pytest.mark.parametrize("roles", [{}, {"response": "a"}, {"context": ["b"]}])
def test_the_column_is_neither_modelled_nor_context(roles: dict[str, Any], tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", FRAME.to_csv(index=False))
    for source in (FRAME, pl.from_pandas(FRAME), path):
        dataset = load(source, weight="w", **roles)
        without = load(FRAME.drop(columns="w"), **roles)
        assert dataset.schema.names == without.schema.names
        assert dataset.schema.context_names == without.schema.context_names
        assert np.array_equal(dataset.rows, without.rows)
        assert weights_of(dataset) == WEIGHTS.tolist()


def test_the_column_need_not_be_among_those_to_use() -> None:
    for columns in (["a", "b"], ["a", "w", "b"]):
        dataset = load(FRAME, weight="w", columns=columns)
        assert dataset.schema.names == ("a", "b")
        assert weights_of(dataset) == WEIGHTS.tolist()


def test_equal_weights_are_no_constant_column() -> None:
    assert weights_of(load(FRAME.assign(w=2), weight="w")) == [2.0] * N


KINDS = [WEIGHTS, WEIGHTS.tolist(), torch.tensor(WEIGHTS), pd.Series(WEIGHTS, index=range(N, 0, -1)), WEIGHTS[:, None]]


@pytest.mark.parametrize("weights", KINDS, ids=["array", "list", "tensor", "Series", "matrix"])
def test_weights_in_memory(weights: Any, tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", FRAME.to_csv(index=False))
    for source in (ROWS, FRAME, path):
        assert weights_of(load(source, weight=weights)) == WEIGHTS.tolist()


def test_weights_stay_with_their_rows() -> None:
    spoiled = FRAME.assign(a=np.where(np.arange(N) % 5 == 1, np.nan, FRAME["a"]))
    for weight in ("w", WEIGHTS):
        dataset = load(spoiled, weight=weight, missing="drop", rows=20, seed=3)
        assert dataset.row_numbers is not None
        assert len(dataset.row_numbers) == 20
        assert weights_of(dataset) == WEIGHTS[dataset.row_numbers].tolist()


def test_scaled_weights_keep_their_ratios_exactly() -> None:
    for scale in (1e-300, 1e-44, 1 / 3, 1.0, 1e60):
        weights = WEIGHTS * scale
        scaled = scale_weights(weights)
        assert 1 <= scaled.max() < 2
        assert np.array_equal(scaled / scaled.max(), weights / weights.max())
    assert np.array_equal(scale_weights(WEIGHTS * 2.0**-900), scale_weights(WEIGHTS))
    assert scale_weights(np.array([1e-310])).max() >= 1
    assert scale_weights(np.zeros(2)).tolist() == [0, 0]


BAD: dict[str, tuple[Any, str]] = {
    "too few": (WEIGHTS[1:], "data.weight: expected 40 numbers; got 39"),
    "two a row": (np.ones((N, 2)), "data.weight: expected 40 numbers; got 40 rows of 2 columns"),
    "negative": (
        np.where(WEIGHTS == 3, -1.5, WEIGHTS),
        "data.weight: has -1.5 in row 7; expected finite numbers of at least 0",
    ),
    "NaN": (
        np.where(WEIGHTS == 3, np.nan, WEIGHTS),
        "data.weight: has 5 missing values (12 %, first in row 7); expected finite numbers of at least 0",
    ),
    "infinite": (
        [1.0, np.inf] * (N // 2),
        "data.weight: has 20 infinite values (50 %, first in row 2); expected finite numbers of at least 0",
    ),
    "only infinite": (
        np.full(N, np.inf),
        "data.weight: has no finite values (0 missing, 40 infinite); expected finite numbers of at least 0",
    ),
    "text": (["x"] * N, "data.weight: holds text ('x' in row 1); expected finite numbers of at least 0"),
    "all 0": (np.zeros(N), "data.weight: is 0 in every row; expected some weights above 0"),
    "a number": (2.0, "data.weight: expected an array, a torch tensor, "),
    "other column": ("v", "data: data.weight names 'v'; the columns are: a, w, b, c"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_refused(case: str) -> None:
    weights, message = BAD[case]
    with pytest.raises(DataError) as caught:
        load(FRAME, weight=weights)
    assert str(caught.value).startswith(message)


def test_a_bad_column_of_weights_is_refused() -> None:
    for values, what in (
        (-1.0, "has -1 in row 1"),
        (np.nan, "has no values at all"),
        ("x", "holds text ('x' in row 1)"),
    ):
        with pytest.raises(DataError) as caught:
            load(FRAME.assign(w=values), weight="w", missing="drop")
        assert str(caught.value) == f"data.weight: column 'w' {what}; expected finite numbers of at least 0"


def test_weights_of_the_rows_that_stay_must_not_all_be_0() -> None:
    spoiled = FRAME.assign(a=np.where(WEIGHTS > 0, np.nan, FRAME["a"]))
    with pytest.raises(DataError, match=r"data.weight: is 0 in every row"):
        load(spoiled, weight="w", missing="drop")


def test_a_column_of_weights_has_no_other_role() -> None:
    roles: list[tuple[dict[str, Any], str]] = [
        ({"context": ["w"]}, "data.given"),
        ({"response": ["w"]}, "data.response"),
        ({"drop": ["w"]}, "data.drop"),
    ]
    for options, key in roles:
        with pytest.raises(DataError, match=f"data.weight: column 'w' is also in {key}; take it out of one of them"):
            load(FRAME, weight="w", **options)


def test_weights_need_rows_of_the_users_own() -> None:
    with pytest.raises(DataError, match="weight: goes with rows in memory or in a file; got the data set moons"):
        load("moons", rows=N, weight=WEIGHTS)
