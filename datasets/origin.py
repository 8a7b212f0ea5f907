"""Read the columns of a toy, of a data set known by name, of a file, or of rows in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.registry import DATASETS, TOY_ROWS, unknown_dataset
from pushforward.datasets.sources.data_folder import data_folder
from pushforward.datasets.sources.literature import gather_columns, open_literature
from pushforward.datasets.sources.literature_sets import LITERATURE
from pushforward.datasets.sources.scikit_learn import BUNDLED, read_bundled
from pushforward.datasets.sources.uci import UCI
from pushforward.datasets.sources.uci_files import read_uci
from pushforward.datasets.tables.files.kind import table_stem
from pushforward.datasets.tables.files.local_file import STDIN, LocalFile
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.datasets.tables.memory.objects import read_object
from pushforward.datasets.tables.numbers.spellings import Spelling, understood_notes
from pushforward.datasets.tables.read import (
    Columns,
    Numbers,
    TableContent,
    check_has,
    ignored_columns,
    mark_missing,
    read_columns,
    read_content,
    select_columns,
)
from pushforward.datasets.tables.request import Request
from pushforward.datasets.tables.splits import Indices
from pushforward.datasets.toys.toy import TOYS


class Origin(NamedTuple):
    """Columns that were read, before they are checked and take their roles."""

    name: str
    where: str
    source: str
    table: Columns
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    file_columns: int | None = None
    places: Mapping[str, int] = MappingProxyType({})
    left_out: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    row_numbers: Indices | None = None
    is_file: bool = False
    spellings: Mapping[str, Spelling] = MappingProxyType({})
    weights: NDArray[np.float64] | None = None

    def take(self, chosen: Indices, *notes: str) -> "Origin":
        """Keep the rows with these indices ``(k,)``, and add notes."""
        return self._replace(
            table=Columns(self.table.names, self.table.numbers.take(chosen)),
            notes=(*self.notes, *notes),
            row_numbers=chosen if self.row_numbers is None else self.row_numbers[chosen],
            weights=None if self.weights is None else self.weights[chosen],
        )


def read_named(name: str, asked: Request, folder: str | Path | None = None) -> Origin:
    """Draw the rows of a toy, or read a data set of scikit-learn or of UCI.

    Raises:
        DataError: If it is not available, or lacks a column.
    """
    if name in TOYS:
        samples = TOYS[name].sample(asked.rows or TOY_ROWS, np.random.default_rng(asked.seed))
        numbers = Numbers(("x1", "x2"), ("double", "double"), samples)
        return _with_columns(Origin(name, name, "toy", Columns(numbers.names, numbers)), asked)
    if name in BUNDLED:
        numbers, notes = read_bundled(name)
        return _with_columns(Origin(name, name, "scikit-learn", Columns(numbers.names, numbers), notes), asked)
    uci = UCI[name]
    read = read_uci(uci, data_folder(folder))
    places = dict(zip(read.numbers.names, read.places, strict=True))
    table = Columns(read.numbers.names, read.numbers)
    found = Origin(name, name, str(read.path), table, read.notes, read.sha256, read.width, places, uci.left_out)
    return _with_columns(found, asked)


def read_source(source: Any, asked: Request, name: str, given: Any = None) -> tuple[Origin, Request]:
    """Read a file, or rows in memory, and context that came as an object.

    Args:
        source: The path, or the rows.
        asked: What was asked.
        name: Name of rows in memory.
        given: Context rows in memory; None without.

    Returns:
        The columns, and what was asked with the names of the columns of ``given``.

    Raises:
        DataError: If there is no such file, or it has no columns or rows, or is not a table.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists() and path.suffix == "" and len(path.parts) == 1 and str(path) != STDIN:
            raise DataError(unknown_dataset(str(source)))
        file = LocalFile(source)
        content, where = read_content(file), file.name
        found = Origin(table_stem(where), where, file.source, _NO_COLUMNS, sha256=file.checksum(), is_file=True)
    else:
        content, where = read_object(source, name), name
        found = Origin(name, where, "memory", _NO_COLUMNS)
    file_columns = content.table.num_columns - len(content.index)
    if given is not None:
        content, names = _beside(content, given)
        asked = replace(asked, given=names)
        asked.check()
    chosen = select_columns(where, content.table.column_names, asked, content.index)
    index = [column for column in content.index if column not in chosen and column not in asked.drop]
    option = "columns" if asked.in_python else "data.columns"
    left_out = (f"{where}: left out the index {', '.join(index)}; {option} can name it",) if index else ()
    table = read_columns(content.table, chosen, asked.missing_values)
    sha256 = found.sha256 if found.is_file else rows_fingerprint(table.numbers.names, table.numbers.matrix)
    found = found._replace(
        table=table,
        notes=(*content.notes, *left_out, *understood_notes(content.spellings, chosen)),
        sha256=sha256,
        file_columns=file_columns,
        spellings=content.spellings,
    )
    return found, asked


_NO_COLUMNS = Columns((), Numbers((), (), np.empty((0, 0))))


def load_columns(
    name: str, columns: Sequence[str], folder: str | Path | None = None
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Load columns of a data set (not a toy): all rows, in their order.

    Returns:
        The matrix ``(n, len(columns))``, and notes for the user.

    Raises:
        DataError: If the data set is not available, or lacks a column.
    """
    if name in LITERATURE:
        stored = open_literature(LITERATURE[name], data_folder(folder))
        notes = tuple(f"{name}: {note}" for note in stored.about["notes"])
        indices, more = _column_indices(name, columns, stored.about["columns"])
        return gather_columns(stored.parts, indices), (*notes, *more)
    if name in DATASETS.names():
        found, _ = read_source(DATASETS[name](), Request(source=name, in_python=True), name)
    else:
        found = read_named(name, Request(source=name), folder)
    numbers = found.table.numbers
    indices, more = _column_indices(name, columns, numbers.names)
    return numbers.matrix[:, indices], (*found.notes, *more)


def _column_indices(name: str, columns: Sequence[str], has: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of columns, and a note on the columns that are not used."""
    check_has(name, columns, has)
    return [has.index(column) for column in columns], ignored_columns(name, columns, has)


def _with_columns(found: Origin, asked: Request) -> Origin:
    """Choose columns, and mark missing cells."""
    numbers = found.table.numbers
    chosen = numbers.select(select_columns(found.where, numbers.names, asked))
    mark_missing(chosen.matrix, asked.missing_values)
    return found._replace(table=Columns(chosen.names, chosen))


def _beside(content: TableContent, given: Any) -> tuple[TableContent, tuple[str, ...]]:
    """Put context rows beside those of a table; return them, and the names of the context columns."""
    has, prefix = content.table.column_names, "c"
    while any(name.startswith(prefix) and name[len(prefix) :].isdigit() for name in has):
        prefix += "_"
    context = read_object(given, "given", prefix)
    table = context.table
    if table.num_rows != content.table.num_rows:
        raise DataError(f"given: expected {content.table.num_rows} rows; got {table.num_rows}")
    names = [name for name in table.column_names if name not in context.index]
    if both := [name for name in names if name in has]:
        raise DataError(f"given: expected other names than those of the rows; got {both[0]!r} in both; rename one")
    together = content.table
    for name in names:
        together = together.append_column(name, table.column(name))
    spellings = {**content.spellings, **context.spellings}
    return replace(content, table=together, spellings=spellings), tuple(names)
