"""Samples come out as the kind of object that the rows came in as."""

import json
import sys
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from pushforward.common.errors import DataError
from pushforward.datasets import FrameKind, load, rows_table

GENERATOR = np.random.default_rng(0)
N = 12
NUMBERS, COUNTS = GENERATOR.normal(size=(N, 2)), GENERATOR.integers(0, 9, size=(N, 2))
COINS = np.arange(N) % 3 > 0


def round_trip(rows: Any, **options: Any) -> Any:
    """Load rows, and build the same kind of object of all of them, with the kind stored as JSON in between."""
    dataset = load(rows, **options)
    context = dataset.context if dataset.schema.context else None
    kind = FrameKind.from_dict(json.loads(json.dumps(dataset.kind.to_dict())))
    assert kind == dataset.kind
    return kind.build(rows_table(dataset.rows, context, dataset.schema))


PANDAS = {
    "numpy types": pd.DataFrame(
        {
            "z": NUMBERS[:, 0],
            "f": NUMBERS[:, 1].astype(np.float32),
            "n": COUNTS[:, 0],
            "u": COUNTS[:, 1].astype(np.uint8),
            "b": COINS,
        }
    ),
    "types of pandas": pd.DataFrame(
        {
            "i": pd.array(COUNTS[:, 0], dtype="Int64"),
            "b": pd.array(COINS, dtype="boolean"),
            "f": pd.array(NUMBERS[:, 0], dtype="Float32"),
            "a": pd.Series(COUNTS[:, 1], dtype="int32[pyarrow]"),
        }
    ),
    "integers as names": pd.DataFrame(NUMBERS),
    "years as names": pd.DataFrame(NUMBERS, columns=[2021, "b"]),
}


@pytest.mark.parametrize("case", PANDAS)
def test_pandas(case: str) -> None:
    pd.testing.assert_frame_equal(round_trip(PANDAS[case]), PANDAS[case], check_column_type=False)


def test_pandas_rows_are_numbered_anew_and_an_index_is_no_column() -> None:
    index = pd.Index(range(N, 0, -1), name="id").astype("int16")
    frame: Any = pd.DataFrame(NUMBERS, columns=["a", "b"], index=index)
    pd.testing.assert_frame_equal(round_trip(frame), frame.reset_index(drop=True))
    pd.testing.assert_frame_equal(round_trip(frame["b"]), frame[["b"]].reset_index(drop=True))


def test_text_that_was_numbers_comes_out_as_numbers() -> None:
    frame = pd.DataFrame(NUMBERS, columns=["a", "b"])
    for text in (frame.astype(str), frame.astype(object)):
        pd.testing.assert_frame_equal(round_trip(text), frame)
    assert round_trip(pl.from_pandas(frame).cast(pl.String)).schema == pl.Schema({"a": pl.Float64, "b": pl.Float64})


def test_conditional_rows_keep_the_order_and_the_types_of_all_columns() -> None:
    frame: Any = PANDAS["types of pandas"]
    pd.testing.assert_frame_equal(round_trip(frame, response="f"), frame)
    pd.testing.assert_frame_equal(round_trip(frame[["f"]], given=frame[["i", "b"]]), frame[["f", "i", "b"]])


def test_polars() -> None:
    frame = pl.DataFrame(
        {
            "f": pl.Series(NUMBERS[:, 0], dtype=pl.Float32),
            "b": COINS,
            "n": pl.Series(COUNTS[:, 0], dtype=pl.Int8),
            "x": NUMBERS[:, 1],
        }
    )
    drawn = round_trip(frame)
    assert drawn.equals(frame)
    assert drawn.schema == frame.schema
    assert round_trip(frame["n"]).equals(frame[["n"]])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int16", "uint8", "bool"])
def test_arrays_and_tensors(dtype: str) -> None:
    rows = COINS[:, None] if dtype == "bool" else NUMBERS if dtype.startswith("float") else COUNTS
    array = rows.astype(dtype)
    drawn = round_trip(array)
    assert drawn.dtype == array.dtype
    assert np.array_equal(drawn, array)
    tensor = torch.tensor(array)
    again = round_trip(tensor)
    assert again.dtype == tensor.dtype
    assert torch.equal(again, tensor)


def test_other_arrays() -> None:
    assert round_trip(NUMBERS.astype(">f4")).dtype == np.dtype("=f4")
    assert round_trip(COUNTS.tolist()).tolist() == COUNTS.tolist()
    assert round_trip(NUMBERS.astype(str)).tolist() == NUMBERS.tolist()
    half = torch.tensor(NUMBERS).bfloat16()
    assert torch.equal(round_trip(half), half)
    assert round_trip(COUNTS, given=NUMBERS[:, :1]).tolist() == np.hstack([COUNTS, NUMBERS[:, :1]]).tolist()
    assert round_trip(torch.tensor(COUNTS), given=NUMBERS[:, :1]).dtype == torch.float64


def test_what_has_no_kind_of_its_own_becomes_an_arrow_table() -> None:
    for rows in (
        pa.table({"a": NUMBERS[:, 0]}),
        {"a": NUMBERS[:, 0]},
        "iris",
        np.array([(1.5,), (2,), (4,)], [("a", "f8")]),
    ):
        assert isinstance(round_trip(rows), pa.Table)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_without_the_library_the_table_stays(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": [1.5]})
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    assert FrameKind(library).build(table) is table


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"kind": "numpy"},
        {"kind": "excel", "dtype": "", "dtypes": {}, "numbered": []},
        {"kind": "numpy", "dtype": 1, "dtypes": {}, "numbered": []},
    ],
)
def test_a_damaged_kind_is_refused(content: Any) -> None:
    with pytest.raises(DataError, match="kind of rows: expected the keys kind, dtype, dtypes, numbered; the file"):
        FrameKind.from_dict(content)
