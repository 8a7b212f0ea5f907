"""Detect the format of a text file from its first lines: what separates cells, and where names and data begin."""

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from pushforward.common.errors import DataError
from pushforward.common.text import shorten
from pushforward.datasets.tables.files.kind import READABLE
from pushforward.datasets.tables.numbers.number_marks import ERRORS, number_kind
from pushforward.datasets.tables.numbers.spellings import Spelling
from pushforward.datasets.tables.text.header import (
    NUMBERS,
    counts_up,
    is_data,
    is_default_header,
    is_header_of_numbers,
    is_units,
)
from pushforward.datasets.tables.text.lines import COMMENTS, RULE, Layout, Lines, count_lines, last_line_end

_DELIMITERS = ("\t", ";", "|", ",")
_ERRORS = tuple(error.encode() for error in ERRORS)
_SAMPLE_ROWS = 200
_HEAD_BYTES = 1 << 16
# A quote in a cell, as in 5" pipe, does not open one.
_FIRST_RECORD = re.compile(rb'(?:(?<![^,;\t| ])"(?:[^"]|"")*"|[^\r\n])*')
_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?\s*")


@dataclass(frozen=True)
class Dialect:
    """Format of a text file.

    Args:
        names: The column names.
        header: Whether they come from the file.
        unnamed: Columns to which a header gives no name.
        skip_lines: Number of lines before the data.
        lines: How to make its lines plain.
        mark: The decimal mark as cells show it; None if they do not.
        decimal: The decimal mark to read with.
        spellings: How the numbers of columns are written that are not plain, by name.
        empty: Columns without a value in the beginning, whose spelling is still to be found.
        notes: Notes for the user.
    """

    names: tuple[str, ...]
    header: bool
    unnamed: tuple[str, ...]
    skip_lines: int
    lines: Lines
    mark: str | None = None
    decimal: str = "."
    spellings: Mapping[str, Spelling] = field(default_factory=lambda: MappingProxyType({}))
    empty: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def delimiter(self) -> str:
        """What stands between the cells of plain lines."""
        return self.lines.delimiter

    @property
    def spelled(self) -> tuple[str, ...]:
        """Columns whose cells are read as strings first, because of how their numbers are written."""
        return tuple(name for name, spelling in self.spellings.items() if not spelling.is_plain(self.decimal))


class _Row(NamedTuple):
    cells: list[str]
    end: int  # number of lines through the end of the row


def find_dialect(where: str, sample: bytes) -> Dialect:
    """Detect the format of a text from its beginning: whole lines in UTF-8.

    Args:
        where: Name of the file, for messages.
        sample: The text.

    Raises:
        DataError: If it is empty, or no text.
    """
    if b"\x00" in sample:
        raise DataError(f"{where}: holds no table that can be read; expected {READABLE}")
    if not sample.strip():
        raise DataError(f"{where}: the file is empty")
    above = _lines_above(sample)
    if not _rows(above.body, Lines("plain", ",", 0, b"")):
        raise DataError(f"{where}: no row with a cell is found in its beginning; expected {READABLE}")
    layout, delimiter, short = _find_layout(above.body, above.delimiter)
    first, *below = _rows(above.body, Lines(layout, delimiter, 0, b""))
    width = len(first.cells) + short
    text_first = _mostly_text(row.cells[0] for row in below if len(row.cells) == width)
    lines = Lines(layout, delimiter, width, above.comment or b"#", text_first)
    rows = _rows(above.body, lines)
    if short:
        note = "the first line has one name fewer than the rows have cells, so the first column has none"
        head = _Head(["", *rows[0].cells], rows[0].end, (note,))
    else:
        head = _find_head(rows, _names_in_comment(above.names, lines))
    notes = (*_about_comments(sample, above.lines, lines), *head.notes)
    names, unnamed = _name_columns(head.names or [""] * width)
    return Dialect(
        names=names,
        header=bool(head.names),
        unnamed=unnamed if head.names else (),
        skip_lines=above.lines + head.lines,
        lines=lines,
        notes=tuple(f"{where}: {note}" for note in notes),
    )


class _Head(NamedTuple):
    """Names of the columns, none if the file gives none; number of lines through the last one before data; notes."""

    names: list[str]
    lines: int
    notes: tuple[str, ...] = ()


def _find_head(rows: Sequence[_Row], in_comment: list[str]) -> _Head:
    """Find names and data in the first rows, with the names that a comment right above them would give."""
    first, below, notes = rows[0].cells, [row.cells for row in rows[1:]], []
    if in_comment and is_data(first, below):
        return _Head(in_comment, 0)
    is_header = not is_data(first, below)
    if counts_up(first):
        like_names: bool | None = is_default_header(first, below)
    else:
        like_names = None if is_header else is_header_of_numbers(first, below)
    if like_names is not None:
        is_header = like_names
        what = "column names" if is_header else "a row of data"
        notes.append(f"first line {shorten(','.join(first), 30)} taken as {what}")
    if not is_header:
        return _Head([], 0, tuple(notes))
    end = rows[0].end
    if below and is_units(below[0], below[1:]):
        notes.append(f"row 1 holds units ({', '.join(unit for unit in below[0] if unit)}); skipped")
        end = rows[1].end
    return _Head(first, end, tuple(notes))


class _Above(NamedTuple):
    """What stands above the first line that is neither empty nor a comment.

    Args:
        lines: Number of these lines.
        body: The text from that line on.
        comment: Mark of the comments, if there are any.
        names: The line above it if that is a comment, without its mark: it may hold the names.
        delimiter: The delimiter if a line says so, as Excel's ``sep=;``.
    """

    lines: int
    body: bytes
    comment: bytes
    names: bytes | None
    delimiter: str


def _lines_above(sample: bytes) -> _Above:
    position, comment, names, delimiter = 0, b"", None, ""
    for lines, line in enumerate(sample.splitlines(keepends=True)):
        bare = line.strip()
        mark = next((mark for mark in COMMENTS if bare.startswith(mark)), b"")
        if mark and not bare.startswith(_ERRORS):
            comment, names = mark, bare.lstrip(mark)
        elif found := _SEPARATOR_LINE.fullmatch(bare.decode("utf-8", "replace")):
            delimiter = found[1]
        elif bare and not RULE.fullmatch(bare):
            return _Above(lines, sample[position:], comment, names, delimiter)
        position += len(line)
    # Nothing else is left: then these lines are the table.
    blank = len(sample) - len(sample.lstrip(b"\r\n \t"))
    return _Above(count_lines(sample[:blank]), sample[blank:], b"", None, "")


def _find_layout(body: bytes, delimiter: str) -> tuple[Layout, str, bool]:
    """Choose the layout and the delimiter that most rows agree with, and with which most cells are numbers.

    Returns:
        Both, and whether the first line has one cell fewer than all other rows, as R writes names above row names.
    """
    record = _FIRST_RECORD.match(body, 0, _HEAD_BYTES)
    outside_quotes = re.sub(rb'"[^"]*"', b"q", record[0] if record else b"").decode("utf-8", "replace")
    present = [mark for mark in _DELIMITERS if mark in outside_quotes]
    candidates: list[tuple[Layout, str]] = [
        (_layout_between(mark, body), mark) for mark in ([delimiter] if delimiter else present)
    ]
    if not delimiter and len(outside_quotes.split()) > 1:
        candidates.append(("blanks", "\t"))
    best: tuple[Layout, str, bool] | None = None
    best_score = (0.0, 0.0)
    for candidate in candidates:
        layout, mark = candidate
        agreeing, numbers, short = _agreement([row.cells for row in _rows(body, Lines(layout, mark, 0, b""))])
        if layout == "blanks" and (numbers == 0 or agreeing < 0.5):
            continue
        if best is None or (agreeing, numbers) > best_score:
            best, best_score = (*candidate, short), (agreeing, numbers)
    # Without any, there is one column. Commas below its name are decimal marks.
    return best or ("plain", ";" if b"," in body else ",", False)


def _layout_between(delimiter: str, body: bytes) -> Layout:
    """Return the layout of lines whose cells stand between delimiters other than blanks."""
    if delimiter == "|" and (body.startswith(b"|") or re.search(rb"[ \t]\||\|[ \t]|-[|+]-", body[:_HEAD_BYTES])):
        return "pipes"
    return "spaced" if re.search(rb"[,;\t|] +\"", body) else "plain"


def _agreement(rows: Sequence[Sequence[str]]) -> tuple[float, float, bool]:
    """Return the share of rows as long as the first, the share of numbers in them, and whether the first is short."""
    width, below = len(rows[0]), rows[1:] or rows
    same = [row for row in below if len(row) == width]
    short = False
    if not same and len(below) > 1 and all(len(row) == width + 1 for row in below):
        row_names = [row[0] for row in below]
        short = len(set(row_names)) == len(row_names) and all(number_kind(cell) == "text" for cell in rows[0])
        short = short and not any(_has_decimals(cell) for cell in row_names)
        same = list(below) if short else same
    cells = [cell for row in same for cell in row]
    numbers = sum(number_kind(cell) in NUMBERS for cell in cells) / max(1, len(cells))
    return len(same) / len(below) - 0.05 * short, numbers, short


def _has_decimals(cell: str) -> bool:
    return number_kind(cell) in NUMBERS and not cell.isdecimal()


def _rows(body: bytes, lines: Lines) -> list[_Row]:
    """Return the first rows of a text that are not empty, with blanks removed around their cells."""
    cut = last_line_end(body[:_HEAD_BYTES])
    head = body if len(body) <= _HEAD_BYTES or body.count(b"\n", 0, cut) < 3 else body[:cut]
    text = lines.plain(head).decode("utf-8", "replace")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=lines.delimiter, skipinitialspace=True)
    rows: list[_Row] = []
    with contextlib.suppress(csv.Error):  # a cell of more than 128 KiB
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(_Row(cells, reader.line_num))
            if len(rows) > _SAMPLE_ROWS:
                break
    return rows


def _names_in_comment(line: bytes | None, lines: Lines) -> list[str]:
    """Return the names in a comment above the first row, as numpy.savetxt writes them; none if it holds others."""
    if line is None:
        return []
    text = lines.plain(line.strip()).decode("utf-8", "replace").strip("\r\n")
    names = next(csv.reader([text], delimiter=lines.delimiter, skipinitialspace=True), [])
    names = [name.strip() for name in names]
    is_row = all(number_kind(name) in NUMBERS for name in names) and not counts_up(names)
    return [] if is_row or len(names) != lines.width else names


def _mostly_text(cells: Iterable[str]) -> bool:
    kinds = [number_kind(cell) for cell in cells]
    return sum(kind == "text" for kind in kinds) > len(kinds) / 2


def _about_comments(sample: bytes, above: int, lines: Lines) -> tuple[str, ...]:
    """Say in a note which lines between rows are skipped."""
    found = [count_lines(sample[:position]) + 1 for position in lines.comments(sample)]
    inside = sorted(number for number in found if number > above)
    if not inside:
        return ()
    others = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
    return (f"line {inside[0]}{others} skipped as {'comments' if others else 'a comment'}",)


def _name_columns(cells: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of all columns, ``x1``, ``x2``, ... where there is none, and the latter."""
    names, unnamed = list(cells), []
    for k, name in enumerate(cells):
        if not name:
            names[k] = f"x{k + 1}"
            while names[k] in cells:
                names[k] += "_"
            unnamed.append(names[k])
    return tuple(names), tuple(unnamed)
