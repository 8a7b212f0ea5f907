"""Bytes of a text file as plain lines: UTF-8, one delimiter between cells, no comments; lines keep their numbers."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pushforward.datasets.tables.numbers.number_marks import MISSING_LOWER, number_kind
from pushforward.datasets.tables.text.header import NUMBERS

Layout = Literal["plain", "spaced", "blanks", "pipes"]
"""``plain`` needs no change; ``spaced`` has blanks before quotes; ``blanks`` has any number of blanks between cells;
``pipes`` may have blanks around cells, pipes at both ends of a line, and rules between lines."""

COMMENTS = (b"#", b"%", b"//")
"""Marks at the beginning of a comment line."""

RULE = re.compile(rb"[|+:= \t-]*(?:--|==)[|+:= \t-]*")
"""A line that only separates others, as ``|---|---|``."""

_QUOTED = rb'"[^"]*"'
_LINE_START = rb"(?<![^\r\n])"


@dataclass(frozen=True)
class Lines:
    """How to make lines plain.

    Args:
        layout: What stands around cells.
        delimiter: What stands between cells of the plain lines.
        width: Number of cells of a row.
        comment: Mark of a comment line, beside ``#``; empty if no line of the file is a comment.
        text_first: Whether the first column holds text. Then a line that begins with a comment mark and has the right
            number of cells is a row, also if none of them is a number.
    """

    layout: Layout
    delimiter: str
    width: int
    comment: bytes = b"#"
    text_first: bool = False

    def plain(self, content: bytes) -> bytes:
        """Return whole lines made plain. A comment becomes an empty line."""
        for mark in self._marks(content):
            content = self._without_comments(content, mark)
        if self.layout == "spaced":
            return re.sub(_QUOTED + rb"|(?<=[,;\t|]) +(?=\")", _kept_if_quoted, content)
        if self.layout == "plain":
            return content
        if b'"' in content:
            return self._with_quotes(content)
        cells = _split_blanks if self.layout == "blanks" else _split_pipes
        return b"\n".join(map(cells, content.splitlines())) + b"\n"

    def comments(self, content: bytes) -> Iterator[int]:
        """Yield the positions of the comment lines in a text."""
        for mark in self._marks(content):
            for match in self._candidates(content, mark):
                if self._is_comment(match[1], mark):
                    yield match.start(1)

    def _marks(self, content: bytes) -> list[bytes]:
        """Return the comment marks that begin a line of a text."""
        return [
            mark
            for mark in ({b"#", self.comment} if self.comment else ())
            # The search for one character is ten times as fast as that for two.
            if mark[:1] in content and (content.startswith(mark) or b"\n" + mark in content or b"\r" + mark in content)
        ]

    def _without_comments(self, content: bytes, mark: bytes) -> bytes:
        parts, kept = [], 0
        for match in self._candidates(content, mark):
            if self._is_comment(match[1], mark):
                parts.append(content[kept : match.start(1)])
                kept = match.end(1)
        return b"".join([*parts, content[kept:]])

    @staticmethod
    def _candidates(content: bytes, mark: bytes) -> Iterator[re.Match[bytes]]:
        """Yield lines that begin with a mark, as the first group of a match."""
        line = re.escape(mark) + rb"[^\r\n]*"
        if first := re.match(rb"(" + line + rb")", content):
            yield first
        # Looking for the line end first is ten times as fast.
        others = rb"[\r\n](" + line + rb")"
        if b'"' not in content:
            yield from re.finditer(others, content)
        else:
            yield from (match for match in re.finditer(_QUOTED + rb"|" + others, content) if match[1] is not None)

    def _is_comment(self, line: bytes, mark: bytes) -> bool:
        """Whether a line with a comment mark first is a comment: a row is as wide as the table and has a number."""
        text = line.decode("utf-8", "replace")
        if self.layout == "blanks":
            cells = text.split()
        else:
            split = next(csv.reader([text], delimiter=self.delimiter)) if '"' in text else text.split(self.delimiter)
            cells = [cell.strip() for cell in split]
        if len(cells) != self.width:
            return True
        if cells[0].lower() in MISSING_LOWER:
            return False
        # In "# step 5", blanks stand between words.
        if self.width == 1 or (self.layout == "blanks" and cells[0].encode() == mark and not self.text_first):
            return True
        return not self.text_first and not any(number_kind(cell) in NUMBERS for cell in cells[1:])

    def _with_quotes(self, content: bytes) -> bytes:
        content = re.sub(_QUOTED + rb"|" + _LINE_START + rb"[ \t]+|[ \t]+(?![^\r\n])", _kept_if_quoted, content)
        content = re.sub(_QUOTED + rb"|" + _LINE_START + RULE.pattern + rb"(?![^\r\n])", _kept_if_quoted, content)
        if self.layout == "blanks":
            return re.sub(_QUOTED + rb"|[ \t]+", lambda match: _kept_if_quoted(match, b"\t"), content)
        content = re.sub(_QUOTED + rb"|" + _LINE_START + rb"\||\|(?![^\r\n])", _kept_if_quoted, content)
        return re.sub(_QUOTED + rb"|[ \t]*\|[ \t]*", lambda match: _kept_if_quoted(match, b"|"), content)


def _kept_if_quoted(match: re.Match[bytes], otherwise: bytes = b"") -> bytes:
    return match[0] if match[0].startswith(b'"') else otherwise


def _split_blanks(line: bytes) -> bytes:
    return b"" if RULE.fullmatch(line) else b"\t".join(line.split())


def _split_pipes(line: bytes) -> bytes:
    if RULE.fullmatch(line):
        return b""
    line = line.strip()
    return b"|".join(cell.strip() for cell in line.removeprefix(b"|").removesuffix(b"|").split(b"|"))


def last_line_end(block: bytes, end: int | None = None) -> int:
    """Return the end of the last complete row that ends before a position, by default the end; 0 if there is none."""
    last = _line_end(block, len(block) if end is None else end)
    cut, quotes = last, block.count(b'"', 0, last)
    while quotes % 2 and cut:
        # This line end is inside quotes, so it does not end a row.
        before = _line_end(block, cut - 1)
        quotes -= block.count(b'"', before, cut)
        cut = before
    return cut or last  # an unpaired quote does not quote anything


def _line_end(block: bytes, end: int) -> int:
    """Return the end of the last line that ends before a position; 0 if there is none."""
    return max(block.rfind(b"\n", 0, end), block.rfind(b"\r", 0, end)) + 1


def count_lines(content: bytes) -> int:
    """Return the number of line ends: each of the kinds of Windows, Unix and old Macs counts once."""
    return content.count(b"\n") + content.count(b"\r") - content.count(b"\r\n")


def encoding_of(sample: bytes, *, whole: bool) -> str:
    """Return the encoding of a text: UTF-16 by its byte order mark, UTF-8 if it is that, else Windows-1252.

    Args:
        sample: The first bytes.
        whole: Whether these are all; otherwise the last character may be incomplete.
    """
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if whole or error.start < len(sample) - 3:
            return "cp1252"
    return "utf-8"


class AsUtf8(io.RawIOBase):
    """A binary stream of another encoding, read as UTF-8; bytes that it does not have become a replacement mark."""

    def __init__(self, stream: "io.BufferedReader[Any]", encoding: str) -> None:
        self._text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._rest or self._text.read(max(1, len(buffer) // 2)).encode()
        count = min(len(buffer), len(content))
        buffer[:count], self._rest = content[:count], content[count:]
        return count

    def close(self) -> None:
        self._text.close()
        super().close()
