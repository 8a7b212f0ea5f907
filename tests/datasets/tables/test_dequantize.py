"""Dequantization: uniform noise of one bin width, random or fixed by the row."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pushforward.datasets import Column, Dequantizer, Schema

Array = NDArray[np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def recorded(n: int = 20_000) -> tuple[Array, Dequantizer]:
    rows = rng(3).normal(size=(n, 4)) * [3, 1, 10, 1]
    dequantizer = Dequantizer(np.array([1.0, 0.1, 0.0, 0.5]), np.array([0.0, 0.05, 0.0, 0.25]))
    return dequantizer.round(rows), dequantizer


def noises(noisy: Array, rows: Array) -> Array:
    u: Array = (noisy - rows)[:, [0, 1, 3]] / [1, 0.1, 0.5] + 0.5
    return u


@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_noise_is_uniform_over_the_bin_and_rounds_back(kind: str) -> None:
    rows, dequantizer = recorded()
    # Equal rows get equal fixed noise; the continuous column, which gets none, makes all rows different.
    noisy = dequantizer.random(rows, rng(5)) if kind == "random" else dequantizer.fixed(rows)
    assert np.array_equal(noisy[:, 2], rows[:, 2])
    np.testing.assert_allclose(dequantizer.round(noisy), rows, rtol=0, atol=1e-9)
    u = noises(noisy, rows)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(u, rowvar=False) - np.eye(3)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(u))
    # Nor is the noise correlated between neighbouring rows, or with the values of a row.
    assert np.abs([np.corrcoef(c[1:], c[:-1])[0, 1] for c in u.T]).max() < 4.5 / np.sqrt(len(u))
    assert np.abs([np.corrcoef(c, rows[:, 2])[0, 1] for c in u.T]).max() < 4.5 / np.sqrt(len(u))


def test_fixed_noise_depends_on_the_row_only() -> None:
    rows, dequantizer = recorded(500)
    noisy = dequantizer.fixed(rows)
    order = rng().permutation(500)
    assert np.array_equal(dequantizer.fixed(rows[order]), noisy[order])
    assert np.array_equal(dequantizer.fixed(rows[3:4]), noisy[3:4])
    assert np.array_equal(dequantizer.fixed(rows[::-1].copy(order="F"))[::-1], noisy)
    # It depends on every column of the row, also on one without noise.
    changed = rows.copy()
    changed[:, 2] += 1e-3
    assert (noises(dequantizer.fixed(changed), changed) != noises(noisy, rows)).all()
    # A row rounded to 32 bits, as in a Parquet column of floats, is still the same row.
    rounded = rows.copy()
    rounded[:, 2] = rows[:, 2].astype(np.float32)
    assert np.allclose(noises(dequantizer.fixed(rounded), rounded), noises(noisy, rows))


def test_zero_and_minus_zero_get_the_same_fixed_noise() -> None:
    dequantizer = Dequantizer(np.array([1.0]))
    assert dequantizer.fixed(np.array([[0.0]])) == dequantizer.fixed(np.array([[-0.0]]))


def test_columns_of_equal_values_get_independent_noise() -> None:
    same = np.repeat(np.arange(1000.0)[:, None], 2, axis=1)
    u = Dequantizer(np.ones(2)).fixed(same) - same
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.15


def test_draws_are_independent() -> None:
    rows, dequantizer = recorded()
    draws = np.stack([noises(dequantizer.fixed(rows, draw), rows)[:, 0] for draw in range(4)])
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 4.5 / np.sqrt(len(rows))
    # The noise of one row over many draws is uniform, too.
    one = [float(noises(dequantizer.fixed(rows[:1], draw), rows[:1])[0, 0]) for draw in range(400)]
    assert stats.kstest(one, "uniform").pvalue > 1e-3


def test_random_noise_comes_from_the_generator() -> None:
    rows, dequantizer = recorded(50)
    assert np.array_equal(dequantizer.random(rows, rng(1)), dequantizer.random(rows, rng(1)))
    assert not np.array_equal(dequantizer.random(rows, rng(1)), dequantizer.random(rows, rng(2)))


def test_density_of_noisy_rows_gives_the_mass_of_their_bins() -> None:
    # The density, constant on each bin, times the bin width is the frequency of the value.
    rows = rng().choice([0.0, 0.5, 1.0], p=[0.2, 0.5, 0.3], size=(50_000, 1))
    noisy = Dequantizer(np.array([0.5])).random(rows, rng(1))
    density, _ = np.histogram(noisy, bins=[-0.25, 0.25, 0.75, 1.25], density=True)
    np.testing.assert_allclose(density * 0.5, [0.2, 0.5, 0.3], atol=0.01)


def test_only_tied_columns_on_a_grid_get_noise() -> None:
    def column(name: str, step: float | None, ties: float) -> Column:
        return Column(name, "double", 0, 1, step, None if step is None else 0.0, 2, ties)

    schema = Schema((column("a", 0.1, 0.5), column("b", 0.1, 0.005), column("c", None, 0.5)))
    dequantizer = Dequantizer.of(schema)
    assert dequantizer.bin_widths.tolist() == [0.1, 0, 0]
    assert dequantizer.active
    assert not Dequantizer(np.zeros(3)).active


BAD_ARGUMENTS: dict[str, tuple[Callable[[], object], str]] = {
    "negative bin width": (lambda: Dequantizer(np.array([-1.0])), "bin_widths of at least 0"),
    "matrix of bin widths": (lambda: Dequantizer(np.ones((2, 2))), r"shape \(D,\)"),
    "offsets of another length": (lambda: Dequantizer(np.ones(2), np.ones(3)), r"shape \(2,\)"),
    "rows of another width": (lambda: Dequantizer(np.ones(2)).fixed(np.ones((4, 3))), r"\(n, 2\); got \(4, 3\)"),
    "one row": (lambda: Dequantizer(np.ones(2)).round(np.ones(2)), r"\(n, 2\); got \(2,\)"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str) -> None:
    call, message = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        call()
