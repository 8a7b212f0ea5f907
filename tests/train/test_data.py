"""Preparation of data: the choice of validation rows, very small tables, rows that are in two parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pushforward.common.errors import ConfigError, DataError, TableError
from pushforward.config.read import load_config
from pushforward.datasets import Dataset, load
from pushforward.datasets.tables.protocols import LARGEST_FOLD
from pushforward.train import data as data_module
from pushforward.train.data import Prepared, prepare
from pushforward.train.options import DataOptions
from tests.fixtures.tables import table_with_copies

CPU = torch.device("cpu")


def ordered(tmp_path: Path, n: int = 2000) -> Path:
    """A table in the order of time, with a column for the time."""
    rng = np.random.default_rng(0)
    rows = np.stack((np.arange(n) + rng.uniform(0, 0.5, n), rng.normal(size=n), rng.normal(size=n)), axis=1)
    path = tmp_path / "t.csv"
    np.savetxt(path, rows, delimiter=",", header="time,a,b", comments="")
    return path


def prepared(path: Path, *context: str, seed: int = 0) -> Prepared:
    return prepare(load(path, context=context), DataOptions(source=str(path), given=context, seed=seed))


def test_many_validation_rows_are_drawn_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows of the file would be the oldest."""
    path = ordered(tmp_path)
    everything = prepared(path).validation_rows(CPU).x
    monkeypatch.setattr(data_module, "MAX_VALIDATION_ROWS", 50)
    found = prepared(path).validation_rows(CPU).x
    assert (len(everything), len(found)) == (200, 50)
    assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in everything.tolist()}
    assert len(np.unique(found[:, 0])) == 50
    # Of 50 rows out of 200 about half lie in the later half of the file.
    assert 15 < int((found[:, 0] > everything[:, 0].median()).sum()) < 35
    # A resumed fit, or another flow, gets the same rows.
    assert torch.equal(found, prepared(path).validation_rows(CPU).x)


def test_context_goes_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(3000.0).reshape(1000, 3)
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="a,b,c", comments="")
    monkeypatch.setattr(data_module, "MAX_VALIDATION_ROWS", 20)
    validation = prepared(tmp_path / "t.csv", "c").validation_rows(CPU)
    assert validation.context is not None
    np.testing.assert_allclose(validation.x[:, 1], validation.context[:, 0], atol=2e-3)


def test_three_rows_are_too_few_for_three_parts(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("c0,c1\n1,2.5\n3,1\n2,9\n")
    with pytest.raises(
        DataError, match=r"^t: 3 rows leave 1 to train on; at least 2 are needed: give more rows, or hold"
    ):
        prepared(path)
    assert len(prepare(load(path), DataOptions(source="t", test_fraction=0)).splits.train) == 2


def test_all_columns_that_are_constant_in_training_are_named_at_once(tmp_path: Path) -> None:
    """Features and context together; the advice does not leave out the context, nor all features."""
    rows = np.random.default_rng(0).normal(size=(20, 4))
    splits = prepare(loaded(tmp_path, rows), DataOptions(source="t", dequantize=False)).splits
    rows[splits.train, 1:] = 7
    with pytest.raises(TableError) as caught:
        prepare(loaded(tmp_path, rows), DataOptions(source="t", dequantize=False))
    what = "takes one value in all 16 training rows, so that it has no density"
    assert str(caught.value).splitlines() == [
        "t: 3 of 4 columns cannot be used as they are",
        *(f"  'x{k}'  {what}" for k in (2, 3, 4)),
        "leave them out with data.drop=x2,x3,x4, or try another seed of the split",
    ]
    with pytest.raises(TableError, match=r"\ntry another seed of the split$"):
        prepare(loaded(tmp_path, rows, ["x4"]), DataOptions(source="t", dequantize=False))
    rows[splits.train, 0] = 7
    with pytest.raises(TableError, match=r"\ntry another seed of the split$"):
        prepare(loaded(tmp_path, rows), DataOptions(source="t", dequantize=False))


def test_columns_that_hardly_vary_in_training_are_named(tmp_path: Path) -> None:
    """A column may vary enough in the table but not in its training part; of context, the report is about that."""
    rows = np.random.default_rng(0).normal(size=(20, 3))
    train = prepare(loaded(tmp_path, rows), DataOptions(source="t", dequantize=False)).splits.train
    rows[train, 1] *= 1e-300
    what = rf"column '{{}}' varies by only {np.ptp(rows[train, 1]):.3g}, whose square underflows\n"
    with pytest.raises(
        TableError,
        match="^t: " + what.format("x2") + "leave it out with data.drop=x2, or rescale the columns that vary, or try",
    ):
        prepare(loaded(tmp_path, rows), DataOptions(source="t", dequantize=False))
    # The sum of a constant's deviations from its rounded mean is not zero.
    rows[train, 1] = 0.1
    with pytest.raises(TableError, match=r"^t: column 'x2' takes one value in all 16 training rows"):
        prepare(loaded(tmp_path, rows), DataOptions(source="t", dequantize=False))
    given = load(rows[:, :1], given=rows[:, 1:])
    with pytest.raises(TableError, match=r"^given: column 'c1' takes one value in all 16 training rows"):
        prepare(given, DataOptions(source="t", dequantize=False))


def test_the_scale_of_weights_is_left_out_before_float32(tmp_path: Path) -> None:
    rows, weight = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 5
    plain = prepare(load(rows, weight=weight), DataOptions(source="t"))
    for scale in (2.0**-1000, 2.0**-150, 2.0**150):
        scaled = prepare(load(rows, weight=weight * scale), DataOptions(source="t"))
        assert scaled.train.weights is not None
        assert plain.train.weights is not None
        assert np.array_equal(scaled.train.weights, plain.train.weights * scale)  # as recorded
        for part in ("training_rows", "validation_rows"):
            found, expected = (getattr(each, part)(CPU).weights for each in (scaled, plain))
            assert torch.equal(found, expected)
            assert 1 <= float(found.max()) < 2


def loaded(folder: Path, rows: np.ndarray[Any, Any], context: Sequence[str] = ()) -> Dataset:
    np.save(folder / "t.npy", rows)
    return load(folder / "t.npy", context=context)


def test_a_note_on_repeated_rows(tmp_path: Path) -> None:
    path = table_with_copies(tmp_path, 300)
    found = prepared(path)
    assert found.repeats is not None
    counts = found.repeats.validation.sum(), found.repeats.test.sum()
    assert found.dataset.notes == (
        f"d: {counts[0]} of 100 validation rows and {counts[1]} of 100 test rows also appear among the training rows: "
        f"their likelihood measures memorization too",
    )
    # One copy in a hundred is not reported.
    assert prepared(table_with_copies(tmp_path, 4)).dataset.notes == ()


@pytest.mark.parametrize("protocol", ["half", "tenths"])
def test_the_largest_fold(protocol: str) -> None:
    """The configuration knows the number of folds without NumPy; the last one can be drawn."""
    with pytest.raises(ConfigError, match=f"data.fold: expected 0 to {LARGEST_FOLD} for data.protocol={protocol}; got"):
        load_config("moons", (), [f"data.protocol={protocol}", f"data.fold={LARGEST_FOLD + 1}"])
    assert load("moons", rows=100, protocol=protocol, fold=LARGEST_FOLD).splits is not None
