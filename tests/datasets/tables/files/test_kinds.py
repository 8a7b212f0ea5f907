"""Every kind of file that holds a table, read at once and chunk by chunk, whatever its name says."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather, ipc

from pushforward.common.errors import DataError
from pushforward.datasets import Dataset, Schema, load, read_rows, read_table
from pushforward.datasets.tables.files.local_file import LocalFile
from tests.fixtures.streams import small_chunks as small_chunks
from tests.fixtures.tables import npy_bytes, parquet_bytes, write_file
from tests.fixtures.workbooks import Cell, write_workbook

ROWS = np.round(np.random.default_rng(0).normal(size=(40, 2)), 4)
TABLE = pa.table({"a": ROWS[:, 0], "b": ROWS[:, 1]})
CSV = "a,b\n" + "".join(f"{a},{b}\n" for a, b in ROWS.tolist())


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


def zipped(*members: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return sink.getvalue()


def tar(*members: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def locked(content: bytes) -> bytes:
    """Mark the one member of a zip archive as encrypted, in its header and in the directory at the end."""
    directory = content.index(b"PK\x01\x02")
    marked = bytearray(content)
    marked[6] |= 1
    marked[directory + 8] |= 1
    return bytes(marked)


def feather_bytes(table: pa.Table, compression: str = "uncompressed") -> bytes:
    sink = io.BytesIO()
    feather.write_feather(table, sink, compression=compression, chunksize=9)
    return sink.getvalue()


def arrow_stream_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=9)
    return bytes(sink.getvalue().to_pybytes())


def json_lines(table: pa.Table) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()


def sheet_bytes(tmp_path: Path, *rows: list[Cell]) -> bytes:
    return write_workbook(tmp_path / "sheet", {"Sheet1": rows}).read_bytes()


def both_ways(path: Path, names: tuple[str, ...] = ("a", "b")) -> Dataset:
    """Load a file, and check that reading it chunk by chunk gives the same rows and notes on how it was read."""
    dataset = load(path)
    assert dataset.schema.names == names
    rows, _, notes = read_rows(path, dataset.schema)
    np.testing.assert_array_equal(rows, dataset.rows)
    assert {note for note in notes if "the model does not use" not in note} <= set(dataset.notes)
    return dataset


# name of the file -> its content
SAME_TABLE: dict[str, bytes] = {
    "t.csv": CSV.encode(),
    "t.csv.gz": gzip.compress(CSV.encode()),
    "t.csv.bz2": bz2.compress(CSV.encode()),
    "t.csv.xz": lzma.compress(CSV.encode()),
    "t.csv.zst": zstd(CSV.encode()),
    "t.csv.zip": zipped(("t.csv", CSV.encode())),
    "t.zip": zipped(("folder/", b""), ("folder/t.csv", CSV.encode()), ("__MACOSX/folder/._t.csv", b"\x00\x05")),
    "t.dat": CSV.encode(),
    "t": gzip.compress(CSV.encode()),
    "t.parquet": parquet_bytes(TABLE),
    "t.parquet.gz": gzip.compress(parquet_bytes(TABLE)),
    "t.parquet.zip": zipped(("t.parquet", parquet_bytes(TABLE))),
    "t.feather": feather_bytes(TABLE),
    "lz4.feather": feather_bytes(TABLE, "lz4"),
    "t.arrow": arrow_stream_bytes(TABLE),
    "t.ipc.zst": zstd(feather_bytes(TABLE)),
    "t.jsonl": json_lines(TABLE),
    "t.ndjson.gz": gzip.compress(json_lines(TABLE)),
    "bom.jsonl": b"\xef\xbb\xbf\n" + json_lines(TABLE).replace(b"\n", b"\r\n"),
    "t.json": json.dumps(TABLE.to_pylist(), indent=1).encode(),
    "twice.csv.gz": gzip.compress(gzip.compress(CSV.encode())),
}


@pytest.mark.parametrize("name", SAME_TABLE)
@pytest.mark.usefixtures("small_chunks")
def test_all_kinds_and_compressions_give_the_same_rows(name: str, tmp_path: Path) -> None:
    dataset = both_ways(write_file(tmp_path / name, SAME_TABLE[name]))
    np.testing.assert_array_equal(dataset.rows, ROWS)
    assert dataset.notes == ()
    assert dataset.schema.columns == load(write_file(tmp_path / "plain.csv", CSV)).schema.columns
    assert dataset.name == {"t.dat": "t.dat", "lz4.feather": "lz4", "bom.jsonl": "bom", "twice.csv.gz": "twice"}.get(
        name, "t"
    )


# name of the file -> its content, and the note
IN_SPITE_OF_ITS_NAME: dict[str, tuple[bytes, str]] = {
    "g.csv": (gzip.compress(CSV.encode()), "it is compressed with gzip"),
    "x.csv.gz": (lzma.compress(CSV.encode()), "it is compressed with xz"),
    "plain.csv.gz": (CSV.encode(), "it is not compressed"),
    "p.csv": (parquet_bytes(TABLE), "it holds Parquet"),
    "c.parquet": (CSV.encode(), "it holds delimited text"),
    "f.npy": (feather_bytes(TABLE), "it holds Feather"),
    "j.txt": (json_lines(TABLE), "it holds JSON lines"),
    "j.parquet": (gzip.compress(json_lines(TABLE)), "it holds JSON lines and it is compressed with gzip"),
}


@pytest.mark.parametrize("name", IN_SPITE_OF_ITS_NAME)
def test_the_content_decides_and_a_note_says_so(name: str, tmp_path: Path) -> None:
    content, what = IN_SPITE_OF_ITS_NAME[name]
    dataset = both_ways(write_file(tmp_path / name, content))
    np.testing.assert_array_equal(dataset.rows, ROWS)
    assert dataset.notes == (f"{name}: in spite of its name, {what}",)


# name of the file -> its content, and the message, up to what a library says in parentheses
DAMAGED: dict[str, tuple[bytes, str]] = {
    "cut.csv.gz": (gzip.compress(CSV.encode())[:-9], r"cut.csv.gz: not a complete gzip file \(.*\); fetch it again"),
    "cut.csv.bz2": (bz2.compress(CSV.encode())[:-9], r"cut.csv.bz2: not a complete bzip2 file \(.*\); fetch it again"),
    "cut.csv.xz": (lzma.compress(CSV.encode())[:-9], r"cut.csv.xz: not a complete xz file \(.*\); fetch it again"),
    "cut.csv.zst": (zstd(CSV.encode())[:-9], r"cut.csv.zst: not a complete zstd file \(.*\); fetch it again"),
    "cut.zip": (zipped(("t.csv", CSV.encode()))[:-9], r"cut.zip: not a complete zip file \(.*\); fetch it again"),
    "cut.parquet.gz": (gzip.compress(parquet_bytes(TABLE))[:-9], r"cut.parquet.gz: not a complete gzip file \(.*\).*"),
    "cut.feather": (feather_bytes(TABLE)[:-40], r"cut.feather: not a readable Feather file \(.*\); write it again"),
    "cut.arrow": (arrow_stream_bytes(TABLE)[:-40], r"cut.arrow: not a readable Feather file \(.*\); write it again"),
    "bad.xlsx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", r"bad.xlsx: not a readable workbook \(.*\); save it again, .*"),
    "two.zip": (
        zipped(("a.csv", b"1"), ("b.csv", b"2")),
        "two.zip: holds 2 files: a.csv, b.csv; unpack it and give one file",
    ),
    "none.zip": (zipped(("folder/", b"")), "none.zip: holds no file; unpack it and give one file"),
    "cut.jsonl": (
        json_lines(TABLE)[:-9],
        "cut.jsonl: expected one JSON object a line; got .* in line 40; pandas writes it with .*",
    ),
    "list.jsonl": (b'{"a":1}\n[1,2]\n', r"list.jsonl: expected one JSON object a line; got '\[1,2\]' in line 2; .*"),
    "cut.json": (b'[{"a":1},{"a":', r"cut.json: not a complete JSON array \(.*\); write it again"),
    "mixed.json": (b'[{"a":1},[2]]', "mixed.json: expected a JSON array of objects; got list in row 2; .*"),
    "matrix.json": (b"[[1,2],[3,4]]", "matrix.json: expected a JSON array of objects; got list in row 1; .*"),
    "none.json": (b"[]", "none.json: has no columns; nothing to learn from"),
    "blank.jsonl": (b"\n \n", "blank.jsonl: the file is empty"),
    "latin.jsonl": (
        b'{"gr\xf6\xdfe":1,"b":1}\n{"a":1}\n',
        "latin.jsonl: expected one JSON object a line; got .* in line 1; .*",
    ),
    "nothing.csv.gz": (gzip.compress(b""), "nothing.csv.gz: the file is empty"),
    "folder.tar.gz": (
        gzip.compress(tar(("a.csv", CSV.encode()))),
        "folder.tar.gz: is a tar archive; unpack it and give one file",
    ),
    "secret.zip": (
        locked(zipped(("t.csv", CSV.encode()))),
        "secret.zip: is protected by a password; unpack it and give the file in it",
    ),
    "noise.parquet": (b"\x00\x01\x02", r"noise.parquet: not a readable Parquet file \(.*\); write it again"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    path = write_file(tmp_path / name, content)
    schema = load(write_file(tmp_path / "plain.csv", CSV)).schema
    for read in (lambda: load(path), lambda: read_rows(path, schema)):
        with pytest.raises(DataError, match=f"^{message}$"):
            read()


def test_an_error_says_what_a_file_was_taken_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^words.npy: .* \(in spite of its name, it holds delimited text\)$"):
        load(write_file(tmp_path / "words.npy", b"nothing"))


def test_json_columns_of_several_types(tmp_path: Path) -> None:
    """Keys missing in some rows, numbers as text, NaN, true and false, and integers among fractions."""
    path = tmp_path / "t.jsonl"
    rows = [
        f'{{"a": {k}, "b": "{k}.5", "c": {str(k % 2 == 0).lower()}, "d": {k if k % 3 else k + 0.25}}}'
        for k in range(30)
    ]
    path.write_text("\n".join(rows))
    dataset = both_ways(path, ("a", "b", "c", "d"))
    assert dataset.rows[:2].tolist() == [[0, 0.5, 1, 0.25], [1, 1.5, 0, 1]]
    assert [column.type for column in dataset.schema.columns] == ["int64", "double", "int64", "double"]
    assert "column 'c': true and false are read as 1 and 0" in dataset.notes
    path.write_text("\n".join([*rows, '{"a": 30, "c": true, "d": 1}']))
    for read in (lambda: load(path), lambda: read_rows(path, dataset.schema)):
        with pytest.raises(DataError, match="column 'b' has 1 missing value"):
            read()
    path.write_text("\n".join([*rows, '{"a": "north", "b": 1, "c": true, "d": 1}']))
    for read in (lambda: load(path), lambda: read_rows(path, dataset.schema)):
        with pytest.raises(DataError, match="column 'a' holds text \\('north' in row 31\\)"):
            read()


def test_nested_columns_of_json_are_named_together(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"a": {k}, "tags": [{k}], "place": {{"x": {k}}}, "b": {k * k}}}\n' for k in range(9)))
    with pytest.raises(DataError) as caught:
        load(path)
    assert "  'tags'   holds lists\n  'place'  holds objects\n" in str(caught.value)
    assert load(path, drop=["tags", "place"]).schema.names == ("a", "b")


@pytest.mark.usefixtures("small_chunks")
def test_numbers_and_truth_values_mean_the_same_in_all_kinds(tmp_path: Path) -> None:
    table = pa.table(
        {
            "count": [str(k) for k in range(40)],
            "price": [f"{k},5" for k in range(40)],
            "flag": [k % 3 == 0 for k in range(40)],
            "coded": pa.array([f"{k % 7}.25" for k in range(40)]).dictionary_encode(),
        }
    )
    expected = [[k, k + 0.5, k % 3 == 0, k % 7 + 0.25] for k in range(40)]
    notes = {
        "column 'price': decimal commas (0,5 is read as 0.5)",
        "column 'flag': true and false are read as 1 and 0",
    }
    types = ["int64", "double", "int64", "double"]
    text = "count;price;flag;coded\n" + "".join(
        f"{a};{b};{str(c).lower()};{d}\n" for a, b, c, d in zip(*table.to_pydict().values(), strict=True)
    )
    contents = {"t.parquet": parquet_bytes(table), "t.feather": feather_bytes(table), "t.jsonl": json_lines(table)}
    for name, content in {**contents, "t.csv": text.encode()}.items():
        dataset = both_ways(write_file(tmp_path / name, content), ("count", "price", "flag", "coded"))
        assert dataset.rows.tolist() == expected, name
        assert [column.type for column in dataset.schema.columns] == types, name
        assert notes <= set(dataset.notes), name


def test_the_declared_index_is_left_out_unless_it_is_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(40)
    frame = pd.DataFrame({"a": ROWS[:, 0], "b": ROWS[:, 1]}, index=pd.Index(shuffled, name="patient"))
    unnamed = frame.set_axis(shuffled, axis=0)
    several = frame.assign(site=shuffled % 5).set_index("site", append=True)
    counted = frame.reset_index(drop=True)
    for name, content, index in (
        ("named", frame, "patient"),
        ("unnamed", unnamed, "__index_level_0__"),
        ("several", several, "patient, site"),
        ("counted", counted, ""),
    ):
        table = pa.Table.from_pandas(content)
        for path in (
            write_file(tmp_path / f"{name}.parquet", parquet_bytes(table)),
            write_file(tmp_path / f"{name}.feather", feather_bytes(table)),
        ):
            dataset = both_ways(path)
            np.testing.assert_array_equal(dataset.rows, ROWS)
            note = f"{path.name}: left out the index {index}; data.columns can name it"
            assert dataset.notes == ((note,) if index else ())
    path = tmp_path / "named.parquet"
    assert load(path, columns=["a", "patient"]).schema.names == ("a", "patient")
    assert load(path, context=["patient"]).schema.context_names == ("patient",)
    dropped = load(path, drop=["patient"])
    assert (dropped.schema.names, dropped.notes) == (("a", "b"), ())
    # Metadata that are not those of pandas are not a reason to fail.
    for metadata in (b"", b"[]", b'{"index_columns": 3}', b'{"index_columns": ["gone", {"kind": "range"}]}'):
        odd = TABLE.replace_schema_metadata({b"pandas": metadata})
        assert load(write_file(tmp_path / "odd.parquet", parquet_bytes(odd))).schema.names == ("a", "b")


def test_sheets_of_workbooks(tmp_path: Path) -> None:
    numbers: list[list[Cell]] = [["a", "b"], *ROWS.tolist()]
    path = write_workbook(tmp_path / "one.xlsx", {"Data": numbers, "Empty": []})
    dataset = both_ways(path)
    np.testing.assert_array_equal(dataset.rows, ROWS)
    assert (dataset.name, dataset.notes) == ("one", ())
    mixed: list[list[Cell]] = [["n", "flag", "word", "hole"]]
    mixed += [[k, k % 2 == 0, f"w{k}", None] for k in range(9)]
    path = write_workbook(tmp_path / "two.xlsx", {"Data": numbers, "More data": mixed})
    with pytest.raises(DataError, match=r"^two.xlsx: has 2 sheets: Data, More data; name one, as in 'two.xlsx#Data'$"):
        load(path)
    of_sheet = both_ways(Path(f"{path}#Data"))
    np.testing.assert_array_equal(of_sheet.rows, ROWS)
    # What is recorded tells the sheets of a file apart.
    assert (of_sheet.name, of_sheet.source) == ("two", f"{path}#Data")
    assert of_sheet.sha256 != load(f"{path}#More data", columns=["n", "flag"]).sha256
    with pytest.raises(DataError, match=r"^two.xlsx: has no sheet 'More dat' with cells; did you mean 'More data'"):
        load(f"{path}#More dat")
    with pytest.raises(DataError, match=r"'word'  holds text .*\n  'hole'  has no values"):
        load(f"{path}#More data")
    chosen = load(f"{path}#More data", columns=["n", "flag"])
    assert chosen.rows[:2].tolist() == [[0, 1], [1, 0]]
    assert [column.type for column in chosen.schema.columns] == ["int64", "int64"]  # all are floats in the file
    with pytest.raises(
        DataError, match=r"t.csv: is not a workbook and has no sheet 'Data'; leave out what follows '#'"
    ):
        load(f"{write_file(tmp_path / 't.csv', CSV)}#Data")


def test_a_workbook_of_libreoffice(tmp_path: Path) -> None:
    office = "urn:oasis:names:tc:opendocument:xmlns"
    cells = ["<table:table-cell office:value-type='string'><text:p>a</text:p></table:table-cell>"]
    cells += [f"<table:table-cell office:value-type='float' office:value='{a}'/>" for a in ROWS[:, 0].tolist()]
    lines = [f"<table:table-row>{cell}</table:table-row>" for cell in cells]
    content = (
        f"<office:document-content xmlns:office='{office}:office:1.0' xmlns:table='{office}:table:1.0' "
        f"xmlns:text='{office}:text:1.0'><office:body><office:spreadsheet><table:table table:name='S'>{''.join(lines)}"
        "</table:table></office:spreadsheet></office:body></office:document-content>"
    )
    book = zipped(
        ("mimetype", b"application/vnd.oasis.opendocument.spreadsheet"),
        ("content.xml", content.encode()),
        ("META-INF/manifest.xml", b"<manifest/>"),
    )
    dataset = both_ways(write_file(tmp_path / "t.ods", book), ("a",))
    assert dataset.rows[:, 0].tolist() == ROWS[:, 0].tolist()


def test_a_file_is_chosen_before_a_sheet(tmp_path: Path) -> None:
    assert load(write_file(tmp_path / "a#b.csv", CSV)).name == "a#b"


def test_a_sheet_is_read_from_a_compressed_workbook(tmp_path: Path) -> None:
    content = sheet_bytes(tmp_path, ["a", "b"], *ROWS.tolist())
    np.testing.assert_array_equal(load(write_file(tmp_path / "t.xlsx.gz", gzip.compress(content))).rows, ROWS)


def write_into(pipe: Path, content: bytes) -> threading.Thread:
    """Write into a named pipe as soon as a reader opens it."""
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    return writer


@pytest.mark.parametrize("content", [CSV.encode(), gzip.compress(CSV.encode()), parquet_bytes(TABLE)])
def test_a_named_pipe(content: bytes, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    schema: Schema | None = None
    for _ in range(2):
        writer = write_into(pipe, content)
        if schema is None:
            dataset = load(pipe)
            schema, rows = dataset.schema, dataset.rows
            assert (dataset.name, dataset.source) == ("pipe", "-")
        else:
            rows = read_rows(pipe, schema)[0]
        writer.join()
        np.testing.assert_array_equal(rows, ROWS)
    writer = write_into(pipe, b"")
    with pytest.raises(DataError, match=r"pipe.csv: no data came through the pipe$"):
        read_table(pipe)
    writer.join()


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_text_that_a_late_cell_settles(kind: str, tmp_path: Path) -> None:
    content: dict[str, list[Any]] = {
        "x": ["7,315", "2,123", "3,456"] * 5000 + ["1,5"],
        "k": [k % 7 for k in range(15_001)],
    }
    content["flag"] = [None] * 15_000 + ["true"]
    encode = parquet_bytes if kind == "parquet" else feather_bytes
    path = write_file(tmp_path / f"t.{kind}", encode(pa.table(content)))
    dataset = load(path, drop=["flag"])
    assert dataset.rows[:, 0].tolist() == [7.315, 2.123, 3.456] * 5000 + [1.5]
    assert "column 'x': decimal commas (1,5 is read as 1.5)" in dataset.notes
    np.testing.assert_array_equal(read_rows(path, dataset.schema)[0], dataset.rows)
    other = write_file(tmp_path / f"o.{kind}", encode(pa.table({key: cells[:9] for key, cells in content.items()})))
    assert read_rows(other, dataset.schema)[0][:, 0].tolist() == [7.315, 2.123, 3.456] * 3
    flag = read_table(path).column("flag")
    assert (flag.null_count, flag[-1].as_py()) == (15_000, 1)


def test_devices_and_folders_are_no_tables(tmp_path: Path) -> None:
    for source, what in ((os.devnull, "is a device; give a file"), (str(tmp_path), "is a folder; give one file")):
        with pytest.raises(DataError) as caught:
            load(source)
        assert str(caught.value) == f"{source}: {what}"


def test_copies_are_removed_with_the_object(tmp_path: Path) -> None:
    file = LocalFile(write_file(tmp_path / "t.parquet.gz", gzip.compress(parquet_bytes(TABLE))))
    copy = file.path
    assert (copy.name, copy.exists()) == ("t.parquet.gz", True)
    assert copy.parent != tmp_path
    del file
    assert not copy.parent.exists()


def test_workbooks_without_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_workbook(tmp_path / "t.xlsx", {"Data": [["a"], [1.0]]})
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(DataError, match=r"^t.xlsx: is a workbook; read it after: pip install 'pushforward\[excel\]'$"):
        load(path)


def test_npy_in_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", ROWS)
    np.testing.assert_array_equal(load(tmp_path / "one.npz").rows, ROWS)
    np.testing.assert_array_equal(load(write_file(tmp_path / "t.npy.xz", lzma.compress(npy_bytes(ROWS)))).rows, ROWS)
    np.savez(tmp_path / "two.npz", a=ROWS, b=ROWS)
    with pytest.raises(DataError, match=r"^two.npz: holds 2 files: a.npy, b.npy; unpack it and give one file$"):
        load(tmp_path / "two.npz")
