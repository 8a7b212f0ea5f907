"""Read tables chunk by chunk, in memory that does not grow with the number of rows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import DataError
from pushforward.datasets.tables.files.compression import compression_of
from pushforward.datasets.tables.files.local_file import LocalFile
from pushforward.datasets.tables.files.table_reader import TableReader
from pushforward.datasets.tables.numbers.spellings import Spelling, find_spellings, understood_notes
from pushforward.datasets.tables.read import NotNumbersError, check_columns, column_numbers, open_arrow_reader
from pushforward.datasets.tables.text.delimited import Block, TextFile, parse

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 1 << 22
"""Bytes of text parsed at a time: large enough that starting the parser costs nothing."""


def open_reader(file: LocalFile, fitted: Mapping[str, Spelling] | None = None) -> TableReader:
    """Open a table for reading in chunks; the file must outlive the reader.

    Args:
        file: The table.
        fitted: How the numbers of columns were written at the fit of a model, by name.

    Raises:
        DataError: If the file is damaged, of an unknown kind, or has no columns or rows.
    """
    with file.explaining():
        is_text = file.kind == "text"
        reader: TableReader = TextReader(file.path, fitted) if is_text else open_arrow_reader(file, fitted)
        check_columns(file.name, reader.names)
        if reader.rows == 0:
            raise DataError(f"{file.name}: has no rows; nothing to learn from")
    return reader


class TextReader:
    """Reads a text file, compressed or not. Columns are numbers, or strings if that fails.

    Args:
        path: The file.
        fitted: How the numbers of columns were written at the fit of a model, by name.

    Attributes:
        notes: Notes for the user on how the file is read.
        spellings: How the numbers in columns are written, by name, unless they are plain.
    """

    def __init__(self, path: Path, fitted: Mapping[str, Spelling] | None = None) -> None:
        self._file = TextFile(path, fitted)
        self._fitted = fitted
        self.dialect = self._file.dialect
        self.names = self.dialect.names
        self.named = self.dialect.header
        self.rows: int | None = None
        self.notes = self.dialect.notes
        self.spellings = dict(self.dialect.spellings)
        self._late: dict[str, Spelling] = {}

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        import pyarrow as pa

        size, read = self._size(), 0
        for block in self._file.blocks(BLOCK_BYTES):
            types = {name: pa.string() if self._is_spelled(name) else pa.float64() for name in names}
            try:
                table = self._parse(block, types)
            except pa.ArrowInvalid:
                table = pa.table([self._column(block, name) for name in names], names=list(names))
            for k, name in enumerate(names):
                if pa.types.is_string(table.column(k).type):
                    table = table.set_column(k, name, self._spelling(name, table.column(k)).read(table.column(k)))
            read += table.num_rows
            self.rows = round(read / min(1.0, block.read / size)) if size else None
            if table.num_rows:
                yield table
        if not read:
            raise DataError(f"{self._file.path.name}: has a header and no rows; nothing to learn from")

    def holds_integers(self, name: str) -> bool:
        import pyarrow as pa

        if self._is_spelled(name):
            return all(pa.types.is_integer(table.column(0).type) for table in self.tables([name]))
        return self._first_table(name, pa.int64()) is not None

    def describe(self, name: str) -> str | None:
        import pyarrow as pa

        # The types that pyarrow tries when it infers one, in its order.
        for kind in (pa.bool_(), pa.date32(), pa.time32("s"), pa.timestamp("s"), pa.timestamp("ns")):
            table = self._first_table(name, kind)
            if table is not None:
                try:
                    column_numbers(table.column(name))
                except NotNumbersError as error:
                    return str(error)
        return None

    def _size(self) -> int | None:
        """Return the number of bytes that will be read, if that is known."""
        known = self._file.encoding == "utf-8" and compression_of(self._file.path) is None
        return self._file.path.stat().st_size if known else None

    @property
    def findings(self) -> tuple[str, ...]:
        return (*self._file.findings, *understood_notes(self._late, self._late))

    def _is_spelled(self, name: str) -> bool:
        return name in self.dialect.spelled or name in self._late

    def _spelling(self, name: str, column: Any) -> Spelling:
        """Return the spelling of a column of strings, found now if the beginning of the file has no value of it."""
        import pyarrow as pa

        if name in self.dialect.empty and name not in self._late:
            mark, delimiter = self.dialect.mark, self.dialect.delimiter
            self._late |= find_spellings(pa.table({name: column}), [name], delimiter, mark, self._fitted)[1]
        plain = Spelling(decimal=self.dialect.decimal)
        return self._late.get(name) or self.spellings.get(name, plain)

    def _parse(self, block: Block, types: "dict[str, pa.DataType]") -> "pa.Table":
        return parse(block.content, self.dialect, skip_lines=block.skip_lines, types=types)

    def _column(self, block: Block, name: str) -> Any:
        """Return a column as numbers, else as strings, else as bytes."""
        import pyarrow as pa

        for kind in (pa.float64(), pa.string()):
            if kind == pa.float64() and self._is_spelled(name):
                continue
            try:
                return self._parse(block, {name: kind}).column(name)
            except pa.ArrowInvalid:
                pass
        try:
            return self._parse(block, {name: pa.binary()}).column(name)
        except pa.ArrowInvalid as error:
            raise self._file.error(error) from error

    def _first_table(self, name: str, kind: "pa.DataType") -> "pa.Table | None":
        """Return the first block where a column has a value, if all its cells in the file have the type; else None."""
        import pyarrow as pa

        first = None
        try:
            for block in self._file.blocks(BLOCK_BYTES):
                table = self._parse(block, {name: kind})
                if first is None and table.num_rows > table.column(name).null_count:
                    first = table
        except pa.ArrowInvalid:
            return None
        return first
