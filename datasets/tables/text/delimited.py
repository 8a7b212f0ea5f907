"""Delimited text files: detect the format, then parse with pyarrow."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pushforward.common.errors import DataError
from pushforward.common.text import one_line, shorten
from pushforward.datasets.tables.files.compression import open_decompressed
from pushforward.datasets.tables.numbers.number_marks import MISSING
from pushforward.datasets.tables.numbers.spellings import (
    TRUE_FALSE,
    Spelling,
    find_spellings,
    unusual_spellings,
)
from pushforward.datasets.tables.text.dialect import Dialect, find_dialect
from pushforward.datasets.tables.text.lines import AsUtf8, count_lines, encoding_of, last_line_end

if TYPE_CHECKING:
    import pyarrow as pa

SNIFFED_BYTES = 1 << 20
"""Bytes at the beginning of a file that decide how it is read."""


class Block(NamedTuple):
    """Whole lines of a text file, made plain.

    Attributes:
        content: The lines.
        skip_lines: How many of them stand before the data.
        read: Number of bytes of the decompressed file through the end of these lines.
    """

    content: bytes
    skip_lines: int
    read: int


class TextFile:
    """A delimited text file, compressed or not: its format, and its lines in blocks.

    Args:
        path: The file.
        fitted: How the numbers of columns were written at the fit of a model, by name.

    Attributes:
        path: The file.
        encoding: Its encoding.
        dialect: Its format, detected from its first megabyte.
        comments: How many comment lines were removed after the first megabyte, so far.

    Raises:
        DataError: If the file is empty, damaged, or not text.
    """

    def __init__(self, path: Path, fitted: Mapping[str, Spelling] | None = None) -> None:
        self.path = path
        self.comments = 0
        self.encoding = "utf-8"
        with self._open() as stream:
            sample = stream.read(SNIFFED_BYTES)
            whole = not stream.read(1)
        self.encoding = encoding_of(sample, whole=whole)
        if self.encoding != "utf-8":
            with self._open() as stream:
                sample = stream.read(SNIFFED_BYTES)
                whole = not stream.read(1)
        sample = sample if whole else sample[: last_line_end(sample)] or sample
        self._sampled = len(sample)
        self.dialect = self._with_spellings(find_dialect(path.name, sample), sample, fitted or {})
        if self.encoding == "cp1252":
            note = f"{path.name}: not UTF-8; read as Windows-1252"
            self.dialect = dataclasses.replace(self.dialect, notes=(note, *self.dialect.notes))

    def blocks(self, size: int = -1) -> Iterator[Block]:
        """Yield the lines of the file in blocks of whole rows, of about ``size`` bytes; by default in one block."""
        skip_lines, read, rest, comments = self.dialect.skip_lines, 0, b"", 0
        with self._open() as stream:
            while True:
                fresh = stream.read(size)
                block = rest + fresh if rest else fresh
                last = not fresh or size < 0
                # The line end of Windows is two characters, of which the second may not have been read yet.
                cut = len(block) if last else last_line_end(block, len(block) - block.endswith(b"\r"))
                content, rest = (block, b"") if cut == len(block) else (block[:cut], block[cut:])
                comments += sum(read + at >= self._sampled for at in self.dialect.lines.comments(content))
                self.comments = max(self.comments, comments)
                read += cut
                if content and not content.isspace():
                    if skip_lines and not content.endswith((b"\n", b"\r")):
                        content += b"\n"  # without it, the parser does not skip a last line
                    yield Block(self.dialect.lines.plain(content), skip_lines, read)
                    skip_lines = 0
                if last:
                    return

    @property
    def findings(self) -> tuple[str, ...]:
        """Notes for the user on what was read after the first megabyte."""
        if not self.comments:
            return ()
        what = "1 line after the first megabyte skipped as a comment"
        if self.comments > 1:
            what = f"{self.comments:,} lines after the first megabyte skipped as comments"
        return (f"{self.path.name}: {what}",)

    def error(self, error: Exception) -> DataError:
        """Return an error that names the row with the wrong number of cells, or else quotes the parser."""
        return DataError(f"{self.path.name}: {self._ragged_row() or shorten(one_line(error), 200)}")

    def _open(self) -> "io.BufferedReader[Any]":
        stream = open_text(self.path)
        return stream if self.encoding == "utf-8" else io.BufferedReader(AsUtf8(stream, self.encoding))

    def _with_spellings(self, dialect: Dialect, sample: bytes, fitted: Mapping[str, Spelling]) -> Dialect:
        """Add how the numbers of the columns are written, as far as a sample shows it."""
        import pyarrow as pa

        # Columns by number, because two may have the same name.
        numbered = dataclasses.replace(dialect, names=tuple(map(str, range(len(dialect.names)))))
        plain = dialect.lines.plain(sample)
        # Where semicolons separate cells, commas are often decimal, and points may stand between thousands.
        suspect = dialect.delimiter == ";"
        known = {str(k): fitted[name] for k, name in enumerate(dialect.names) if name in fitted}
        try:
            table = parse(plain, numbered, skip_lines=dialect.skip_lines)
            odd = [
                name
                for name, kind in zip(table.column_names, table.schema.types, strict=True)
                if pa.types.is_string(kind)
                or pa.types.is_boolean(kind)
                or (suspect and pa.types.is_floating(kind))
                or (name in known and not pa.types.is_null(kind))
            ]
            empty = {dialect.names[k] for k, kind in enumerate(table.schema.types) if pa.types.is_null(kind)}
            dialect = dataclasses.replace(dialect, empty=frozenset(empty))
            if not odd:
                return dialect
            texts = dict.fromkeys(numbered.names, pa.string())
            cells = parse(plain, numbered, skip_lines=dialect.skip_lines, types=texts)
        except pa.ArrowInvalid:
            return dialect
        mark, found = find_spellings(cells, odd, dialect.delimiter, fitted=known)
        decimal, found = unusual_spellings(mark, found)
        named = {dialect.names[int(k)]: spelling for k, spelling in found.items()}
        spellings = {name: spelling for name, spelling in named.items() if dialect.names.count(name) == 1}
        return dataclasses.replace(dialect, mark=mark, decimal=decimal, spellings=spellings)

    def _ragged_row(self) -> str | None:
        """Describe the first row with the wrong number of cells; None if there is none."""
        number, lines, width = 0, 0, len(self.dialect.names)
        for content, skip_lines, _ in self.blocks(SNIFFED_BYTES):
            text = io.StringIO(content.decode("utf-8", "replace"), newline="")
            reader, before = csv.reader(text, delimiter=self.dialect.delimiter), 0
            try:
                for row in reader:
                    line, before = before + 1, reader.line_num
                    if line <= skip_lines or not row:
                        continue
                    number += 1
                    if len(row) != width:
                        cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                        return f"row {number} has {cells}, not {width} (line {lines + line}); correct it"
            except csv.Error:  # a cell of more than 128 KiB
                return None
            lines += count_lines(content)
        return None


class TextTable(NamedTuple):
    """A text file as a table, and how the numbers of its columns are written, unless they are plain."""

    table: "pa.Table"
    spellings: Mapping[str, Spelling]


def read_text(file: TextFile) -> TextTable:
    """Read a whole text file. Columns are numbers if their cells are, however they are written.

    Raises:
        DataError: If the file is damaged, has no rows, or has rows of different lengths.
    """
    import pyarrow as pa

    dialect = file.dialect
    content, skip_lines, _ = next(file.blocks(), Block(b"", 0, 0))
    try:
        table = parse(
            content, dialect, skip_lines=skip_lines, types=dict.fromkeys(dialect.spelled, pa.string()), others=True
        )
    except pa.ArrowInvalid as error:
        raise file.error(error) from error
    if not table.num_rows:
        raise DataError(f"{file.path.name}: has a header and no rows; nothing to learn from")
    spellings = dict(dialect.spellings)
    strings = [k for k, kind in enumerate(table.schema.types) if pa.types.is_string(kind)]
    # What the sample did not settle, a cell after it may. By number, because two columns may have the same name.
    settled = {name for name, spelling in spellings.items() if spelling.example and not spelling.doubt}
    left = {str(k): table.column(k) for k in strings if dialect.names[k] not in settled}
    _, found = find_spellings(pa.table(left), list(left), dialect.delimiter, dialect.mark)
    for k, name in enumerate(dialect.names):
        if pa.types.is_boolean(table.column(k).type):
            spellings[name] = TRUE_FALSE
            table = table.set_column(k, name, table.column(k).cast(pa.int64()))
        elif k in strings and (spelling := found.get(str(k), spellings.get(name))):
            numbers = spelling.read(table.column(k))
            if not (pa.types.is_string(numbers.type) and spelling.is_plain(".")):
                spellings[name] = spelling
                table = table.set_column(k, name, numbers)
    return TextTable(table, spellings)


def parse(
    content: bytes,
    dialect: Dialect,
    *,
    skip_lines: int = 0,
    types: "Mapping[str, pa.DataType] | None" = None,
    others: bool = False,
) -> "pa.Table":
    """Parse a block of whole, plain lines.

    Args:
        content: The text.
        dialect: Its format.
        skip_lines: Lines to skip before the first row.
        types: Columns with their types. By default all columns, with types inferred from their cells.
        others: Whether to return the other columns too, with types inferred.

    Raises:
        pyarrow.ArrowInvalid: If rows have different lengths, or a cell does not have the type of its column.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    options = arrow_csv.ConvertOptions(
        strings_can_be_null=True,
        column_types=types,
        include_columns=None if types is None or others else list(types),
        decimal_point=dialect.decimal,
    )
    options.null_values = [*options.null_values, *MISSING]
    return arrow_csv.read_csv(
        pa.BufferReader(content),
        # One thread: with torch loaded, pyarrow's thread pool aborts a process that ends soon after reading.
        read_options=arrow_csv.ReadOptions(column_names=dialect.names, skip_rows=skip_lines, use_threads=False),
        parse_options=arrow_csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=b'"' in content),
        convert_options=options,
    )


def open_text(path: Path) -> "io.BufferedReader[Any]":
    """Open a file for reading, decompressed and without its byte order mark.

    Raises:
        DataError: If it is damaged; here, or later while reading.
    """
    stream = io.BufferedReader(open_decompressed(path), 1 << 17)
    try:
        if stream.peek(3)[:3] == b"\xef\xbb\xbf":
            stream.read(3)
    except DataError:
        stream.close()
        raise
    return stream
