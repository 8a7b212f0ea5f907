"""Linear dependence: which columns are found, how the relation is written, and what is not a dependence."""

from pathlib import Path

import numpy as np
import pytest

from pushforward.datasets import load
from pushforward.datasets.tables.checks.dependence import linear_relations

RNG = np.random.default_rng(0)
FREE = RNG.standard_normal((400, 3))


def relations(matrix: np.ndarray, given: int = 0) -> list[str]:
    names = [f"c{k}" for k in range(matrix.shape[1])]
    return [str(relation) for relation in linear_relations(names, matrix, given)]


def test_shares_sums_copies_and_multiples_are_named() -> None:
    assert relations(np.random.default_rng(1).dirichlet([2, 3, 4], 500)) == ["c2 = 1 - c0 - c1"]
    a, b, c = FREE.T
    found = relations(np.column_stack([a, b, a, 2.5 * a - b + 3.0, c, 1e6 * c + 1e9]))
    assert found == ["c2 = c0", "c3 = 3 + 2.5 c0 - c1", "c5 = 1e+09 + 1e+06 c4"]


def test_rounded_columns_still_depend_on_each_other() -> None:
    shares = np.random.default_rng(1).dirichlet([2, 3, 4], 500).round(7)
    assert relations(shares) == ["c2 = 1 - c0 - c1"]
    assert relations(shares.astype(np.float32).astype(float)) == ["c2 = 1 - c0 - c1"]


def test_what_rounding_does_not_explain_is_no_relation(tmp_path: Path) -> None:
    """Start and end of events within two years: their difference is small, and matters."""
    rng = np.random.default_rng(0)
    start = 1.6e9 + 6e7 * rng.random(500)
    np.savetxt(tmp_path / "t.csv", np.column_stack([start, start + rng.exponential(60.0, 500)]), "%.3f", ",")
    assert not [note for note in load(tmp_path / "t.csv").notes if "dependence" in note]
    np.savetxt(tmp_path / "s.csv", rng.dirichlet([2, 3, 4], 500).astype(np.float32), "%.7g", ",")
    assert [note for note in load(tmp_path / "s.csv").notes if "dependence" in note]


def test_columns_that_are_nearly_or_not_linearly_dependent_are_none() -> None:
    a, b, c = FREE.T
    noise = RNG.standard_normal(400)
    assert relations(np.column_stack([a, b, a + b + 1e-3 * noise, a * b, c])) == []
    with_outlier = FREE.copy()
    with_outlier[7, 0] = 1e9  # swamps, but does not determine, the other values
    assert relations(with_outlier) == []


def test_a_code_for_missing_values_in_two_columns_is_no_relation() -> None:
    rows = FREE.copy()
    rows[3:9, :2] = 1e20
    assert relations(rows) == []
    rows[:, 2] = rows[:, 0] + 1.0
    assert relations(rows) == ["c2 = 1 + c0"]


def test_few_rows_prove_nothing() -> None:
    assert relations(RNG.standard_normal((5, 4))) == []


def test_a_relation_that_fails_in_one_row_of_many_is_none() -> None:
    rows = np.random.default_rng(2).standard_normal((60_000, 2))
    matrix = np.column_stack([rows, rows.sum(axis=1)])
    assert relations(matrix) == ["c2 = c0 + c1"]
    # Not among the rows that are searched; all rows are checked in the end.
    searched = np.random.default_rng(0).choice(60_000, 20_000, replace=False)
    matrix[np.setdiff1d(np.arange(60_000), searched)[0], 2] += 1.0
    assert relations(matrix) == []


def test_relations_among_conditioning_columns_do_no_harm() -> None:
    a, b, _ = FREE.T
    assert relations(np.column_stack([a, a, b]), given=2) == []
    assert relations(np.column_stack([a, b, a - b]), given=2) == ["c2 = c0 - c1"]


@pytest.mark.parametrize("digits", [12, 1])
def test_the_note_names_the_relation_and_what_to_do(tmp_path: Path, digits: int) -> None:
    shares = (10 * np.random.default_rng(1).dirichlet([2, 3, 4], 500)).round(digits)
    shares[:, 2] = (10 - shares[:, 0] - shares[:, 1]).round(digits)
    np.savetxt(tmp_path / "t.csv", shares, delimiter=",", header="clay,silt,sand", comments="", fmt="%.12g")
    (note,) = [note for note in load(tmp_path / "t.csv").notes if "dependence" in note]
    # With one digit the values repeat, and are dequantized by noise: then there is a density.
    effect = "such rows have no density, and likelihoods only measure the rounding"
    effect = effect if digits > 1 else "samples will satisfy this only roughly"
    assert note == (
        f"linear dependence, in every row: sand = 10 - clay - silt: {effect}; leave out with data.drop=sand"
    )
