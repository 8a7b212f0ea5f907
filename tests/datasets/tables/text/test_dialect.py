"""Text files are read as people write them, at once and in parts, and what was understood is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.datasets import RowStream, load, read_rows, read_table
from tests.fixtures.dialects import Style, two_decimals
from tests.fixtures.streams import small_chunks as small_chunks
from tests.fixtures.tables import write_file

NAMES = ("alpha", "beta", "gamma")

STYLES = {
    "plain": Style(),
    "no header": Style(header=False),
    "semicolons": Style(";"),
    "tabs": Style("\t"),
    "decimal commas": Style(";", decimal=","),
    "decimal commas, no header": Style(";", decimal=",", header=False),
    "decimal commas, tabs": Style("\t", decimal=","),
    "decimal commas in quotes": Style(",", decimal=",", quoted=True),
    "German": Style(";", decimal=",", thousands=".", after=" €"),
    "French": Style(";", decimal=",", thousands="\u202f"),
    "Swiss": Style(";", thousands="\u2019", before="CHF "),
    "English": Style(",", thousands=",", before="$", quoted=True),
    "blanks for thousands": Style("\t", thousands=" "),
    "no-break blanks": Style(",", decimal=".", thousands="\u00a0"),
    "percent": Style(",", after="%"),
    "comments": Style(above="# from a logger, on 5 May, at noon\n#\n# second line", between="# it was restarted"),
    "percent comments": Style("\t", above="% from a logger", between="% paused"),
    "slashes": Style(above="// from a logger"),
    "names in a comment": Style(header=False, above="# written by a program\n# alpha,beta,gamma"),
    "commented-out row": Style(between="#1.0,2.0"),
    "words between commas": Style(between="# stopped, restarted, went on"),
    "sep": Style(";", above="sep=;"),
    "units": Style(units="degC,,mg/l"),
    "units in brackets": Style(";", decimal=",", units="[m];[s];[-]"),
    "units in blanks": Style("blanks", units="  m  s kg"),
    "blanks": Style("blanks"),
    "blanks, no names": Style("blanks", header=False),
    "blanks and commas": Style("blanks", decimal=",", above="# a comment"),
    "blanks and commas, no names": Style("blanks", decimal=",", header=False),
    "pipes": Style("|"),
    "pipes, no names": Style("|", header=False),
    "Markdown": Style("pipes"),
    "Windows": Style(end="\r\n", note=True),
    "old Mac": Style(end="\r", note=True),
    "notes": Style(";", decimal=",", note=True, above="# one"),
    "Windows, units": Style(end="\r\n", units="m,s,kg", above="# a\r\n# b"),
    "UTF-16": Style("\t", encoding="utf-16"),
    "Windows-1252": Style(";", decimal=",", after=" €", encoding="cp1252"),
}


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.usefixtures("small_chunks")
def test_a_table_is_read_back_exactly_at_once_and_in_parts(name: str, seed: int, tmp_path: Path) -> None:
    style, matrix = STYLES[name], two_decimals(120, 3, seed)
    path = write_file(tmp_path / "t.csv", style.write(matrix, NAMES))
    dataset = load(path, drop=["note"] if style.note else [])
    named = style.header or name == "names in a comment"
    assert dataset.schema.names == (NAMES if named else ("x1", "x2", "x3"))
    np.testing.assert_array_equal(dataset.rows, matrix)
    np.testing.assert_array_equal(read_rows(path, dataset.schema)[0], matrix)


@pytest.mark.parametrize("name", ["decimal commas", "German", "blanks and commas", "Windows-1252", "old Mac"])
def test_a_file_in_another_style_gives_the_numbers_of_the_one_that_was_fitted(name: str, tmp_path: Path) -> None:
    matrix = two_decimals(50, 3)
    schema = load(write_file(tmp_path / "t.csv", Style().write(matrix, NAMES))).schema
    other = write_file(tmp_path / "o.csv", STYLES[name].write(matrix, NAMES))
    np.testing.assert_array_equal(read_rows(other, schema)[0], matrix)
    other_schema = load(other, drop=["note"] if STYLES[name].note else []).schema
    np.testing.assert_array_equal(read_rows(tmp_path / "t.csv", other_schema)[0], matrix)


def rows_of(text: str, path: Path, **options: Any) -> tuple[list[list[float]], tuple[str, ...], list[str]]:
    """Return rows, names and the notes on how a text was read; scoring must give the same rows and notes."""
    dataset = load(write_file(path, text), **options)
    rows, _, notes = read_rows(path, dataset.schema)
    np.testing.assert_array_equal(rows, dataset.rows)
    said = [note for note in dataset.notes if note.startswith(("column '", "columns '", path.name))]
    said = [note for note in said if " is read as " in note or note.startswith(path.name)]
    index = [note for note in said if "left out the index" in note]
    ignored = [note for note in notes if "ignored" in note]
    assert [note for note in notes if note not in ignored] == [note for note in said if note not in index]
    return dataset.rows.tolist(), dataset.schema.names, said


FLOATS = "1.5,2.5,-3.25\n0.5,-1.5,4.75\n2.25,7.5,0.25\n"
COUNTS = "".join(f"{k % 3},{k % 2},{(k * k) % 4}\n" for k in range(40))
PIXELS = "".join(f"{k * 7 % 17},{k * 5 % 17},{k * 3 % 17},{k * 11 % 17}\n" for k in range(100))


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("0,1,2\n" + FLOATS, ("0", "1", "2"), "first line 0,1,2 taken as column names"),
        ("1,2,3\n" + FLOATS, ("1", "2", "3"), "first line 1,2,3 taken as column names"),
        ("0,1,2,3\n" + PIXELS, ("0", "1", "2", "3"), "first line 0,1,2,3 taken as column names"),
        ("0,1,2\n" + COUNTS, ("x1", "x2", "x3"), "first line 0,1,2 taken as a row of data"),
        ("0,1\n" + "".join(f"{k / 10:g},{(k / 10) ** 2:g}\n" for k in range(1, 40)), ("x1", "x2"), "as a row of data"),
        ("0,1\n" + "".join(f"{k / 7:.3f},{k / 9:.3f}\n" for k in range(1, 40)), ("0", "1"), "taken as column names"),
        ("".join(f"{k},{k + 1},{k + 2}\n" for k in range(99)), ("x1", "x2", "x3"), "0,1,2 taken as a row of data"),
        (FLOATS, ("x1", "x2", "x3"), ""),
        ("0.5,1,2\n" + FLOATS, ("x1", "x2", "x3"), ""),
        ("2019,2020,2021\n" + FLOATS, ("2019", "2020", "2021"), "first line 2019,2020,2021 taken as column names"),
        ("2019,2020,2021\n" + FLOATS.replace("-3.25", "5"), ("2019", "2020", "2021"), "taken as column names"),
        ("7,2,9\n" + COUNTS + "1,1,0.5\n", ("x1", "x2", "x3"), "first line 7,2,9 taken as a row of data"),
        ("7,2,9\n" + COUNTS, ("x1", "x2", "x3"), ""),
        ("7,7,9\n" + FLOATS, ("x1", "x2", "x3"), ""),
        ("3,7\n" + "".join(f"{k / 7:.3f},{k / 9:.3f}\n" for k in range(1, 40)), ("3", "7"), "taken as column names"),
        ("3,7\n" + "".join(f"{k / 7:.3f},{k / 9:.3f}\n" for k in range(1, 8)), ("x1", "x2"), "as a row of data"),
        ("5%,50%,95%\n" + FLOATS, ("5%", "50%", "95%"), ""),
    ],
)
def test_default_names_are_told_from_rows_by_the_rows_below(
    text: str, names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    rows, found, notes = rows_of(text, tmp_path / "t.csv")
    assert found == names
    assert len(rows) == text.count("\n") - (names[0] != "x1")
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_an_index_above_default_names(tmp_path: Path) -> None:
    text = ",0,1,2\n" + "".join(f"{k},{line}\n" for k, line in enumerate(FLOATS.splitlines()))
    rows, names, notes = rows_of(text, tmp_path / "t.csv")
    assert names == ("0", "1", "2")
    assert rows == [[float(cell) for cell in line.split(",")] for line in FLOATS.splitlines()]
    assert any("first line ,0,1,2 taken as column names" in note for note in notes)


def test_an_index_above_years(tmp_path: Path) -> None:
    lines = [f"{k},{line}" for k, line in enumerate(FLOATS.splitlines())]
    rows, names, notes = rows_of("\n".join([",2019,2020,2021", *lines, ""]), tmp_path / "t.csv")
    assert names == ("2019", "2020", "2021")
    assert rows == [[float(cell) for cell in line.split(",")] for line in FLOATS.splitlines()]
    assert any("first line ,2019,2020,2021 taken as column names" in note for note in notes)
    # With an empty cell below, the first row has a missing value.
    path = write_file(tmp_path / "o.csv", "\n".join([",2019,2020,2021", *lines, ",1.5,2,3", ""]))
    dataset = load(path, drop=["x1"])
    assert (dataset.schema.names, len(dataset.rows)) == (("x2", "x3", "x4"), 5)
    assert "o.csv: first line ,2019,2020,2021 taken as a row of data" in dataset.notes


@pytest.mark.parametrize(
    ("text", "names", "first"),
    [
        ("x\n1,5\n2,25\n3,5\n", ("x",), [1.5]),
        ("sep=;\na,b\n1,5\n2,25\n3,5\n", ("a,b",), [1.5]),
        ("a,b;c,d\n1,2,3\n4,6,5\n3,3,3\n", ("a", "b;c", "d"), [1, 2, 3]),
        ('"a", "b, c"\n"1.5", "2.5"\n"3", "4"\n"7", "1"\n', ("a", "b, c"), [1.5, 2.5]),
        ('a "b c"\n1.5   2.5\n3 4\n7 "1"\n', ("a", "b c"), [1.5, 2.5]),
        (" a | b \n---+---\n 1 | 2.5\n 3 | 4\n 7 | 1\n", ("a", "b"), [1, 2.5]),
        ("a   b\n--- ---\n1   2.5\n3   4\n7   1\n", ("a", "b"), [1, 2.5]),
    ],
)
def test_what_stands_between_cells(text: str, names: tuple[str, ...], first: list[float], tmp_path: Path) -> None:
    rows, found, _ = rows_of(text, tmp_path / "t.csv")
    assert (found, rows[0], len(rows)) == (names, first, 3)


def test_names_and_row_names_as_r_writes_them(tmp_path: Path) -> None:
    text = '"mpg" "cyl"\n"Mazda RX4" 21 6\n"Datsun 710" 22.8 4\n"Valiant" 18.1 8\n"Duster 360" 14.3 2\n'
    rows, names, notes = rows_of(text, tmp_path / "t.txt")
    assert (names, rows[0]) == (("mpg", "cyl"), [21, 6])
    assert "one name fewer" in notes[0]


def test_names_of_columns_without_one_do_not_repeat_others(tmp_path: Path) -> None:
    rows, names, _ = rows_of(",x1,x2\n.5,1,2.5\n1.5,2,3\n.5,2,5\n", tmp_path / "t.csv")
    assert names == ("x1_", "x1", "x2")
    assert rows[0] == [0.5, 1, 2.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# c\n# c\na,b\n1,2\n3\n", r"row 2 has 1 cell, not 2 \(line 5\)"),
        ('a,b\r\n"x\r\ny",2\r\n3\r\n', r"row 2 has 1 cell, not 2 \(line 4\)"),
        ("a,b\r1,2\r# c\r3\r", r"row 2 has 1 cell, not 2 \(line 4\)"),
        ("a b\n1 2\n\n3\n", r"row 2 has 1 cell, not 2 \(line 4\)"),
        ("| a | b |\n|--|--|\n| 1 | 2 |\n| 3 |\n", r"row 2 has 1 cell, not 2 \(line 4\)"),
        ("a,b\nm,s\n1,2\n3\n", r"row 2 has 1 cell, not 2 \(line 4\)"),
    ],
)
def test_rows_of_the_wrong_length_are_named_by_row_and_line(text: str, message: str, tmp_path: Path) -> None:
    schema = load(write_file(tmp_path / "g.csv", "a,b\n1,2\n2,4\n5,3\n")).schema
    path = write_file(tmp_path / "t.csv", text)
    with pytest.raises(DataError, match=message):
        load(path)
    with pytest.raises(DataError, match=message):
        read_rows(path, schema)


def test_lines_are_counted_where_a_block_ends_within_a_line_end(tmp_path: Path) -> None:
    # The first megabyte ends between the two characters of a line end.
    path = write_file(tmp_path / "t.csv", "a,b\r\n" + "1,22\r\n" * 180_000 + "3\r\n")
    assert path.read_bytes()[: 1 << 20].endswith(b"\r")
    with pytest.raises(DataError, match=r"row 180001 has 1 cell, not 2 \(line 180002\)"):
        load(path)


@pytest.mark.usefixtures("small_chunks")
def test_line_ends_of_all_kinds_in_one_file(tmp_path: Path) -> None:
    lines = [f'{k},{k * k},"a{end}b"{end}' for k in range(300) for end in [("\n", "\r\n", "\r")[k * 7 % 3]]]
    path = write_file(tmp_path / "t.csv", "a,b,note\r\n" + "".join(lines))
    dataset = load(path, drop=["note"])
    assert dataset.rows.tolist() == [[k, k * k] for k in range(300)]
    assert read_rows(path, dataset.schema)[0].tolist() == dataset.rows.tolist()


def test_a_quoted_line_end_where_blocks_of_the_parser_meet(tmp_path: Path) -> None:
    lines = "".join(f'{k},{k % 7},"{"x" * 97}\n{k}"\n' for k in range(30_000))  # more than three megabytes
    dataset = load(write_file(tmp_path / "t.csv", "a,b,note\n" + lines), drop=["note"])
    assert dataset.rows[:, 0].tolist() == list(range(30_000))


def test_a_first_column_of_text_that_begins_like_a_comment(tmp_path: Path) -> None:
    text = "colour,a,b\n" + "".join(f"#{k:06x},{k},{k * k}\n" for k in range(20))
    rows, _, notes = rows_of(text, tmp_path / "t.csv", drop=["colour"])
    assert rows == [[k, k * k] for k in range(20)]
    assert notes == []


ERRORS = ("#DIV/0!", "#REF!", "#VALUE!", "#NUM!", "#NAME?", "#NULL!", "#N/A")


@pytest.mark.parametrize(
    ("text", "first_column"),
    [
        ("b,a,c\n0.1,100,1\n#DIV/0!,99,2\n0.3,101,2\n", [0.1, None, 0.3]),
        ("b;a\n0,1;1\n" + "".join(f"{error};2\n" for error in ERRORS), [0.1, *[None] * 7]),
        ("b\ta\n#N/A\t#N/A\n.5\t2\n", [None, 0.5]),
        ("#NUM!,1\n.5,2\n.25,3\n", [None, 0.5, 0.25]),
        ("b a\n.5 2\n#DIV/0! 1\n# 7\n#note 8\n", [".5", None, "#note"]),
        ("x\n#28\n1.5\n#DIV/0!\n#\n2.5\n", [1.5, None, 2.5]),
        ("id,w\n#0,.5\n7,1.5\n14,2.5\n21,3.5\n#28,4.5\n# see, below\n", ["#0", "7", "14", "21", "#28"]),
        ('id,w\n7,"1,5"\n#28,"2,5"\n14,"3,5"\n', ["7", "#28", "14"]),
        ("x y z\n1 2 3\n# step 5\n4 5 6\n", [1, 4]),
    ],
)
def test_a_row_that_begins_like_a_comment_is_told_from_one(
    text: str, first_column: list[float | str | None], tmp_path: Path
) -> None:
    assert read_table(write_file(tmp_path / "t.csv", text)).column(0).to_pylist() == first_column


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_names_may_hold_line_ends(delimiter: str, end: str, tmp_path: Path) -> None:
    lines = [f'"len{end}(cm)"', f'"w, 5"" {end}each"{end}0.35', f"0.82{end}-0.54", f"0.58{end}-0.75", f"-0.25{end}"]
    rows, names, _ = rows_of(delimiter.join(lines), tmp_path / "t.csv")
    assert names == (f"len{end}(cm)", f'w, 5" {end}each')
    assert rows == [[0.35, 0.82], [-0.54, 0.58], [-0.75, -0.25]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_comments_between_rows_are_said_and_those_above_are_not(end: str, tmp_path: Path) -> None:
    lines = ["# above", "a,b", "1,2", "#2", "3,5", "# end, at last", "5,4", ""]
    rows, _, notes = rows_of(end.join(lines), tmp_path / "t.csv")
    assert rows == [[1, 2], [3, 5], [5, 4]]
    assert notes == ["t.csv: line 4 and 1 more skipped as comments"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_comments_after_the_first_megabyte_are_counted(encoding: str, tmp_path: Path) -> None:
    lines = [f"{k % 97},{k % 1009}.25" for k in range(160_000)]
    late = ["#1.5", *lines[150_000:], "# end", "# of file"]
    text = "\n".join(["# above", "a,b", "#2", *lines[:150_000], *late, ""])
    path = write_file(tmp_path / "t.csv", text.encode(encoding))
    dataset = load(path)
    said = ["t.csv: line 3 skipped as a comment", "t.csv: 3 lines after the first megabyte skipped as comments"]
    assert [note for note in dataset.notes if "comment" in note] == said
    rows, _, notes = read_rows(path, dataset.schema)
    np.testing.assert_array_equal(rows, dataset.rows)
    assert [note for note in notes if "comment" in note] == said


def test_units_are_said(tmp_path: Path) -> None:
    _, _, notes = rows_of("temp,oxygen\ndegC,mg/l\n1,2\n3,5\n5,4\n", tmp_path / "t.csv")
    assert notes == ["t.csv: row 1 holds units (degC, mg/l); skipped"]
    # A first row with numbers, with missing cells only, or above text holds no units.
    schema = load(tmp_path / "t.csv").schema
    for row in ("NA,-", "degC,5"):
        path = write_file(tmp_path / "o.csv", f"temp,oxygen\n{row}\n1,2\n3,5\n")
        with pytest.raises(DataError, match="row 1"):
            read_rows(path, schema)


def test_the_stream_reads_numbers_of_a_large_file_by_its_beginning(tmp_path: Path) -> None:
    rows = "".join(f"{k % 100},{k % 10};{k % 1000},25;{k % 7}\n" for k in range(100_000))  # more than a megabyte
    path = write_file(tmp_path / "t.csv", f"a;b;c\n{rows}")
    schema = load(path).schema
    total = sum(matrix[:, 0].sum() for matrix, _ in RowStream(path, schema))
    assert total == pytest.approx(sum(k % 100 + k % 10 / 10 for k in range(100_000)))
    # A number in another spelling further down is named, never read as another number.
    path.write_text(f"a;b;c\n{rows}1.5;2,5;3\n")
    for read in (load, lambda path: read_rows(path, schema)):
        with pytest.raises(DataError, match=r"column 'a' holds text \('1\.5 \(unlike 0,0\)' in row 100001\)"):
            read(path)
    # Of a column of integers all cells together show that it has decimal points; its beginning does not.
    path.write_text(f"a;b;c\n{rows}1,5;2,5;1.5\n")
    assert load(path).rows[-1].tolist() == [1.5, 2.5, 1.5]
    with pytest.raises(DataError, match=r"column 'c' holds text \('1\.5 \(unlike 1,5\)' in row 100001\)"):
        read_rows(path, schema)


@pytest.mark.parametrize("text", [",\n,\n", "x" * 200_000 + "\n"])
def test_a_file_without_cells_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^t.csv: no row with a cell is found in its beginning; expected"):
        load(write_file(tmp_path / "t.csv", text))


def test_the_header_of_a_pivot_table_is_no_row(tmp_path: Path) -> None:
    lines = [f"land {k},{k + 0.5},{2 * k + 0.25},{3 * k + 0.75}" for k in range(20)]
    write_file(tmp_path / "t.csv", "\n".join(["country,1990,2000,2010", *lines, ""]))
    dataset = load(tmp_path / "t.csv", drop=["country"])
    assert (dataset.schema.names, len(dataset.rows)) == (("1990", "2000", "2010"), 20)
    assert "first line country,1990,2000,2010 taken as column names" in dataset.notes[0]
    # A first row with text that comes again, or without decimals below, is data.
    write_file(tmp_path / "r.csv", "\n".join(["land 3,1990,2000,2010", *lines, ""]))
    assert len(load(tmp_path / "r.csv", drop=["x1"]).rows) == 21


def test_words_for_unknown_values_are_no_units(tmp_path: Path) -> None:
    lines = [f"{k}.5,{k * k},{k % 7}.25" for k in range(20)]
    write_file(tmp_path / "t.csv", "\n".join(["x,y,z", "unknown,missing,n.d.", *lines, ""]))
    with pytest.raises(DataError, match="holds text \\('unknown' in row 1\\)"):
        load(tmp_path / "t.csv")
