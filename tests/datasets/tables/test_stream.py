"""Files are scored chunk by chunk with the same results and errors as whole files, in constant memory."""

from pathlib import Path

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.datasets import RowStream, Schema, read_rows, read_table
from pushforward.datasets.tables.read import to_numbers
from tests.fixtures.streams import (
    NAMES,
    message_for_whole_file,
    noise_table,
    small_chunks as small_chunks,
    stream_schema as stream_schema,
    write_stream,
    write_with,
)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npy", "t.csv.gz"])
@pytest.mark.usefixtures("small_chunks")
def test_concatenated_chunks_are_the_table(name: str, stream_schema: Schema, tmp_path: Path) -> None:
    content = noise_table(500, seed=1)
    path = write_stream(tmp_path / name, content)
    features, contexts = zip(*RowStream(path, stream_schema), strict=True)
    assert [len(chunk) for chunk in features] == [16] * 31 + [4]
    whole = to_numbers(content, "t", NAMES).matrix
    np.testing.assert_array_equal(np.concatenate(features), whole[:, :2])
    np.testing.assert_array_equal(np.concatenate(contexts), whole[:, 2:])
    rows, context, notes = read_rows(path, stream_schema)
    assert (rows.shape, context.shape, notes) == ((500, 2), (500, 1), ())


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (["true", "false"] * 250, "holds true and false"),
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
    with pytest.raises(DataError) as caught:
        read_rows(path, stream_schema)
    assert str(caught.value) == message_for_whole_file(path)
    assert what in str(caught.value)


@pytest.mark.parametrize("cells", [{"b": "+5"}, {"b": " 5 "}, {"b": "1_0"}, {"a": str(2**60), "b": "0.5"}])
@pytest.mark.usefixtures("small_chunks")
def test_unusual_spellings_of_numbers_are_read_as_in_the_whole_file(
    cells: dict[str, str], stream_schema: Schema, tmp_path: Path
) -> None:
    changes = tuple((430 + k, name, cell) for k, (name, cell) in enumerate(cells.items()))
    path = write_with(tmp_path / "t.csv", changes)
    whole = to_numbers(read_table(path), "t", NAMES).matrix
    np.testing.assert_array_equal(np.concatenate(read_rows(path, stream_schema)[:2], axis=1), whole)


@pytest.mark.usefixtures("small_chunks")
def test_quoted_line_ends_and_carriage_returns(stream_schema: Schema, tmp_path: Path) -> None:
    lines = [f'{k},{k * k},{-k},"two\nlines, and ""quotes"""' for k in range(400)]
    for end in ("\n", "\r\n"):
        (tmp_path / "t.csv").write_text("\ufeffa,b,c,note\n" + end.join(lines), newline="")
        rows, _, notes = read_rows(tmp_path / "t.csv", stream_schema)
        assert rows.tolist() == [[k, k * k] for k in range(400)]
        assert notes == ("t.csv: ignored note, which the model does not use",)
