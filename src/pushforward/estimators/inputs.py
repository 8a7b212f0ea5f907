"""What estimators are given, as numbers: inputs, targets and weights of any kind.

scikit-learn drops the mask of an array, reads dates as numbers of nanoseconds and rounds large integers. Such cells are
refused here.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from pushforward.common.errors import DataError
from pushforward.datasets.tables.memory.objects import ObjectTable, as_array, is_a
from pushforward.datasets.tables.numbers.cells import RESCALE, Cells, Obstacle, constant_value, narrow_spread
from pushforward.datasets.tables.obstacles import about_constant, check_usable
from pushforward.datasets.tables.read import Numbers, check_has, read_columns
from pushforward.datasets.tables.weights import read_weights
from pushforward.evaluate.likelihood import Array


def plain_inputs(inputs: Any) -> Any:
    """Return inputs as something that scikit-learn validates without a loss.

    Arrays and lists of floats without a mask stay as they are; tables become Arrow tables of numbers, with their names.

    Raises:
        DataError: If a table, or an array that is not one of floats, has cells that are not numbers.
    """
    import pyarrow as pa

    if isinstance(inputs, list | tuple | np.ndarray) or is_a(inputs, "torch", "Tensor"):
        inputs = as_array(inputs, "X")
    if is_table(inputs):
        numbers = _read(ObjectTable(inputs, "X"), "X")
        # As for scikit-learn, whole numbers are no names of a frame's columns.
        are_text = [isinstance(name, str) for name in inputs.columns] if is_a(inputs, "pandas", "DataFrame") else [True]
        if any(are_text) and not all(are_text):
            raise DataError("X: expected names of columns that are all text; got text and others")
        return pa.table(list(numbers.matrix.T), names=list(numbers.names)) if any(are_text) else numbers.matrix
    is_matrix = isinstance(inputs, np.ndarray) and inputs.ndim == 2
    if is_matrix and (isinstance(inputs, np.ma.MaskedArray) or inputs.dtype.kind in "iumM"):
        return _read(ObjectTable(inputs, "X"), "X").matrix
    return inputs


def is_table(rows: Any) -> bool:
    """Whether rows are columns with names, and not an array, a list, or a single column."""
    import pyarrow as pa

    single = isinstance(rows, pa.Array | pa.ChunkedArray) or is_a(rows, "pandas", "Series")
    if single or is_a(rows, "polars", "Series"):
        return False
    is_frame = is_a(rows, "pandas", "DataFrame") or is_a(rows, "polars", "LazyFrame")
    is_structured = bool(getattr(getattr(rows, "dtype", None), "names", None))
    return is_frame or is_structured or isinstance(rows, Mapping) or hasattr(rows, "__arrow_c_stream__")


class Targets(NamedTuple):
    """Targets ``(n, K)``; their names, empty if they have none; and whether they came as ``(n,)``."""

    matrix: Array
    names: tuple[str, ...]
    is_flat: bool


def read_targets(targets: Any, rows: int, names: tuple[str, ...] = ()) -> Targets:
    """Read targets of any kind; the columns of a table are found by their names.

    Args:
        targets: Numbers ``(n,)`` or ``(n, K)``: an array, a list, a tensor, a Series, or a table.
        rows: The expected number of rows ``n``.
        names: The names of the columns of a table; empty for all columns in their order.

    Raises:
        DataError: If these are not as many finite numbers, or a table lacks a column.
    """
    table = ObjectTable(targets, "y")
    named = is_table(targets)
    if named and names:
        check_has("y", names, table.names)
        table = table.select([k for k, name in enumerate(table.names) if name in names])
    numbers = _read(table, "y", named=named)
    if names and named:
        numbers = numbers.select(names)
    if len(numbers.matrix) != rows:
        raise DataError(f"y: expected {rows} rows, as in X; got {len(numbers.matrix)}")
    is_flat = not named and as_array(targets, "y").ndim == 1
    return Targets(np.ascontiguousarray(numbers.matrix), numbers.names if named else (), is_flat)


def read_sample_weight(weights: Any, rows: int) -> Array | None:
    """Return weights ``(n,)`` of any kind as an array, one number as equal ones; None without weights.

    Raises:
        DataError: If these are not as many finite numbers of at least 0, some of them above.
    """
    if weights is None:
        return None
    if isinstance(weights, Real):
        weights = np.full(rows, float(weights))
    found = read_weights(weights, rows, "sample_weight")
    if not found.any():
        raise DataError("sample_weight: expected some weights above zero; got only zeros")
    return found


def check_size(where: str, names: Sequence[str], matrix: Array) -> None:
    """Raise if numbers ``(n, D)`` are too large for a density.

    Raises:
        TableError: If a column has such a number.
    """
    found = [_too_large(name, values) for name, values in zip(names, matrix.T, strict=True)]
    check_usable(where, [obstacle for obstacle in found if obstacle], len(names))


def check_new(where: str, names: Sequence[str], matrix: Array, *, vary: bool, named: bool = True) -> None:
    """Raise if no density can be fitted to numbers ``(n, D)``: too large, or hardly different from each other.

    Args:
        where: What they are called in messages.
        names: The columns.
        matrix: The numbers.
        vary: Whether a column that takes one value is refused, too.
        named: Whether a single column is called by its name.

    Raises:
        TableError: If a column cannot be used.
    """
    obstacles = []
    for name, values in zip(names, matrix.T, strict=True):
        found, constant = _too_large(name, values), constant_value(values)
        if found is None and constant is not None and vary:
            found = about_constant(name, constant)
        if found is None and (narrow := narrow_spread(values)):
            found = Obstacle(name, narrow, RESCALE)
        if found is not None:
            obstacles.append(found)
    can_go = len(obstacles) < len(names)
    remedies = dict.fromkeys(obstacle.remedy for obstacle in obstacles if obstacle.remedy)
    advice = " or ".join([*remedies, *(["leave it out"] if can_go else [])]) or "the density needs numbers that vary"
    advice = advice if len(obstacles) == 1 else f"for each: {advice}"
    check_usable(where, obstacles, len(names), advice, named=named)


def _too_large(name: str, values: Array) -> Obstacle | None:
    cells = Cells(name)
    cells.add(values)
    return cells.obstacle(integers=False)


def _read(table: ObjectTable, where: str, *, named: bool = True) -> Numbers:
    """Return the columns of a table, without an index of the rows, as finite numbers."""
    import pyarrow as pa

    content = table.select([k for k, name in enumerate(table.names) if name not in table.index]).read()
    for k, field in enumerate(content.schema):
        if pa.types.is_boolean(field.type):
            content = content.set_column(k, field.name, content.column(k).cast(pa.int8()))
    # Text is read only where it is written as Python writes numbers: no fit remembers another spelling here.
    columns = read_columns(content, content.column_names)
    check_usable(where, columns.obstacles, content.num_columns, named=named)
    return columns.numbers
