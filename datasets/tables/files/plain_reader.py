"""Read numbers that a table with types keeps as text or as true and false, as they are read from delimited text."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pushforward.datasets.tables.files.table_reader import StoredTable
from pushforward.datasets.tables.number_marks import examine
from pushforward.datasets.tables.spellings import Spelling, find_spellings

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_ROWS = 10_000
"""Rows at the beginning of a table that decide how its numbers are written."""


class PlainReader:
    """Reads columns of text whose cells are numbers as numbers, and true and false as 1 and 0.

    Args:
        reader: Reads the columns as they are stored.

    Attributes:
        understood: What was understood of the cells of columns, by name.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, reader: StoredTable) -> None:
        self._reader = reader
        self.names, self.named, self.index = reader.names, reader.named, reader.index
        self.rows: int | None = reader.rows
        self._spellings, self._booleans = self._look()
        self.understood: dict[str, str] = {
            name: how.understood() for name, how in self._spellings.items() if how.example
        }
        self.understood |= dict.fromkeys(self._booleans, "true and false are read as 1 and 0")

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        """Yield the named columns, some rows at a time."""
        return map(self._plain, self._reader.tables(names))

    def read(self) -> "pa.Table":
        """Read all columns and rows."""
        return self._plain(self._reader.read())

    def holds_integers(self, name: str) -> bool:
        """Whether all cells of a column are 64-bit integers."""
        import pyarrow as pa

        if name in self._spellings:
            return all(pa.types.is_integer(table.column(0).type) for table in self.tables([name]))
        return self._reader.holds_integers(name)

    def describe(self, name: str) -> str | None:
        """Return None: the first cell that is no number describes a column."""
        return None

    def _look(self) -> tuple[dict[str, Spelling], tuple[str, ...]]:
        """Return how the numbers in columns of text are written, and the columns of true and false."""
        import pyarrow as pa

        unique = [name for name in self.names if self.names.count(name) == 1]
        first = next(self._reader.tables(unique), None) if unique else None
        if first is None:
            return {}, ()
        sample = first.slice(0, SAMPLE_ROWS)
        texts = {name: _as_text(sample.column(name)) for name in unique if _is_text(sample.column(name).type)}
        _, decimal, spellings = find_spellings(pa.table(texts), list(texts), ",")
        for name, column in texts.items():
            if name not in spellings and examine(column):
                spellings[name] = Spelling(decimal=decimal)
        return spellings, tuple(name for name in unique if pa.types.is_boolean(sample.column(name).type))

    def _plain(self, table: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        for k, name in enumerate(table.column_names):
            if name in self._spellings:
                table = table.set_column(k, name, self._spellings[name].read(_as_text(table.column(k))))
            elif name in self._booleans:
                table = table.set_column(k, name, table.column(k).cast(pa.int64()))
        return table


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _as_text(column: Any) -> Any:
    import pyarrow as pa

    return column.cast(pa.string())
