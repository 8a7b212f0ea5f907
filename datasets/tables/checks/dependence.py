"""Find columns that others determine exactly by a linear relation: then the rows have no density."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.tables.spread import is_usual

Array = NDArray[np.float64]

EXACT = 1e-5
"""A column may depend on others if its residuals are this fraction of its standard deviation, or less."""

_SEARCHED_ROWS = 20_000
_ROUNDING = 1e-12  # relative, of float64 sums
_NEGLIGIBLE = 1e-4
_SHOWN = 3
_COUNTED = 500  # values whose digits are counted


@dataclass(frozen=True)
class Relation:
    """A column as a linear function of others: ``column = constant + sum of coefficient * other``.

    Attributes:
        column: Name of the column.
        constant: The constant.
        coefficients: Coefficient of each column that matters.
    """

    column: str
    constant: float
    coefficients: dict[str, float]

    def __str__(self) -> str:
        """The relation as a formula, with six significant digits."""
        terms = [(value, name) for name, value in self.coefficients.items()]
        if self.constant or not terms:
            terms.insert(0, (self.constant, ""))
        text = ""
        for value, name in terms:
            sign = "-" if value < 0 else "+"
            size = f"{abs(value):.6g}"
            factor = size if not name else name if size == "1" else f"{size} {name}"
            text += f" {sign} {factor}" if text else factor if value >= 0 else f"-{factor}"
        return f"{self.column} = {text}"


def linear_relations(names: Sequence[str], matrix: Array, given: int = 0) -> list[Relation]:
    """Find the columns that are linear functions of earlier ones.

    Args:
        names: Names of the columns.
        matrix: Rows ``(n, D)``, finite.
        given: Number of columns at the start that are conditioned on: relations among them do no harm.

    Returns:
        One relation for each such column; none if there are too few rows to tell.

    Cost:
        Of the order of ``n D²``, with at most 20,000 rows, plus one pass over all rows for each relation.
    """
    n, width = matrix.shape
    if n < 2 * width + 2:
        return []
    rows = matrix if n <= _SEARCHED_ROWS else matrix[np.random.default_rng(0).choice(n, _SEARCHED_ROWS, replace=False)]
    # A code for missing values that two columns share would look like a relation.
    rows = rows[np.all([is_usual(column) for column in rows.T], axis=0)]
    if len(rows) < 2 * width + 2:
        return []
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(std > 0, (rows - mean) / std, 0.0)
    smallest = EXACT * np.sqrt(len(z))
    # Up to the first that depends on others, this diagonal holds the norms of the residuals below, computed faster.
    if (np.abs(np.diagonal(np.linalg.qr(z, mode="r"))) > smallest).all():
        return []
    basis = np.empty(z.shape, order="F")  # the first columns are used
    independent: list[int] = []
    relations = []
    for k in range(width):
        residual, found = z[:, k].copy(), basis[:, : len(independent)]
        for _ in range(2):  # once more removes what rounding left
            residual -= found @ (found.T @ residual)
        size = np.linalg.norm(residual)
        if size > smallest:
            basis[:, len(independent)] = residual / size
            independent.append(k)
            continue
        if k >= given and std[k] > 0:
            relation = _relation(names, matrix, z, mean, std, k, independent)
            relations += [] if relation is None else [relation]
    return relations


def _relation(
    names: Sequence[str],
    matrix: Array,
    z: Array,
    mean: Array,
    std: Array,
    k: int,
    independent: list[int],
) -> Relation | None:
    """Express a column by independent ones, and check the relation on all rows."""
    weights = np.linalg.lstsq(z[:, independent], z[:, k], rcond=None)[0]
    used = [(i, w) for i, w in zip(independent, weights, strict=True) if abs(w) > _NEGLIGIBLE]
    slopes = {i: _tidy(w * std[k] / std[i]) for i, w in used}
    constant = _tidy(mean[k] - sum(slope * mean[i] for i, slope in slopes.items()), std[k])
    terms = [slope * matrix[:, i] for i, slope in slopes.items()]
    residual = np.abs(matrix[:, k] - constant - sum(terms, np.zeros(len(matrix))))
    largest = np.max(np.abs([matrix[:, k], *terms]), axis=0)  # of huge values, more is lost in rounding
    # A remainder of other digits than the last two is more than rounding, such as the seconds between two dates.
    digits = min(_digits(matrix[:, i]) for i in (k, *slopes))
    rounded = np.minimum(10 * EXACT * std[k], 10.0 ** (2 - digits) * largest)
    if (residual > rounded + _ROUNDING * largest).any():
        return None
    return Relation(names[k], constant, {names[i]: slope for i, slope in slopes.items()})


def _digits(column: Array) -> int:
    """Significant digits that the values of a column are written with."""
    values = column[:: max(1, len(column) // _COUNTED)]
    with np.errstate(over="ignore"):
        short = values.astype(np.float32)
    texts = (np.format_float_scientific(v, trim="-") for v in (short if (short == values).all() else values))
    return max(sum(c.isdigit() for c in text.partition("e")[0]) for text in texts)


def _tidy(value: float, scale: float | None = None) -> float:
    """Round to five digits what is that close to them, as in 0.99999999998."""
    size = abs(value) if scale is None else scale
    short = float(f"{value:.5g}") if abs(value) > EXACT * size else 0.0
    return short if abs(short - value) <= EXACT * size else float(value)


def dependence_note(relations: Sequence[Relation], dequantized: Sequence[str], leave_out: Callable[..., str]) -> str:
    """Say in one line which columns depend on others, and what to do; empty without relations.

    Args:
        relations: The relations.
        dequantized: Names of the columns that are dequantized: with noise of a bin width, their density is bounded.
        leave_out: Returns the option that leaves out the columns with some names.
    """
    if not relations:
        return ""
    shown = "; ".join(map(str, relations[:_SHOWN]))
    more = f"; and {len(relations) - _SHOWN} more" if len(relations) > _SHOWN else ""
    unbounded = any(relation.column not in dequantized for relation in relations)
    effect = (
        "such rows have no density, and likelihoods only measure the rounding"
        if unbounded
        else "samples will satisfy this only roughly"
    )
    drop = leave_out(*(relation.column for relation in relations))
    return f"linear dependence, in every row: {shown}{more}: {effect}; leave out with {drop}"
