"""Columns that only number the rows are left out, or named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from pushforward.datasets import load, read_rows


def frame(n: int = 50) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(n, 2)).round(3), columns=["a", "b"])


INDICES = {
    "sorted": frame(),
    "shuffled": frame().sample(frac=1, random_state=1),
    "subset": frame().sample(n=20, random_state=1),
    "bootstrap": frame().sample(frac=1, replace=True, random_state=1),
    "joined": pd.concat([frame(), frame() + 1]),
    "from one": frame().set_axis(range(1, 51)),
    "texts": frame().set_axis([f"row {k}" for k in range(50)]),
    "dates": frame().set_axis(pd.date_range("2020-01-01", periods=50)),
    "reset": frame().sample(frac=1, random_state=1).reset_index(),
    "written twice": frame().sample(n=20, random_state=1).reset_index(names="Unnamed: 0"),
    "read and written again": frame().sample(frac=1, random_state=1).reset_index(names="Unnamed: 0"),
}


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_an_index_that_pandas_wrote_is_left_out(name: str, delimiter: str, tmp_path: Path) -> None:
    content, path = INDICES[name], tmp_path / "t.csv"
    written = name == "written twice" or not {"index", "Unnamed: 0"} & set(content)
    content.to_csv(path, sep=delimiter, index=written)
    dataset = load(path)
    assert dataset.schema.names == ("a", "b")
    np.testing.assert_array_equal(dataset.rows, content[["a", "b"]].to_numpy())
    (note,) = [note for note in dataset.notes if "index" in note]
    index = note.split("left out the index ")[1].split(";")[0]
    np.testing.assert_array_equal(read_rows(path, dataset.schema)[0], dataset.rows)
    if name not in {"texts", "dates", "written twice"}:
        assert load(path, columns=[index, "a"]).schema.names == (index, "a")
        assert load(path, context=[index]).schema.context_names == (index,)


@pytest.mark.parametrize("first", [[k * 1.25 + 0.5 for k in range(20)], [1, 1, 2, 3] * 5])
def test_a_first_column_without_a_name_that_is_no_index_stays(first: list[float], tmp_path: Path) -> None:
    lines = [f"{x},{y}" for x, y in zip(first, range(20, 60, 2), strict=True)]
    (tmp_path / "t.csv").write_text("\n".join([",a", *lines]) + "\n")
    assert load(tmp_path / "t.csv").schema.names == ("x1", "a")


def test_a_named_column_that_numbers_the_rows_in_any_order_is_kept_and_said(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).permutation(50) + 7
    frame().assign(id=numbers).to_csv(tmp_path / "t.csv", index=False)
    dataset = load(tmp_path / "t.csv")
    assert dataset.schema.names == ("a", "b", "id")
    assert "column 'id' numbers the rows; if it is an index, leave it out with data.drop=id" in dataset.notes
    frame().assign(id=numbers * 2).to_csv(tmp_path / "t.csv", index=False)
    assert not any("numbers the rows" in note for note in load(tmp_path / "t.csv").notes)


def test_an_index_column_of_arrow_is_left_out_by_its_name(tmp_path: Path) -> None:
    table = pa.table({"a": [1.5, 2.5, 4.5], "__index_level_0__": [5, 3, 9]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet").schema.names == ("a",)


def test_a_table_that_is_nothing_but_numbers_of_rows_stays(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("index\n" + "".join(f"{k}\n" for k in range(30)))
    assert load(tmp_path / "t.csv").schema.names == ("index",)
