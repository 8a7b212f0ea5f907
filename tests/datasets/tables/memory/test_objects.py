"""Rows in memory of every kind become the same data set, and what cannot be used is refused in one line."""

import datetime
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch

from pushforward.common.errors import DataError, TableError
from pushforward.datasets import Column, Schema, load
from pushforward.datasets.tables.memory.frames import feature_rows

ROWS = np.array([[0.5, 3.0], [1.25, 1.0], [2.0, 7.0], [8.0, 2.5]])
COLUMNS = {"a": ROWS[:, 0], "b": ROWS[:, 1]}


def _matrix() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix(ROWS)


NAMED: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas, shuffled": lambda: pd.DataFrame(COLUMNS, index=[3, 1, 2, 0]),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "Arrow": lambda: pa.table(COLUMNS),
    "record batch": lambda: pa.record_batch(COLUMNS),
    "dict of arrays": lambda: COLUMNS,
    "dict of kinds": lambda: {"a": torch.tensor(ROWS[:, 0]), "b": pd.Series(ROWS[:, 1], index=list("pqrs"))},
    "structured array": lambda: np.array([tuple(row) for row in ROWS], dtype=[("a", float), ("b", float)]),
    "text that is numbers": lambda: pd.DataFrame(ROWS, columns=["a", "b"]).astype(str),
    "numbers as objects": lambda: pd.DataFrame(ROWS, columns=["a", "b"]).astype(object),
}
NAMELESS: dict[str, Callable[[], Any]] = {
    "array": lambda: ROWS,
    "array of other strides": lambda: np.asfortranarray(np.repeat(ROWS, 2, axis=0))[::2],
    "big-endian array": lambda: ROWS.astype(">f8"),
    "long double": lambda: ROWS.astype(np.longdouble),
    "array of objects": lambda: ROWS.astype(object),
    "decimals": lambda: np.array([[Decimal(str(cell)) for cell in row] for row in ROWS], dtype=object),
    "array of text": lambda: ROWS.astype(str),
    "tensor": lambda: torch.tensor(ROWS),
    "tensor with gradients": lambda: torch.tensor(ROWS, requires_grad=True),
    "matrix": _matrix,
    "list": lambda: ROWS.tolist(),
    "list of arrays": lambda: list(ROWS),
    "list of tensors": lambda: list(torch.tensor(ROWS)),
    "tuples": lambda: tuple(map(tuple, ROWS.tolist())),
}


@pytest.mark.parametrize("kind", [*NAMED, *NAMELESS])
def test_every_kind_gives_the_same_rows(kind: str) -> None:
    dataset = load({**NAMED, **NAMELESS}[kind]())
    assert dataset.rows.tolist() == ROWS.tolist()
    assert dataset.schema.names == (("a", "b") if kind in NAMED else ("x1", "x2"))
    assert {column.type for column in dataset.schema.columns} == {"double"}
    assert (dataset.name, dataset.source, dataset.is_file) == ("data", "memory", False)


def test_the_name_is_that_of_messages_and_folders() -> None:
    assert load(ROWS, name="wine").name == "wine"
    with pytest.raises(DataError, match=r"^wine: column 'x1' is constant"):
        load(ROWS * [0, 1], name="wine")


TYPES: dict[str, tuple[Any, str]] = {
    "int64": (np.arange(4), "int64"),
    "uint8": (np.arange(4, dtype=np.uint8), "uint8"),
    "float32": (ROWS[:, 0].astype(np.float32), "float"),
    "big-endian float32": (ROWS[:, 0].astype(">f4"), "float"),
    "float16": (ROWS[:, 0].astype(np.float16), "halffloat"),
    "half tensor": (torch.arange(4).half(), "halffloat"),
    "bfloat16": (torch.arange(4).bfloat16(), "float"),
    "true and false": (np.array([True, False, True, True]), "int64"),
    "Int64": (pd.Series([1, 2, 3, 5], dtype="Int64"), "int64"),
    "boolean": (pd.Series([True, False, True, True], dtype="boolean"), "int64"),
    "categories": (pd.Series(pd.Categorical([3, 5, 3, 4])), "int64"),
    "sparse column": (pd.Series(pd.arrays.SparseArray([0.0, 1.0, 0.0, 2.0])), "double"),
    "Int8": (pl.Series([1, 2, 3, 5], dtype=pl.Int8), "int8"),
    "integers in a list": ([1, 2, 3, 5], "int64"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_one_dimension_is_one_column_of_its_type(kind: str) -> None:
    values, expected = TYPES[kind]
    dataset = load(values)
    assert dataset.rows[:, 0].tolist() == [float(value) for value in values]
    assert [(column.name, column.type) for column in dataset.schema.columns] == [("x1", expected)]


def test_resolutions_are_those_of_the_type() -> None:
    tenths = np.arange(1, 60)[:, None] / 10
    for values in (tenths, tenths.astype(np.float32), torch.tensor(tenths).float()):
        assert load(values).schema.columns[0].step == pytest.approx(0.1)


def test_the_checksum_is_of_names_and_values() -> None:
    checksum = load(ROWS).sha256
    assert checksum == load(ROWS.tolist()).sha256 == load(torch.tensor(ROWS)).sha256
    assert load(pd.DataFrame(COLUMNS)).sha256 == load(pl.DataFrame(COLUMNS)).sha256 != checksum
    assert load(ROWS * (1 + 1e-9)).sha256 != checksum
    assert load(ROWS[::-1]).sha256 != checksum


def test_an_index_with_a_name_is_left_out_unless_it_is_asked_for() -> None:
    frame = pd.DataFrame(COLUMNS, index=pd.Index([4, 7, 1, 9], name="id"))
    dataset = load(frame)
    assert dataset.schema.names == ("a", "b")
    assert dataset.notes == ("data: left out the index id; columns can name it",)
    assert load(frame, columns=["a", "id"]).schema.names == ("a", "id")
    assert load(frame, context=["id"]).context.tolist() == [[4.0], [7.0], [1.0], [9.0]]
    for index in (None, [4, 7, 1, 9], pd.RangeIndex(4, name="id")):
        assert load(pd.DataFrame(COLUMNS, index=index)).notes == ()
    assert load(pd.DataFrame(COLUMNS, index=pd.Index([4, 7, 1, 9], name="a"))).rows.tolist() == ROWS.tolist()
    two = pd.DataFrame(COLUMNS, index=pd.MultiIndex.from_arrays([list("pqrs"), [1, 2, 3, 4]], names=["town", None]))
    assert load(two).notes == ("data: left out the index town; columns can name it",)
    assert load(pa.Table.from_pandas(frame)).notes == ("data: left out the index id; columns can name it",)


def test_names_that_are_no_text_are_written_as_text() -> None:
    assert load(pd.DataFrame(ROWS)).schema.names == ("0", "1")
    assert load({2020: ROWS[:, 0], 2021: ROWS[:, 1]}).schema.names == ("2020", "2021")


def test_masked_cells_and_nulls_are_missing() -> None:
    masked = np.ma.MaskedArray(np.arange(12).reshape(6, 2), np.arange(12).reshape(6, 2) == 3)
    null = pd.DataFrame({"x1": [0, 2, 4, 6, 8, 10], "x2": pd.array([1, None, 5, 7, 9, 11], dtype="Int64")})
    objects = np.array([[0, 1], [2, None], [4, 5], [6, 7], [8, 9], [10, 11]], dtype=object)
    unknown = objects.copy()
    unknown[1, 1] = pd.NA
    for rows in (masked, list(masked), null, objects, unknown, pl.from_pandas(null)):
        with pytest.raises(TableError, match=r"^data: column 'x2' has 1 missing value \(in row 2\); this works"):
            load(rows)
        dataset = load(rows, missing="drop")
        assert dataset.rows.tolist() == [[0, 1], [4, 5], [6, 7], [8, 9], [10, 11]]
        assert [column.type for column in dataset.schema.columns] == ["int64", "int64"]


def test_rows_of_objects_take_the_options_of_files() -> None:
    frame = pd.DataFrame({"a": np.arange(8.0), "b": [1.0, -9, 4, 2, 8, 5, 7, 3], "s": list("stuvwxyz")})
    dataset = load(frame, drop="s", missing="drop", missing_values=[-9], rows=5, seed=1)
    assert dataset.row_numbers is not None
    assert dataset.rows.tolist() == frame[["a", "b"]].to_numpy()[dataset.row_numbers].tolist()
    assert 1 not in dataset.row_numbers.tolist()
    assert dataset.schema.missing_values == (-9.0,)
    assert len(load(np.random.default_rng(0).normal(size=(200, 3)), protocol="tenths").splits or ()) == 3


SPOILED = np.array([[1.0, 2.0], [3.0, np.nan], [np.inf, 5.0], [7.0, 9.0], [8.0, 1.0]])
REPORTS: dict[str, tuple[Any, str]] = {
    "NaN": (
        np.where(np.isinf(SPOILED), 4.0, SPOILED),
        "data: column 'x2' has 1 missing value (in row 2); this works, with 4 of 5 rows: missing=\"drop\"",
    ),
    "infinite too": (
        SPOILED,
        "data: 2 of 2 columns cannot be used as they are\n"
        "  'x1'  has 1 infinite value (in row 3)\n"
        "  'x2'  has 1 missing value (in row 2)\n"
        'this works, with 3 of 5 rows: missing="drop"',
    ),
    "text": (
        pd.DataFrame({"a": [1.0, 2.0, 4.0], "b c": ["x", "y", "z"]}),
        "data: column 'b c' holds text ('x' in row 1); this works (only numbers are modelled: to keep the column, "
        'encode it as numbers): drop=["b c"]',
    ),
    "text among numbers": (
        [[1.0, 2], [2.0, "x"], [4.0, 5]],
        "data: column 'x2' holds text ('x' in row 2); this works (only numbers are modelled: to keep the column, "
        'encode it as numbers): drop=["x2"]',
    ),
    "dates": (
        pl.DataFrame({"a": [1.0, 2.0, 4.0], "day": [datetime.date(2020, 1, day) for day in (1, 2, 3)]}),
        "data: column 'day' holds dates or times (2020-01-01 in row 1); this works (only numbers are modelled: to keep "
        'the column, encode it as numbers): drop=["day"]',
    ),
    "a name twice": (
        pd.DataFrame(np.c_[ROWS, ROWS[:, 0] ** 2], columns=["a", "b", "a"]),
        "data: column 'a' appears 2 times; this works: drop=[\"a\"]",
    ),
    "a constant": (
        pl.DataFrame({"a": ROWS[:, 0], "b": [2.0] * 4}),
        "data: column 'b' is constant (2), so it has no density; this works: drop=[\"b\"]",
    ),
    "too small": (
        ROWS * [1, 1e-300],
        "data: column 'x2' varies by only 6e-300, whose square underflows; this works: drop=[\"x2\"]",
    ),
    "too small all": (
        ROWS[:, :1] * 1e-300,
        "data: column 'x1' varies by only 7.5e-300, whose square underflows; no column is left to model; to keep one, "
        "rescale it",
    ),
    "too few rows": (ROWS[:2], "data: 2 rows for 2 columns; at least 3 rows are needed"),
    "large integers": (
        np.array([[2**60, 1], [2**60 + 1, 2], [2**60 + 2, 5]]),
        "data: column 'x1' holds integers beyond 2**53, which float64 cannot represent exactly; this works: "
        'drop=["x1"]',
    ),
}


@pytest.mark.parametrize("case", REPORTS)
def test_the_report_names_the_keywords_that_work(case: str) -> None:
    rows, message = REPORTS[case]
    with pytest.raises(DataError) as caught:
        load(rows)
    assert str(caught.value) == message


GIVEN: dict[str, tuple[Any, str]] = {
    "array": (ROWS * np.nan, "given: 2 of 2 columns cannot be used as they are\n  'c1'  has no values at all"),
    "one column": (ROWS[:, 0] * np.nan, "given: column 'c1' has no values at all; no column is left to condition on"),
    "infinite": (ROWS[:, 0] * np.inf, "given: column 'c1' has no finite values (0 missing, 4 infinite); no column is"),
    "frame": (
        pd.DataFrame({"u": ROWS[:, 0], "v": np.nan}),
        "given: column 'v' has no values at all; this works: drop=[\"v\"]",
    ),
    "one cell": (
        [[1.0], [np.nan], [3.0], [5.0]],
        "given: column 'c1' has 1 missing value (in row 2); this works, with 3 of 4 rows: missing=\"drop\"",
    ),
}


@pytest.mark.parametrize("case", GIVEN)
def test_the_report_names_given(case: str) -> None:
    given, message = GIVEN[case]
    with pytest.raises(DataError) as caught:
        load(ROWS, given=given)
    assert str(caught.value).startswith(message)
    with pytest.raises(DataError, match=r"^data: \d of \d columns cannot be used as they are"):
        load(ROWS * [1, np.nan], given=given)


def test_what_is_given_cannot_all_be_left_out() -> None:
    with pytest.raises(DataError, match=r"^data: data.drop names every column of given; leave at least one"):
        load(ROWS, given=ROWS[:, 0], drop=["c1"])


def test_notes_name_keywords_too() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 3))
    counted, dependent = np.c_[rows, np.arange(30)], np.c_[rows, rows[:, 0] + rows[:, 1]]
    assert load(counted).notes[0].endswith('leave it out with drop=["x4"]')
    assert load(dependent).notes[0].endswith('leave out with drop=["x4"]')
    with pytest.raises(
        TableError, match=r'^data: column \'x2\' is constant .* density; leave out what is constant: drop=\["x2"\]$'
    ):
        load(np.c_[rows[:, 0], np.arange(30) == 7], rows=5, seed=1)


def test_the_keywords_of_the_report_work() -> None:
    frame = pd.DataFrame({"a": [1.0, 2, 4, 3, 9], "s": list("stuvw"), "y": [2.0, 1, np.nan, 5, 4]})
    with pytest.raises(TableError) as caught:
        load(frame, response=["y"], rows=3, seed=2)
    keywords = str(caught.value).splitlines()[-1].partition(": ")[2]
    keywords = keywords.removeprefix("to keep the column, encode it as numbers): ")
    assert keywords == 'response=["y"], drop=["s"], missing="drop", rows=3, seed=2'
    assert load(frame, **eval(f"dict({keywords})")).rows.shape == (3, 1)


def _made() -> Any:
    yield from ROWS


KINDS = "an array, a torch tensor, a pandas, polars or Arrow table, a dict of columns, or a list of rows"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "complex array": (lambda: ROWS + 1j, "expected real numbers; got complex128"),
    "complex tensor": (lambda: torch.tensor(ROWS) + 1j, "expected real numbers; got complex128"),
    "sparse matrix": (
        lambda: scipy.sparse.csr_matrix(ROWS),
        "expected dense rows; got a sparse csr_matrix; call .toarray() first",
    ),
    "sparse array": (
        lambda: scipy.sparse.coo_array(ROWS),
        "expected dense rows; got a sparse coo_array; call .toarray() first",
    ),
    "sparse tensor": (
        lambda: torch.tensor(ROWS).to_sparse(),
        "expected dense rows; got a sparse tensor; call .to_dense() first",
    ),
    "three dimensions": (
        lambda: np.zeros((2, 3, 4)),
        "expected rows of the shape (rows, columns); got the shape (2, 3, 4)",
    ),
    "no dimension": (lambda: np.array(1.0), "expected rows of the shape (rows, columns); got a single number"),
    "a number": (lambda: 1.0, f"expected {KINDS}; got float"),
    "nothing": (lambda: None, f"expected {KINDS}; got nothing"),
    "generator": (_made, f"expected {KINDS}; got generator; make a list of it"),
    "bytes": (lambda: b"1,2", f"expected {KINDS}; got bytes"),
    "lazy frame": (
        lambda: pl.DataFrame(COLUMNS).lazy(),
        "expected rows; got a polars LazyFrame; call .collect() first",
    ),
    "levels of names": (
        lambda: pd.DataFrame(ROWS, columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
        "expected columns with one name each; got a MultiIndex; join its levels to names",
    ),
    "ragged list": (
        lambda: [[1.0, 2.0], [3.0, 4.0], [5.0]],
        "expected rows of equal lengths; got 2 cells in row 1 and 1 in row 3",
    ),
    "ragged columns": (
        lambda: {"a": [1.0, 2.0], "b": [1.0]},
        "expected columns of equal lengths; got 2 rows in 'a' and 1 in 'b'",
    ),
    "wide column": (lambda: {"a": [1.0], "b": [[1.0, 2.0]]}, "column 'b': expected one dimension; got 2 columns"),
    "a nested tensor": (
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
        "expected dense rows; got a nested tensor; call .to_padded_tensor(nan) first",
    ),
    "a quantized tensor": (
        lambda: quantized(),
        "expected dense rows; got a quantized tensor; call .dequantize() first",
    ),
    "a tensor on meta": (
        lambda: torch.empty(9, 2, device="meta"),
        "expected dense rows; got a tensor without values, on the device meta",
    ),
    "no rows": (lambda: np.empty((0, 2)), "expected at least 1 row; got none"),
    "an empty list": (list, "expected at least 1 row; got none"),
    "a frame without rows": (lambda: pd.DataFrame({"a": [], "b": []}), "expected at least 1 row; got none"),
    "no columns": (lambda: np.empty((3, 0)), "expected at least 1 column; got none"),
    "an empty frame": (pd.DataFrame, "expected at least 1 column; got none"),
}


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch gives them up, but people have them
        return torch.quantize_per_tensor(torch.ones(9, 2), 0.1, 0, torch.qint8)


SCHEMA = Schema(tuple(Column(name, "double", 0.0, 1.0, None, None, 10, 0.0) for name in "ab"))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_is_refused_in_one_line(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(DataError) as loading:
        load(make())
    assert str(loading.value) == f"data: {message}"
    with pytest.raises(DataError) as scoring:
        feature_rows(make(), SCHEMA)
    assert str(scoring.value) == f"the rows: {message}"


def test_text_of_every_type_is_quoted() -> None:
    words = ["x", "y", "z"]
    for text in (
        np.array(words),
        np.array(words, dtype=object),
        pd.Series(words),
        pd.Categorical(words),
        pl.Series(words),
        pl.Series(words, dtype=pl.Categorical),
        pa.array(words, pa.string_view()),
        pa.array(words).dictionary_encode(),
        np.array(words, dtype="S1"),
        words,
    ):
        with pytest.raises(TableError, match=r"^data: column 's' holds text \('x' in row 1\); this works"):
            load({"a": [1.0, 2.0, 4.0], "s": text})


def test_columns_that_arrow_has_no_type_for_are_reported() -> None:
    odd = {
        "complex": np.array([1j, 2j, 3j]),
        "period": pd.Series(pd.period_range("2020-01", periods=3, freq="M")),
        "object": np.array([object()] * 3),
        "list": np.array([[1], [2], None], dtype=object),
        "delta": pd.Series(pd.to_timedelta([1, 2, 3])),
    }
    with pytest.raises(TableError, match=f"(?s)5 of 6 columns.*{'.*'.join(odd)}.*drop="):
        load({"a": [1.0, 2.0, 4.0], **odd})
    assert load({"a": [1.0, 2.0, 4.0], **odd}, drop=list(odd)).rows.tolist() == [[1.0], [2.0], [4.0]]
