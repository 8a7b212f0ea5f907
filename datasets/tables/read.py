"""Read tables of all kinds, choose columns, and convert them to matrices."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean, shorten
from pushforward.datasets.tables.files.arrow_files import FeatherReader, ParquetReader
from pushforward.datasets.tables.files.json_lines import JsonReader
from pushforward.datasets.tables.files.kind import Kind
from pushforward.datasets.tables.files.local_file import LocalFile
from pushforward.datasets.tables.files.npy import NpyReader
from pushforward.datasets.tables.files.plain_reader import PlainReader
from pushforward.datasets.tables.files.table_reader import INTEGERS, StoredTable
from pushforward.datasets.tables.index import find_index
from pushforward.datasets.tables.numbers.cells import Cells, Obstacle
from pushforward.datasets.tables.numbers.number_marks import MISSING_LOWER
from pushforward.datasets.tables.numbers.spellings import Spelling
from pushforward.datasets.tables.request import Request
from pushforward.datasets.tables.text.delimited import TextFile, read_text

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Numbers:
    """Columns of a table as a float64 matrix ``(n, D)``, with their names and Arrow types."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    matrix: Array

    def take(self, rows: Any) -> "Numbers":
        """Return the same columns of some rows, given by their indices or by a boolean for each row."""
        return Numbers(self.names, self.types, self.matrix[rows])

    def select(self, names: Sequence[str]) -> "Numbers":
        """Return some of the columns, as a copy."""
        keep = [self.names.index(name) for name in names]
        return Numbers(tuple(names), tuple(self.types[k] for k in keep), self.matrix[:, keep])


@dataclass(frozen=True)
class Columns:
    """Columns of a table as they were read, before anything is refused.

    Args:
        names: Their names in the order of the file; one may appear twice.
        numbers: Those that hold numbers, with NaN for missing cells.
        obstacles: What cannot be used in these or the other columns.
    """

    names: tuple[str, ...]
    numbers: Numbers
    obstacles: tuple[Obstacle, ...] = ()


ENCODE = "encode it as numbers"
"""What to do to keep a column that is not numeric."""


@dataclass(frozen=True)
class TableContent:
    """A table as it was read.

    Args:
        table: All columns, unchanged.
        notes: Notes for the user.
        index: Columns that are an index of the rows and not data.
        spellings: How the numbers in columns of text are written, by name, unless they are plain.
    """

    table: "pa.Table"
    notes: tuple[str, ...] = ()
    index: tuple[str, ...] = ()
    spellings: Mapping[str, Spelling] = field(default_factory=dict)


def read_table(path: str | Path) -> "pa.Table":
    """Read a table unchanged, including text and missing cells.

    The content decides how it is read: as delimited text, JSON lines, Parquet, Feather, ``.npy``, or a sheet of a
    workbook (with ``#SHEET`` after the path if it has several). It may be compressed. Columns of text without a header,
    and of matrices, are named ``x1``, ``x2``, ...

    Args:
        path: A file or a pipe; ``-`` for standard input.

    Raises:
        DataError: If the file is missing, damaged or of an unknown kind.
    """
    return read_content(LocalFile(path)).table


def read_content(file: LocalFile) -> TableContent:
    """Read a table as :func:`read_table` does, with notes and the columns of its index.

    Raises:
        DataError: If it is damaged, of an unknown kind, or has no columns or rows.
    """
    with file.explaining():
        if file.kind == "text":
            text = TextFile(file.path)
            table, spellings = read_text(text)
            index = find_index(table, text.dialect.unnamed)
            content = TableContent(table, (*text.dialect.notes, *text.findings), index, spellings)
        else:
            reader = open_arrow_reader(file)
            table = reader.read()
            index = find_index(table, declared=reader.index)
            content = TableContent(table, reader.notes, index, reader.spellings)
        check_columns(file.name, content.table.column_names)
        if not content.table.num_rows:
            raise DataError(f"{file.name}: has no rows; nothing to learn from")
    return replace(content, notes=(*file.notes, *content.notes))


def open_arrow_reader(file: LocalFile, fitted: Mapping[str, Spelling] | None = None) -> PlainReader:
    """Open a table that is not delimited text.

    Args:
        file: The table.
        fitted: How the numbers of columns were written at the fit of a model, by name.

    Raises:
        DataError: If it is damaged.
    """
    readers: dict[Kind, Callable[[Path], StoredTable]] = {
        "json": JsonReader,
        "parquet": ParquetReader,
        "feather": FeatherReader,
        "npy": NpyReader,
    }
    return PlainReader(readers[file.kind](file.path), fitted)


def check_columns(where: str, names: Sequence[str]) -> None:
    """Raise if a table has no columns."""
    if not names:
        raise DataError(f"{where}: has no columns; nothing to learn from")


def select_columns(where: str, names: Sequence[str], asked: Request, index: Sequence[str] = ()) -> list[str]:
    """Return the names of the columns to use, in the order of the file.

    Args:
        where: Name of the table, for messages.
        names: All columns of the table.
        asked: What was asked: ``columns``, to which the context, the response and the weights are added, and ``drop``.
        index: Columns that are left out unless they are asked for by name.

    Raises:
        DataError: If a column that is named does not exist, or no column is left.
    """
    for option, named in asked.roles.items():
        check_names(where, option, named, names)
    check_names(where, "data.columns", asked.columns or (), names)
    check_names(where, "data.drop", asked.drop, names)
    wanted = {*([name for name in names if name not in index] if asked.columns is None else asked.columns)}
    wanted |= {*asked.given, *(name for named in asked.roles.values() for name in named)}
    chosen = [name for name in names if name in wanted and name not in asked.drop]
    if not chosen:
        raise DataError(f"{where}: no column is left; name fewer in data.drop or more in data.columns")
    return chosen


def check_names(where: str, option: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Raise if a wanted column does not exist; the message names the option and the nearest column."""
    for name in wanted:
        if name not in names:
            known = ", ".join(names)
            raise DataError(f"{where}: {option} names {name!r}; {did_you_mean(name, names)}the columns are: {known}")


def check_has(where: str, wanted: Sequence[str], has: Sequence[str]) -> None:
    """Raise if a table lacks columns of a model."""
    if missing := [name for name in wanted if name not in has]:
        raise DataError(f"{where}: lacks the columns {', '.join(missing)}; it has {', '.join(has)}")


def ignored_columns(where: str, wanted: Sequence[str], has: Sequence[str]) -> tuple[str, ...]:
    """Return a note on the columns of a table that a model does not use; empty if there are none."""
    extra = [name for name in has if name not in wanted]
    return (f"{where}: ignored {', '.join(extra)}, which the model does not use",) if extra else ()


def read_columns(table: "pa.Table", names: Sequence[str], missing_values: Sequence[float] = ()) -> Columns:
    """Convert columns of a table to numbers, and list what cannot be used.

    Args:
        table: The table.
        names: Names of the columns, in the order of the table.
        missing_values: Numbers that stand for a missing cell.
    """
    obstacles: list[Obstacle] = []
    read: dict[str, tuple[Array, str]] = {}
    for name, count in Counter(names).items():
        if count > 1:
            obstacles.append(Obstacle(name, f"appears {count} times", "give every column its own name"))
            continue
        try:
            values, kind = column_numbers(table.column(name))
        except NotNumbersError as error:
            obstacles.append(Obstacle(name, str(error), ENCODE))
            continue
        read[name] = mark_missing(values, missing_values), kind
        cells = Cells(name)
        cells.add(values)
        if obstacle := cells.obstacle(integers=kind in INTEGERS):
            obstacles.append(obstacle)
    matrix = np.stack([values for values, _ in read.values()], axis=1) if read else np.empty((table.num_rows, 0))
    numbers = Numbers(tuple(read), tuple(kind for _, kind in read.values()), matrix)
    return Columns(tuple(names), numbers, tuple(obstacles))


def mark_missing(values: Array, missing_values: Sequence[float]) -> Array:
    """Set the cells of an array that hold one of some numbers to NaN, in place; return it."""
    for number in missing_values:
        values[values == number] = np.nan
    return values


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
    if any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return _numbers_in_text(column, before)
    if pa.types.is_binary(kind):
        return _numbers_in_text(column, before)
    if pa.types.is_boolean(kind):
        raise NotNumbersError("holds true and false")
    if pa.types.is_temporal(kind):
        present = column.drop_null()
        example = f" ({present[0].as_py()!s:.30} in row 1)" if len(present) else ""
        raise NotNumbersError(f"holds dates or times{example}")
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if pa.types.is_nested(kind):
        raise NotNumbersError("holds lists" if str(kind).startswith(("list", "fixed", "large")) else "holds objects")
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise NotNumbersError(f"holds {kind}")
    values = compute.cast(column, pa.float64(), safe=False).to_numpy()
    return np.array(values, dtype=np.float64), str(kind)


def _numbers_in_text(column: Any, before: int) -> tuple[Array, str]:
    """Parse a text column: cells must be numbers or missing-value marks, blanks around them are allowed."""
    values = np.empty(len(column))
    for row, cell in enumerate(column.to_pylist()):
        text = (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell or "").strip()
        try:
            if "_" in text:  # which Python allows in a number
                raise ValueError
            values[row] = np.nan if text.lower() in MISSING_LOWER else float(text)
        except ValueError:
            raise NotNumbersError(f"holds text ({shorten(text, 30)!r} in row {before + row + 1})") from None
    return values, "double"
