"""Preparation of data: the choice of validation rows, very small tables, rows that are in two parts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.common.errors import ConfigError, DataError
from pushforward.config.read import load_config
from pushforward.config.schema import DataConfig
from pushforward.datasets import Splits, load
from pushforward.datasets.repeated_rows import compare_rows, find_repeats
from pushforward.datasets.tables.protocols import LARGEST_FOLD
from pushforward.experiment.rows import fit
from pushforward.train import data as data_module
from pushforward.train.data import Prepared, prepare

CPU = torch.device("cpu")


def ordered(tmp_path: Path, n: int = 2000) -> Path:
    """A table in the order of time, with a column for the time."""
    rng = np.random.default_rng(0)
    rows = np.stack((np.arange(n) + rng.uniform(0, 0.5, n), rng.normal(size=n), rng.normal(size=n)), axis=1)
    path = tmp_path / "t.csv"
    np.savetxt(path, rows, delimiter=",", header="time,a,b", comments="")
    return path


def prepared(path: Path, *context: str, seed: int = 0) -> Prepared:
    return prepare(load(path, context=context), DataConfig(source=str(path), context=context), seed)


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
    assert len(prepare(load(path), DataConfig(source="t", test_fraction=0), 0).splits.train) == 2


def test_repeated_rows_are_counted() -> None:
    rng = np.random.default_rng(0)
    for width in (2, 5):
        matrix = rng.integers(0, 12, size=(600, width)).astype(float)
        matrix[matrix == 0] *= rng.choice((-1.0, 1.0), size=(matrix == 0).sum())  # minus zero is zero
        splits = Splits(*np.split(rng.permutation(600), (400, 450)))
        train = {tuple(row) for row in matrix[splits.train]}
        found = compare_rows(matrix, splits)
        for part, copies in ((splits.validation, found.validation), (splits.test, found.test)):
            assert copies.tolist() == [tuple(row) in train for row in matrix[part]]
        assert (found.test.sum() > 50) == (width == 2)


def doubled(tmp_path: Path, copies: int, n: int = 1000) -> Path:
    rows = np.random.default_rng(0).normal(size=(n, 3))
    rows[n - copies :] = rows[:copies]
    path = tmp_path / "d.csv"
    np.savetxt(path, rows, delimiter=",", header="a,b,c", comments="")
    return path


def test_a_note_on_repeated_rows(tmp_path: Path) -> None:
    path = doubled(tmp_path, 300)
    found = prepared(path)
    splits = found.splits
    assert found.repeats is not None
    counts = found.repeats.validation.sum(), found.repeats.test.sum()
    assert found.dataset.notes == (
        f"d: {counts[0]} of 100 validation rows and {counts[1]} of 100 test rows also appear among the training rows: "
        f"their likelihood measures memorization too",
    )
    # Rows with different context are different, and one copy in a hundred is not reported.
    given = dataclasses.replace(found.dataset, context=np.arange(1000.0)[:, None])
    assert find_repeats(given, splits) is None
    assert prepared(doubled(tmp_path, 4)).dataset.notes == ()


def test_repeats_are_not_counted_for_one_column_or_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(doubled(tmp_path, 300))
    one = dataclasses.replace(found.dataset, rows=found.dataset.rows[:, :1])
    assert find_repeats(one, found.splits) is None
    monkeypatch.setattr("pushforward.datasets.repeated_rows.MAX_ROWS", 999)
    assert find_repeats(found.dataset, found.splits) is None


def test_the_likelihood_of_new_rows_is_reported_separately(tmp_path: Path) -> None:
    keys = ("train.steps=5", "flow=gaussian", "train.evaluate=false")
    done = fit(load_config(str(doubled(tmp_path, 300)), overrides=keys, wandb="off"), out=tmp_path / "run", quiet=True)
    config = load_config(files=[done.run.config])
    again = prepare(load(tmp_path / "d.csv"), config.data, config.data_seed)
    assert again.repeats is not None
    new = ~again.repeats.test
    nll = -done.density.log_prob(again.test.rows[new])
    assert done.results["test_rows_new"] == new.sum() < 100
    assert done.results["test_nll_new"] == pytest.approx(nll.mean())
    assert done.results["test_nll_new_se"] == pytest.approx(nll.std(ddof=1) / np.sqrt(new.sum()))
    assert f"nats on the {new.sum()} test rows that are not copies" in "\n".join(done.lines())
    plain = fit(load_config(str(doubled(tmp_path, 0)), overrides=keys, wandb="off"), out=tmp_path / "plain", quiet=True)
    assert "test_nll_new" not in plain.results


def test_the_note_reaches_the_terminal(tmp_path: Path) -> None:
    arguments = ["fit", str(doubled(tmp_path, 300)), "--dry-run"]
    done = CliRunner().invoke(main, arguments, prog_name="pushforward")
    assert done.exit_code == 0, done.output
    assert "also appear among the training rows: their likelihood measures memorization too" in done.stderr


@pytest.mark.parametrize("protocol", ["half", "tenths"])
def test_the_largest_fold(protocol: str) -> None:
    """The configuration knows the number of folds without NumPy; the last one can be drawn."""
    with pytest.raises(ConfigError, match=f"data.fold: expected 0 to {LARGEST_FOLD} for data.protocol={protocol}; got"):
        load_config("moons", (), [f"data.protocol={protocol}", f"data.fold={LARGEST_FOLD + 1}"])
    assert load("moons", rows=100, protocol=protocol, fold=LARGEST_FOLD).splits is not None
