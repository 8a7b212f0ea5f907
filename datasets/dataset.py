"""A data set: a matrix, the schema of its columns, and notes for the user."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError, TableError
from pushforward.datasets.tables.checks.dependence import dependence_note, linear_relations
from pushforward.datasets.tables.checks.outliers import outlier_notes
from pushforward.datasets.tables.grid import explains_ties, find_resolution
from pushforward.datasets.tables.index import numbers_rows
from pushforward.datasets.tables.memory.frame_kind import FrameKind
from pushforward.datasets.tables.numbers.cells import constant_value
from pushforward.datasets.tables.obstacles import MIN_ROWS, about_constant, report, separator_of
from pushforward.datasets.tables.read import Numbers
from pushforward.datasets.tables.request import Request
from pushforward.datasets.tables.schema import Column, Schema
from pushforward.datasets.tables.splits import Splits
from pushforward.datasets.toys.toy import Toy

Array = NDArray[np.float64]

# Fraction of rows with the same value from which a note warns of a spike.
_SPIKE = 0.1
# Machine epsilon by Arrow type; float64 otherwise.
_PRECISION = {"float": 2.0**-23, "halffloat": 2.0**-10}


MEMORY = "memory"
"""The source of rows in memory."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to fit a density to.

    Args:
        name: Short name, usable as a folder name.
        source: Where it came from: ``toy``, ``scikit-learn``, ``memory``, or the path of its file.
        rows: Features, shape (n, D), float64.
        schema: The columns.
        notes: Lines to show to the user.
        toy: The toy with the true density, if there is one.
        sha256: Checksum of the file, or of the names and values of rows in memory; else None.
        context: Conditioning columns, shape (n, C); C may be 0.
        splits: The split, if the data set or a protocol fixes it; None if it is drawn at random.
        is_file: Whether it was given as the path of a file, which may be relative to the current folder.
        row_numbers: Index in the file of each row ``(n,)``, if only some of its rows are used; else None.
        weights: Weights of the rows ``(n,)``, at least 0 and not all 0; None if they are equal.
        kind: The kind of object that the rows came in as.
        given_apart: Whether the context came in as an object of its own.
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
    row_numbers: NDArray[np.intp] | None = None
    weights: Array | None = None
    kind: FrameKind = field(default_factory=FrameKind)
    given_apart: bool = False

    def __post_init__(self) -> None:
        if self.context.size == 0:
            object.__setattr__(self, "context", np.empty((len(self.rows), len(self.schema.context))))

    def in_file(self, numbers: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the indices in the file ``(k,)`` of rows of the data set, given by their indices ``(k,)``."""
        return numbers if self.row_numbers is None else self.row_numbers[numbers]


def features_and_context(where: str, numbers: Numbers, asked: Request) -> tuple[Array, Array, Schema, tuple[str, ...]]:
    """Check a table, separate features and context, and describe the columns.

    Returns:
        Features ``(n, D)``, context ``(n, C)``, the schema, and notes for the user.

    Raises:
        DataError: If a column is constant, none is left to model or to condition on, or there are too few rows.
    """
    asked.check_sides(where, numbers.names)
    context, matrix = asked.context_of(numbers.names), numbers.matrix
    n, width = matrix.shape
    features = [k for k, name in enumerate(numbers.names) if name not in context]
    given = [numbers.names.index(name) for name in context]
    needed = max(len(features), MIN_ROWS)
    if n < needed:
        rows = "1 row" if n == 1 else f"{n} rows"
        columns = "1 column" if len(features) == 1 else f"{len(features)} columns"
        raise DataError(f"{where}: {rows} for {columns}; at least {needed} rows are needed")
    values = {name: constant_value(column) for name, column in zip(numbers.names, matrix.T, strict=True)}
    constant = [about_constant(name, value) for name, value in values.items() if value is not None]
    if constant:
        names = [obstacle.column for obstacle in constant]
        can_go = not set(names) & set(context) and len(names) < len(features)
        advice = (
            f"leave out what is constant: {asked.leave_out(*names)}" if can_go else "fit other columns or more rows"
        )
        listed = report(where, constant, width)
        separator = separator_of(asked, listed, advice)
        raise TableError(listed, advice, names if can_go else (), separator=separator)
    columns_and_notes = _describe(numbers, asked, context)
    described = [column for column, _ in columns_and_notes]
    schema = Schema(tuple(described[k] for k in features), tuple(described[k] for k in given), numbers.names)
    notes = tuple(note for _, column_notes in columns_and_notes for note in column_notes)
    order = [*given, *features]
    relations = linear_relations([numbers.names[k] for k in order], matrix[:, order], len(given))
    dequantized = [column.name for column in schema.columns if column.tied and column.step is not None]
    about_relations = dependence_note(relations, dequantized, asked.leave_out)
    notes = (*notes, *outlier_notes(numbers.names, matrix), *([about_relations] if about_relations else []))
    return np.ascontiguousarray(matrix[:, features]), np.ascontiguousarray(matrix[:, given]), schema, notes


def _describe(numbers: Numbers, asked: Request, context: Sequence[str]) -> list[tuple[Column, list[str]]]:
    """Describe every column, with notes for the user."""
    matrix = numbers.matrix
    # Duplicate rows are not ties; in a single column the two cannot be distinguished.
    unique_rows = matrix if matrix.shape[1] == 1 else np.unique(matrix, axis=0)
    return [
        _describe_column(name, kind, matrix[:, k], unique_rows[:, k], asked, is_context=name in context)
        for k, (name, kind) in enumerate(zip(numbers.names, numbers.types, strict=True))
    ]


def _describe_column(
    name: str, kind: str, values: Array, unique_values: Array, asked: Request, *, is_context: bool
) -> tuple[Column, list[str]]:
    levels, counts = np.unique(unique_values, return_counts=True)
    ties = 1 - len(levels) / len(unique_values)
    grid = find_resolution(values, _PRECISION.get(kind, 2.0**-52))
    if is_context and grid is not None and not grid.regular:
        grid = None  # a column without a density has no bins, and values off the grid were recorded too
    column = Column(
        name=name,
        type=kind,
        minimum=float(levels[0]),
        maximum=float(levels[-1]),
        step=None if grid is None else float(grid.resolution),
        offset=None if grid is None else float(grid.offset),
        distinct=len(levels),
        ties=float(ties),
    )
    notes = []
    if numbers_rows(values):
        notes.append(f"column {name!r} numbers the rows; if it is an index, leave it out with {asked.leave_out(name)}")
    if is_context:
        return column, notes
    common = counts.max() / len(unique_values)
    if grid is not None and not grid.regular:
        notes.append(
            f"column {name!r}: {len(levels)} different values, mostly {grid.resolution:g} apart but not all on one "
            f"grid; this spacing is used as its bin width"
        )
    if column.tied and (grid is None or grid.resolution < (levels[-1] - levels[0]) * 1e-3) and common > _SPIKE:
        most = float(levels[counts.argmax()])
        notes.append(
            f"column {name!r}: {common:.0%} of its rows hold exactly {most:g}; a density can only peak there, so "
            f"read likelihoods with care"
        )
    elif column.tied and (grid is None or not explains_ties(grid.resolution, levels, counts)):
        notes.append(
            f"column {name!r}: {ties:.0%} of its rows repeat earlier values, which no grid explains; its likelihoods "
            f"are overstated"
        )
    return column, notes
