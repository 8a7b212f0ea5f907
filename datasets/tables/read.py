"""Read tables from CSV-like, Parquet and NumPy files, check them and convert them to matrices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean, leave_out, one_line, shorten
from pushforward.datasets.tables.cells import Cells
from pushforward.datasets.tables.delimited import MISSING, read_delimited

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]

TEXT_SUFFIXES = (".csv", ".data", ".txt", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet", ".npy")
# Types that can hold integers which float64 cannot represent exactly.
INTEGERS = ("int64", "uint64")
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True)
class Numbers:
    """Columns of a table as a float64 matrix ``(n, D)``, with their names and Arrow types."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    matrix: Array


def known_suffix(path: Path) -> str | None:
    """Return the suffix of a path if it is a known one, such as ``.csv.gz``; else None."""
    name = path.name.lower()
    return next((known for known in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(known)), None)


def read_table(path: str | Path) -> "pa.Table":
    """Read a table unchanged, including text and missing cells.

    Supported are delimited text (``.csv``, ``.data``, ``.txt``, ``.tsv``, also with ``.gz``), ``.parquet``, and
    matrices in ``.npy``. Columns of text without a header, and of matrices, are named ``x1``, ``x2``, ...

    Raises:
        DataError: If the file is missing, damaged, of an unknown kind, or names a column twice.
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
    """Check that a file exists, is of a known kind and not empty; return its suffix.

    Raises:
        DataError: If it does not.
    """
    kind = known_suffix(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one file")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if kind is None:
        hint = "; save the sheet as CSV" if path.suffix.lower() in {".xlsx", ".xls", ".ods"} else ""
        raise DataError(f"{path.name}: unknown kind of file{hint}; known endings: {', '.join(SUFFIXES)}")
    if not path.stat().st_size:
        raise DataError(f"{path.name}: the file is empty")
    return kind


def check_columns(where: str, names: Sequence[str]) -> None:
    """Raise if a table has no columns, or two of the same name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} appears more than once; give every column its own name")
    if not names:
        raise DataError(f"{where}: has no columns; nothing to learn from")


def _read_parquet(path: Path) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # ParquetFile, not read_table: the latter turns folder names such as "year=2020" into columns.
        with parquet.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise damaged_parquet(path, error) from error


def damaged_parquet(path: Path, error: Exception) -> DataError:
    """Return an error that quotes the Parquet reader in one line."""
    return DataError(f"{path.name}: not a readable Parquet file ({shorten(one_line(error), 120)}); write it again")


def npy_matrix(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read a matrix of numbers from a .npy file; with ``mapped``, a large one is memory-mapped.

    Raises:
        DataError: If the file holds something else.
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
    """Convert a matrix ``(n, D)`` to a table with the columns ``x1``, ``x2``, ..."""
    import pyarrow as pa

    matrix = matrix.astype(matrix.dtype.newbyteorder("="), copy=False)
    columns = [pa.array(np.ascontiguousarray(matrix[:, k])) for k in range(matrix.shape[1])]
    return pa.table(columns, names=[f"x{k + 1}" for k in range(matrix.shape[1])])


def select_columns(
    where: str,
    names: Sequence[str],
    columns: Sequence[str] | None,
    drop: Sequence[str],
    context: Sequence[str],
) -> list[str]:
    """Return the names of the columns to use, in the order of the file.

    Args:
        where: Name of the table, for messages.
        names: All columns of the table.
        columns: Columns to use, to which those of the context are added; all if None.
        drop: Columns to leave out.
        context: Conditioning columns.

    Raises:
        DataError: If a column that is named does not exist, or no column is left.
    """
    check_names(where, "data.context", context, names)
    check_names(where, "data.columns", columns or (), names)
    check_names(where, "data.drop", drop, names)
    chosen = [name for name in names if (columns is None or name in columns or name in context) and name not in drop]
    if not chosen:
        raise DataError(f"{where}: no column is left; name fewer in data.drop or more in data.columns")
    return chosen


def check_names(where: str, option: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Raise if a wanted column does not exist; the message names the option and the nearest column."""
    for name in wanted:
        if name not in names:
            known = ", ".join(names)
            raise DataError(f"{where}: {option} names {name!r}; {did_you_mean(name, names)}the columns are: {known}")


def to_numbers(table: "pa.Table", where: str, names: Sequence[str]) -> Numbers:
    """Convert columns of a table to a matrix.

    Raises:
        DataError: If a column holds text, dates, booleans or lists, or a cell is missing or infinite.
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
    """A column is not numeric; the message says what it holds."""


def column_numbers(column: Any, before: int = 0) -> tuple[Array, str]:
    """Convert a column, or a chunk of one, to float64, with NaN for missing cells.

    Args:
        column: Arrow chunked array.
        before: Number of rows of the table before this chunk.

    Returns:
        The values ``(n,)`` and the Arrow name of their type.

    Raises:
        NotNumbersError: If it holds something else.
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
    """Parse a text column: cells must be numbers or missing-value marks, blanks around them are allowed."""
    missing = {*MISSING, "", "na", "n/a", "nan", "null", "#n/a"}
    values = np.empty(len(column))
    for row, cell in enumerate(column.to_pylist()):
        text = (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell or "").strip()
        try:
            values[row] = np.nan if text.lower() in missing else float(text)
        except ValueError:
            raise NotNumbersError(f"holds text ({shorten(text, 30)!r} in row {before + row + 1})") from None
    return values, "double"


def about_text(texts: dict[str, str], everything: bool) -> str:
    """Describe the columns that are not numeric; ``everything`` if the table has no other columns."""
    (name, what), *others = texts.items()
    if everything and others:
        return f"no column holds numbers; column {name!r} {what}"
    drop = leave_out(*texts)
    if others:
        number = f"{len(others)} other column" + ("s are" if len(others) > 1 else " is")
        return f"column {name!r} {what}, and {number} not numeric; drop them with {drop}"
    return f"column {name!r} {what}; drop it with {drop}"
