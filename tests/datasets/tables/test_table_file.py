"""A table that is written part by part is one file, or nothing; its numbers are written as Python writes them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pushforward.common.errors import RunError
from pushforward.datasets.tables.table_file import TableFile, float_text

SCHEMA = pa.schema([("count", pa.int32()), ("price, net", pa.float64()), ("single", pa.float32())])


def part(start: int, rows: int) -> pa.Table:
    numbers = np.arange(start, start + rows)
    columns = [numbers.astype(np.int32), numbers * 0.5, (numbers * 0.1).astype(np.float32)]
    return pa.table([pa.array(column) for column in columns], schema=SCHEMA)


def test_floats_are_written_as_python_writes_them() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate(
        [generator.standard_normal(20_000) * 10.0 ** generator.integers(-12, 20, 20_000), np.arange(-30.0, 30.0)]
    )
    values[:6] = -np.inf, np.inf, np.nan, -0.0, 1e16, 123456789012.5
    assert float_text(pa.array(values)).to_pylist() == [repr(value) for value in values.tolist()]
    assert float_text(pa.array(values[:0])).to_pylist() == []
    single = values[3:].astype(np.float32)
    text = float_text(pa.array(single)).to_pylist()
    assert np.array_equal(np.array(text, dtype=np.float32), single)
    assert max(len(cell.lstrip("-0.").replace(".", "")) for cell in text if "e" not in cell and cell[-2:] != ".0") <= 9
    assert float_text(pa.array([0.5, 3.0], pa.float16())).to_pylist() == ["0.5", "3.0"]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_parts_make_one_file(name: str, tmp_path: Path) -> None:
    from pushforward.datasets import read_table

    with TableFile(tmp_path / name, SCHEMA) as file:
        for start in (0, 700_000):  # 2 million cells, so that Parquet has more than one row group
            file.write(part(start, 700_000))
            assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    back, whole = read_table(tmp_path / name), part(0, 1_400_000)
    if name == "t.parquet":
        assert back.equals(whole)
        assert parquet.read_metadata(tmp_path / name).num_row_groups == 2
    else:
        assert back.column_names == whole.column_names
        assert back["price, net"].to_pylist() == whole["price, net"].to_pylist()


def test_a_stream_gets_its_header_with_the_first_rows_and_stays_open() -> None:
    stream = io.BytesIO()
    with TableFile(stream, SCHEMA) as file:
        assert stream.getvalue() == b""
        file.write(part(0, 1))
        file.write(part(1, 1))
    assert stream.getvalue() == b'count,"price, net",single\n0,0.0,0.0\n1,0.5,0.1\n'
    stream.write(b"more")


class _Full(io.BytesIO):
    def write(self, data: Any, /) -> int:
        raise OSError(28, "No space left on device", "stdout")


def test_an_error_of_a_stream_keeps_its_name() -> None:
    with pytest.raises(OSError, match="stdout"), TableFile(_Full(), SCHEMA) as file:
        file.write(part(0, 1))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_a_file_larger_than_the_disk_is_refused_with_its_first_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("old")
    with (
        pytest.raises(RunError, match=rf"{name}: 1,000,000,000,000,000 rows need about [\d,.]+ TB, and the disk has"),
        TableFile(tmp_path / name, SCHEMA, rows=10**15) as file,
    ):
        file.write(part(0, 400_000))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "old")]
