"""Reading the files of the UCI sets: delimited text, columns between blanks, the first sheet of a workbook."""

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
from pushforward.datasets.tables.delimited import open_text, read_delimited
from pushforward.datasets.tables.read import NotNumbersError, Numbers, column_numbers

Array = NDArray[np.float64]


class FromFile(NamedTuple):
    """What was read of a file.

    Attributes:
        numbers: The columns that are taken.
        path: The file.
        sha256: Its checksum, unzipped if it is gzipped.
        places: Where in the file each column that is taken stands.
        width: How many columns the file has.
        notes: What the user should know.
    """

    numbers: Numbers
    path: Path
    sha256: str
    places: tuple[int, ...]
    width: int
    notes: tuple[str, ...]


def find_uci(uci: UciSet, folder: Path) -> tuple[UciFile, Path] | None:
    """Return the best of the files of a set that is in the data folder, None if there is none."""
    for file in uci.files:
        path = find_copy(folder, uci.name, file.file)
        if path is not None:
            return file, path
    return None


def read_uci(uci: UciSet, folder: Path) -> FromFile:
    """Read a set from the data folder.

    Rows with missing cells are left out.

    Raises:
        DataError: Its file is not there, cannot be read, or does not hold what it should.
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
        notes.append(f"{uci.name}: {path.name} is not byte for byte the file that its source publishes")
    places = tuple(k for k, name in enumerate(file.columns) if name)
    return FromFile(numbers, path, sha256, places, len(file.columns), tuple(notes))


def checked_rows(uci: UciSet, file: UciFile, path: Path) -> tuple[Numbers, int]:
    """Read one of the files of a set; return the rows without missing cells, and how many there are with some.

    Raises:
        DamagedError: It does not hold the columns, or the rows, of the set.
        DataError: It cannot be read.
    """
    try:
        names, types, matrix = _read(file, path)
    except NotNumbersError as error:
        raise DamagedError(f"{path}: {error}") from error
    whole = ~np.isnan(matrix).any(axis=1)
    if int(whole.sum()) != uci.rows:
        raise DamagedError(f"{path}: expected {uci.rows:,} rows for {uci.name}; got {int(whole.sum()):,}")
    return Numbers(names, types, matrix[whole]), int((~whole).sum())


def checksum(path: Path) -> str:
    """SHA-256 of a file's contents, unzipped if it is gzipped."""
    digest = hashlib.sha256()
    with open_text(path) if path.suffix == ".gz" else path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(file: UciFile, path: Path) -> tuple[tuple[str, ...], tuple[str, ...], Array]:
    """Return names, Arrow types and values ``(n, D)`` of the columns that are taken, NaN where a cell is missing."""
    taken = [(k, name) for k, name in enumerate(file.columns) if name]
    names = tuple(name for _, name in taken)
    if file.layout == "delimited":
        table = read_delimited(path)
        if table.num_columns != len(file.columns):
            raise NotNumbersError(f"expected {len(file.columns)} columns; got {table.num_columns}")
        columns = [column_numbers(table.column(k)) for k, _ in taken]
        return names, tuple(kind for _, kind in columns), np.stack([values for values, _ in columns], axis=1)
    matrix = _read_blanks(path, len(file.columns)) if file.layout == "blanks" else _read_sheet(path, len(file.columns))
    return names, ("double",) * len(names), matrix[:, [k for k, _ in taken]]


def _read_blanks(path: Path, width: int) -> Array:
    """Read numbers between blanks ``(n, width)``; lines with words are left out, a row may take several lines."""
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
    """Read the rows ``(n, width)`` of numbers of a workbook's first sheet, which is XML in a zip archive."""
    try:
        with zipfile.ZipFile(path) as book:
            sheet = book.read("xl/worksheets/sheet1.xml").decode()
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise NotNumbersError("is not a workbook with a first sheet") from error
    rows = []
    for row in re.findall(r"<row [^>]*>(.*?)</row>", sheet, flags=re.DOTALL):
        cells = re.findall(r"<c ([^>]*[^/])>(?:<f>[^<]*</f>)?<v>([^<]*)</v>", row)[:width]
        # Words stand elsewhere: such a cell holds the number of one.
        if len(cells) == width and not any('t="' in attributes for attributes, _ in cells):
            rows.append([float(value) for _, value in cells])
    if not rows:
        raise NotNumbersError(f"has no rows of {width} numbers in its first sheet")
    return np.array(rows)
