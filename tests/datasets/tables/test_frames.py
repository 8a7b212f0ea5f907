"""Names decide which column is which, in every kind of table that has names."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pushforward.common.errors import DataError, TableError
from pushforward.datasets import Column, Schema
from pushforward.datasets.tables.frames import context_rows, feature_rows


def column(name: str) -> Column:
    return Column(name, "double", 0.0, 1.0, None, None, 10, 0.0)


SCHEMA = Schema((column("a"), column("b")), (column("c"),))
COLUMNS = {"c": np.array([5.0, 6.0]), "b": np.array([3.0, 4.0]), "other": np.array(["x", "y"]), "a": np.array([1, 2])}
STRUCTURED = np.array([(5.0, 3.0, 1.0), (6.0, 4.0, 2.0)], dtype=[("c", float), ("b", float), ("a", float)])
KINDS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(COLUMNS, index=[7, 3]),
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


def test_arrays_have_no_names_and_are_taken_as_they_are() -> None:
    rows = np.array([[1, 2], [3, 4]])
    assert feature_rows(rows, SCHEMA).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert context_rows(rows, None, SCHEMA) is None


def test_a_frame_that_cannot_be_used_says_why() -> None:
    with pytest.raises(DataError, match="the rows: lacks the columns b; it has a, c"):
        feature_rows(pd.DataFrame({"a": [1.0], "c": [1.0]}), SCHEMA)
    with pytest.raises(TableError, match="column 'b' has 1 missing value"):
        feature_rows(pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, None]}), SCHEMA)
    with pytest.raises(TableError, match="column 'a' holds text"):
        feature_rows(pd.DataFrame({"a": ["x"], "b": [1.0]}), SCHEMA)
    with pytest.raises(DataError, match="the rows: expected a table of columns with names"):
        feature_rows(pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), SCHEMA)
