"""Delimited text: finding out how a file is written, then reading it with pyarrow."""

import csv
import gzip
import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pushforward.datasets.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# Spellings of "no value", beside those pyarrow knows (empty, NA, N/A, NaN, NULL, #N/A, ...).
MISSING = ("?", "None", "none", "NAN", "-", ".")
_DELIMITERS = (",", ";", "\t")
_SNIFFED_BYTES = 1 << 20


@dataclass(frozen=True)
class Dialect:
    """How a file is written: its delimiter, its column names, and how many lines come before the data."""

    delimiter: str
    names: tuple[str, ...]
    header: bool
    skip_lines: int


def read_delimited(path: Path) -> tuple["pa.Table", Dialect]:
    """Read a CSV-like file, gzipped or not.

    The delimiter (comma, semicolon or tab) is the commonest in the first line. The first line is a row of data,
    and the columns are ``x1``, ``x2``, ..., where it holds a number and no column turns from text to a number
    below it.

    Raises:
        DataError: The file is empty, damaged, not UTF-8, has no rows, or rows of different lengths.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    content = _content(path)
    dialect = _sniff(path.name, content)
    options = arrow_csv.ConvertOptions(strings_can_be_null=True)
    options.null_values = [*options.null_values, *MISSING]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            # One thread: beside torch, pyarrow's pool aborts a process that ends soon after reading.
            read_options=arrow_csv.ReadOptions(
                column_names=dialect.names, skip_rows=dialect.skip_lines, use_threads=False
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=dialect.delimiter),
            convert_options=options,
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path.name}: {_ragged_row(content, dialect) or _one_line(error)}") from error
    if not table.num_rows:
        raise DataError(f"{path.name}: has a header and no rows; nothing to learn from")
    return table, dialect


def _content(path: Path) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: not a complete gzip file ({_one_line(error)}); fetch it again") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path.name}: the file is empty")
    return content


def _sniff(where: str, content: bytes) -> Dialect:
    try:
        # A cut in the middle of a character is not the file's fault.
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
    first[0] = first[0].lstrip("# ") or first[0]  # numpy.savetxt writes its header as a comment
    names = tuple(name or f"x{k}" for k, name in enumerate(first, start=1))
    return Dialect(delimiter, names, True, lines_through_first)


def _is_data(first: list[str], second: list[str]) -> bool:
    if not any(_is_number(cell) for cell in first):
        return False
    # "id,2019,2020" above "7,1.5,2.5" is a header in spite of its numbers.
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


def _ragged_row(content: bytes, dialect: Dialect) -> str | None:
    """Say which row has the wrong number of cells."""
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="replace", newline="")
    reader = csv.reader(text, delimiter=dialect.delimiter)
    number = 0
    for row in reader:
        if reader.line_num <= dialect.skip_lines or not row:
            continue
        number += 1
        if len(row) != len(dialect.names):
            cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
            return f"row {number} has {cells}, not {len(dialect.names)} (line {reader.line_num}); mend it"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
