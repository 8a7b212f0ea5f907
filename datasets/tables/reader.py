"""Read tables chunk by chunk, in memory that does not grow with the number of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import DataError
from pushforward.datasets.tables.files.compression import compression_of
from pushforward.datasets.tables.files.local_file import LocalFile
from pushforward.datasets.tables.files.table_reader import TableReader
from pushforward.datasets.tables.read import NotNumbersError, check_columns, column_numbers, open_arrow_reader
from pushforward.datasets.tables.spellings import Spelling
from pushforward.datasets.tables.text.delimited import Block, TextFile, parse

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 1 << 22
"""Bytes of text parsed at a time: large enough that starting the parser costs nothing."""


def open_reader(file: LocalFile) -> TableReader:
    """Open a table for reading in chunks; the file must outlive the reader.

    Raises:
        DataError: If the file is damaged, of an unknown kind, or has no columns or rows.
    """
    with file.explaining():
        reader: TableReader = TextReader(file.path) if file.kind == "text" else open_arrow_reader(file)
        check_columns(file.name, reader.names)
        if reader.rows == 0:
            raise DataError(f"{file.name}: has no rows; nothing to learn from")
    return reader


class TextReader:
    """Reads a text file, compressed or not. Columns are numbers, or strings if that fails.

    Args:
        path: The file.

    Attributes:
        notes: Notes for the user on how the file is read.
        understood: What was understood of the cells of columns, by name.
    """

    def __init__(self, path: Path) -> None:
        self._file = TextFile(path)
        self.dialect = self._file.dialect
        self.names = self.dialect.names
        self.named = self.dialect.header
        self.rows: int | None = None
        self.notes = self.dialect.notes
        self.understood = self.dialect.understood

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        import pyarrow as pa

        types = {name: pa.string() if name in self.dialect.spelled else pa.float64() for name in names}
        size, read = self._size(), 0
        for block in self._file.blocks(BLOCK_BYTES):
            try:
                table = self._parse(block, types)
            except pa.ArrowInvalid:
                table = pa.table([self._column(block, name) for name in names], names=list(names))
            for k, name in enumerate(names):
                if pa.types.is_string(table.column(k).type):
                    table = table.set_column(k, name, self._spelling(name).read(table.column(k)))
            read += table.num_rows
            self.rows = round(read / min(1.0, block.read / size)) if size else None
            if table.num_rows:
                yield table
        if not read:
            raise DataError(f"{self._file.path.name}: has a header and no rows; nothing to learn from")

    def holds_integers(self, name: str) -> bool:
        import pyarrow as pa

        if name in self.dialect.spelled:
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

    def _spelling(self, name: str) -> Spelling:
        return self.dialect.spellings.get(name, Spelling(decimal=self.dialect.decimal))

    def _parse(self, block: Block, types: "dict[str, pa.DataType]") -> "pa.Table":
        return parse(block.content, self.dialect, skip_lines=block.skip_lines, types=types)

    def _column(self, block: Block, name: str) -> Any:
        """Return a column as numbers, else as strings, else as bytes."""
        import pyarrow as pa

        for kind in (pa.float64(), pa.string()):
            if kind == pa.float64() and name in self.dialect.spelled:
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
