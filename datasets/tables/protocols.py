"""Evaluation protocols of the literature: which columns are modelled, and which rows are trained on and scored.

A protocol works on any table. It looks at the features only, never at conditioning columns, and decides in this order:
columns, then rows. Which rows go where depends on their number and on ``fold`` alone, so that everyone who fits the
same table under the same protocol scores the same rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean
from pushforward.datasets.tables.read import Numbers
from pushforward.datasets.tables.splits import Splits

Array = NDArray[np.float64]
ProtocolName = Literal["rnade", "half", "tenths"]

LARGEST_CORRELATION = 0.98
"""Of two columns whose Pearson correlation is larger in size, one goes, in every protocol."""

MOST_LEVELS = 50
"""A column with at most so many different values is discrete, to ``rnade``."""

LARGEST_FOLD = 1_000_000
"""Of the protocols that draw as many divisions as one likes: NumPy's older generator takes seeds of 32 bits."""

_FEWEST_VALIDATION_ROWS = 10
# Columns that go, with the reason of each.
_Dropped = dict[int, str]


@dataclass(frozen=True)
class Protocol:
    """How a paper, or a benchmark, prepares its tables.

    Args:
        name: What ``data.protocol`` calls it.
        folds: How many divisions there are; None if any number can be drawn.
        fewest_rows: Rows below which it cannot divide.
        description: One line.
        columns: Returns the columns ``(D,)`` of a matrix ``(n, D)`` that go, with the reasons.
        rows: Divides ``n`` rows, given ``n`` and the fold.
    """

    name: ProtocolName
    folds: int | None
    fewest_rows: int
    description: str
    columns: Callable[[Array, Sequence[str]], _Dropped]
    rows: Callable[[int, int], Splits]


def find_protocol(name: str, fold: int = 0) -> Protocol:
    """Return a protocol by its name, and check the fold.

    Raises:
        DataError: There is no such protocol, or it has no such fold.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise DataError(f"data.protocol: unknown protocol {name!r}; {did_you_mean(name, PROTOCOLS)}known: {known}")
    protocol = PROTOCOLS[name]
    most = LARGEST_FOLD if protocol.folds is None else protocol.folds - 1
    if not 0 <= fold <= most:
        raise DataError(f"data.fold: expected 0 to {most} for data.protocol={name}; got {fold}")
    return protocol


def apply_protocol(
    name: str,
    fold: int,
    where: str,
    numbers: Numbers,
    context: Sequence[str] = (),
    left_out: Sequence[str] | None = None,
) -> tuple[Numbers, Splits, tuple[str, ...]]:
    """Leave out the columns that a protocol leaves out, and divide the rows.

    Args:
        name: Name of the protocol.
        fold: Which of its divisions.
        where: Name of the table.
        numbers: All columns.
        context: Names of the conditioning columns, which stay whatever they hold.
        left_out: Names of the columns to leave out in place of the protocol's rule, where a table is an exception.

    Returns:
        The columns that stay, the parts, and what the user should know.

    Raises:
        DataError: No column or too few rows are left.
    """
    protocol = find_protocol(name, fold)
    n = len(numbers.matrix)
    if n < protocol.fewest_rows:
        raise DataError(f"{where}: {n} rows are too few for data.protocol={name}, which needs {protocol.fewest_rows}")
    features = [k for k, column in enumerate(numbers.names) if column not in context]
    if left_out is None:
        names = [numbers.names[k] for k in features]
        dropped = {features[k]: why for k, why in protocol.columns(numbers.matrix[:, features], names).items()}
    else:
        dropped = {k: "as in the literature" for k in features if numbers.names[k] in left_out}
    if len(dropped) == len(features):
        raise DataError(f"{where}: data.protocol={name} leaves no column; fit it without a protocol")
    notes = [f"{where}: {protocol.name}, fold {fold}: {protocol.description}"]
    if dropped:
        reasons = ", ".join(f"{numbers.names[k]} ({why})" for k, why in sorted(dropped.items()))
        notes.append(f"{where}: {protocol.name} left out {reasons}")
    keep = [k for k in range(len(numbers.names)) if k not in dropped]
    kept = Numbers(
        tuple(numbers.names[k] for k in keep), tuple(numbers.types[k] for k in keep), numbers.matrix[:, keep]
    )
    return kept, protocol.rows(n, fold), tuple(notes)


def _rnade_columns(matrix: Array, names: Sequence[str]) -> _Dropped:
    # The paper does not say what it took for discrete. At most 50 different values leaves its numbers of columns on
    # all its tables; small tables have fewer values by necessity.
    most = min(MOST_LEVELS, len(matrix) // 5)
    dropped = _few_levels(matrix, lambda levels: levels <= most)
    # The order in which the papers that took up the protocol drop them, GAS among them (Papamakarios et al. 2017).
    return _drop_first(matrix, names, dropped)


def _rnade_rows(n: int, fold: int) -> Splits:
    folds = np.array_split(np.random.RandomState(42).permutation(n), 10)
    test, validation = folds[fold], folds[(fold + 1) % 10]
    return _splits(n, validation, test)


def _half_columns(matrix: Array, names: Sequence[str]) -> _Dropped:
    dropped = _few_levels(matrix, lambda levels: levels < 2)
    return _drop_later(matrix, names, dropped, with_dropped=True)


def _half_rows(n: int, fold: int) -> Splits:
    shuffled = np.random.RandomState(100 + fold).permutation(n)  # what the paper's code draws
    test, train = shuffled[: n - n // 2], shuffled[n - n // 2 :]
    validation = min(max(_FEWEST_VALIDATION_ROWS, round(len(train) / 5)), len(train) // 2)
    return _splits(n, train[len(train) - validation :], test)


def _tenths_columns(matrix: Array, names: Sequence[str]) -> _Dropped:
    dropped = _few_levels(matrix, lambda levels: levels < 2 or levels <= 0.05 * len(matrix))
    return _drop_later(matrix, names, dropped, with_dropped=False)


def _tenths_rows(n: int, fold: int) -> Splits:
    shuffled = np.random.RandomState(42 + fold).permutation(n)
    tenth = n // 10
    return _splits(n, shuffled[n - 2 * tenth : n - tenth], shuffled[n - tenth :])


def _splits(n: int, validation: NDArray[np.int64], test: NDArray[np.int64]) -> Splits:
    rest = np.ones(n, dtype=bool)
    rest[validation] = rest[test] = False
    train = np.flatnonzero(rest)
    return Splits(train, np.sort(validation).astype(np.intp), np.sort(test).astype(np.intp))


def _few_levels(matrix: Array, few: Callable[[int], bool]) -> _Dropped:
    counts = [len(np.unique(column)) for column in matrix.T]
    return {k: f"{count} different value{'s' if count > 1 else ''}" for k, count in enumerate(counts) if few(count)}


def _correlated(matrix: Array, left: Sequence[int]) -> NDArray[np.bool_]:
    """Which pairs ``(D, D)`` of the columns named are correlated beyond 0.98; no column with itself."""
    if len(left) < 2:
        return np.zeros((len(left), len(left)), dtype=bool)
    pairs: NDArray[np.bool_] = np.abs(np.corrcoef(matrix[:, left], rowvar=False)) > LARGEST_CORRELATION
    np.fill_diagonal(pairs, False)
    return pairs


def _drop_first(matrix: Array, names: Sequence[str], dropped: _Dropped) -> _Dropped:
    """Drop the first column that is correlated with another one left, until there is none."""
    left = [k for k in range(matrix.shape[1]) if k not in dropped]
    pairs, out = _correlated(matrix, left), dict(dropped)
    while pairs.any():
        first = int(pairs.any(axis=0).argmax())
        out[left[first]] = _correlated_with(names[left[int(pairs[first].argmax())]])
        pairs[first] = pairs[:, first] = False
    return out


def _drop_later(matrix: Array, names: Sequence[str], dropped: _Dropped, *, with_dropped: bool) -> _Dropped:
    """Drop every column that is correlated with an earlier one: one that stays, or any (``with_dropped``)."""
    left = [k for k in range(matrix.shape[1]) if k not in dropped]
    pairs, out = _correlated(matrix, left), dict(dropped)
    for j, column in enumerate(left):
        earlier = [k for i, k in enumerate(left[:j]) if pairs[i, j] and (with_dropped or k not in out)]
        if earlier:
            out[column] = _correlated_with(names[earlier[0]])
    return out


def _correlated_with(name: str) -> str:
    return f"correlated beyond {LARGEST_CORRELATION:g} with {name}"


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "rnade",
            10,
            20,
            "ten folds, 1/10 of the rows for testing and 1/10 for validation (Uria, Murray and Larochelle 2013)",
            _rnade_columns,
            _rnade_rows,
        ),
        Protocol(
            "half",
            None,
            8,
            "half of the rows for testing, 1/5 of the others for validation (Fong, Holmes and Walker 2023)",
            _half_columns,
            _half_rows,
        ),
        Protocol(
            "tenths",
            None,
            10,
            "the last 1/10 of the shuffled rows for testing, the 1/10 before for validation",
            _tenths_columns,
            _tenths_rows,
        ),
    )
}
