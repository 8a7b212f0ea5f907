"""Tables from files: CSV and its kin, Parquet and NumPy, checked and turned into matrices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean, leave_out
from pushforward.datasets.tables.cells import Cells
from pushforward.datasets.tables.delimited import MISSING, read_delimited

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]

TEXT_ENDINGS = (".csv", ".data", ".txt", ".tsv")
ENDINGS = (*TEXT_ENDINGS, *(f"{ending}.gz" for ending in TEXT_ENDINGS), ".parquet", ".npy")
# Number types that hold integers beyond what float64 tells apart.
INTEGERS = ("int64", "uint64")
_SMALL_BYTES = 1 << 20


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
    path = Path(path)
    kind = check_file(path)
    if kind == ".parquet":
        table = _read_parquet(path)
    else:
        table = npy_table(npy_matrix(path)) if kind == ".npy" else read_delimited(path)
    check_columns(path.name, table.column_names)
    if not table.num_rows:
        raise DataError(f"{path.name}: has no rows; nothing to learn from")
    return table


def check_file(path: Path) -> str:
    """Return the ending of a file that is there, of a known kind, and not empty.

    Raises:
        DataError: It is not.
    """
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
    return kind


def check_columns(where: str, names: Sequence[str]) -> None:
    """Refuse a table without columns, or with two of one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} appears more than once; give every column its own name")
    if not names:
        raise DataError(f"{where}: has no columns; nothing to learn from")


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
        raise damaged_parquet(path, error) from error


def damaged_parquet(path: Path, error: Exception) -> DataError:
    """Say in one line what the Parquet reader says."""
    return DataError(f"{path.name}: not a readable Parquet file ({_first_line(error)}); write it again")


def npy_matrix(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read a matrix of numbers; ``mapped`` leaves a large one on the disk until it is looked at.

    Raises:
        DataError: It is something else.
    """
    mode: Literal["r"] | None = "r" if mapped and path.stat().st_size > _SMALL_BYTES else None
    try:
        matrix: NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode=mode)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path.name}: not a readable .npy matrix of numbers; save it with numpy.save") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "iuf" or matrix.dtype.itemsize > 8:
        shape = f"shape {matrix.shape} of {matrix.dtype}"
        raise DataError(f"{path.name}: expected a matrix of shape (rows, columns) of numbers; got {shape}")
    return matrix


def npy_table(matrix: NDArray[Any]) -> "pa.Table":
    """Name the columns of a matrix ``(n, D)`` ``x1``, ``x2``, ... ."""
    import pyarrow as pa

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
            raise DataError(f"{where}: {option} names {name!r}; {did_you_mean(name, names)}the columns are: {known}")


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
            values, kind = column_numbers(table.column(name))
        except NotNumbersError as error:
            texts[name] = str(error)
            continue
        columns.append(values)
        types.append(kind)
    if texts:
        raise DataError(f"{where}: {about_text(texts, everything=len(texts) == table.num_columns)}")
    for name, values, kind in zip(names, columns, types, strict=True):
        cells = Cells(name)
        cells.add(values)
        cells.check(where, integers=kind in INTEGERS)
    return Numbers(tuple(names), tuple(types), np.stack(columns, axis=1))


class NotNumbersError(Exception):
    """What a column holds instead of numbers."""


def column_numbers(column: Any, before: int = 0) -> tuple[Array, str]:
    """Turn a column, or the next rows of one, into numbers, NaN where a cell is missing.

    Args:
        column: Arrow's chunked array.
        before: How many rows of the table stand before these.

    Returns:
        The numbers ``(n,)`` and Arrow's name of their type.

    Raises:
        NotNumbersError: It holds something else.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan), "double"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return _numbers_in_text(column, before)
    if pa.types.is_boolean(kind):
        raise NotNumbersError("holds true and false")
    if pa.types.is_temporal(kind):
        present = column.drop_null()
        example = f" ({present[0].as_py()!s:.30} in row 1)" if len(present) else ""
        raise NotNumbersError(f"holds dates or times{example}")
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise NotNumbersError(f"holds {kind}")
    values = compute.cast(column, pa.float64(), safe=False).to_numpy()
    return np.array(values, dtype=np.float64), str(kind)


def _numbers_in_text(column: Any, before: int) -> tuple[Array, str]:
    """Parse a text column whose cells are numbers after all, once blanks and missing marks are off."""
    missing = {*MISSING, "", "na", "n/a", "nan", "null", "#n/a"}
    values = np.empty(len(column))
    for row, cell in enumerate(column.to_pylist()):
        text = (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell or "").strip()
        try:
            values[row] = np.nan if text.lower() in missing else float(text)
        except ValueError:
            raise NotNumbersError(f"holds text ({_shorten(text)!r} in row {before + row + 1})") from None
    return values, "double"


def about_text(texts: dict[str, str], everything: bool) -> str:
    """Say which columns hold what instead of numbers; ``everything`` if the table has no others."""
    (name, what), *others = texts.items()
    if everything and others:
        return f"no column holds numbers; column {name!r} {what}"
    drop = leave_out(*texts)
    if others:
        number = f"{len(others)} other column" + ("s are" if len(others) > 1 else " is")
        return f"column {name!r} {what}, and {number} not numeric; drop them with {drop}"
    return f"column {name!r} {what}; drop it with {drop}"


def _shorten(text: str, most: int = 30) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
