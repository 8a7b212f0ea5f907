"""One report names everything in a table that cannot be used, and its command line works."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pushforward.common.errors import ConfigError, TableError
from pushforward.common.text import as_argument
from pushforward.config.read import load_config
from pushforward.config.schema import DataConfig
from pushforward.datasets import Dataset, load
from pushforward.train.data import load_data
from pushforward.train.defaults import data_options
from tests.fixtures.paths import DATA
from tests.fixtures.tables import parquet_bytes, write_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder of the tables, as the commands in the messages do."""
    monkeypatch.chdir(tmp_path)


def as_csv(columns: dict[str, Any]) -> str:
    """Write columns as CSV."""
    rows = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n"


def refused(name: str, **options: Any) -> TableError:
    with pytest.raises(TableError) as caught:
        load(name, **options)
    return caught.value


def follow(error: TableError) -> tuple[DataConfig, Dataset]:
    """Run the command of a report as a shell and the configuration read it; return the options and the data set."""
    command = str(error).splitlines()[-1].strip()
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    program, verb, source, *overrides = done.stdout.split("\0")[:-1]
    assert (program, verb) == ("pushforward", "fit")
    config = load_config(source, overrides=overrides)
    return config.data, load_data(data_options(config.model_dump()))


# name of the file -> (content, what follows the name of the file in the message)
SMALL: dict[str, tuple[str | bytes, str]] = {
    "text.csv": (
        "a,colour\n1,red\n2,blue\n3,red\n",
        "column 'colour' holds text ('red' in row 1)\n"
        "this works (only numbers are modelled: to keep the column, encode it as numbers):\n"
        "  pushforward fit text.csv data.drop=colour",
    ),
    "texts.csv": (
        "a,b,c,d\n1,x,y,z\n2,x,y,w\n3,u,v,w\n",
        "3 of 4 columns cannot be used as they are\n"
        "  'b'  holds text ('x' in row 1)\n"
        "  'c'  holds text ('y' in row 1)\n"
        "  'd'  holds text ('z' in row 1)\n"
        "this works (only numbers are modelled: to keep a column, encode it as numbers):\n"
        "  pushforward fit texts.csv data.drop=b,c,d",
    ),
    "words.csv": (
        "a,b\nu,v\nw,x\ny,z\n",
        "2 of 2 columns cannot be used as they are\n"
        "  'a'  holds text ('u' in row 1)\n"
        "  'b'  holds text ('v' in row 1)\n"
        "no column is left to model; to keep one, encode it as numbers",
    ),
    "days.csv": (
        "day,b\n2020-01-01,1\n2020-01-02,2\n2020-01-05,4\n",
        "column 'day' holds dates or times (2020-01-01 in row 1)\n"
        "this works (only numbers are modelled: to keep the column, encode it as numbers):\n"
        "  pushforward fit days.csv data.drop=day",
    ),
    "missing.csv": (
        "a,b\n1,2\n2,\n3,?\n4,5\n5,8\n7,9\n",
        "column 'b' has 2 missing values (33 %, first in row 2)\n"
        "this works, with 4 of 6 rows:\n"
        "  pushforward fit missing.csv data.missing=drop",
    ),
    "mostly.csv": (
        "a,b\n1,2\n2,\n3,?\n4,5\n5,\n7,\n",
        "column 'b' has 4 missing values (67 %, first in row 2)\nthis works:\n  pushforward fit mostly.csv data.drop=b",
    ),
    "only.csv": (
        "b\n2\nNA\nNA\n5\nNA\nNA\nNA\n9\n",
        "column 'b' has 5 missing values (62 %, first in row 2)\n"
        "this works, with 3 of 8 rows:\n"
        "  pushforward fit only.csv data.missing=drop",
    ),
    "few.csv": (
        "b\n2\nNA\nNA\n5\nNA\n",
        "column 'b' has 3 missing values (60 %, first in row 2)\n"
        "2 of 5 rows are complete, too few for a fit: fill the missing cells",
    ),
    "infinite.csv": (
        "a,b\n1,2\n-inf,3\n2,4\n4,\n5,6\n6,9\n",
        "2 of 2 columns cannot be used as they are\n"
        "  'a'  has 1 infinite value (in row 2)\n"
        "  'b'  has 1 missing value (in row 4)\n"
        "this works, with 4 of 6 rows:\n"
        "  pushforward fit infinite.csv data.missing=drop",
    ),
    "no_values.csv": (
        "a,b\n1,\n2,\n3,\n",
        "column 'b' has no values at all\nthis works:\n  pushforward fit no_values.csv data.drop=b",
    ),
    "huge.csv": (
        "a,b\n1,2\n2,1e200\n3,4\n",
        "column 'b' holds 1e+200, whose square overflows\nthis works:\n  pushforward fit huge.csv data.drop=b",
    ),
    "twice.csv": (
        "a,b,a\n1,2,3\n2,3,5\n3,5,8\n",
        "column 'a' appears 2 times\nthis works:\n  pushforward fit twice.csv data.drop=a",
    ),
    "constants.csv": (
        "a,x,y\n1,3,0.5\n2,3,0.5\n3,3.0,0.5\n",
        "2 of 3 columns cannot be used as they are\n"
        "  'x'  is constant (3), so it has no density\n"
        "  'y'  is constant (0.5), so it has no density\n"
        "this works:\n"
        "  pushforward fit constants.csv data.drop=x,y",
    ),
    "constant.csv": ("x\n3\n3\n3\n", "column 'x' is constant (3), so it has no density\nno column is left to model"),
    "lists.parquet": (
        parquet_bytes(pa.table({"a": [[1], [2], [3]], "b": [1, 2, 3]})),
        "column 'a' holds lists\n"
        "this works (only numbers are modelled: to keep the column, encode it as numbers):\n"
        "  pushforward fit lists.parquet data.drop=a",
    ),
    "keys.parquet": (
        parquet_bytes(pa.table({"a": [1, 2, 2**60], "b": [1, 2, 4]})),
        "column 'a' holds integers beyond 2**53, which float64 cannot represent exactly\n"
        "this works:\n"
        "  pushforward fit keys.parquet data.drop=a",
    ),
    # Without the rows of the first column, the second is constant.
    "then-constant.csv": (
        "a,b,c\n1,7,1\n2,7,2\n,8,3\n4,7,4\n5,7,5\n",
        "column 'a' has 1 missing value (in row 3)\n"
        "this works, with 4 of 5 rows:\n"
        "  pushforward fit then-constant.csv data.drop=b data.missing=drop",
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_report_on_a_small_table(name: str, tmp_path: Path) -> None:
    content, message = SMALL[name]
    write_file(tmp_path / name, content)
    error = refused(name)
    assert str(error) == f"{name}: {message}"
    assert error.exit_code == 3
    if "pushforward fit" in message:
        follow(error)


def penguins(rows: int = 344) -> dict[str, Any]:
    """A table with text, holes in several columns, a constant, dates, an infinite cell, and an empty column."""
    random = np.random.default_rng(0)

    def holes(values: Any, count: int) -> list[Any]:
        cells = list(values)
        for row in random.choice(rows, count, replace=False):
            cells[row] = "NA"
        return cells

    size = random.normal(40, 5, rows).round(1)
    size[17] = np.inf
    return {
        "species": random.choice(["Adelie", "Gentoo"], rows),
        "island": random.choice(["Biscoe", "Dream"], rows),
        "bill, mm": holes(size, 2),
        "depth": holes(random.normal(17, 2, rows).round(1), 2),
        "mass": holes(random.integers(2700, 6300, rows), 9),
        "sex": holes(random.choice(["male", "female"], rows), 11),
        "year": [2007] * rows,
        "hatched": [f"2007-11-{day % 28 + 1:02}" for day in range(rows)],
        "tag": holes(random.normal(size=rows), 280),
        "notes": [""] * rows,
    }


def test_one_report_names_every_obstacle(tmp_path: Path) -> None:
    content = as_csv(penguins()).replace("bill, mm", '"bill, mm"', 1)
    write_file(tmp_path / "penguins.csv", content)
    error = refused("penguins.csv")
    lines = str(error).splitlines()
    assert lines[0] == "penguins.csv: 10 of 10 columns cannot be used as they are"
    assert len(lines) <= 13
    for name, what in {
        "species": "holds text ('",
        "bill, mm": "has 2 missing values (0.58 %, first in row ",
        "mass": "has 9 missing values (2.6 %, first in row ",
        "year": "is constant (2007), so it has no density",
        "hatched": "holds dates or times (2007-11-01 in row 1)",
        "tag": "has 280 missing values (81 %, first in row ",
        "notes": "has no values at all",
    }.items():
        assert any(line.startswith(f"  {name!r} ") and what in line for line in lines), (name, lines)
    options, dataset = follow(error)
    assert dataset.schema.names == ("bill, mm", "depth", "mass")
    assert options.drop == ("species", "island", "sex", "year", "hatched", "tag", "notes")
    assert 325 <= len(dataset.rows) <= 335
    assert f"this works, with {len(dataset.rows)} of 344 rows" in str(error)
    assert f"{344 - len(dataset.rows)} of 344 rows have missing values and are left out" in dataset.notes[0]


def test_a_long_report_is_cut_and_names_the_columns_to_keep(tmp_path: Path) -> None:
    texts = {f"t{k}": ["x", "y", "z", "w"] for k in range(60)}
    write_file(tmp_path / "t.csv", as_csv(texts | {"a": [1, 2, 4, 5], "b": [3, 1, 4, 2]}))
    lines = str(error := refused("t.csv", context=["b"])).splitlines()
    assert lines[0] == "t.csv: 60 of 62 columns cannot be used as they are"
    assert (len(lines), lines[-3]) == (43, "  and 21 more")
    assert lines[-1] == "  pushforward fit t.csv data.columns=a data.given=b"
    _, dataset = follow(error)
    assert (dataset.schema.names, dataset.schema.context_names) == (("a",), ("b",))


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"context": ["kind"]}, "data.given names 'kind': encode it as numbers, or take it out there"),
        ({"columns": ["kind", "a"]}, "data.columns names 'kind': encode it as numbers, or take it out there"),
        ({"columns": ["a", "same"]}, "data.columns names 'same': take it out there"),
        ({"context": ["none"]}, "data.given names 'none': fill it, or take it out there"),
    ],
)
def test_a_column_that_the_user_named_is_never_left_out(options: Any, advice: str, tmp_path: Path) -> None:
    table = {"a": [1, 2, 4, 5], "kind": ["x", "y", "z", "w"], "same": [1] * 4, "none": [""] * 4}
    write_file(tmp_path / "t.csv", as_csv(table))
    message = str(refused("t.csv", **options))
    assert message.splitlines()[-1] == advice
    assert "pushforward fit" not in message


def test_named_columns_with_holes_keep_their_column(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    holes = np.where(random.random(200) < 0.7, "NA", random.normal(size=200).round(3).astype(str))
    write_file(tmp_path / "t.csv", as_csv({"a": random.normal(size=200), "y": holes, "b": random.normal(size=200)}))
    assert follow(refused("t.csv"))[0].drop == ("y",)
    for named in ({"context": ["y"]}, {"columns": ["a", "y"]}):
        options, dataset = follow(refused("t.csv", **named))
        assert options.drop == ()
        assert options.missing == "drop"
        assert len(dataset.rows) == (holes != "NA").sum()


def test_the_command_keeps_what_was_asked(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    table: dict[str, list[Any]] = {name: list(random.normal(size=300).round(4)) for name in "abcd"}
    table["t"] = ["x"] * 300
    table["a"][5], table["b"][7] = -9999, ""
    write_file(tmp_path / "-t.csv", as_csv(table))
    asked = {"drop": ["d"], "context": ["c"], "rows": 50, "seed": 3, "missing_values": [-9999.0]}
    error = refused("-t.csv", **asked)
    assert str(error).splitlines()[-1] == (
        "  pushforward fit ./-t.csv data.given=c data.drop=d,t data.missing=drop data.missing_values=-9999 "
        "data.rows=50 data.seed=3"
    )
    _, dataset = follow(error)
    assert dataset.rows.shape == (50, 2)
    options, dataset = follow(refused("-t.csv", protocol="half", fold=2))
    assert (options.protocol, options.fold) == ("half", 2)
    assert dataset.splits is not None


def test_no_command_is_given_that_would_fail(tmp_path: Path) -> None:
    """Without the text, two rows are drawn, too few for a fit."""
    write_file(tmp_path / "t.csv", as_csv({"a": range(9), "b": [k * k for k in range(9)], "t": ["x"] * 9}))
    message = str(refused("t.csv", rows=2))
    assert message.splitlines()[1] == "without these, t.csv: 2 rows for 2 columns; at least 3 rows are needed"
    assert "pushforward fit" not in message


AWKWARD = ["", *" ,'\"[]\\!#=:{}&*-~%;|ä😀", "$HOME", "`date`", "all", "a", "b c", "null", "1e3"]
AWKWARD += ["\u2028", "\x85", "\xa0", "\t", "\n", "\x7f", "\ufeff"]


@pytest.mark.parametrize("seed", range(6))
def test_awkward_names_survive_the_shell_and_the_configuration(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    for _ in range(40):
        names = ["".join(random.choice(AWKWARD, random.integers(1, 5))) for _ in range(random.integers(1, 4))]
        names = [name for name in names if name]
        argument = f"data.drop={as_argument(names)}"
        config = load_config("x.csv", overrides=[argument, f"data.columns={as_argument([*names, 'all'])}"])
        assert config.data.drop == tuple(names)
        assert config.data.columns == (*names, "all")
    unique = [name for name in dict.fromkeys("".join(random.choice(AWKWARD, 4)) for _ in range(5)) if name]
    table = {name: ["x", "y", "z", "x"] for name in unique} | {"good": [1, 2, 4, 3]}
    write_file(tmp_path / "t $x's.parquet", parquet_bytes(pa.table(table)))
    options, dataset = follow(refused("t $x's.parquet"))
    assert options.drop == tuple(unique)
    assert dataset.schema.names == ("good",)
    assert shlex.split(shlex.quote(f"data.drop={as_argument(unique)}")) == [f"data.drop={as_argument(unique)}"]


def test_rows_with_holes_are_left_out_on_request(tmp_path: Path) -> None:
    table = {"a": [1, "", 3, 4, 8, 6], "b": [2, 3, 5, "inf", 1, 9], "unused": ["x", "", "", "", "", ""]}
    write_file(tmp_path / "t.csv", as_csv(table))
    dataset = load("t.csv", drop=["unused"], missing="drop")
    assert dataset.rows.tolist() == [[1, 2], [3, 5], [8, 1], [6, 9]]
    assert dataset.notes[0] == "t.csv: 2 of 6 rows have missing values and are left out (data.missing=drop)"
    assert dataset.row_numbers is not None
    assert dataset.in_file(np.array([1, 3])).tolist() == [2, 5]
    subset = load("t.csv", drop=["unused"], missing="drop", rows=3, seed=1)
    whole = np.array([[1, 2], [np.nan, 3], [3, 5], [4, np.inf], [8, 1], [6, 9]])
    assert np.array_equal(whole[subset.in_file(np.arange(3))], subset.rows)
    assert load("t.csv", drop=["unused"], missing="drop", missing_values=[8]).rows[:, 0].tolist() == [1, 3, 6]


def test_integers_that_stand_for_a_missing_value(tmp_path: Path) -> None:
    """NumPy's and pandas' smallest integer is beyond 2**53, where float64 has gaps."""
    table = pa.table({"a": pa.array([1, 2, -(2**63), 4, 7]), "b": [2, 3, 5, 7, 9]})
    write_file(tmp_path / "t.parquet", parquet_bytes(table))
    assert "integers beyond 2**53" in str(refused("t.parquet"))
    dataset = load("t.parquet", missing_values=[-(2.0**63)], missing="drop")
    assert dataset.rows.tolist() == [[1, 2], [2, 3], [4, 7], [7, 9]]
    assert dataset.schema.columns[0].type == "int64"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}")
@pytest.mark.parametrize("name", ["adult_test.csv.gz", "beijing.csv.gz", "penguins-raw.csv", "shoppers.csv.gz"])
def test_the_command_works_for_real_tables(name: str) -> None:
    options, dataset = follow(refused(str(DATA / "mixed" / name)))
    assert options.drop
    assert len(dataset.rows) > 300


def test_missing_values_are_declared(tmp_path: Path) -> None:
    write_file(tmp_path / "t.csv", as_csv({"a": [1, 2, -9999, 4, 5], "b": [2, 3, 5, 7, 3.4028234663852886e38]}))
    codes = [-9999, float(np.finfo(np.float32).max)]
    assert "2 of 2 columns cannot be used" in str(refused("t.csv", missing_values=codes))
    dataset = load("t.csv", missing_values=codes, missing="drop")
    assert dataset.rows.tolist() == [[1, 2], [2, 3], [4, 7]]
    assert dataset.schema.missing_values == tuple(codes)
    config = load_config("t.csv", overrides=["data.missing_values=-9999,3.4028234663852886e38"])
    assert config.data.missing_values == tuple(codes)
    again = load_config(overrides=[f"{key}={value}" for key, value in config.flat().items() if value is not None])
    assert again.data == config.data
    with pytest.raises(ConfigError, match=r"data\.missing_values: expected a list of numbers, as in -9999 or"):
        load_config("t.csv", overrides=["data.missing_values=many"])
