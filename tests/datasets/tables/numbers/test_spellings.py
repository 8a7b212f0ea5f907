"""Numbers in text are understood column by column, and what was understood is said."""

import json
from pathlib import Path

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.datasets import RowStream, Schema, load, read_rows, read_table
from pushforward.datasets.tables.numbers.spellings import Spelling
from tests.fixtures.streams import small_chunks as small_chunks
from tests.fixtures.tables import write_file


def write_column(path: Path, cells: list[str], delimiter: str = ";") -> Path:
    """Write a column of cells after one of plain numbers, which have no decimals."""
    return write_file(path, f"k{delimiter}x\n" + "".join(f"{k * k}{delimiter}{cell}\n" for k, cell in enumerate(cells)))


# cells -> (numbers, what the note says)
SPELLINGS: list[tuple[list[str], list[float], str]] = [
    (["51,3", "48,7", "-5"], [51.3, 48.7, -5], "decimal commas (51,3 is read as 51.3)"),
    (["1.234,5", "12", ",5"], [1234.5, 12, 0.5], "points between thousands (1.234,5 is read as 1234.5)"),
    (["1,234.5", "7,000", "2"], [1234.5, 7000, 2], "commas between thousands (1,234.5 is read as 1234.5)"),
    (["1 234,5", "1\u00a0234", "5\u202f678,9"], [1234.5, 1234, 5678.9], "blanks between thousands (1 234,5 is"),
    (["1'234.50", "2\u2019000", "3"], [1234.5, 2000, 3], "apostrophes between thousands (1'234.50 is read as 1234.5)"),
    (["$1,234.50", "-$3", "$ 12.25"], [1234.5, -3, 12.25], "signs removed, commas between thousands ($1,234.50 is"),
    (["1.234,50 €", "3 €", "-4,5€"], [1234.5, 3, -4.5], "currency signs removed, points between thousands (1.234,50 €"),
    (["EUR 5.5", "EUR 6", "EUR -7.25"], [5.5, 6, -7.25], "currency signs removed (EUR 5.5 is read as 5.5)"),
    (["£5", "£6", "£9"], [5, 6, 9], "currency signs removed (£5 is read as 5)"),
    (["12%", "3.5 %", "-1%"], [12, 3.5, -1], "percent signs removed (12% is read as 12)"),
    (["1.5D+03", "-2d-1", "3"], [1500, -0.2, 3], "exponents with D (1.5D+03 is read as 1500)"),
    (["\u22121.5", "2", "+4.5"], [-1.5, 2, 4.5], "typographic minus signs (\u22121.5 is read as -1.5)"),
    (
        ["2,0-", "1.234,5-", "3", "-4"],
        [-2, -1234.5, 3, -4],
        "between thousands, minus signs after numbers (1.234,5- is",
    ),
    (["$2-", "$1,234.5", "$3"], [-2, 1234.5, 3], "minus signs after numbers ($2- is read as -2)"),
    (["true", "false", "TRUE"], [1, 0, 1], "true and false are read as 1 and 0"),
    (["f", "t", "f"], [0, 1, 0], "t and f are read as 1 and 0"),
    (["1,234", "5,678", "9,012"], [1.234, 5.678, 9.012], "(1,234 is read as 1.234; no cell shows that it is not 1234)"),
    (["1.234", "5.678", "9.012"], [1.234, 5.678, 9.012], "(1.234 is read as 1.234; no cell shows that it is not 1234)"),
    (["1,234", "5,678", "1,234,567"], [1234, 5678, 1234567], "commas between thousands (1,234"),
    (["1.234", "5.678", "1.234.567"], [1234, 5678, 1234567], "points between thousands (1.234"),
    (["1,234", "0,567", "9,012"], [1.234, 0.567, 9.012], "decimal commas (0,567 is read as 0.567)"),
    (["1,234", "371", "-5,678"], [1234, 371, -5678], "commas between thousands (1,234 is read as 1234; no cell shows"),
    (["371", "0", "1.932"], [371, 0, 1932], "points between thousands (1.932 is read as 1932; no cell shows"),
    (["1.932", "7", "60.666"], [1.932, 7, 60.666], "decimal points (1.932 is read as 1.932; no cell shows"),
    (["1.932", "371", "1500"], [1.932, 371, 1500], "decimal points (1.932 is read as 1.932; no cell shows"),
    (["3,456e-01", "-4,464e+00", "2"], [0.3456, -4.464, 2], "decimal commas (3,456e-01 is read as 0.3456)"),
    (["?", "51,3", "NA", "48,75", "-"], [np.nan, 51.3, np.nan, 48.75, np.nan], "decimal commas (51,3"),
]


@pytest.mark.parametrize(("cells", "numbers", "said"), SPELLINGS)
@pytest.mark.usefixtures("small_chunks")
def test_a_column_is_understood_and_the_note_says_how(
    cells: list[str], numbers: list[float], said: str, tmp_path: Path
) -> None:
    path = write_column(tmp_path / "t.csv", cells * 20)
    np.testing.assert_array_equal(read_table(path).column("x").to_numpy().astype(float), numbers * 20)
    dataset = load(path, missing="drop")
    notes = [note for note in dataset.notes if said in note and note.startswith("column 'x': ")]
    assert len(notes) == 1
    finite = [number for number in numbers * 20 if np.isfinite(number)]
    assert dataset.rows[:, 1].tolist() == finite
    if len(finite) == len(numbers) * 20:
        rows, _, scored = read_rows(path, dataset.schema)
        assert rows[:, 1].tolist() == finite
        assert [note.replace("as at the fit, not", "no cell shows that it is not") for note in scored] == notes


@pytest.mark.parametrize("cells", [["1.5", "2", "3.25"], ["+1.5", ".5", "2."], ["1e5", "2E-3", "3"], ["007", "8", "9"]])
def test_plain_numbers_need_no_note(cells: list[str], tmp_path: Path) -> None:
    dataset = load(write_column(tmp_path / "t.csv", cells * 20, ","))
    assert dataset.rows[:, 1].tolist() == [float(cell) for cell in cells * 20]
    assert not any("is read as" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["51,3"] * 5 + ["1.5"], r"'1.5 \(unlike 51,3\)' in row 6"),
        (["1.5"] * 5 + ["51,3"], "'51,3' in row 6"),
        (["12%"] * 5 + ["3"], r"'3 \(unlike 12%\)' in row 6"),
        (["3", "4"] * 5 + ["12%"], r"'12%' in row 11"),
        (["$3"] * 5 + ["€4"], r"'€4 \(unlike \$3\)' in row 6"),
        (["1,234,567"] * 5 + ["12,34,5"], r"'12,34,5' in row 6"),
        (["1.234,5"] * 5 + ["1,234.5"], r"'1,234.5 \(unlike 1.234,5\)' in row 6"),
        (["1,234", "2,345.5"] * 3 + ["3,456e-01"], r"'3,456e-01 \(unlike 2,345.5\)' in row 7"),
        (["true", "false"] * 3 + ["maybe"], r"'true' in row 1"),
        (["1_0", "2"] * 3, "'1_0' in row 1"),
        (["2,5", "5,-"] * 3, "'5,-' in row 2"),
        (["2,5-", "-5-"] * 3, "'-5-' in row 2"),
        (["1.2.3", "1.2.4"] * 3, "'1.2.3' in row 1"),
        (["02.05.2020", "03.05.2020"] * 3, "'02.05.2020' in row 1"),
    ],
)
def test_cells_that_contradict_their_column_are_named(cells: list[str], message: str, tmp_path: Path) -> None:
    schema = load(write_column(tmp_path / "g.csv", ["1.5", "2.5", "4"])).schema
    path = write_column(tmp_path / "t.csv", cells)
    for read in (load, lambda path: read_rows(path, schema)):
        with pytest.raises(DataError, match=f"column 'x' holds text .{message}"):
            read(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_mark_before_an_exponent_is_decimal(delimiter: str, tmp_path: Path) -> None:
    cells = [f'"{k},456E-0{k}"' for k in range(1, 10)]
    dataset = load(write_column(tmp_path / "t.csv", cells, delimiter))
    assert dataset.rows[:, 1].tolist() == [float(f"{k}.456e-{k}") for k in range(1, 10)]
    assert "column 'x': decimal commas (1,456E-01 is read as 0.1456)" in dataset.notes
    assert read_rows(tmp_path / "t.csv", dataset.schema)[0].tolist() == dataset.rows.tolist()


def test_the_decimal_mark_of_the_file_decides_where_a_column_does_not(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", "a;b\n" + "".join(f"{k}.{k * 7 + 100};{k * 3 % 7},5\n" for k in range(1, 30)))
    dataset = load(path)
    assert dataset.rows[:, 0].tolist() == [1000 * k + k * 7 + 100 for k in range(1, 30)]
    assert "column 'a': points between thousands (1.107 is read as 1107)" in dataset.notes
    assert dataset.schema.columns[0].type == "int64"
    path.write_text(path.read_text().replace(",5\n", ".5\n"))
    assert load(path).rows[0, 0] == 1.107


def test_columns_of_one_spelling_share_a_note_and_unused_ones_have_none(tmp_path: Path) -> None:
    rows = "".join(f"{k},5;{k * k},25;{k % 3},75;{k % 5}%\n" for k in range(30))
    path = write_file(tmp_path / "t.csv", "a;b;c;d\n" + rows)
    notes = [note for note in load(path, drop=["d"]).notes if "is read as" in note]
    assert notes == ["columns 'a', 'b', 'c': decimal commas (0,5 is read as 0.5)"]
    notes = [note for note in load(path, columns=["d"]).notes if "is read as" in note]
    assert notes == ["column 'd': percent signs removed (0% is read as 0)"]


def test_integers_with_thousands_beyond_2_53_are_refused_as_others_are(tmp_path: Path) -> None:
    cells = [f"{10**18 + k:,}" for k in range(20)]
    path = write_column(tmp_path / "t.csv", cells)
    schema = load(write_column(tmp_path / "g.csv", ["1.5", "2.5", "4"])).schema
    for read in (load, lambda path: read_rows(path, schema)):
        with pytest.raises(DataError, match=r"integers beyond 2\*\*53"):
            read(path)


def write_open(path: Path, last: str = "", rows: int = 200_000) -> Path:
    """Write a column whose cells, more than a megabyte, leave open whether commas are decimal."""
    cells = "".join(f"{k % 9 + 1},{k % 899 + 100}\t{k % 7}\n" for k in range(rows))
    return write_file(path, f"x\tk\n{cells}{last}")


def test_what_the_last_cell_settles_at_the_fit_is_known_when_rows_are_scored(tmp_path: Path) -> None:
    path = write_open(tmp_path / "t.tsv", "1,5\t3\n")
    dataset = load(path)
    assert dataset.rows[:, 0].max() < 10
    assert dataset.schema.columns[0].spelling == Spelling(decimal=",")
    schema = Schema.from_dict(json.loads(json.dumps(dataset.schema.to_dict())))
    rows, _, _ = read_rows(path, schema)
    np.testing.assert_array_equal(rows, dataset.rows)
    rows, _, notes = read_rows(write_open(tmp_path / "o.tsv"), schema)
    np.testing.assert_array_equal(rows, dataset.rows[:-1])
    assert notes == ("column 'x': decimal commas (1,100 is read as 1.1; as at the fit, not 1100)",)


@pytest.mark.parametrize(
    ("cells", "others", "values"),
    [
        (["8,296", "8,42", "7,5"], ["1,234", "5,678"], [1.234, 5.678]),
        (["8,296", "8,42", "7,5"], ["1.234", "5.678"], [1234, 5678]),
        (["8,296", "8,42", "7,5"], ["1.234", "5.67"], [1.234, 5.67]),
        (["8,296", "8,42", "7,5"], ["1,234.5", "5,678"], [1234.5, 5678]),
        (["8,296.5", "8,420", "7"], ["1,234", "5,678"], [1234, 5678]),
        (["8,296,500", "8,420", "7"], ["1.234", "5.678"], [1.234, 5.678]),
        (["8.296", "8.42", "7.5"], ["1,234", "5,678"], [1234, 5678]),
    ],
)
def test_the_fit_decides_only_what_the_cells_of_another_file_leave_open(
    cells: list[str], others: list[str], values: list[float], tmp_path: Path
) -> None:
    schema = load(write_column(tmp_path / "t.tsv", cells * 9, "\t")).schema
    rows, _, _ = read_rows(write_column(tmp_path / "o.tsv", others * 9, "\t"), schema)
    assert rows[:, 1].tolist() == values * 9


def test_a_guess_at_the_fit_that_points_are_decimal_says_nothing_of_commas(tmp_path: Path) -> None:
    schema = load(write_column(tmp_path / "t.csv", ["8.296", "8.421", "7.512"] * 9)).schema
    rows, _, _ = read_rows(write_column(tmp_path / "o.csv", ["1,234", "5,678"] * 9), schema)
    assert rows[:, 1].tolist() == [1.234, 5.678] * 9


def test_points_between_commas_are_decimal_whatever_the_fit_read(tmp_path: Path) -> None:
    schema = load(write_column(tmp_path / "t.csv", ["8,296", "8,42", "7,5"] * 9, ";")).schema
    rows, _, _ = read_rows(write_column(tmp_path / "o.csv", ["1.234", "5.678"] * 9, ","), schema)
    assert rows[:, 1].tolist() == [1.234, 5.678] * 9


@pytest.mark.parametrize(
    ("at_fit", "in_file", "said"),
    [
        ("{}%", "{}", "has no sign beside its numbers, and had % at the fit"),
        ("{}", "{}%", "has % beside its numbers, and had no sign at the fit"),
        ("${}", "{} EUR", "has EUR beside its numbers, and had $ at the fit"),
        ("${}", "{}", "has no sign beside its numbers, and had $ at the fit"),
        ("${}", "${}", ""),
        ("{}%", "{} %", ""),
        ("{}", "{}", ""),
    ],
)
def test_a_sign_that_is_not_that_of_the_fit_is_said(at_fit: str, in_file: str, said: str, tmp_path: Path) -> None:
    numbers = ["0.5", "2.6", "7.25"] * 9
    schema = load(write_column(tmp_path / "t.csv", [at_fit.format(number) for number in numbers])).schema
    path = write_column(tmp_path / "o.csv", [in_file.format(number) for number in numbers])
    rows, _, notes = read_rows(path, schema)
    assert rows[:, 1].tolist() == [float(number) for number in numbers]
    about = [note for note in notes if "at the fit" in note]
    assert len(about) == bool(said)
    assert all(note.startswith(f"column 'x': {said}") for note in about)


@pytest.mark.parametrize(("words", "said"), [(("true", "false"), "true and false"), (("t", "f"), "t and f")])
def test_a_column_without_a_value_in_the_first_megabyte(words: tuple[str, str], said: str, tmp_path: Path) -> None:
    empty = "".join(f",{k % 1009}.25\n" for k in range(160_000))
    path = write_file(tmp_path / "t.csv", "x,k\n" + empty + "".join(f"{words[k % 2]},{k}.5\n" for k in range(50)))
    dataset = load(path, missing="drop")
    assert dataset.rows[:, 0].tolist() == [1, 0] * 25
    assert f"column 'x': {said} are read as 1 and 0" in dataset.notes
    plain = load(write_column(tmp_path / "g.csv", ["1", "0", "2"] * 9, ","), columns=["x", "k"]).schema
    for schema in (dataset.schema, plain):
        stream = RowStream(path, schema, missing="drop")
        rows = np.concatenate([features for features, _ in stream])
        assert rows[:, schema.names.index("x")].tolist() == [1, 0] * 25
        assert f"column 'x': {said} are read as 1 and 0" in stream.findings


def test_a_cell_far_down_is_read_with_the_whole_file_and_named_by_the_stream(tmp_path: Path) -> None:
    rows = "".join(f"{k % 97},{k % 89}\n" for k in range(300_000))
    path = write_file(tmp_path / "t.csv", f"a,b\n{rows}$5,1\n")
    dataset = load(path)
    assert dataset.rows[-1].tolist() == [5, 1]
    assert "column 'a': currency signs removed ($5 is read as 5)" in dataset.notes
    with pytest.raises(DataError, match=r"column 'a' holds text \('\$5' in row 300001\)"):
        read_rows(path, dataset.schema)
