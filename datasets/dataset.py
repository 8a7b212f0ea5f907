"""A data set: a matrix of numbers, what its columns are, and what the user should know about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import leave_out
from pushforward.datasets.tables.grid import explains, find_step
from pushforward.datasets.tables.read import Numbers, check_names
from pushforward.datasets.tables.schema import Column, Schema
from pushforward.datasets.tables.splits import Splits
from pushforward.datasets.toys.toy import Toy

Array = NDArray[np.float64]

FEWEST_ROWS = 3  # one each to train on, to validate on and to test on
_SPIKE = 0.1
_PRECISION = {"float": 2.0**-23, "halffloat": 2.0**-10}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to learn a density of.

    Args:
        name: Short name, fit for a folder.
        source: Where it came from: ``toy``, ``scikit-learn``, or the path of its file.
        rows: Features, shape (n, D), float64.
        schema: What the columns are.
        notes: Lines the user should see.
        toy: The exact law, where there is one.
        sha256: Of the file, None where there is none.
        context: Conditioning columns, shape (n, C); C is 0 without any.
        splits: The parts, where the data set or a protocol fixes them; None where they are drawn at random.
        is_file: Whether it was named by the path of a file, which another folder does not know.
    """

    name: str
    source: str
    rows: Array
    schema: Schema
    notes: tuple[str, ...] = ()
    toy: Toy | None = None
    sha256: str | None = None
    context: Array = field(default_factory=lambda: np.empty((0, 0)))
    splits: Splits | None = None
    is_file: bool = False

    def __post_init__(self) -> None:
        if self.context.size == 0:
            object.__setattr__(self, "context", np.empty((len(self.rows), len(self.schema.context))))


def divide(
    where: str,
    numbers: Numbers,
    context: Sequence[str] = (),
) -> tuple[Array, Array, Schema, tuple[str, ...]]:
    """Check a matrix, part it into features and context, and describe its columns.

    Raises:
        DataError: A column is constant, a context column is not there, or there are too few rows.
    """
    check_names(where, "data.context", context, numbers.names)
    matrix = numbers.matrix
    n, width = matrix.shape
    features = [k for k, name in enumerate(numbers.names) if name not in context]
    given = [numbers.names.index(name) for name in context]
    if not features:
        raise DataError(f"{where}: every column is context; leave at least one to model")
    needed = max(width, FEWEST_ROWS)
    if n < needed:
        rows = "1 row" if n == 1 else f"{n} rows"
        columns = "1 column" if width == 1 else f"{width} columns"
        raise DataError(f"{where}: {rows} for {columns}; at least {needed} rows are needed")
    constant = [name for k, name in enumerate(numbers.names) if (matrix[:, k] == matrix[0, k]).all()]
    if constant:
        raise DataError(f"{where}: {_about_constants(constant, float(matrix[0, numbers.names.index(constant[0])]))}")
    columns_and_notes = _describe(numbers)
    described = [column for column, _ in columns_and_notes]
    schema = Schema(tuple(described[k] for k in features), tuple(described[k] for k in given), numbers.names)
    notes = tuple(note for _, column_notes in columns_and_notes for note in column_notes)
    return np.ascontiguousarray(matrix[:, features]), np.ascontiguousarray(matrix[:, given]), schema, notes


def _about_constants(names: list[str], value: float) -> str:
    drop = leave_out(*names)
    if len(names) == 1:
        return f"column {names[0]!r} is constant ({value}): it has no density; leave it out with {drop}"
    others = f"{len(names) - 1} other column{'s' if len(names) > 2 else ''}"
    return (
        f"column {names[0]!r} is constant ({value}), and so {'are' if len(names) > 2 else 'is'} {others}: "
        f"they have no density; leave them out with {drop}"
    )


def _describe(numbers: Numbers) -> list[tuple[Column, list[str]]]:
    """Describe every column, with the notes on it."""
    matrix = numbers.matrix
    # In a single column a repeated value is a repeated row; it tells nothing about the rows.
    different = matrix if matrix.shape[1] == 1 else np.unique(matrix, axis=0)
    return [
        _describe_column(name, kind, matrix[:, k], different[:, k])
        for k, (name, kind) in enumerate(zip(numbers.names, numbers.types, strict=True))
    ]


def _describe_column(name: str, kind: str, values: Array, different: Array) -> tuple[Column, list[str]]:
    levels, counts = np.unique(different, return_counts=True)
    ties = 1 - len(levels) / len(different)
    grid = find_step(values, _PRECISION.get(kind, 2.0**-52))
    column = Column(
        name=name,
        type=kind,
        minimum=float(levels[0]),
        maximum=float(levels[-1]),
        step=None if grid is None else float(grid.step),
        offset=None if grid is None else float(grid.offset),
        distinct=len(levels),
        ties=float(ties),
    )
    notes = []
    common = counts.max() / len(different)
    if grid is not None and not grid.regular:
        notes.append(
            f"column {name!r}: {len(levels)} different values, mostly {grid.step:g} apart but not all on one grid; "
            f"that step is used"
        )
    if column.tied and (grid is None or grid.step < (levels[-1] - levels[0]) * 1e-3) and common > _SPIKE:
        most = float(levels[counts.argmax()])
        notes.append(
            f"column {name!r}: {common:.0%} of its rows hold exactly {most:g}; a density can only peak there, so "
            f"read likelihoods with care"
        )
    elif column.tied and (grid is None or not explains(grid.step, levels, counts)):
        notes.append(
            f"column {name!r}: {ties:.0%} of its rows repeat earlier values, which no grid explains; its likelihoods "
            f"are overstated"
        )
    if _numbers_the_rows(values):
        notes.append(f"column {name!r} numbers the rows; if it is an index, leave it out with {leave_out(name)}")
    return column, notes


def _numbers_the_rows(values: Array) -> bool:
    return bool(len(values) > 2 and (np.diff(values) == 1).all())
