"""The resolution of recorded values is found."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pushforward.datasets import find_resolution

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
def test_resolution_of_recorded_values(name: str) -> None:
    values, expected = GRIDS[name]
    found = find_resolution(values)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.resolution == pytest.approx(expected[0], rel=1e-12 if expected[1] else 1e-4)
    assert found.regular == expected[1]
    off_grid = np.abs((values - found.offset) / found.resolution - np.rint((values - found.offset) / found.resolution))
    # Billions with cents have a relative error of 1e-16 times 1e11 grid points.
    assert (off_grid > 1e-3).mean() < (1e-9 if found.regular else 1.0)


def test_resolution_does_not_depend_on_order_and_repeats() -> None:
    values = GRIDS["tenths"][0]
    assert find_resolution(values) == find_resolution(values[::-1]) == find_resolution(np.tile(values, 3))


def test_resolution_of_32_bit_values() -> None:
    values = np.round(rng().normal(0, 10, 500), 1).astype(np.float32).astype(np.float64)
    assert find_resolution(values, precision=2.0**-23) == pytest.approx((0.1, values.min(), True))
