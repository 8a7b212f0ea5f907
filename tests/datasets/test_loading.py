"""Which columns are modelled and which are conditioned on: a response given the rest, and context from elsewhere."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pushforward.common.errors import DataError, TableError
from pushforward.datasets import load
from tests.fixtures.tables import write_file

N = 30
ROWS = np.random.default_rng(0).normal(size=(N, 4))
FRAME = pd.DataFrame(ROWS, columns=["a", "b", "c", "y"])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_file(tmp_path / "t.csv", FRAME.to_csv(index=False))


def test_a_response_is_modelled_given_all_other_columns(table: Path) -> None:
    for source in (FRAME, table):
        dataset = load(source, response=["y"])
        assert (dataset.schema.names, dataset.schema.context_names) == (("y",), ("a", "b", "c"))
        assert dataset.schema.order == ("a", "b", "c", "y")
        assert np.array_equal(dataset.rows, ROWS[:, 3:])
        assert np.array_equal(dataset.context, ROWS[:, :3])
        same = load(source, context=["a", "b", "c"])
        assert (dataset.schema, dataset.sha256) == (same.schema, same.sha256)


def test_a_response_is_modelled_given_the_columns_that_are_left() -> None:
    assert load(FRAME, response=["y", "b"], drop=["c"]).schema.context_names == ("a",)
    assert load(FRAME, response="y", columns=["b"]).schema.context_names == ("b",)
    assert load(FRAME.assign(k=1.0).set_index("k"), response="y").schema.context_names == ("a", "b", "c")
    assert load(ROWS, response="x4").schema.context_names == ("x1", "x2", "x3")


def test_a_response_of_a_data_set_known_by_name() -> None:
    iris = load("iris", response="petal width (cm)")
    assert iris.schema.names == ("petal width (cm)",)
    assert len(iris.schema.context_names) == 3
    moons = load("moons", rows=20, response="x1")
    assert (moons.schema.names, moons.schema.context_names, moons.toy) == (("x1",), ("x2",), None)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"response": ["yy"]}, "{}: data.response names 'yy'; did you mean 'y'? the columns are: a, b, c, y"),
    "every column": (
        {"response": list("abcy")},
        "{}: data.response names every column; leave at least one to condition on",
    ),
    "all that is left": (
        {"response": ["y"], "drop": list("abc")},
        "{}: data.response names every column; leave at least one to condition on",
    ),
    "with context": (
        {"response": ["y"], "context": ["a"]},
        "data.response: conditions on all other columns; leave data.given out, or data.response",
    ),
    "dropped": (
        {"response": ["y"], "drop": ["y"]},
        "data.response: column 'y' is also in data.drop; take it out of one of them",
    ),
    "no column of its own": ({"context": list("abcy")}, "{}: every column is context; leave at least one to model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_roles_name_their_key(case: str, table: Path) -> None:
    options, message = BAD[case]
    for source, where in ((FRAME, "data"), (table, "t.csv")):
        with pytest.raises(DataError) as caught:
            load(source, **options)
        assert str(caught.value) == message.format(where)


def test_advice_repeats_the_response_and_the_weights(tmp_path: Path) -> None:
    frame = FRAME.assign(s="text", w=1.0)
    path = write_file(tmp_path / "t.csv", frame.to_csv(index=False))
    with pytest.raises(TableError) as caught:
        load(path, response=["y"], weight="w")
    command = str(caught.value).splitlines()[-1]
    assert shlex.split(command)[3:] == ["data.response=y", "data.weight=w", "data.drop=s"]
    with pytest.raises(TableError) as caught:
        load(frame, response=["y"], weight="w")
    assert str(caught.value).endswith('): response=["y"], weight="w", drop=["s"]')
    # The context of a response has no option: these columns have to be named, or it would be lost.
    many = frame.assign(**{f"s{k}": "text" for k in range(20)})
    with pytest.raises(TableError, match=r'columns=\["a", "b", "c", "y"\], response=\["y"\], weight="w"$'):
        load(many, response=["y"], weight="w")


def test_an_obstacle_in_a_response_or_in_all_of_its_context_leaves_nothing() -> None:
    with pytest.raises(TableError, match=r"data.response names 's': encode it as numbers, or take it out there"):
        load(FRAME.assign(s="text"), response="s")
    with pytest.raises(TableError, match="no column is left to condition on; to keep one, encode it as numbers"):
        load(FRAME[["y"]].assign(s="text"), response="y")


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list])
def test_context_that_comes_as_an_object(kind: Any, table: Path) -> None:
    given = np.random.default_rng(1).normal(size=(N, 2))
    for source in (ROWS, FRAME, table):
        dataset = load(source, given=kind(given))
        assert np.array_equal(dataset.rows, ROWS)
        assert np.array_equal(dataset.context, given)
        assert dataset.schema.context_names == ("c1", "c2")
        assert dataset.schema.order[-2:] == ("c1", "c2")


def test_names_of_context_are_its_own_or_new_ones() -> None:
    theta = pd.DataFrame({"mass": np.arange(N), "spin": ROWS[:, 0] ** 2}, index=pd.Index(range(3, 3 + N), name="id"))
    assert load(ROWS, given=theta).schema.context_names == ("mass", "spin")
    assert load(ROWS, given=theta["spin"]).schema.context_names == ("spin",)
    assert load({"c1": ROWS[:, 0], "c2": ROWS[:, 1]}, given=ROWS[:, 2:] ** 2).schema.context_names == ("c_1", "c_2")
    assert load(ROWS, given=theta, drop="mass").schema.context_names == ("spin",)
    assert load(FRAME, given=theta, context="c").schema.context_names == ("c", "mass", "spin")
    one = load(FRAME, given=theta, columns=["a"]).schema
    assert (one.names, one.context_names) == (("a",), ("mass", "spin"))


def test_context_is_read_as_rows_are() -> None:
    theta = pd.DataFrame(
        {"mass": [f"{k},500" for k in range(N)]}, index=pd.Index([f"r{k}" for k in range(N)], name="id")
    )
    dataset = load(ROWS, given=theta)
    assert dataset.context[:, 0].tolist() == [k + 0.5 for k in range(N)]
    assert dataset.schema.spellings["mass"].decimal == ","
    assert dataset.notes == ("column 'mass': decimal commas (0,500 is read as 0.5)",)


def test_context_stays_with_its_rows() -> None:
    spoiled, given = ROWS.copy(), ROWS[:, :1] ** 3
    spoiled[::4, 1], given[1] = np.nan, np.nan
    dataset = load(spoiled, given=given, missing="drop", rows=10, seed=2)
    assert dataset.row_numbers is not None
    assert np.array_equal(dataset.context, given[dataset.row_numbers])
    assert not {0, 1, 4} & set(dataset.row_numbers.tolist())


BAD_GIVEN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too few": (ROWS, {"given": ROWS[1:]}, "given: expected 30 rows; got 29"),
    "names of the rows": (
        FRAME,
        {"given": FRAME[["b"]]},
        "given: expected other names than those of the rows; got 'b' in both; rename one",
    ),
    "with a response": (
        FRAME,
        {"given": ROWS, "response": ["y"]},
        "data.response: conditions on all other columns; leave data.given out, or data.response",
    ),
    "text": (
        ROWS,
        {"given": {"mood": ["x"] * N, "spin": ROWS[:, 0] ** 2}},
        "given: column 'mood' holds text ('x' in row 1); this works (only numbers are modelled: to keep the column, "
        'encode it as numbers): drop=["mood"]',
    ),
    "complex": (ROWS, {"given": ROWS * 1j}, "given: expected real numbers; got complex128"),
    "a toy": ("moons", {"given": ROWS}, "given: goes with rows in memory or in a file; got the data set moons"),
}


@pytest.mark.parametrize("case", BAD_GIVEN)
def test_context_that_does_not_fit_is_refused(case: str) -> None:
    rows, options, message = BAD_GIVEN[case]
    with pytest.raises(DataError) as caught:
        load(rows, **options)
    assert str(caught.value) == message
