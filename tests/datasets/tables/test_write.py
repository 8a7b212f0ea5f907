"""Written tables have the types, grids and order of the columns of the original table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv

from pushforward.common.errors import RunError
from pushforward.datasets import Dataset, load, read_rows, read_table, write_table
from pushforward.datasets.tables.write import RowTables
from tests.fixtures.tables import load_mixed_table, write_file


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_written_rows_have_the_types_and_grids_of_their_table(suffix: str, tmp_path: Path) -> None:
    dataset = load_mixed_table(tmp_path)
    generator = np.random.default_rng(1)
    scale = [0.04, 0.4, 0, 0, 0.4]
    noisy = dataset.rows + scale * generator.uniform(-1, 1, dataset.rows.shape)
    path = tmp_path / f"out{suffix}"
    write_table(path, noisy, dataset.context + 0.3, dataset.schema)
    back = read_table(path)
    types = {"single": "float", "given": "uint8"} if suffix == ".parquet" else {}
    expected = {"tenths": "double", "count": "int64", "given": "int64", "single": "double"}
    expected |= {"free": "double", "whole": "double"} | types
    assert {name: str(kind) for name, kind in zip(back.column_names, back.schema.types, strict=True)} == expected
    assert back.column_names == ["tenths", "count", "given", "single", "free", "whole"]
    rows, context, notes = read_rows(path, dataset.schema)
    assert np.array_equal(rows, dataset.rows) if suffix == ".parquet" else np.allclose(rows, dataset.rows, atol=1e-7)
    assert np.array_equal(rows[:, [0, 1, 3, 4]], dataset.rows[:, [0, 1, 3, 4]])
    assert np.array_equal(context, dataset.context)
    assert notes == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mixed.parquet", f"out{suffix}"]


def test_csv_has_the_decimals_of_the_grid(tmp_path: Path) -> None:
    dataset = load(str(write_file(tmp_path / "t.csv", "a,b,c\n0.1,1,5.25\n0.2,-2,5.5\n0.7,4,6\n-0.4,9,5.75\n")))
    rows = np.array([[0.1 + 0.2, 2.6, 5.3], [-0.04, -0.3, 5.874], [1e3 + 0.06, 1e6, 5.876]])
    write_table(tmp_path / "out.csv", rows, None, dataset.schema)
    assert (tmp_path / "out.csv").read_text() == "a,b,c\n0.3,3,5.25\n0.0,0,5.75\n1000.1,1000000,6.0\n"


def test_csv_has_no_more_digits_than_32_bit_values(tmp_path: Path) -> None:
    dataset = load_mixed_table(tmp_path)
    write_table(tmp_path / "out.csv", dataset.rows, dataset.context, dataset.schema)
    single = [line.split(",")[3] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    assert max(len(cell.lstrip("-0.").replace(".", "")) for cell in single if "e" not in cell) <= 9


def test_a_narrow_integer_does_not_wrap_around(tmp_path: Path) -> None:
    dataset = load_mixed_table(tmp_path)
    write_table(tmp_path / "o.parquet", dataset.rows[:2], np.array([[-7.0], [900.0]]), dataset.schema)
    assert read_table(tmp_path / "o.parquet").column("given").to_pylist() == [0, 255]


def test_values_beyond_the_range_of_a_scale_become_its_ends_and_are_counted(tmp_path: Path) -> None:
    """Only in columns of repeated values; the others may go beyond their range."""
    rows = "".join(f"{k % 5},{k * 37 % 1000 + 5000},{k * 0.37 % 10:.3f}\n" for k in range(1000))
    dataset = load(str(write_file(tmp_path / "t.csv", f"grade,id,weight\n{rows}")))
    tables = RowTables(dataset.schema)
    first = tables.table(np.array([[-3.0, 4000.0, 99.0], [-0.4, 5000.0, 1.0], [9.0, 7000.0, 1.0]]))
    assert first["grade"].to_pylist() == [0, 0, 4]
    assert first["id"].to_pylist() == [4000, 5000, 7000]
    assert first["weight"].to_pylist()[0] == 99.0
    tables.table(np.array([[4.6, 5000.0, 1.0]]))
    assert tables.clipped == {"grade": 3}


def test_a_failed_write_leaves_no_file_and_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_mixed_table(tmp_path)
    out = write_file(tmp_path / "out.csv", "old")

    def fails(table: pa.Table, stream: Any, options: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(arrow_csv, "write_csv", fails)
    with pytest.raises(RunError, match=r"out\.csv: cannot write: disk full"):
        write_table(out, dataset.rows, dataset.context, dataset.schema)
    assert out.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mixed.parquet", "out.csv"]


BAD_WRITES: dict[str, tuple[Callable[[Dataset, Path], None], str]] = {
    "suffix": (
        lambda d, p: write_table(p / "o.xlsx", d.rows, d.context, d.schema),
        r"o.xlsx: expected a file that ends in .csv, .csv.gz, .parquet",
    ),
    "no context": (lambda d, p: write_table(p / "o.csv", d.rows, None, d.schema), r"expected shape \(400, 1\)"),
    "width": (
        lambda d, p: write_table(p / "o.csv", d.rows[:, :2], d.context, d.schema),
        r"expected shape \(400, 5\); got \(400, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD_WRITES)
def test_bad_writes(name: str, tmp_path: Path) -> None:
    call, message = BAD_WRITES[name]
    with pytest.raises(ValueError, match=message):
        call(load_mixed_table(tmp_path), tmp_path)
