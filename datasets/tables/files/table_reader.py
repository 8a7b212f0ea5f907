"""What readers of tables have in common: they read selected columns chunk by chunk."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from pushforward.datasets.tables.numbers.spellings import Spelling

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1 << 16
"""Rows of a Parquet, Feather or .npy file read at a time."""

INTEGERS = ("int64", "uint64")
"""Types that can hold integers which float64 cannot represent exactly."""


class TableReader(Protocol):
    """Reads selected columns of a file chunk by chunk.

    Attributes:
        names: Names of the columns of the file.
        named: Whether these names come from the file.
        rows: Number of rows. For text an estimate from what was read so far; None before that.
        notes: Notes for the user on how the file is read.
    """

    names: tuple[str, ...]
    named: bool
    rows: int | None
    notes: tuple[str, ...]

    @property
    def spellings(self) -> Mapping[str, Spelling]:
        """How the numbers in columns of text are written, by name, unless they are plain."""
        ...

    @property
    def findings(self) -> tuple[str, ...]:
        """Notes for the user on what was read so far, beyond what the beginning of the file showed."""
        ...

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        """Yield the named columns, some rows at a time."""
        ...

    def holds_integers(self, name: str) -> bool:
        """Whether all cells of a column are 64-bit integers."""
        ...

    def describe(self, name: str) -> str | None:
        """Describe the content of a column that is not numeric, if that takes a look at all its cells; else None."""
        ...


class StoredTable(Protocol):
    """Reads a file with types, each column as it is stored.

    Attributes:
        names: Names of the columns of the file.
        named: Whether these names come from the file.
        rows: Number of rows.
        index: Columns that are an index of the rows and not data, as far as the file says so.
    """

    names: tuple[str, ...]
    named: bool
    rows: int
    index: tuple[str, ...]

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        """Yield the named columns, some rows at a time."""
        ...

    def read(self) -> "pa.Table":
        """Read all columns and rows."""
        ...

    def holds_integers(self, name: str) -> bool:
        """Whether a column has the type of 64-bit integers."""
        ...
