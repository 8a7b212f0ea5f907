"""Held-out rows that are also training rows are found."""

import numpy as np
import pytest

from pushforward.datasets import Splits
from pushforward.datasets.tables.checks.repeated_rows import compare_rows, find_repeats

N = 1000
WITHOUT = np.empty((N, 0))


def rows_with_copies(copies: int) -> np.ndarray:
    """Return rows ``(1000, 3)``, of which the last ``copies`` repeat the first."""
    rows = np.random.default_rng(0).normal(size=(N, 3))
    rows[N - copies :] = rows[:copies]
    return rows


def splits() -> Splits:
    return Splits(*np.split(np.random.default_rng(1).permutation(N), (800, 900)))


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


def test_different_context_makes_rows_different() -> None:
    rows = rows_with_copies(300)
    found = find_repeats(rows, WITHOUT, splits())
    assert found is not None
    assert found.test.sum() > 10
    assert "also appear among the training rows: their likelihood measures memorization too" in found.note
    assert find_repeats(rows, np.arange(float(N))[:, None], splits()) is None


def test_one_copy_in_a_hundred_is_not_reported() -> None:
    in_order = Splits(*np.split(np.arange(N), (800, 900)))
    assert find_repeats(rows_with_copies(1), WITHOUT, in_order) is None
    found = find_repeats(rows_with_copies(2), WITHOUT, in_order)
    assert found is not None
    assert (found.validation.sum(), found.test.sum()) == (0, 2)
    assert found.note.startswith("2 of 100 test rows also appear")


def test_repeats_are_not_counted_for_one_column_or_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_with_copies(300)
    assert find_repeats(rows[:, :1], WITHOUT, splits()) is None
    monkeypatch.setattr("pushforward.datasets.tables.checks.repeated_rows.MAX_ROWS", 999)
    assert find_repeats(rows, WITHOUT, splits()) is None
