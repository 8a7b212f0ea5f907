"""Tables from files: CSV and its kin, Parquet and NumPy, checked and turned into matrices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pushforward.datasets.delimited import MISSING, read_delimited
from pushforward.datasets.errors import DataError, leave_out, nearest
from pushforward.datasets.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]

TEXT_ENDINGS = (".csv", ".data", ".txt", ".tsv")
ENDINGS = (*TEXT_ENDINGS, *(f"{ending}.gz" for ending in TEXT_ENDINGS), ".parquet", ".npy")
# Beyond this, neighbouring integers are one and the same float64.
_LARGEST_INTEGER = 2.0**53


@dataclass(frozen=True)
class Numbers:
    """Columns of a table as a float64 matrix (n, D) with the names and Arrow types they came with."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    matrix: Array


def ending(path: Path) -> str | None:
    """Return which of the known endings a path has."""
    name = path.name.lower()
    return next((known for known in sorted(ENDINGS, key=len, reverse=True) if name.endswith(known)), None)


def read_table(path: str | Path) -> "pa.Table":
    """Read a table as it is, text and missing cells included.

    ``.csv``, ``.data``, ``.txt`` and ``.tsv`` are delimited text (also ``.gz``), with a header or without (then
    columns are ``x1``, ``x2``, ...); ``.parquet``; ``.npy`` holds a matrix.

    Raises:
        DataError: The file is missing, damaged, of an unknown kind, or names a column twice.
    """
    return _read(path)[0]


def _read(path: str | Path) -> tuple["pa.Table", bool]:
    """Return the table and whether its file names the columns."""
    path = Path(path)
    kind = ending(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one file")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if kind is None:
        hint = "; save the sheet as CSV" if path.suffix.lower() in {".xlsx", ".xls", ".ods"} else ""
        raise DataError(f"{path.name}: unknown kind of file{hint}; known endings: {', '.join(ENDINGS)}")
    if not path.stat().st_size:
        raise DataError(f"{path.name}: the file is empty")
    named = True
    if kind == ".parquet":
        table = _read_parquet(path)
    elif kind == ".npy":
        table, named = _read_npy(path), False
    else:
        table, dialect = read_delimited(path)
        named = dialect.header
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise DataError(f"{path.name}: column {twice[0]!r} appears more than once; give every column its own name")
    if not table.num_columns:
        raise DataError(f"{path.name}: has no columns; nothing to learn from")
    if not table.num_rows:
        raise DataError(f"{path.name}: has no rows; nothing to learn from")
    return table, named


def _read_parquet(path: Path) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # ParquetFile, not read_table: the latter makes columns of folder names such as "year=2020".
        with parquet.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(f"{path.name}: not a readable Parquet file ({_first_line(error)}); write it again") from error


def _read_npy(path: Path) -> "pa.Table":
    import pyarrow as pa

    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path.name}: not a readable .npy matrix of numbers; save it with numpy.save") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "iuf" or matrix.dtype.itemsize > 8:
        shape = f"shape {matrix.shape} of {matrix.dtype}"
        raise DataError(f"{path.name}: expected a matrix of shape (rows, columns) of numbers; got {shape}")
    matrix = matrix.astype(matrix.dtype.newbyteorder("="), copy=False)
    columns = [pa.array(np.ascontiguousarray(matrix[:, k])) for k in range(matrix.shape[1])]
    return pa.table(columns, names=[f"x{k + 1}" for k in range(matrix.shape[1])])


def select(where: str, names: Sequence[str], columns: Sequence[str] | None, drop: Sequence[str]) -> list[str]:
    """Return the names to use, in the order of the file.

    Raises:
        DataError: A wanted or dropped column is not there, or none is left.
    """
    check_names(where, "data.columns", columns or (), names)
    check_names(where, "data.drop", drop, names)
    chosen = [name for name in names if (columns is None or name in columns) and name not in drop]
    if not chosen:
        raise DataError(f"{where}: no column is left; name fewer in data.drop or more in data.columns")
    return chosen


def check_names(where: str, option: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a column that is not there, naming the option that asked for it and the nearest column."""
    for name in wanted:
        if name not in names:
            known = ", ".join(names)
            raise DataError(f"{where}: {option} names {name!r}{nearest(name, names)} the columns are: {known}")


def to_numbers(table: "pa.Table", where: str, names: Sequence[str]) -> Numbers:
    """Turn columns of a table into a matrix.

    Raises:
        DataError: One of them holds text, dates, truth values or lists, or a cell is missing or infinite.
    """
    texts: dict[str, str] = {}
    columns: list[Array] = []
    types: list[str] = []
    for name in names:
        try:
            values, kind = _column(table.column(name))
        except _NotNumbersError as error:
            texts[name] = str(error)
            continue
        columns.append(values)
        types.append(kind)
    if texts:
        raise DataError(f"{where}: {_about_text(texts, everything=len(texts) == table.num_columns)}")
    for name, values, kind in zip(names, columns, types, strict=True):
        _check_cells(where, name, values, kind)
    return Numbers(tuple(names), tuple(types), np.stack(columns, axis=1))


class _NotNumbersError(Exception):
    """What a column holds instead of numbers."""


def _column(column: Any) -> tuple[Array, str]:
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan), "double"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return _numbers_in_text(column)
    if pa.types.is_boolean(kind):
        raise _NotNumbersError("holds true and false")
    if pa.types.is_temporal(kind):
        present = column.drop_null()
        raise _NotNumbersError(f"holds dates or times ({present[0].as_py()!s:.30} in row 1)")
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise _NotNumbersError(f"holds {kind}")
    values = compute.cast(column, pa.float64(), safe=False).to_numpy()
    return np.array(values, dtype=np.float64), str(kind)


def _numbers_in_text(column: Any) -> tuple[Array, str]:
    """Parse a text column whose cells are numbers after all, once blanks and missing marks are off."""
    missing = {*MISSING, "", "na", "n/a", "nan", "null", "#n/a"}
    values = np.empty(len(column))
    for row, cell in enumerate(column.to_pylist()):
        text = (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell or "").strip()
        try:
            values[row] = np.nan if text.lower() in missing else float(text)
        except ValueError:
            raise _NotNumbersError(f"holds text ({_shorten(text)!r} in row {row + 1})") from None
    return values, "double"


def _about_text(texts: dict[str, str], everything: bool) -> str:
    (name, what), *others = texts.items()
    if everything and others:
        return f"no column holds numbers; column {name!r} {what}"
    drop = leave_out(*texts)
    if others:
        number = f"{len(others)} other column" + ("s are" if len(others) > 1 else " is")
        return f"column {name!r} {what}, and {number} not numeric; drop them with {drop}"
    return f"column {name!r} {what}; drop it with {drop}"


def _check_cells(where: str, name: str, values: Array, kind: str) -> None:
    for what, bad in (("missing", np.isnan(values)), ("infinite", np.isinf(values))):
        count = int(bad.sum())
        if count == len(values):
            raise DataError(f"{where}: column {name!r} has no values at all; drop it with {leave_out(name)}")
        if count:
            cells = f"{count} {what} value{'s' if count > 1 else ''}"
            first = f"{'first ' if count > 1 else ''}in row {int(bad.argmax()) + 1}"
            cure = f"remove or fill these rows, or drop the column with {leave_out(name)}"
            raise DataError(f"{where}: column {name!r} has {cells} ({first}); {cure}")
    if kind in ("int64", "uint64") and np.abs(values).max(initial=0) > _LARGEST_INTEGER:
        raise DataError(
            f"{where}: column {name!r} holds integers beyond 2**53, which float64 cannot tell apart; "
            f"drop it with {leave_out(name)}"
        )
    if np.abs(values).max(initial=0) > 1e150:
        raise DataError(
            f"{where}: column {name!r} holds {np.abs(values).max():.3g}, whose square overflows; "
            f"rescale it or drop it with {leave_out(name)}"
        )


def read_rows(path: str | Path, schema: Schema) -> tuple[Array, Array, tuple[str, ...]]:
    """Read the columns of a schema from another file.

    Columns are found by name, in any order; other columns are left aside, and a note says so. A file without
    names must have exactly the schema's columns, in the order of the file the schema came from, or all the columns
    of that file, if it had no names either.

    Returns:
        Features (n, D), context (n, C) and the notes.

    Raises:
        DataError: Columns are missing or cannot be used.
    """
    path = Path(path)
    table, named = _read(path)
    notes: tuple[str, ...] = ()
    wanted = (*schema.names, *schema.context_names)
    if not named:
        whole = table.num_columns == schema.file_columns and set(wanted) <= set(table.column_names)
        if table.num_columns != len(wanted) and not whole:
            raise DataError(
                f"{path.name}: has {table.num_columns} columns and no names, but the model has {len(wanted)}; "
                f"expected, in this order: {', '.join(schema.order)}"
            )
        if not whole:
            table = table.rename_columns(list(schema.order))
    has = table.column_names
    missing = [name for name in wanted if name not in has]
    if missing:
        raise DataError(f"{path.name}: lacks the columns {', '.join(missing)}; it has {', '.join(has)}")
    extra = [name for name in has if name not in wanted]
    if extra:
        notes = (f"{path.name}: left aside {', '.join(extra)}, which the model does not know",)
    matrix = to_numbers(table, path.name, wanted).matrix
    return matrix[:, : len(schema.columns)], matrix[:, len(schema.columns) :], notes


def _shorten(text: str, most: int = 30) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
