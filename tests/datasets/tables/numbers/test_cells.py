"""What the check of a column's cells says about them."""

import numpy as np
import pytest

from pushforward.datasets.tables.numbers.cells import Cells, narrow_spread


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([1.0, 2.0], None),
        ([np.nan, np.nan], "has no values at all"),
        ([np.inf, -np.inf], "has no finite values (0 missing, 2 infinite)"),
        ([np.inf, np.nan], "has no finite values (1 missing, 1 infinite)"),
        ([np.inf, 1.0], "has 1 infinite value (in row 1)"),
        ([1.0, -2e150], "holds 2e+150, whose square overflows"),
    ],
)
def test_obstacles(values: list[float], what: str | None) -> None:
    cells = Cells("a")
    cells.add(np.array(values))
    found = cells.obstacle(integers=False)
    assert (None if found is None else found.what) == what


def test_a_narrow_spread_is_one_whose_variance_underflows() -> None:
    assert narrow_spread(np.array([1e-300, 3e-300])) == "varies by only 2e-300, whose square underflows"
    assert narrow_spread(np.array([1e-300, np.nan, np.inf, 3e-300])) != ""
    for fine in ([1e-149, 3e-149], [0.0, 0.0], [2.0, 2.0 + 1e-15], [np.nan], [-1e308, 1e307]):
        assert narrow_spread(np.array(fine)) == ""
