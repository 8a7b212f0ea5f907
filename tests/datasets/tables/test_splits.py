"""Splits of rows are disjoint, complete and seeded."""

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.datasets import split

BAD_FRACTIONS: dict[str, tuple[tuple[float, float], str]] = {
    "negative fraction": ((-0.1, 0.1), "fractions of at least 0"),
    "nothing to train on": ((0.5, 0.5), "add up to less than 1"),
}


@pytest.mark.parametrize("name", BAD_FRACTIONS)
def test_bad_fractions(name: str) -> None:
    fractions, message = BAD_FRACTIONS[name]
    with pytest.raises(ValueError, match=message):
        split(10, 0, *fractions)


@pytest.mark.parametrize("n", [3, 4, 7, 10, 101, 1000])
@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.45, 0.45), (0.0, 0.2), (0.0, 0.0)])
def test_splits_are_disjoint_and_cover(n: int, fractions: tuple[float, float]) -> None:
    parts = split(n, 0, *fractions)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert len(parts.train) >= 1
    for part, fraction in zip(parts[1:], fractions, strict=True):
        assert (len(part) >= 1) == (fraction > 0)
        assert abs(len(part) - fraction * n) <= 1.5


def test_splits_are_seeded_and_shuffled() -> None:
    first, again, other = split(1000, 1), split(1000, 1), split(1000, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.test, other.test)
    assert 350 < first.test.mean() < 650


def test_too_few_rows_to_split() -> None:
    with pytest.raises(DataError, match="2 rows cannot fill 3 parts"):
        split(2, 0)
