"""Read tables chunk by chunk, in memory that does not grow with the number of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pushforward.common.errors import DataError
from pushforward.datasets.tables.delimited import find_dialect, open_text, parse, parse_error
from pushforward.datasets.tables.read import (
    INTEGERS,
    NotNumbersError,
    check_columns,
    check_file,
    column_numbers,
    damaged_parquet,
    npy_matrix,
    npy_table,
)

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 1 << 22
"""Bytes of text parsed at a time: large enough that starting the parser costs nothing."""

BATCH_ROWS = 1 << 16
"""Rows of a Parquet or .npy file read at a time."""


class TableReader(Protocol):
    """Reads selected columns of a file chunk by chunk.

    Attributes:
        names: Names of the columns of the file.
        named: Whether these names come from the file.
        rows: Number of rows. For text an estimate from what was read so far; None before that.
    """

    names: tuple[str, ...]
    named: bool
    rows: int | None

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        """Yield the named columns, some rows at a time."""
        ...

    def holds_integers(self, name: str) -> bool:
        """Whether all cells of a column are 64-bit integers."""
        ...

    def describe(self, name: str) -> str | None:
        """Describe the content of a column that is not numeric, if that takes a look at all its cells; else None."""
        ...


def open_reader(path: Path) -> TableReader:
    """Open a table for reading in chunks.

    Raises:
        DataError: If the file is missing, damaged, of an unknown kind, has no rows, or names a column twice.
    """
    kind = check_file(path)
    reader: TableReader
    reader = ParquetReader(path) if kind == ".parquet" else NpyReader(path) if kind == ".npy" else TextReader(path)
    check_columns(path.name, reader.names)
    if reader.rows == 0:
        raise DataError(f"{path.name}: has no rows; nothing to learn from")
    return reader


class TextReader:
    """Reads a CSV-like file, gzipped or not. Columns are numbers, or the bytes of the file if that fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dialect = find_dialect(path)
        self.names = self.dialect.names
        self.named = self.dialect.header
        self.rows: int | None = None

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        import pyarrow as pa

        read = 0
        for content, skip_lines, share in self._blocks():
            try:
                table = parse(content, self.dialect, skip_lines=skip_lines, types=dict.fromkeys(names, pa.float64()))
            except pa.ArrowInvalid:
                table = pa.table([self._column(content, skip_lines, name) for name in names], names=list(names))
            read += table.num_rows
            self.rows = round(read / share) if share else None
            if table.num_rows:
                yield table
        if not read:
            raise DataError(f"{self.path.name}: has a header and no rows; nothing to learn from")

    def holds_integers(self, name: str) -> bool:
        import pyarrow as pa

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

    def _column(self, content: bytes, skip_lines: int, name: str) -> Any:
        import pyarrow as pa

        try:
            return parse(content, self.dialect, skip_lines=skip_lines, types={name: pa.float64()}).column(name)
        except pa.ArrowInvalid:
            pass
        try:
            return parse(content, self.dialect, skip_lines=skip_lines, types={name: pa.binary()}).column(name)
        except pa.ArrowInvalid as error:
            raise parse_error(self.path, self.dialect, error) from error

    def _first_table(self, name: str, kind: "pa.DataType") -> "pa.Table | None":
        """Return the first block where a column has a value, if all its cells in the file have the type; else None."""
        import pyarrow as pa

        first = None
        try:
            for content, skip_lines, _ in self._blocks():
                table = parse(content, self.dialect, skip_lines=skip_lines, types={name: kind})
                if first is None and table.num_rows > table.column(name).null_count:
                    first = table
        except pa.ArrowInvalid:
            return None
        return first

    def _blocks(self) -> Iterator[tuple[bytes, int, float | None]]:
        """Yield blocks of whole lines, the number of lines to skip, and the share of the file read so far, if known."""
        size = None if self.path.suffix.lower() == ".gz" else self.path.stat().st_size
        skip_lines, read, rest = self.dialect.skip_lines, 0, b""
        with open_text(self.path) as stream:
            while True:
                fresh = stream.read(BLOCK_BYTES)
                block = rest + fresh
                cut = _last_line_end(block) if fresh else len(block)
                content, rest = block[:cut], block[cut:]
                read += cut
                if content.strip():
                    yield content, skip_lines, None if size is None else min(1.0, read / size)
                    skip_lines = 0
                if not fresh:
                    return


def _last_line_end(block: bytes) -> int:
    """Return the end of the last complete line; 0 if there is none."""
    newline = b"\n" if b"\n" in block else b"\r"
    last = block.rfind(newline) + 1
    cut, quotes = last, block.count(b'"', 0, last)
    while quotes % 2 and cut:
        # This line end is inside quotes, so it does not end a row.
        before = block.rfind(newline, 0, cut - 1) + 1
        quotes -= block.count(b'"', before, cut)
        cut = before
    return cut or last  # an unpaired quote does not quote anything


class ParquetReader:
    """Reads a Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self._schema = file.schema_arrow
            self.rows: int | None = file.metadata.num_rows
        self.names = tuple(self._schema.names)
        self.named = True

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        import pyarrow as pa

        with self._open() as file:
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(names), use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise damaged_parquet(self.path, error) from error
                if batch is None:
                    return
                yield pa.Table.from_batches([batch])

    def holds_integers(self, name: str) -> bool:
        kind = self._schema.field(name).type
        return str(getattr(kind, "value_type", kind)) in INTEGERS

    def describe(self, name: str) -> str | None:
        return None

    def _open(self) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            # Otherwise whole columns of a row group, which may be the whole file, are read at once and kept.
            return parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, PermissionError):
                raise
            raise damaged_parquet(self.path, error) from error


class NpyReader:
    """Reads a matrix from a .npy file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        matrix = npy_matrix(path, mapped=True)
        self.rows: int | None = matrix.shape[0]
        self.names = tuple(f"x{k + 1}" for k in range(matrix.shape[1]))
        self.named = False
        self._integers = str(matrix.dtype.newbyteorder("=")) in INTEGERS

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        assert self.rows is not None
        for start in range(0, self.rows, BATCH_ROWS):
            # Mapped anew for each chunk: pages that were read count as memory until the mapping is closed.
            yield npy_table(npy_matrix(self.path, mapped=True)[start : start + BATCH_ROWS]).select(list(names))

    def holds_integers(self, name: str) -> bool:
        return self._integers

    def describe(self, name: str) -> str | None:
        return None
