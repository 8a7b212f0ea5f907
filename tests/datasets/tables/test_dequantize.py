"""Grids of recorded values, the noise that fills their cells, and the division of rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pushforward.common.errors import DataError
from pushforward.datasets import Column, Dequantizer, Schema, find_step, split

Array = NDArray[np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


GRIDS: dict[str, tuple[NDArray[Any], tuple[float, bool] | None]] = {
    "integers": (rng().integers(-5, 50, 400).astype(float), (1, True)),
    "multiples of five": (5.0 * rng().integers(0, 30, 400), (5, True)),
    "tenths": (np.round(rng().normal(10, 3, 400), 1), (0.1, True)),
    "halves": (rng().integers(0, 40, 400) / 2, (0.5, True)),
    "twentieths": (np.round(rng().integers(0, 400, 400) * 0.05, 2), (0.05, True)),
    "billions with cents": (np.round(rng().normal(0, 1e9, 400), 2), (0.01, True)),
    "millionths": (np.round(rng().normal(0, 1, 400), 6), (1e-6, True)),
    "offset integers": (7.25 + rng().integers(0, 30, 400), (1, True)),
    "full precision": (rng().normal(size=400), None),
    "constant": (np.full(9, 3.5), None),
    "empty": (np.empty(0), None),
    "tenths and three thirds": (
        np.concatenate([np.round(rng().normal(10, 1, 2000), 1), [9 + 1 / 30, 9.5 + 1 / 15, 11 + 17 / 30]]),
        (0.1, False),
    ),
    "levels of few digits": (
        np.round(rng().choice(np.arange(9) / 7, 900), 5),
        (0.14286, False),
    ),
    "hundredths, a few to the millionth": (
        np.concatenate([np.round(rng().normal(5, 2, 180), 2), [4.949999, 7.350001, 5.100003]]),
        (0.01, False),
    ),
    "a spike among full precision": (np.where(rng().random(400) < 0.3, 0, rng(1).normal(size=400)), None),
}


@pytest.mark.parametrize("name", GRIDS)
def test_find_step(name: str) -> None:
    values, expected = GRIDS[name]
    found = find_step(values)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.step == pytest.approx(expected[0], rel=1e-12 if expected[1] else 1e-4)
    assert found.regular == expected[1]
    beside = np.abs((values - found.offset) / found.step - np.rint((values - found.offset) / found.step))
    # Billions with cents have a relative error of 1e-16 times 1e11 steps.
    assert (beside > 1e-3).mean() < (1e-9 if found.regular else 1.0)


def test_order_and_repeats_do_not_matter() -> None:
    values = GRIDS["tenths"][0]
    assert find_step(values) == find_step(values[::-1]) == find_step(np.tile(values, 3))


def test_a_grid_of_32_bit_values_is_seen_through_their_rounding() -> None:
    values = np.round(rng().normal(0, 10, 500), 1).astype(np.float32).astype(np.float64)
    assert find_step(values, precision=2.0**-23) == pytest.approx((0.1, values.min(), True))


def recorded(n: int = 20_000) -> tuple[Array, Dequantizer]:
    rows = rng(3).normal(size=(n, 4)) * [3, 1, 10, 1]
    dequantizer = Dequantizer(np.array([1.0, 0.1, 0.0, 0.5]), np.array([0.0, 0.05, 0.0, 0.25]))
    return dequantizer.round(rows), dequantizer


def noises(noisy: Array, rows: Array) -> Array:
    u: Array = (noisy - rows)[:, [0, 1, 3]] / [1, 0.1, 0.5] + 0.5
    return u


@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_noise_fills_the_cell_and_rounds_back(kind: str) -> None:
    rows, dequantizer = recorded()
    # Equal rows get equal fixed noise: an untouched continuous column keeps these apart.
    noisy = dequantizer.random(rows, rng(5)) if kind == "random" else dequantizer.fixed(rows)
    assert np.array_equal(noisy[:, 2], rows[:, 2])
    np.testing.assert_allclose(dequantizer.round(noisy), rows, rtol=0, atol=1e-9)
    u = noises(noisy, rows)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(u, rowvar=False) - np.eye(3)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(u))
    # Neighbouring rows, and a row's values and its noise, have nothing to do with each other either.
    assert np.abs([np.corrcoef(c[1:], c[:-1])[0, 1] for c in u.T]).max() < 4.5 / np.sqrt(len(u))
    assert np.abs([np.corrcoef(c, rows[:, 2])[0, 1] for c in u.T]).max() < 4.5 / np.sqrt(len(u))


def test_fixed_noise_depends_on_the_row_only() -> None:
    rows, dequantizer = recorded(500)
    noisy = dequantizer.fixed(rows)
    order = rng().permutation(500)
    assert np.array_equal(dequantizer.fixed(rows[order]), noisy[order])
    assert np.array_equal(dequantizer.fixed(rows[3:4]), noisy[3:4])
    assert np.array_equal(dequantizer.fixed(rows[::-1].copy(order="F"))[::-1], noisy)
    # Every column of the row counts, also an untouched one, and in its place.
    changed = rows.copy()
    changed[:, 2] += 1e-3
    assert (noises(dequantizer.fixed(changed), changed) != noises(noisy, rows)).all()
    # A value that went through 32 bits, as in a Parquet column of floats, is still the same row.
    rounded = rows.copy()
    rounded[:, 2] = rows[:, 2].astype(np.float32)
    assert np.allclose(noises(dequantizer.fixed(rounded), rounded), noises(noisy, rows))


def test_fixed_noise_of_zero_has_no_sign() -> None:
    dequantizer = Dequantizer(np.array([1.0]))
    assert dequantizer.fixed(np.array([[0.0]])) == dequantizer.fixed(np.array([[-0.0]]))


def test_fixed_noise_tells_columns_apart() -> None:
    same = np.repeat(np.arange(1000.0)[:, None], 2, axis=1)
    u = Dequantizer(np.ones(2)).fixed(same) - same
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.15


def test_draws_are_independent() -> None:
    rows, dequantizer = recorded()
    draws = np.stack([noises(dequantizer.fixed(rows, draw), rows)[:, 0] for draw in range(4)])
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 4.5 / np.sqrt(len(rows))
    # One row over many draws is uniform too.
    one = [float(noises(dequantizer.fixed(rows[:1], draw), rows[:1])[0, 0]) for draw in range(400)]
    assert stats.kstest(one, "uniform").pvalue > 1e-3


def test_random_noise_comes_from_the_generator() -> None:
    rows, dequantizer = recorded(50)
    assert np.array_equal(dequantizer.random(rows, rng(1)), dequantizer.random(rows, rng(1)))
    assert not np.array_equal(dequantizer.random(rows, rng(1)), dequantizer.random(rows, rng(2)))


def test_a_density_of_noisy_rows_gives_the_mass_of_their_cells() -> None:
    # A law constant on cells: the density per unit, times the step, is the frequency of the value.
    rows = rng().choice([0.0, 0.5, 1.0], p=[0.2, 0.5, 0.3], size=(50_000, 1))
    noisy = Dequantizer(np.array([0.5])).random(rows, rng(1))
    density, _ = np.histogram(noisy, bins=[-0.25, 0.25, 0.75, 1.25], density=True)
    np.testing.assert_allclose(density * 0.5, [0.2, 0.5, 0.3], atol=0.01)


def test_only_tied_columns_on_a_grid_are_touched() -> None:
    def column(name: str, step: float | None, ties: float) -> Column:
        return Column(name, "double", 0, 1, step, None if step is None else 0.0, 2, ties)

    schema = Schema((column("a", 0.1, 0.5), column("b", 0.1, 0.005), column("c", None, 0.5)))
    dequantizer = Dequantizer.of(schema)
    assert dequantizer.steps.tolist() == [0.1, 0, 0]
    assert dequantizer.active
    assert not Dequantizer(np.zeros(3)).active


BAD_ARGUMENTS: dict[str, tuple[Callable[[], object], str]] = {
    "negative step": (lambda: Dequantizer(np.array([-1.0])), "steps of at least 0"),
    "matrix of steps": (lambda: Dequantizer(np.ones((2, 2))), r"shape \(D,\)"),
    "offsets of another length": (lambda: Dequantizer(np.ones(2), np.ones(3)), r"shape \(2,\)"),
    "rows of another width": (lambda: Dequantizer(np.ones(2)).fixed(np.ones((4, 3))), r"\(n, 2\); got \(4, 3\)"),
    "one row": (lambda: Dequantizer(np.ones(2)).round(np.ones(2)), r"\(n, 2\); got \(2,\)"),
    "negative fraction": (lambda: split(10, 0, -0.1, 0.1), "fractions of at least 0"),
    "nothing to train on": (lambda: split(10, 0, 0.5, 0.5), "add up to less than 1"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str) -> None:
    call, message = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("n", [3, 4, 7, 10, 101, 1000])
@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.45, 0.45), (0.0, 0.2), (0.0, 0.0)])
def test_splits_are_disjoint_and_cover(n: int, fractions: tuple[float, float]) -> None:
    parts = split(n, 0, *fractions)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert len(parts.train) >= 1
    for part, fraction in zip(parts[1:], fractions, strict=True):
        assert (len(part) >= 1) == (fraction > 0)
        assert abs(len(part) - fraction * n) <= 1.5


def test_splits_are_seeded_and_mixed() -> None:
    first, again, other = split(1000, 1), split(1000, 1), split(1000, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.test, other.test)
    assert 350 < first.test.mean() < 650


def test_too_few_rows_to_split() -> None:
    with pytest.raises(DataError, match="2 rows cannot fill 3 parts"):
        split(2, 0)
