"""Evaluation protocols of the literature: which columns are modelled, and how rows are split.

A protocol applies to any table. It selects columns first (features only, never conditioning columns), then splits the
rows. The split depends only on the number of rows and on ``fold``, so that all who fit the same table under the same
protocol score the same rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import unknown_name
from pushforward.datasets.tables.read import Numbers
from pushforward.datasets.tables.splits import Splits

Array = NDArray[np.float64]
ProtocolName = Literal["rnade", "half", "tenths"]

LARGEST_CORRELATION = 0.98
"""Every protocol drops one of two columns whose absolute Pearson correlation is larger."""

MAX_DISCRETE_LEVELS = 50
"""``rnade`` takes a column with at most this many different values as discrete."""

LARGEST_FOLD = 1_000_000
"""Largest fold of protocols with any number of folds: it seeds NumPy's legacy generator, which takes 32 bits."""

_MIN_VALIDATION_ROWS = 10
# Dropped columns, by index, each with the reason.
_Dropped = dict[int, str]


@dataclass(frozen=True)
class Protocol:
    """How a paper or a benchmark prepares its tables.

    Args:
        name: Its name in ``data.protocol``.
        folds: Number of folds; None if there are any number.
        min_rows: Smallest number of rows it can split.
        description: One line.
        columns: Takes a matrix ``(n, D)`` and the names of its columns; returns the indices of the columns to drop,
            with the reasons.
        rows: Takes the number of rows and the fold; returns the split.
    """

    name: ProtocolName
    folds: int | None
    min_rows: int
    description: str
    columns: Callable[[Array, Sequence[str]], _Dropped]
    rows: Callable[[int, int], Splits]


def find_protocol(name: str, fold: int = 0) -> Protocol:
    """Return a protocol by name, and check the fold.

    Raises:
        DataError: If there is no such protocol, or it has no such fold.
    """
    if name not in PROTOCOLS:
        raise DataError(f"data.protocol: {unknown_name('protocol', name, PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    last = LARGEST_FOLD if protocol.folds is None else protocol.folds - 1
    if not 0 <= fold <= last:
        raise DataError(f"data.fold: expected 0 to {last} for data.protocol={name}; got {fold}")
    return protocol


def apply_protocol(
    name: str,
    fold: int,
    where: str,
    numbers: Numbers,
    context: Sequence[str] = (),
    left_out: Sequence[str] | None = None,
) -> tuple[Numbers, Splits, tuple[str, ...]]:
    """Select columns and split rows as a protocol does.

    Args:
        name: Name of the protocol.
        fold: The fold.
        where: Name of the table, for messages.
        numbers: All columns.
        context: Names of the conditioning columns, which are always kept.
        left_out: Names of the columns to drop instead of applying the protocol's rule, if the table is an exception.

    Returns:
        The columns that are kept, the split, and notes for the user.

    Raises:
        DataError: If no column or too few rows are left.
    """
    protocol = find_protocol(name, fold)
    n = len(numbers.matrix)
    if n < protocol.min_rows:
        raise DataError(f"{where}: {n} rows are too few for data.protocol={name}, which needs {protocol.min_rows}")
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
    # The paper does not define discrete. At most 50 different values reproduces its number of columns on all its
    # tables; small tables necessarily have fewer values.
    limit = min(MAX_DISCRETE_LEVELS, len(matrix) // 5)
    dropped = _few_levels(matrix, lambda levels: levels <= limit)
    # The order used by later papers with this protocol, for GAS too (Papamakarios et al. 2017).
    return _drop_first(matrix, names, dropped)


def _rnade_rows(n: int, fold: int) -> Splits:
    folds = np.array_split(np.random.RandomState(42).permutation(n), 10)
    test, validation = folds[fold], folds[(fold + 1) % 10]
    return _splits(n, validation, test)


def _half_columns(matrix: Array, names: Sequence[str]) -> _Dropped:
    dropped = _few_levels(matrix, lambda levels: levels < 2)
    return _drop_later(matrix, names, dropped, with_dropped=True)


def _half_rows(n: int, fold: int) -> Splits:
    shuffled = np.random.RandomState(100 + fold).permutation(n)  # as in the paper's code
    test, train = shuffled[: n - n // 2], shuffled[n - n // 2 :]
    validation = min(max(_MIN_VALIDATION_ROWS, round(len(train) / 5)), len(train) // 2)
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
    """Return which pairs ``(D, D)`` of these columns are correlated beyond 0.98, with False on the diagonal."""
    if len(left) < 2:
        return np.zeros((len(left), len(left)), dtype=bool)
    pairs: NDArray[np.bool_] = np.abs(np.corrcoef(matrix[:, left], rowvar=False)) > LARGEST_CORRELATION
    np.fill_diagonal(pairs, False)
    return pairs


def _drop_first(matrix: Array, names: Sequence[str], dropped: _Dropped) -> _Dropped:
    """Drop the first column that is correlated with another remaining one, until there is none."""
    left = [k for k in range(matrix.shape[1]) if k not in dropped]
    pairs, out = _correlated(matrix, left), dict(dropped)
    while pairs.any():
        first = int(pairs.any(axis=0).argmax())
        out[left[first]] = _correlated_with(names[left[int(pairs[first].argmax())]])
        pairs[first] = pairs[:, first] = False
    return out


def _drop_later(matrix: Array, names: Sequence[str], dropped: _Dropped, *, with_dropped: bool) -> _Dropped:
    """Drop every column that is correlated with an earlier one: a kept one, or any (``with_dropped``)."""
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
