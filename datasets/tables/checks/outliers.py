r"""Find values far outside the rest of a column: codes for missing values, single outliers, heavy tails.

Distances from the median are measured in interquartile ranges, or in the range of the innermost quantiles that differ.
How far the values of a tail reach is judged by its index. Let :math:`d_1 \ge d_2 \ge \dots` be the distances from the
median. If the tail falls like :math:`d^{-1/\xi}`, the scaled log-spacings :math:`i \log(d_i / d_{i+1})` are independent
and exponential with mean :math:`\xi` (Hill 1975); their mean over the ranks from j + 1 to k estimates :math:`\xi`
whatever the j largest values are. A Gaussian column has about 0.2 there, an exponential one 0.35, a log-normal one (of
unit scale) 0.55 and a Cauchy column 1.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.text import listed, number_text

Array = NDArray[np.float64]

FAR = 10.0
"""A value far outside is at least this many interquartile ranges from the median."""

HEAVY_INDEX = 0.7
"""Columns whose tails have a larger index, and reach further than ``HEAVY_REACH``, are heavy-tailed."""

HEAVY_REACH = 40.0
"""Interquartile ranges that a heavy tail reaches at least."""

_MISSING_CODES = (
    *(sign * nines for nines in (99.0, 999.0, 9999.0, 99999.0, 999999.0, 99.9, 999.9, 9999.9) for sign in (-1, 1)),
    *(-888.0, -8888.0, -(2.0**15), 2.0**15 - 1, 2.0**16 - 1, -(2.0**31), 2.0**31 - 1, -(2.0**63)),
    *(sign * huge for huge in (1e20, 1e30, 1e35, 1e36, 1e37, 1e38, 3.4e38, 3.402823e38) for sign in (-1, 1)),
    9.96921e36,
)
"""Numbers that files write for a missing value; also those that agree with one of them to six digits."""

_QUANTILES = ((0.25, "interquartile ranges"), (0.05, "ranges of the middle 90 %"), (0.01, "ranges of the middle 98 %"))
_MIN_ROWS = 20
# With fewer values in a tail, its index is not estimated: its first or second value is an outlier if the next one is so
# much nearer to the median.
_MIN_TAIL = 10
_SMALL_GAP = 5.0
_MOST_CODES = 4
# A code repeats so many times as often as other values do, in at most this share of the rows; a known one need not.
_MIN_REPEATS = 3
_MOST_UNKNOWN = 0.2
# A code is so much further from the median than the next value.
_GAP = 2.0
# Chance that the largest value of a tail is taken for an outlier.
_FALSE_ALARM = 1e-4
_MOST_LISTED = 3


class _Spread(NamedTuple):
    """Median of a column, the range of its middle, and the name of such ranges."""

    median: float
    width: float
    unit: str


class _Code(NamedTuple):
    """A value that looks like a code for a missing one, and how many rows hold it."""

    value: float
    rows: int


def outlier_notes(names: Sequence[str], matrix: Array) -> list[str]:
    """Return notes on values far outside the rest of their column; none for Gaussian or moderately skewed columns.

    Args:
        names: Names of the columns.
        matrix: Finite values ``(n, D)``.

    Time: sorts each column twice.

    Example:
        >>> column = np.append(np.random.default_rng(0).standard_normal(999), 1e6)
        >>> outlier_notes(["c0"], column[:, None])[0].partition(";")[0]
        "column 'c0': one value, 1000000, is 760,000 interquartile ranges from the median"
    """
    heavy: dict[str, tuple[float, str]] = {}
    codes: dict[float, dict[str, int]] = {}
    notes: list[str] = []
    for name, values in zip(names, matrix.T, strict=True):
        if len(values) < _MIN_ROWS:
            break
        found, rest = _split_codes(np.sort(values))
        for code in found:
            codes.setdefault(code.value, {})[name] = code.rows
        spread = _spread(rest)
        if spread is None:
            continue
        distances = np.abs(rest - spread.median) / spread.width
        index, limit = _tail(distances)
        reach, outside = float(distances.max()), distances > limit
        if index > HEAVY_INDEX and reach > HEAVY_REACH:
            heavy[name] = reach, spread.unit
        elif outside.any():
            others = matrix[:, [other != name for other in names]]
            notes.append(_about_outliers(name, rest[outside], distances[outside], spread.unit, others))
    about_codes = [
        _about_code(value, columns, matrix[:, [name not in columns for name in names]])
        for value, columns in codes.items()
    ]
    notes = [*about_codes, *notes]
    return [*notes, _about_heavy_tails(heavy)] if heavy else notes


def _spread(ordered: Array) -> _Spread | None:
    """Return the median of sorted values and the range of their middle; None if 98 % of them are equal."""
    last = len(ordered) - 1
    for tail, unit in _QUANTILES:
        low, median, high = (float(ordered[round(share * last)]) for share in (tail, 0.5, 1 - tail))
        if high > low:
            return _Spread(median, high - low, unit)
    return None


def _split_codes(ordered: Array) -> tuple[list[_Code], Array]:
    """Separate the values at the ends of a sorted column that look like codes for a missing value from the others."""
    codes: list[_Code] = []
    for _ in range(_MOST_CODES):
        if rows := _rows_of_code(ordered, _MISSING_CODES):
            codes.append(_Code(float(ordered[0]), rows))
            ordered = ordered[rows:]
        # The largest value is the smallest of the column with its sign changed.
        elif rows := _rows_of_code(-ordered[::-1], [-code for code in _MISSING_CODES]):
            codes.append(_Code(float(ordered[-1]), rows))
            ordered = ordered[:-rows]
        else:
            break
    return codes, ordered


def _rows_of_code(ordered: Array, known: Sequence[float]) -> int:
    """Return how many values are equal to the smallest of some sorted values if it looks like a code, else 0."""
    value = float(ordered[0])
    rows = int(np.searchsorted(ordered, value, "right"))
    rest = ordered[rows:]
    spread = _spread(rest) if len(rest) >= rows else None
    if spread is None or value == 0:  # zeros are usually zeros
        return 0
    distance, next_distance = spread.median - value, spread.median - float(rest[0])
    if distance < FAR * spread.width or distance < _GAP * next_distance:
        return 0
    usual_rows = len(rest) / (1 + np.count_nonzero(np.diff(rest)))
    is_known = bool(np.isclose(value, known, rtol=1e-6, atol=0.0).any())
    return rows if is_known or (rows >= _MIN_REPEATS * usual_rows and rows <= _MOST_UNKNOWN * len(rest)) else 0


def _tail(distances: Array) -> tuple[float, float]:
    """Return the index of a tail, and the distance that hardly any value of such a tail exceeds.

    Args:
        distances: Distances from the median in spreads ``(n,)``.
    """
    skipped = max(5, len(distances) // 100)
    # Of a column that is mostly zero, the tail is that of the other values.
    nonzero = int((distances > 0).sum())
    if nonzero <= skipped:
        return 0.0, float("inf")
    last = max(nonzero // 10, skipped)
    tail = np.sort(np.partition(distances, -(last + 1))[-(last + 1) :])[::-1]
    if last - skipped < _MIN_TAIL:
        isolated = [below for value, below in pairwise(tail[:3].tolist()) if value >= max(FAR, _SMALL_GAP * below)]
        return 0.0, min(isolated) * _SMALL_GAP if isolated else float("inf")
    ranks = np.arange(skipped + 1, last + 1)
    index = float(np.mean(ranks * np.log(tail[skipped:last] / tail[skipped + 1 : last + 1])))
    return index, max(FAR, float(tail[skipped] * ((skipped + 1) / _FALSE_ALARM) ** index))


def _remedy(values: Sequence[float], others: Array) -> str:
    """What to do about wrong values of some columns; ``data.missing_values`` would apply to the others as well."""
    if np.isin(others, values).any():
        return "empty its cells in the file and set data.missing=drop (other columns hold this number as a value)"
    return f"set data.missing_values={','.join(map(number_text, values))} data.missing=drop"


def _about_code(value: float, columns: dict[str, int], others: Array) -> str:
    rows = [f"{count:,} row{'s' if count > 1 else ''}" for count in columns.values()]
    code = number_text(value)
    where = f"column {next(iter(columns))!r}: {code} in {rows[0]}"
    if len(columns) > 1:
        counts = [f"{name!r} ({count})" for name, count in zip(columns, rows, strict=True)]
        where = f"columns {listed(counts)}: {code}"
    return f"{where}, far outside the rest; if it stands for a missing value, {_remedy([value], others)}"


def _about_heavy_tails(columns: dict[str, tuple[float, str]]) -> str:
    names = listed([repr(name) for name in columns])
    distance, unit = max(columns.values())
    reach = f"{_rounded(distance)} {unit}"
    if len(columns) == 1:
        return f"column {names} is heavy-tailed: its values reach {reach} from the median"
    return f"columns {names} are heavy-tailed: their values reach up to {reach} from the median"


def _about_outliers(name: str, outside: Array, distances: Array, unit: str, others: Array) -> str:
    reach = _rounded(distances.max())
    levels = np.unique(outside)
    if len(levels) > _MOST_LISTED:
        nearest = _rounded(distances.min())
        what, remedy = f"{len(outside)} values are {nearest} to {reach} {unit}", "if they are wrong, remove their rows"
    else:
        values = [number_text(value) for value in levels]
        it, are = ("it", "is") if len(outside) == 1 else ("they", "are")
        count = "one value" if len(outside) == 1 else f"{len(outside)} values"
        what = f"{count}, {' and '.join(values)}, {are} {'' if len(levels) == 1 else 'up to '}{reach} {unit}"
        remedy = f"if {it} {are} wrong, {_remedy(levels.tolist(), others)}"
    return f"column {name!r}: {what} from the median; {remedy}"


def _rounded(number: float) -> str:
    """Round to two digits, as in ``22,000``."""
    return f"{float(f'{number:.2g}'):,.0f}" if number < 1e7 else f"{number:.2g}"
