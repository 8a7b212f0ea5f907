"""Read JSON lines: one flat object a line, whose keys are the columns; and arrays of such objects."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import DataError
from pushforward.common.text import shorten
from pushforward.datasets.tables.files.compression import open_decompressed
from pushforward.datasets.tables.files.table_reader import INTEGERS

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 1 << 22
"""Bytes parsed at a time."""

_ADVICE = "pandas writes it with to_json(FILE, orient='records', lines=True)"


class JsonReader:
    """Reads JSON lines, compressed or not.

    A first pass over the file finds the columns, which may be missing in some rows, and their types.
    """

    named = True
    index: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        types: dict[str, list[pa.DataType]] = {}
        for table in self._blocks():
            self.rows += table.num_rows
            for field in table.schema:
                types.setdefault(field.name, []).append(field.type)
        self._types = {name: _joined(found) for name, found in types.items()}
        self.names = tuple(self._types)

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        import pyarrow as pa

        for table in self._blocks():
            columns = [
                _cast(table.column(name), self._types[name])
                if name in table.column_names
                else pa.nulls(table.num_rows, self._types[name])
                for name in names
            ]
            yield pa.table(columns, names=list(names))

    def read(self) -> "pa.Table":
        import pyarrow as pa

        return pa.concat_tables(self.tables(self.names)) if self.names else pa.table({})

    def holds_integers(self, name: str) -> bool:
        return str(self._types[name]) in INTEGERS

    def _blocks(self) -> Iterator["pa.Table"]:
        """Yield the rows of blocks of whole lines, with the columns and types that each block has."""
        rest, line = b"", 1
        with io.BufferedReader(open_decompressed(self.path), 1 << 17) as stream:
            while True:
                fresh = stream.read(BLOCK_BYTES)
                block = rest + fresh
                cut = block.rfind(b"\n") + 1 if fresh else len(block)
                content, rest = block[:cut], block[cut:]
                if content.strip():
                    yield self._parse(content, line)
                line += content.count(b"\n")
                if not fresh:
                    return

    def _parse(self, content: bytes, line: int) -> "pa.Table":
        import pyarrow as pa
        from pyarrow import json as arrow_json

        options = arrow_json.ReadOptions(use_threads=False, block_size=len(content) + 1)
        try:
            table = arrow_json.read_json(pa.BufferReader(content), read_options=options)
            table.schema.names  # noqa: B018 - decodes the names
        except (pa.ArrowInvalid, UnicodeDecodeError):  # a damaged line; or a column with numbers and text
            return self._parse_line_by_line(content, line)
        return table

    def _parse_line_by_line(self, content: bytes, line: int) -> "pa.Table":
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for number, text in enumerate(content.split(b"\n"), start=line):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{self.path.name}: expected one JSON object a line; "
                    f"got {shorten(text.decode('utf-8', 'replace').strip(), 40)!r} in line {number}; {_ADVICE}"
                )
            rows.append(row)
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def lines_of_array(path: Path, out: Path) -> None:
    """Write a JSON array of objects as JSON lines; the array is read at once.

    Raises:
        DataError: If it is not such an array.
    """
    with open_decompressed(path) as file:
        content = file.read()
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path.name}: not a complete JSON array ({error}); write it again") from error
    wrong = next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise DataError(
            f"{path.name}: expected a JSON array of objects; got {type(rows[wrong - 1]).__name__} in row {wrong}; "
            f"{_ADVICE}"
        )
    with out.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def _joined(types: "list[pa.DataType]") -> "pa.DataType":
    """Return one type for the cells of a column: text if they have several that are not all numbers."""
    import pyarrow as pa

    found = list(dict.fromkeys(kind for kind in types if not pa.types.is_null(kind)))
    if len(found) < 2:
        return found[0] if found else pa.null()
    return pa.float64() if all(kind in (pa.int64(), pa.float64()) for kind in found) else pa.string()


def _cast(column: Any, kind: "pa.DataType") -> Any:
    import pyarrow as pa

    if column.type == kind:
        return column
    if pa.types.is_nested(column.type):
        return pa.array([_as_text(value) for value in column.to_pylist()], pa.string())
    return column.cast(kind, safe=False)  # integers beyond 2**53 are rounded, as in text


def _column(values: list[Any]) -> Any:
    """Return cells of any kinds as an Arrow array, as text if they are of several."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values, kinds = [None if value is None else float(value) for value in values], {float}
    if len(kinds) < 2:
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):  # such as integers beyond 64 bits, or lists of several kinds
            pass
    return pa.array([_as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)
