"""Reading tables: supported formats, messages about bad files, options, and notes."""

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pushforward.common.errors import DataError
from pushforward.datasets import load, read_rows, write_table
from tests.fixtures.paths import DATA
from tests.fixtures.tables import npy_bytes, parquet_bytes, write_file

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}")


GOOD = "a,b\n1,2.5\n2,3.25\n4,1\n7,8\n"

# name of the file -> (content, the whole message)
BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "empty.csv": ("", "empty.csv: the file is empty"),
    "blank.csv": ("\n \n\n", "blank.csv: the file is empty"),
    "empty.parquet": ("", "empty.parquet: the file is empty"),
    "header.csv": ("a,b\n", "header.csv: has a header and no rows; nothing to learn from"),
    "one.csv": ("a,b\n1,2\n", "one.csv: 1 row for 2 columns; at least 3 rows are needed"),
    "wide.csv": (
        "a,b,c,d,e\n1,2,3,4,5\n2,3,4,5,7\n3,3,1,1,1\n",
        "wide.csv: 3 rows for 5 columns; at least 5 rows are needed",
    ),
    "ragged.csv": ("a,b\n1,2\n3\n4,5\n", "ragged.csv: row 2 has 1 cell, not 2 (line 3); correct it"),
    "long.csv": ("1,2\n3,4\n4,5,6\n", "long.csv: row 3 has 3 cells, not 2 (line 3); correct it"),
    "binary.csv": (
        b"\x00\x01\x02",
        "binary.csv: holds no table that can be read; expected CSV and other delimited text, JSON lines, Parquet, "
        "Feather, .npy and Excel, compressed or not",
    ),
    "cut.csv.gz": (
        gzip.compress(GOOD.encode())[:-9],
        "cut.csv.gz: not a complete gzip file (Compressed file ended before the end-of-stream marker was "
        "reached); fetch it again",
    ),
    "bad.npy": (b"\x93NUMPY nothing", "bad.npy: not a readable .npy matrix of numbers; save it with numpy.save"),
    "vector.npy": (
        npy_bytes(np.arange(5.0)),
        "vector.npy: expected a matrix of shape (rows, columns) of numbers; got shape (5,) of float64",
    ),
    "words.npy": (
        npy_bytes(np.array([["a", "b"]])),
        "words.npy: expected a matrix of shape (rows, columns) of numbers; got shape (1, 2) of <U1",
    ),
    "none.npy": (npy_bytes(np.empty((0, 3))), "none.npy: has no rows; nothing to learn from"),
    "table.xlsx": (
        b"PK\x03\x04",
        "table.xlsx: not a complete zip file (File is not a zip file); fetch it again",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_clear_line(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    path = write_file(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        load(str(path))
    assert str(caught.value) == message


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    # The text in parentheses comes from Arrow and changes with its version.
    whole = parquet_bytes(pa.table({"a": [1.0, 2, 3]}))
    for content in (b"PAR1 nothing", whole[:-20]):
        with pytest.raises(DataError, match=r"^bad.parquet: not a readable Parquet file \(.*\); write it again$"):
            load(str(write_file(tmp_path / "bad.parquet", content)))


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file$"):
        load(str(tmp_path / "nowhere.csv"))
    with pytest.raises(DataError, match=r": is a folder; give one file$"):
        load(tmp_path)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "drop": ({"drop": ["B2"]}, "t.csv: data.drop names 'B2'; did you mean 'b'\\? the columns are: a, b"),
    "columns": ({"columns": ["zzz"]}, "t.csv: data.columns names 'zzz'; the columns are: a, b"),
    "all dropped": ({"drop": ["a", "b"]}, "t.csv: no column is left"),
    "context": ({"context": ["q"]}, "t.csv: data.given names 'q'; the columns are: a, b"),
    "all context": ({"context": ["a", "b"]}, "t.csv: every column is context"),
    "context dropped": ({"context": ["a"], "drop": ["a"]}, "column 'a' is also in data.drop"),
    "no rows": ({"rows": 0}, "data.rows: expected at least 1; got 0"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str, tmp_path: Path) -> None:
    options, message = BAD_OPTIONS[name]
    with pytest.raises(DataError, match=message):
        load(str(write_file(tmp_path / "t.csv", GOOD)), **options)


# name of the file -> (content, names, types); the numbers are those of GOOD
GOOD_FILES: dict[str, tuple[str | bytes, list[str], list[str]]] = {
    "comma.csv": (GOOD, ["a", "b"], ["int64", "double"]),
    "semicolon.csv": (GOOD.replace(",", ";"), ["a", "b"], ["int64", "double"]),
    "tab.tsv": (GOOD.replace(",", "\t"), ["a", "b"], ["int64", "double"]),
    "upper.CSV": (GOOD, ["a", "b"], ["int64", "double"]),
    "zipped.csv.gz": (gzip.compress(GOOD.encode()), ["a", "b"], ["int64", "double"]),
    "bom.csv": (b"\xef\xbb\xbf" + GOOD.encode(), ["a", "b"], ["int64", "double"]),
    "bare_bom.csv": (b"\xef\xbb\xbf" + GOOD[4:].encode(), ["x1", "x2"], ["int64", "double"]),
    "crlf.csv": (GOOD.replace("\n", "\r\n"), ["a", "b"], ["int64", "double"]),
    "blanks.csv": ("\n\n a , b \n1, 2.5\n2, 3.25\n4, 1\n\n7, 8", ["a", "b"], ["int64", "double"]),
    "quoted.csv": ('"a, b";" c"\n' + GOOD[4:].replace(",", ";"), ["a, b", "c"], ["int64", "double"]),
    "bare.data": (GOOD[4:], ["x1", "x2"], ["int64", "double"]),
    "comment.txt": ("# " + GOOD, ["a", "b"], ["int64", "double"]),
    "years.csv": (GOOD.replace("a,b", "id,2019"), ["id", "2019"], ["int64", "double"]),
    "unnamed.csv": (GOOD.replace("a,b", "a,"), ["a", "x2"], ["int64", "double"]),
    "columns.parquet": (
        parquet_bytes(
            pa.table({"a": pa.array([1, 2, 4, 7], pa.uint8()), "b": pa.array([2.5, 3.25, 1, 8], pa.float32())})
        ),
        ["a", "b"],
        ["uint8", "float"],
    ),
    "coded.parquet": (
        parquet_bytes(pa.table({"a": pa.array([1, 2, 4, 7]).dictionary_encode(), "b": [2.5, 3.25, 1, 8]})),
        ["a", "b"],
        ["int64", "double"],
    ),
    "matrix.npy": (npy_bytes(np.array([[1, 2.5], [2, 3.25], [4, 1], [7, 8]])), ["x1", "x2"], ["double"] * 2),
    "big_endian.npy": (
        npy_bytes(np.array([[1, 2.5], [2, 3.25], [4, 1], [7, 8]], ">f4")),
        ["x1", "x2"],
        ["float"] * 2,
    ),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_files(name: str, tmp_path: Path) -> None:
    content, names, types = GOOD_FILES[name]
    path = write_file(tmp_path / name, content)
    dataset = load(str(path))
    assert dataset.rows.tolist() == [[1, 2.5], [2, 3.25], [4, 1], [7, 8]]
    assert dataset.rows.dtype == np.float64
    assert list(dataset.schema.names) == names
    assert [column.type for column in dataset.schema.columns] == types
    assert [column.step for column in dataset.schema.columns] == [1, 0.25]
    assert dataset.source == str(path)
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.toy is None


def test_a_column_of_integers_that_turns_to_fractions_late(tmp_path: Path) -> None:
    rows = "".join(f"{k},{k % 7}\n" for k in range(200_000))  # more than one block of pyarrow
    dataset = load(str(write_file(tmp_path / "t.csv", "a,b\n" + rows + "0,2.5\n")))
    assert dataset.rows.shape == (200_001, 2)
    assert dataset.rows[-1].tolist() == [0, 2.5]
    assert [column.type for column in dataset.schema.columns] == ["int64", "double"]


def test_columns_drop_and_context_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", "a,b,c,d\n" + "".join(f"{k},{k * k},{k % 3},{-k}\n" for k in range(9)))
    dataset = load(str(path), columns=["d", "a"], context=["c"])
    assert (dataset.schema.names, dataset.schema.context_names) == (("a", "d"), ("c",))
    assert dataset.schema.order == ("a", "c", "d")
    assert dataset.rows[2].tolist() == [2, -2]
    assert dataset.context[:4].tolist() == [[0], [1], [2], [0]]
    assert load(str(path), drop=["b"]).schema.names == ("a", "c", "d")


def test_a_random_subset_of_the_rows(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", "a,b\n" + "".join(f"{k},{k * k}\n" for k in range(100)))
    part = load(str(path), rows=20, seed=1)
    assert part.rows.shape == (20, 2)
    assert np.array_equal(part.rows[:, 1], part.rows[:, 0] ** 2)
    assert not np.array_equal(part.rows, load(str(path), rows=20, seed=2).rows)
    assert "t.csv: a random subset, 20 of 100 rows" in part.notes
    assert "t.csv: has 100 rows, fewer than the 500 asked for" in load(str(path), rows=500).notes


def test_notes_on_row_numbers_and_spikes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    spiky = np.where(generator.random(300) < 0.3, 0, generator.normal(size=300))
    text = "row,spiky\n" + "".join(f"{k},{value!r}\n" for k, value in enumerate(spiky.tolist()))
    index, spike = load(str(write_file(tmp_path / "t.csv", text))).notes
    assert index == "column 'row' numbers the rows; if it is an index, leave it out with data.drop=row"
    assert spike.startswith("column 'spiky': 25")
    assert "% of its rows hold exactly 0; a density can only" in spike


def test_duplicate_rows_are_not_ties(tmp_path: Path) -> None:
    rows = np.round(np.random.default_rng(0).normal(size=(500, 2)), 9)
    np.save(tmp_path / "t.npy", np.concatenate([rows, rows[:100]]))
    assert [column.ties for column in load(tmp_path / "t.npy").schema.columns] == [0, 0]
    rows[:, 0] = np.round(rows[:, 0], 1)
    np.save(tmp_path / "t.npy", rows)
    first, second = load(tmp_path / "t.npy").schema.columns
    assert (first.tied, second.tied) == (True, False)
    np.save(tmp_path / "t.npy", rows[:, :1])
    assert load(tmp_path / "t.npy").schema.columns[0].tied


def test_columns_of_other_files_are_found_by_name(tmp_path: Path) -> None:
    schema = load(str(write_file(tmp_path / "t.csv", GOOD)), context=["a"]).schema
    rows, context, notes = read_rows(write_file(tmp_path / "o.csv", "id,b,a\n9,2.5,1\n8,3,2\n"), schema)
    assert (rows.tolist(), context.tolist()) == ([[2.5], [3]], [[1], [2]])
    assert notes == ("o.csv: ignored id, which the model does not use",)
    # One row, or constant columns, can be scored although not fitted; so can files with text in ignored columns.
    rows, _, _ = read_rows(write_file(tmp_path / "o.csv", "b,a,c\n2.5,1,x\n"), schema)
    assert rows.tolist() == [[2.5]]
    rows, context, _ = read_rows(write_file(tmp_path / "o.csv", "1,2.5\n4,6\n"), schema)
    assert (rows.tolist(), context.tolist()) == ([[2.5], [6]], [[1], [4]])


def test_other_files_without_the_columns_are_refused(tmp_path: Path) -> None:
    schema = load(str(write_file(tmp_path / "t.csv", GOOD))).schema
    with pytest.raises(DataError, match=r"^o.csv: lacks the columns a; it has b, c$"):
        read_rows(write_file(tmp_path / "o.csv", "b,c\n1,2\n"), schema)
    with pytest.raises(
        DataError, match=r"^o.csv: has 3 columns and no names, but the model has 2; expected, in this order: a, b$"
    ):
        read_rows(write_file(tmp_path / "o.csv", "1,2,3\n"), schema)
    with pytest.raises(DataError, match="column 'b' has 1 missing value"):
        read_rows(write_file(tmp_path / "o.csv", "a,b\n1,\n2,3\n"), schema)


def test_a_file_without_names_can_be_scored(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.data", "".join(f"{k},{k * k},g,{-k}\n" for k in range(5)))
    dataset = load(str(path), drop=["x3"])
    rows, _, notes = read_rows(path, dataset.schema)
    assert np.array_equal(rows, dataset.rows)
    assert notes == ("t.data: ignored x3, which the model does not use",)
    rows, _, _ = read_rows(write_file(tmp_path / "o.data", "1,1,-1\n"), dataset.schema)
    assert rows.tolist() == [[1, 1, -1]]


def test_importing_is_light() -> None:
    code = "import sys, pushforward.datasets; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = ["torch", "pyarrow", "scipy", "sklearn", "pandas"]
    result = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.strip() == "[]"


@needs_data
def test_red_wine() -> None:
    dataset = load(DATA / "raw" / "winequality-red.csv")
    assert dataset.rows.shape == (1599, 12)
    columns = {column.name: column for column in dataset.schema.columns}
    assert (columns["quality"].type, columns["quality"].step, columns["quality"].distinct) == ("int64", 1, 6)
    assert columns["volatile acidity"].step == 0.005
    assert (columns["alcohol"].step, columns["alcohol"].decimals) == (0.1, 1)
    assert all(column.tied for column in dataset.schema.columns)
    assert [note.split("'")[1] for note in dataset.notes] == ["alcohol"]


@needs_data
def test_other_real_files(tmp_path: Path) -> None:
    casp = load(DATA / "raw" / "CASP.csv.gz")
    assert casp.rows.shape == (45730, 10)
    steps = {column.name: column.step for column in casp.schema.columns}
    assert (steps["RMSD"], steps["F8"]) == (0.001, 1)
    write_table(tmp_path / "back.csv", casp.rows, None, casp.schema)
    assert np.array_equal(read_rows(tmp_path / "back.csv", casp.schema)[0], casp.rows)

    magic = load(DATA / "raw" / "magic04.data", drop=["x11"])
    assert magic.rows.shape == (19020, 10)
    assert magic.rows[0, 0] == 28.7967
    assert load(DATA / "raw" / "miniboone_head.npy").rows.shape == (1523, 43)
    with pytest.raises(DataError, match=r"column 'x11' holds text .'g' in row 1.\n(.*\n)+.* data.drop=x11$"):
        load(DATA / "raw" / "magic04.data")
    with pytest.raises(DataError, match=r"9 of 15 columns cannot be used as they are\n  'workclass' +holds text"):
        load(DATA / "raw" / "adult.csv.gz")
    numeric = ["age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"]
    assert load(DATA / "raw" / "adult.csv.gz", columns=numeric).rows.shape == (32561, 6)


@needs_data
@pytest.mark.parametrize("name", ["airfoil", "concrete", "energy", "housing", "parkinsons", "yacht"])
def test_regression_tables(name: str) -> None:
    dataset = load(DATA / "uci" / f"{name}.csv.gz")
    assert dataset.name == name
    assert dataset.schema.names[0] == "x1"
    assert np.isfinite(dataset.rows).all()
    tied = [column for column in dataset.schema.columns if column.tied]
    assert tied
    assert all(column.step is not None for column in tied)
