"""Delimited text files: detect the format, then parse with pyarrow."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import DataError
from pushforward.common.text import one_line, shorten

if TYPE_CHECKING:
    import pyarrow as pa

# Spellings of a missing value in addition to those of pyarrow (empty, NA, N/A, NaN, NULL, #N/A, ...).
MISSING = ("?", "None", "none", "NAN", "-", ".")
_DELIMITERS = (",", ";", "\t")
_SNIFFED_BYTES = 1 << 20


@dataclass(frozen=True)
class Dialect:
    """Format of a file: its delimiter, its column names, and the number of lines before the data."""

    delimiter: str
    names: tuple[str, ...]
    header: bool
    skip_lines: int


def read_delimited(path: Path) -> "pa.Table":
    """Read a CSV-like file, gzipped or not.

    The delimiter (comma, semicolon or tab) is the most frequent one in the first line. The first line is taken as data
    if it holds a number and no column has text there and a number below; the columns are then ``x1``, ``x2``, ...

    Raises:
        DataError: If the file is empty, damaged, not UTF-8, has no rows, or has rows of different lengths.
    """
    import pyarrow as pa

    with open_text(path) as stream:
        content = stream.read()
    dialect = _dialect(path.name, content)
    try:
        table = parse(content, dialect, skip_lines=dialect.skip_lines)
    except pa.ArrowInvalid as error:
        raise parse_error(path, dialect, error) from error
    if not table.num_rows:
        raise DataError(f"{path.name}: has a header and no rows; nothing to learn from")
    return table


def find_dialect(path: Path) -> Dialect:
    """Detect the format of a file from its first megabyte.

    Raises:
        DataError: If the file is empty, damaged, or not UTF-8.
    """
    with open_text(path) as stream:
        return _dialect(path.name, stream.read(_SNIFFED_BYTES + 1))


def parse(
    content: bytes, dialect: Dialect, *, skip_lines: int = 0, types: "Mapping[str, pa.DataType] | None" = None
) -> "pa.Table":
    """Parse a block of whole lines.

    Args:
        content: The text.
        dialect: Its format.
        skip_lines: Lines to skip before the first row.
        types: The columns to return, with their types. By default all columns, with types inferred from their cells.

    Raises:
        pyarrow.ArrowInvalid: If rows have different lengths, or a cell does not have the type of its column.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    options = arrow_csv.ConvertOptions(
        strings_can_be_null=True, column_types=types, include_columns=None if types is None else list(types)
    )
    options.null_values = [*options.null_values, *MISSING]
    return arrow_csv.read_csv(
        pa.BufferReader(content),
        # One thread: with torch loaded, pyarrow's thread pool aborts a process that ends soon after reading.
        read_options=arrow_csv.ReadOptions(column_names=dialect.names, skip_rows=skip_lines, use_threads=False),
        parse_options=arrow_csv.ParseOptions(delimiter=dialect.delimiter),
        convert_options=options,
    )


def parse_error(path: Path, dialect: Dialect, error: Exception) -> DataError:
    """Return an error that names the row with the wrong number of cells, or else quotes the parser."""
    with open_text(path) as stream:
        return DataError(f"{path.name}: {_ragged_row(stream, dialect) or shorten(one_line(error), 200)}")


class _Gunzipped(io.RawIOBase):
    """The decompressed content of a gzip file; damage raises a ``DataError``."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = gzip.GzipFile(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{self._name}: not a complete gzip file ({shorten(one_line(error), 200)}); fetch it again"
            ) from error

    def close(self) -> None:
        self._file.close()
        super().close()


def open_text(path: Path) -> "io.BufferedReader[Any]":
    """Open a file for reading, decompressed and without its byte order mark.

    Raises:
        DataError: If it is a damaged gzip file; here, or later while reading.
    """
    raw: Any = _Gunzipped(path) if path.suffix.lower() == ".gz" else io.FileIO(path)
    stream = io.BufferedReader(raw, 1 << 17)
    try:
        if stream.peek(3)[:3] == b"\xef\xbb\xbf":
            stream.read(3)
    except DataError:
        stream.close()
        raise
    return stream


def _dialect(where: str, content: bytes) -> Dialect:
    if not content.strip():
        raise DataError(f"{where}: the file is empty")
    return _sniff(where, content)


def _sniff(where: str, content: bytes) -> Dialect:
    try:
        # The last character may be incomplete where the sample was cut off.
        text = content[:_SNIFFED_BYTES].decode("utf-8", errors="ignore" if len(content) > _SNIFFED_BYTES else "strict")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\x00" in text:
        raise DataError(f"{where}: not text; a table is expected as .csv, .parquet or .npy")
    first_line = next(line for line in text.splitlines() if line.strip())
    outside_quotes = re.sub(r'"[^"]*"', "", first_line)
    delimiter = max(_DELIMITERS, key=outside_quotes.count)
    words = first_line.split()
    if outside_quotes.count(delimiter) == 0 and len(words) > 1 and all(_is_number(word) for word in words):
        raise DataError(f"{where}: columns separated by blanks; put a comma, a semicolon or a tab between them")

    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    cells: list[list[str]] = []
    lines_before, lines_through_first = 0, 0
    for row in reader:
        if not any(cell.strip() for cell in row) and not cells:
            lines_before = reader.line_num
            continue
        if not cells:
            lines_through_first = reader.line_num
        cells.append([cell.strip() for cell in row])
        if len(cells) == 2:
            break
    first, second = cells[0], cells[1] if len(cells) > 1 else []
    if _is_data(first, second):
        return Dialect(delimiter, tuple(f"x{k}" for k in range(1, len(first) + 1)), False, lines_before)
    first[0] = first[0].lstrip("# ") or first[0]  # numpy.savetxt writes the header as a comment
    names = tuple(name or f"x{k}" for k, name in enumerate(first, start=1))
    return Dialect(delimiter, names, True, lines_through_first)


def _is_data(first: list[str], second: list[str]) -> bool:
    if not any(_is_number(cell) for cell in first):
        return False
    # "id,2019,2020" above "7,1.5,2.5" is a header although it holds numbers.
    return not any(
        _is_number(below) and above and not _is_number(above) and above not in MISSING and not _is_null(above)
        for above, below in zip(first, second, strict=False)
    )


def _is_number(cell: str) -> bool:
    try:
        value = float(cell)
    except ValueError:
        return False
    return value == value and "_" not in cell


def _is_null(cell: str) -> bool:
    return cell.strip("#-").lower() in {"", "na", "n/a", "nan", "null", "none"}


def _ragged_row(stream: "io.BufferedReader[Any]", dialect: Dialect) -> str | None:
    """Describe the first row with the wrong number of cells; None if there is none."""
    with io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="") as text:
        reader = csv.reader(text, delimiter=dialect.delimiter)
        number = 0
        for row in reader:
            if reader.line_num <= dialect.skip_lines or not row:
                continue
            number += 1
            if len(row) != len(dialect.names):
                cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                return f"row {number} has {cells}, not {len(dialect.names)} (line {reader.line_num}); correct it"
    return None
