"""Files are scored chunk by chunk with the same results and errors as whole files, in constant memory."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pushforward.common.errors import DataError, TableError
from pushforward.datasets import RowStream, Schema, load, read_rows, read_table
from pushforward.datasets.tables.read import read_columns
from tests.fixtures.streams import (
    NAMES,
    message_for_whole_file,
    noise_table,
    small_chunks as small_chunks,
    stream_schema as stream_schema,
    write_stream,
    write_with,
)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npy", "t.csv.gz", "t.feather", "t.jsonl"])
@pytest.mark.usefixtures("small_chunks")
def test_concatenated_chunks_are_the_table(name: str, stream_schema: Schema, tmp_path: Path) -> None:
    content = noise_table(500, seed=1)
    path = write_stream(tmp_path / name, content)
    features, contexts = zip(*RowStream(path, stream_schema), strict=True)
    assert [len(chunk) for chunk in features] == [16] * 31 + [4]
    whole = read_columns(content, NAMES).numbers.matrix
    np.testing.assert_array_equal(np.concatenate(features), whole[:, :2])
    np.testing.assert_array_equal(np.concatenate(contexts), whole[:, 2:])
    rows, context, notes = read_rows(path, stream_schema)
    assert (rows.shape, context.shape) == ((500, 2), (500, 1))
    assert ["outside the recorded values" in note for note in notes] == [True]


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (["5", "1_0"] * 250, "holds text ('1_0' in row 2)"),
        ([f"2020-01-{day % 28 + 1:02}" for day in range(500)], "holds dates or times (2020-01-01 in row 1)"),
        ([str(2**60 + k) for k in range(500)], "holds integers beyond 2**53"),
        (["7"] * 400 + [str(2**60)] * 100, "holds integers beyond 2**53"),
        ([""] * 500, "has no values at all"),
        (["5", "7"] * 100 + ["2020-01-01"] * 300, "holds text ('2020-01-01' in row 201)"),
    ],
)
@pytest.mark.usefixtures("small_chunks")
def test_bad_columns_are_refused_as_in_the_whole_file(
    column: list[str], what: str, stream_schema: Schema, tmp_path: Path
) -> None:
    path = write_with(tmp_path / "t.csv", tuple((row + 1, "b", cell) for row, cell in enumerate(column)))
    with pytest.raises(TableError) as caught:
        read_rows(path, stream_schema)
    assert caught.value.report == message_for_whole_file(path)
    assert what in caught.value.report


@pytest.mark.usefixtures("small_chunks")
def test_rows_with_missing_values_are_left_out_on_request(stream_schema: Schema, tmp_path: Path) -> None:
    """Whole chunks may have none left; the other rows keep their order."""
    holes = tuple((row, "abc"[row % 3], ("", "inf", "-7")[row % 3]) for row in (*range(1, 100), 250, 500))
    path = write_with(tmp_path / "t.csv", holes)
    schema = dataclasses.replace(stream_schema, missing_values=(-7.0,))
    rows = RowStream(path, schema, missing="drop")
    features, contexts = zip(*rows, strict=True)
    kept = np.setdiff1d(np.arange(500), [row - 1 for row, _, _ in holes])
    whole = read_columns(noise_table(500), NAMES).numbers.matrix[kept]
    np.testing.assert_array_equal(np.concatenate(features), whole[:, :2])
    np.testing.assert_array_equal(np.concatenate(contexts), whole[:, 2:])
    note = "t.csv: 101 of 500 rows have missing values and are left out (data.missing=drop)"
    assert rows.findings[0] == note
    with pytest.raises(TableError, match="3 of 3 columns cannot be used as they are"):
        read_rows(path, schema)
    # Other obstacles are still refused, and missing cells are then no part of the report.
    with pytest.raises(TableError, match=r"^t.csv: column 'b' holds text \('north' in row 40\)\n"):
        list(RowStream(write_with(path, (*holes, (40, "b", "north"))), schema, missing="drop"))
    with pytest.raises(DataError, match=r"^t.csv: all 500 rows have missing values; no row is left$"):
        list(RowStream(write_with(path, tuple((k, "ab"[k % 2], "") for k in range(1, 501))), schema, missing="drop"))


def test_the_context_is_compared_with_the_recorded_range(stream_schema: Schema, tmp_path: Path) -> None:
    (column,) = stream_schema.context
    outside = ((7, "c", "99"), (300, "c", repr(column.minimum - 1)))
    rows = RowStream(write_with(tmp_path / "t.csv", outside), stream_schema)
    assert not rows.findings
    assert len(list(rows)) == 1
    assert rows.findings == (
        f"t.csv: 2 of 500 rows have a context outside the recorded values (c of {column.minimum:g} to "
        f"{column.maximum:g}); their densities are an extrapolation",
    )


@pytest.mark.parametrize("cells", [{"b": "+5"}, {"b": " 5 "}, {"a": str(2**60), "b": "0.5"}])
@pytest.mark.usefixtures("small_chunks")
def test_unusual_spellings_of_numbers_are_read_as_in_the_whole_file(
    cells: dict[str, str], stream_schema: Schema, tmp_path: Path
) -> None:
    changes = tuple((430 + k, name, cell) for k, (name, cell) in enumerate(cells.items()))
    path = write_with(tmp_path / "t.csv", changes)
    whole = read_columns(read_table(path), NAMES).numbers.matrix
    np.testing.assert_array_equal(np.concatenate(read_rows(path, stream_schema)[:2], axis=1), whole)


@pytest.mark.usefixtures("small_chunks")
def test_quoted_line_ends_and_carriage_returns(stream_schema: Schema, tmp_path: Path) -> None:
    lines = [f'{k},{k * k},{-k},"two\nlines, and ""quotes"""' for k in range(400)]
    for end in ("\n", "\r\n"):
        (tmp_path / "t.csv").write_text("\ufeffa,b,c,note\n" + end.join(lines), newline="")
        rows, _, notes = read_rows(tmp_path / "t.csv", stream_schema)
        assert rows.tolist() == [[k, k * k] for k in range(400)]
        assert notes[0] == "t.csv: ignored note, which the model does not use"


@pytest.mark.parametrize("drop", [(), ("x2",)])
def test_generated_names_do_not_reorder_a_file_without_names(drop: tuple[str, ...], tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 3))
    np.savetxt(tmp_path / "names.csv", rows, delimiter=",", header="x3,x1,x2", comments="")
    np.savetxt(tmp_path / "bare.csv", rows, delimiter=",")
    schema = load(tmp_path / "names.csv", drop=drop).schema
    if drop:  # which of the three columns are meant cannot be known
        with pytest.raises(DataError, match="has 3 columns and no names, but the model has 2"):
            read_rows(tmp_path / "bare.csv", schema)
    else:
        np.testing.assert_array_equal(read_rows(tmp_path / "bare.csv", schema)[0], rows)
