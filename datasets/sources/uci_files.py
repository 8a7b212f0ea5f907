"""Read the files of the UCI data sets: delimited text, white-space separated columns, or a workbook."""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DamagedError, DataError
from pushforward.datasets.sources.data_folder import find_copy
from pushforward.datasets.sources.uci import UciFile, UciSet
from pushforward.datasets.tables.read import NotNumbersError, Numbers, column_numbers
from pushforward.datasets.tables.text.delimited import TextFile, open_text, read_text

Array = NDArray[np.float64]


class UciTable(NamedTuple):
    """Columns read from a file.

    Attributes:
        numbers: The columns that are used.
        path: The file.
        sha256: Checksum of its decompressed content.
        places: Index in the file of each column that is used.
        width: Number of columns of the file.
        notes: Notes for the user.
    """

    numbers: Numbers
    path: Path
    sha256: str
    places: tuple[int, ...]
    width: int
    notes: tuple[str, ...]


def find_uci(uci: UciSet, folder: Path) -> tuple[UciFile, Path] | None:
    """Return the first of the files of a set that is in the data folder; None if there is none."""
    for file in uci.files:
        path = find_copy(folder, uci.name, file.file)
        if path is not None:
            return file, path
    return None


def read_uci(uci: UciSet, folder: Path) -> UciTable:
    """Read a set from the data folder.

    Rows with missing cells are dropped.

    Raises:
        DataError: If its file is missing, cannot be read, or does not hold the data set.
    """
    found = find_uci(uci, folder)
    again = f"pushforward datasets download {uci.name}"
    if found is None:
        raise DataError(f"{uci.name}: {uci.files[0].file} is not in the data folder {folder}; fetch it with: {again}")
    file, path = found
    try:
        numbers, missing = checked_rows(uci, file, path)
    except DamagedError as error:
        raise DataError(f"{error}; fetch it again with: {again} --force") from error
    sha256 = checksum(path)
    notes = [f"{uci.name}: {file.note}"] if file.note else []
    if missing:
        notes.append(f"{uci.name}: left out {missing} rows with missing cells")
    if file.sha256 not in (None, sha256):
        notes.append(f"{uci.name}: {path.name} differs from the file that its source publishes")
    places = tuple(k for k, name in enumerate(file.columns) if name)
    return UciTable(numbers, path, sha256, places, len(file.columns), tuple(notes))


def checked_rows(uci: UciSet, file: UciFile, path: Path) -> tuple[Numbers, int]:
    """Read a file of a set; return the rows without missing cells, and the number of rows with some.

    Raises:
        DamagedError: If it does not hold the columns and rows of the set.
        DataError: If it cannot be read.
    """
    try:
        names, types, matrix = _read(file, path)
    except NotNumbersError as error:
        raise DamagedError(f"{path}: {error}") from error
    complete = ~np.isnan(matrix).any(axis=1)
    if int(complete.sum()) != uci.rows:
        raise DamagedError(f"{path}: expected {uci.rows:,} rows for {uci.name}; got {int(complete.sum()):,}")
    return Numbers(names, types, matrix[complete]), int((~complete).sum())


def checksum(path: Path) -> str:
    """Return the SHA-256 of the decompressed content of a file."""
    digest = hashlib.sha256()
    with open_text(path) if path.suffix == ".gz" else path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(file: UciFile, path: Path) -> tuple[tuple[str, ...], tuple[str, ...], Array]:
    """Return names, Arrow types and values ``(n, D)`` of the columns that are used, with NaN for missing cells."""
    used = [(k, name) for k, name in enumerate(file.columns) if name]
    names = tuple(name for _, name in used)
    if file.layout == "delimited":
        table = read_text(TextFile(path)).table
        if table.num_columns != len(file.columns):
            raise NotNumbersError(f"expected {len(file.columns)} columns; got {table.num_columns}")
        columns = [column_numbers(table.column(k)) for k, _ in used]
        return names, tuple(kind for _, kind in columns), np.stack([values for values, _ in columns], axis=1)
    matrix = _read_blanks(path, len(file.columns)) if file.layout == "blanks" else _read_sheet(path, len(file.columns))
    return names, ("double",) * len(names), matrix[:, [k for k, _ in used]]


def _read_blanks(path: Path, width: int) -> Array:
    """Read white-space separated numbers ``(n, width)``; lines with words are skipped, a row may span lines."""
    numbers: list[float] = []
    with open_text(path) as file:
        for line in file:
            try:
                numbers += [float(word) for word in line.split()]
            except ValueError:
                continue
    if not numbers or len(numbers) % width:
        raise NotNumbersError(f"expected rows of {width} numbers; got {len(numbers):,} numbers")
    return np.array(numbers).reshape(-1, width)


def _read_sheet(path: Path, width: int) -> Array:
    """Read the rows of numbers ``(n, width)`` of the first sheet of a workbook, which is XML in a zip archive."""
    try:
        with zipfile.ZipFile(path) as book:
            sheet = book.read("xl/worksheets/sheet1.xml").decode()
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise NotNumbersError("is not a workbook with a first sheet") from error
    rows = []
    for row in re.findall(r"<row [^>]*>(.*?)</row>", sheet, flags=re.DOTALL):
        cells = re.findall(r"<c ([^>]*[^/])>(?:<f>[^<]*</f>)?<v>([^<]*)</v>", row)[:width]
        # A text cell has a type and holds only an index into a table of strings.
        if len(cells) == width and not any('t="' in attributes for attributes, _ in cells):
            rows.append([float(value) for _, value in cells])
    if not rows:
        raise NotNumbersError(f"has no rows of {width} numbers in its first sheet")
    return np.array(rows)
