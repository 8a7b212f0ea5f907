"""Prepare POWER, GAS, HEPMASS and MINIBOONE as the literature does: pure functions of the published arrays.

The rules are those of the code of Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow for Density
Estimation" (2017), which all later papers use, including its quirks: the order in which POWER's noise is drawn, GAS
standardised with all its rows, HEPMASS's columns dropped by the count of their smallest value. With any change, the
scored rows differ from those of the published tables.

Every function returns float64; the stored sets are float32, the precision used by the published models.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DamagedError

Array = NDArray[np.float64]

POWER_COLUMNS = ("global_active_power", "voltage", "sub_metering_1", "sub_metering_2", "sub_metering_3", "time")
HEPMASS_INPUTS = 27
MINIBOONE_INPUTS = 50
# A column is dropped if its smallest value occurs more often than this.
_MAX_SMALLEST = 5
_LARGEST_CORRELATION = 0.98
_MISSING = -999.0
# The smallest number of rows that gives every part at least one.
_MIN_ROWS = 11


class PreparedSet(NamedTuple):
    """A data set, prepared and split.

    Attributes:
        columns: Names of the columns.
        train: Training rows ``(n, D)``.
        validation: Validation rows.
        test: Test rows.
    """

    columns: tuple[str, ...]
    train: Array
    validation: Array
    test: Array

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of rows of each part."""
        return len(self.train), len(self.validation), len(self.test)


def power(rows: Array) -> PreparedSet:
    """Prepare POWER, the household electric power consumption (UCI 235).

    Args:
        rows: Active power, reactive power, voltage, intensity, three sub-meterings and the time of day ``(N, 8)``, in
            recorded order. The array is shuffled in place.

    Raises:
        DamagedError: If there are not eight columns, or a part would be empty.
    """
    _expect_columns("power", rows, 8)
    _expect_rows("power", rows)
    rng = np.random.RandomState(42)
    rng.shuffle(rows)
    rows = np.delete(rows, (1, 3), axis=1)
    n = len(rows)
    # The draws have the order of the published code; the time gets no noise.
    voltage = 0.01 * rng.rand(n, 1)
    active = 0.001 * rng.rand(n, 1)
    metering = rng.rand(n, 3)
    rows += np.hstack((active, voltage, metering, np.zeros((n, 1))))
    _expect_variation("power", POWER_COLUMNS, rows)
    return _standardized(PreparedSet(POWER_COLUMNS, *_tenths(rows)))


def gas(names: Sequence[str], rows: Array) -> PreparedSet:
    """Prepare GAS, the gas sensor array under dynamic mixtures of ethylene and carbon monoxide (UCI 322).

    Mean and standard deviation (``ddof=1``) are those of all rows, including the test rows. Rows are not shuffled,
    since the published table is in random order.

    Args:
        names: Names of the columns; ``Time``, ``Meth`` and ``Eth`` are dropped.
        rows: The table ``(N, D)``.

    Raises:
        DamagedError: If the number of columns left is not eight, or a part would be empty.
    """
    keep = [k for k, name in enumerate(names) if name not in ("Time", "Meth", "Eth")]
    rows = rows[:, keep]
    columns = [str(names[k]) for k in keep]
    _expect_rows("gas", rows)
    _expect_variation("gas", columns, rows)
    # Signed correlations; drop the first column that has a partner, then compute them again.
    while (partners := (np.corrcoef(rows, rowvar=False) > _LARGEST_CORRELATION).sum(axis=1) > 1).any():
        first = int(partners.argmax())
        rows = np.delete(rows, first, axis=1)
        del columns[first]
    _expect_columns("gas", rows, 8, "after pruning correlated ones")
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1)
    return PreparedSet(tuple(columns), *_tenths(rows))


def hepmass(train: Array, test: Array) -> PreparedSet:
    """Prepare HEPMASS (UCI 347): signal events of mass 1000.

    Args:
        train: Label and 27 features of the training file ``(N, 28)``.
        test: The same for the test file.

    Raises:
        DamagedError: If a table does not have 28 columns, the number of features left is not 21, or a part would be
            empty.
    """
    for rows in (train, test):
        _expect_columns("hepmass", rows, 1 + HEPMASS_INPUTS)
    train, test = (rows[rows[:, 0] == 1][:, 1:] for rows in (train, test))
    for rows in (train, test):
        _expect_rows("hepmass", rows)
    keep = _rarely_smallest(train)
    train, test = train[:, keep], test[:, keep]
    _expect_columns("hepmass", train, 21, "after dropping those with a repeated smallest value")
    mean, scale = train.mean(axis=0), train.std(axis=0, ddof=1)
    train, test = (train - mean) / scale, (test - mean) / scale
    validation = int(0.1 * len(train))
    columns = tuple(f"f{k}" for k in keep)
    return PreparedSet(columns, train[: len(train) - validation], train[len(train) - validation :], test)


def miniboone(rows: Array) -> PreparedSet:
    """Prepare MINIBOONE, particle identification (UCI 199), from the published array ``(N, 43)``.

    Raises:
        DamagedError: If there are not 43 columns, or a part would be empty.
    """
    _expect_columns("miniboone", rows, 43)
    columns = tuple(f"x{k + 1}" for k in range(43))
    _expect_rows("miniboone", rows)
    _expect_variation("miniboone", columns, rows)
    return _standardized(PreparedSet(columns, *_tenths(np.asarray(rows, dtype=np.float64))))


def clean_miniboone(rows: Array) -> Array:
    """Convert the signal rows of UCI's MiniBooNE file ``(N, 50)`` to the published array ``(n, 43)``.

    Eleven rows with missing values, written as -999, are dropped; columns are dropped by the same rule as for HEPMASS.
    """
    _expect_columns("miniboone", rows, MINIBOONE_INPUTS)
    rows = rows[~(rows == _MISSING).any(axis=1)]
    _expect_rows("miniboone", rows)
    return rows[:, _rarely_smallest(rows)]


def _rarely_smallest(rows: Array) -> list[int]:
    """Return the columns whose smallest value occurs at most five times.

    The published code calls this number the largest count, but it is the count of the smallest value. It counts after
    standardising, which preserves the order of the values.
    """
    counts = (rows == rows.min(axis=0)).sum(axis=0)
    return [k for k in range(rows.shape[1]) if counts[k] <= _MAX_SMALLEST]


def _tenths(rows: Array) -> tuple[Array, Array, Array]:
    """Split: the last tenth is the test part, the last tenth of the others the validation part."""
    test = int(0.1 * len(rows))
    rest = rows[: len(rows) - test]
    validation = int(0.1 * len(rest))
    return rest[: len(rest) - validation], rest[len(rest) - validation :], rows[len(rows) - test :]


def _standardized(parts: PreparedSet) -> PreparedSet:
    """Standardise with the mean and standard deviation of training and validation rows together."""
    rows = np.concatenate((parts.train, parts.validation))
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    return PreparedSet(parts.columns, *((part - mean) / scale for part in parts[1:]))


def _expect_rows(name: str, rows: Array) -> None:
    if len(rows) < _MIN_ROWS:
        raise DamagedError(f"{name}: {len(rows)} rows are too few to train on, to validate on and to test on")


def _expect_variation(name: str, columns: Sequence[str], rows: Array) -> None:
    if (constant := np.flatnonzero((rows == rows[0]).all(axis=0))).size:
        raise DamagedError(f"{name}: {columns[constant[0]]} holds one value in all {len(rows):,} rows")


def _expect_columns(name: str, rows: Array, columns: int, when: str = "") -> None:
    if rows.ndim != 2 or rows.shape[1] != columns:
        got = f"{rows.shape[1]}" if rows.ndim == 2 else f"an array of shape {rows.shape}"
        raise DamagedError(f"{name}: expected {columns} columns {when}".rstrip() + f"; got {got}")
