"""Names decide which column is which, in every kind of table that has names; places do in arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from pushforward.common.errors import DataError, TableError
from pushforward.datasets import Column, Schema, load
from pushforward.datasets.tables.memory.frames import context_rows, feature_rows
from pushforward.datasets.tables.memory.objects import EXPECTED


def column(name: str) -> Column:
    return Column(name, "double", 0.0, 1.0, None, None, 10, 0.0)


SCHEMA = Schema((column("a"), column("b")), (column("c"),))
COLUMNS = {"c": np.array([5.0, 6.0]), "b": np.array([3.0, 4.0]), "other": np.array(["x", "y"]), "a": np.array([1, 2])}
STRUCTURED = np.array([(5.0, 3.0, 1.0), (6.0, 4.0, 2.0)], dtype=[("c", float), ("b", float), ("a", float)])
KINDS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(COLUMNS, index=[7, 3]),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "Arrow": lambda: pa.table(COLUMNS),
    "dict": lambda: COLUMNS,
    "structured array": lambda: STRUCTURED,
}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_found_by_name(kind: str) -> None:
    frame = KINDS[kind]()
    assert feature_rows(frame, SCHEMA).tolist() == [[1.0, 3.0], [2.0, 4.0]]
    given = context_rows(frame, None, SCHEMA)
    assert given is not None
    assert given.tolist() == [[5.0], [6.0]]


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "array": np.array,
    "integers": lambda rows: np.array(rows, dtype=np.int8),
    "objects": lambda rows: np.array(rows, dtype=object),
    "list": list,
    "tensor": torch.tensor,
    "half tensor": lambda rows: torch.tensor(rows, dtype=torch.float16, requires_grad=True),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_columns_of_arrays_are_found_by_place(kind: str) -> None:
    make = ARRAYS[kind]
    given = context_rows(make([[1.0, 2.0], [3.0, 4.0]]), make([[5.0], [6.0]]), SCHEMA)
    assert feature_rows(make([[1.0, 2.0], [3.0, 4.0]]), SCHEMA).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert given is not None
    assert given.tolist() == [[5.0], [6.0]]


def test_an_array_of_all_columns_has_them_in_the_order_of_the_table() -> None:
    schema = Schema(SCHEMA.columns, SCHEMA.context, ("a", "c", "b"))
    rows = np.array([[1.0, 5.0, 3.0], [2.0, 6.0, 4.0]])
    given = context_rows(rows, None, schema)
    assert feature_rows(rows, schema).tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert given is not None
    assert given.tolist() == [[5.0], [6.0]]


def test_a_frame_needs_the_names_of_the_fit() -> None:
    with pytest.raises(DataError, match=r"^the rows: lacks the columns a, b; it has 0, 1$"):
        feature_rows(pd.DataFrame([[1.0, 2.0]]), SCHEMA)
    assert feature_rows(pd.DataFrame({1: [1.0], 0: [2.0]}), Schema((column("0"), column("1")))).tolist() == [[2.0, 1.0]]
    with pytest.raises(DataError, match=r"^the rows: lacks the columns b; it has a, c$"):
        feature_rows({"a": [1.0], "c": [1.0]}, SCHEMA)
    indexed = pd.DataFrame({"a": [1.0, 2.0]}, index=pd.Index([3.0, 4.0], name="b"))
    assert feature_rows(indexed, SCHEMA).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_numbers_are_read_as_at_the_fit() -> None:
    fitted = load(pd.DataFrame({"a": ["1,5", "2,5", "4,25"], "b": [True, False, True]}))
    assert feature_rows({"b": [True], "a": ["3,500"]}, fitted.schema).tolist() == [[3.5, 1.0]]
    assert feature_rows(pl.DataFrame({"a": [3.5], "b": [0]}), fitted.schema).tolist() == [[3.5, 0.0]]


def test_values_that_stand_for_missing_ones_are_refused() -> None:
    schema = load([[1.0], [-9.0], [3.0], [5.0], [4.0]], missing="drop", missing_values=[-9]).schema
    for rows in ([[1.0], [-9.0]], {"x1": [1.0, -9.0]}):
        with pytest.raises(TableError, match=r"^the rows: column 'x1' has 1 missing value \(in row 2\); the density"):
            feature_rows(rows, schema)


WIDE = Schema(tuple(map(column, "abcdefgh")))
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (
        lambda: feature_rows([[1.0, 2.0], [3.0, np.nan]], SCHEMA),
        "the rows: column 'b' has 1 missing value (in row 2); the density needs a finite number in each cell",
    ),
    "infinity": (
        lambda: feature_rows(torch.tensor([[1.0, 2.0], [torch.inf, 1.0]]), SCHEMA),
        "the rows: column 'a' has 1 infinite value (in row 2); the density needs a finite number in each cell",
    ),
    "text": (
        lambda: feature_rows(pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]}), SCHEMA),
        "the rows: column 'a' holds text ('x' in row 1); the density needs a finite number in each cell",
    ),
    "a name twice": (
        lambda: feature_rows(pd.DataFrame([[1.0, 2.0, 3.0]], columns=["a", "b", "a"]), SCHEMA),
        "the rows: column 'a' appears 2 times; the density needs a finite number in each cell",
    ),
    "both columns": (
        lambda: feature_rows({"a": ["x"], "b": [None]}, SCHEMA),
        "the rows: 2 of 2 columns cannot be used as they are\n"
        "  'a'  holds text ('x' in row 1)\n"
        "  'b'  has no values at all\n"
        "the density needs a finite number in each cell",
    ),
    "too few columns": (
        lambda: feature_rows(np.zeros((3, 7)), WIDE),
        "the rows: expected 8 columns (a, b, c, ...); got 7",
    ),
    "one column too many": (
        lambda: feature_rows(np.zeros((3, 4)), SCHEMA),
        "the rows: expected 2 columns (a, b); got 4",
    ),
    "one row alone": (lambda: feature_rows([1.0, 2.0], SCHEMA), "the rows: expected 2 columns (a, b); got 1"),
    "the path of a file": (lambda: feature_rows("t.csv", SCHEMA), f"the rows: expected {EXPECTED}; got str"),
    "no context": (
        lambda: context_rows(np.zeros((5, 2)), None, SCHEMA),
        "given: expected 5 rows of 1 column (c); got nothing",
    ),
    "no context in a frame": (
        lambda: context_rows({"a": [1.0], "b": [1.0]}, None, SCHEMA),
        "the rows: lacks the columns c; it has a, b",
    ),
    "no context to sample": (
        lambda: context_rows(None, None, SCHEMA),
        "given: expected 1 row of 1 column (c); got nothing",
    ),
    "context of other rows": (
        lambda: context_rows(np.zeros((500, 2)), np.zeros((499, 1)), SCHEMA),
        "given: expected 500 rows; got 499",
    ),
    "context of other columns": (
        lambda: context_rows(None, np.zeros((5, 2)), SCHEMA),
        "given: expected 1 column (c); got 2",
    ),
    "context among all columns": (
        lambda: context_rows(None, np.zeros((5, 3)), SCHEMA),
        "given: expected 1 column (c); got 3",
    ),
    "all columns beside context": (
        lambda: feature_rows(np.zeros((5, 3)), SCHEMA, alone=True),
        "the rows: expected 2 columns (a, b); got 3",
    ),
    "context of other names": (
        lambda: context_rows(None, {"d": [1.0]}, SCHEMA),
        "given: lacks the columns c; it has d",
    ),
    "context with NaN": (
        lambda: context_rows(None, [[np.nan], [1.0]], SCHEMA),
        "given: column 'c' has 1 missing value (in row 1); the density needs a finite number in each cell",
    ),
    "context without need": (
        lambda: context_rows(np.zeros((5, 8)), np.zeros((5, 1)), WIDE),
        "given: expected nothing, as the density is not conditional; got context rows",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_scored_says_why(case: str) -> None:
    score, message = BAD[case]
    with pytest.raises(DataError) as caught:
        score()
    assert str(caught.value) == message


def test_one_context_row_may_stand_for_all() -> None:
    given = context_rows(np.zeros((5, 2)), [[4.0]], SCHEMA)
    assert given is not None
    assert given.tolist() == [[4.0]]
