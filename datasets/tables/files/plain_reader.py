"""Read numbers that a table with types keeps as text or as true and false, as they are read from delimited text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pushforward.datasets.tables.files.table_reader import StoredTable
from pushforward.datasets.tables.numbers.number_marks import is_empty
from pushforward.datasets.tables.numbers.spellings import (
    TRUE_FALSE,
    Spelling,
    find_spellings,
    understood_notes,
    unusual_spellings,
)

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_ROWS = 10_000
"""Rows at the beginning of a table that decide how its numbers are written."""


class PlainReader:
    """Reads columns of text whose cells are numbers as numbers, and true and false as 1 and 0.

    Args:
        reader: Reads the columns as they are stored.
        fitted: How the numbers of columns were written at the fit of a model, by name.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, reader: StoredTable, fitted: Mapping[str, Spelling] | None = None) -> None:
        self._reader, self._fitted = reader, fitted
        self.names, self.named, self.index = reader.names, reader.named, reader.index
        self.rows: int | None = reader.rows
        self._mark: str | None = None
        self._spellings: dict[str, Spelling] = {}
        self._booleans: frozenset[str] = frozenset()
        self._empty: frozenset[str] = frozenset()
        self._look()
        self._late: dict[str, Spelling] = {}

    @property
    def spellings(self) -> Mapping[str, Spelling]:
        """How the numbers in columns of text are written, by name, unless they are plain."""
        _, unusual = unusual_spellings(self._mark, self._spellings)
        return unusual | dict.fromkeys(self._booleans, TRUE_FALSE)

    @property
    def findings(self) -> tuple[str, ...]:
        """Notes for the user on columns without a value in the beginning of the table."""
        return understood_notes(unusual_spellings(self._mark, self._late)[1], self._late)

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        """Yield the named columns, some rows at a time."""
        return map(self._plain, self._reader.tables(names))

    def read(self) -> "pa.Table":
        """Read all columns and rows."""
        table = self._reader.read()
        # What the beginning did not settle, a cell after it may.
        settled = {name for name, spelling in self._spellings.items() if spelling.example and not spelling.doubt}
        self._find({name: column for name, column in self._texts(table).items() if name not in settled})
        return self._plain(table)

    def holds_integers(self, name: str) -> bool:
        """Whether all cells of a column are 64-bit integers."""
        import pyarrow as pa

        if name in self._spellings:
            return all(pa.types.is_integer(table.column(0).type) for table in self.tables([name]))
        return self._reader.holds_integers(name)

    def describe(self, name: str) -> str | None:
        """Return None: the first cell that is not a number describes a column."""
        return None

    def _look(self) -> None:
        """Find how the numbers in columns of text are written, and the columns of true and false."""
        import pyarrow as pa

        unique = [name for name in self.names if self.names.count(name) == 1]
        first = next(self._reader.tables(unique), None) if unique else None
        if first is None:
            return
        sample = first.slice(0, SAMPLE_ROWS)
        texts = self._texts(sample)
        self._mark = self._find(texts)
        self._empty = frozenset(name for name, column in texts.items() if is_empty(column))
        self._booleans = frozenset(name for name in unique if pa.types.is_boolean(sample.column(name).type))

    def _texts(self, table: "pa.Table") -> dict[str, Any]:
        """Return the columns of text with a name of their own."""
        unique = [name for name in table.column_names if self.names.count(name) == 1]
        return {name: _as_text(table.column(name)) for name in unique if _is_text(table.column(name).type)}

    def _find(self, texts: Mapping[str, Any]) -> str | None:
        """Find how the numbers in columns of text are written; return the decimal mark if cells show it."""
        import pyarrow as pa

        mark, found = find_spellings(pa.table(dict(texts)), list(texts), ",", self._mark, self._fitted)
        self._spellings |= found
        return mark

    def _plain(self, table: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        for k, name in enumerate(table.column_names):
            if name in self._empty and name not in self._spellings:
                self._find({name: _as_text(table.column(k))})
                self._late |= {name: self._spellings[name]} if name in self._spellings else {}
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
