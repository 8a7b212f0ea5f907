"""Rows in memory as tables: arrays, tensors, frames, Arrow tables, dicts of columns, and lists of rows."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.tables.files.arrow_files import index_columns
from pushforward.datasets.tables.files.plain_reader import PlainReader
from pushforward.datasets.tables.files.table_reader import INTEGERS
from pushforward.datasets.tables.index import find_index
from pushforward.datasets.tables.read import TableContent

if TYPE_CHECKING:
    import pyarrow as pa

EXPECTED = "an array, a torch tensor, a pandas, polars or Arrow table, a dict of columns, or a list of rows"


def is_a(rows: Any, library: str, *classes: str) -> bool:
    """Whether rows are of one of some classes of a library; it is not imported for that."""
    module = sys.modules.get(library)
    return module is not None and isinstance(rows, tuple(getattr(module, name) for name in classes))


class _Parts(NamedTuple):
    """The columns of rows in memory as they are; ``names`` is None if they have none."""

    names: list[str] | None
    columns: list[Any]
    rows: int
    index_names: tuple[str, ...] = ()


class ObjectTable:
    """Reads rows in memory as readers of files do (a ``StoredTable``), each column when it is asked for.

    Columns of arrays, tensors and lists are called ``x1``, ``x2``, ...; an array of one dimension is one column. Names
    that are not text are written as text. A ``RangeIndex``, or an index without a name, is not a column.

    Args:
        rows: The rows.
        where: What they are called in messages.
        prefix: Letter of the names of columns without names.

    Attributes:
        names: Names of the columns.
        named: Whether these names come from the rows.
        rows: Number of rows.
        index: Columns that are an index of the rows and not data.

    Raises:
        DataError: If this is not a table of real numbers, or it has no columns or no rows.
    """

    def __init__(self, rows: Any, where: str, prefix: str = "x") -> None:
        parts = _parts(rows, where)
        types = [str(getattr(column, "dtype", "")) for column in parts.columns]
        if parts.names is None and types and types[0].startswith("complex"):
            raise DataError(f"{where}: expected real numbers; got {types[0]}")
        self._columns = parts.columns
        self.named = parts.names is not None
        self.names = tuple(parts.names or (f"{prefix}{k + 1}" for k in range(len(parts.columns))))
        self.rows = parts.rows
        self.index = parts.index_names
        if not self.names:
            raise DataError(f"{where}: expected at least 1 column; got none")
        if not self.rows:
            raise DataError(f"{where}: expected at least 1 row; got none")

    def select(self, columns: Iterable[int], names: Sequence[str] | None = None) -> Self:
        """Return a table of some of the columns only, given by their indices, with other names if need be."""
        chosen, part = list(columns), copy(self)
        part._columns = [self._columns[k] for k in chosen]
        part.names = tuple(names or (self.names[k] for k in chosen))
        return part

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        yield self.select(map(self.names.index, names)).read()

    def read(self) -> "pa.Table":
        import pyarrow as pa

        return pa.table([_to_arrow(column) for column in self._columns], names=list(self.names))

    def holds_integers(self, name: str) -> bool:
        return str(_to_arrow(self._columns[self.names.index(name)]).type) in INTEGERS


def read_object(rows: Any, where: str, prefix: str = "x") -> TableContent:
    """Read rows in memory as the content of a file is read: text may be numbers, true and false are 1 and 0.

    Raises:
        DataError: If this is not a table of real numbers, or it has no columns or no rows.
    """
    stored = ObjectTable(rows, where, prefix)
    reader = PlainReader(stored)
    table = reader.read()
    index = find_index(table, declared=stored.index) if stored.named else ()
    return TableContent(table, reader.notes, index, reader.spellings)


def _parts(rows: Any, where: str) -> _Parts:
    """Take rows apart into columns, without a conversion."""
    import pyarrow as pa

    if is_a(rows, "pandas", "DataFrame", "Series"):
        return _pandas_parts(rows, where)
    if is_a(rows, "polars", "LazyFrame"):
        raise DataError(f"{where}: expected rows; got a polars LazyFrame; call .collect() first")
    if is_a(rows, "polars", "DataFrame"):
        return _Parts(list(rows.columns), rows.get_columns(), len(rows))
    if is_a(rows, "polars", "Series"):
        return _Parts([rows.name] if rows.name else None, [rows], len(rows))
    if isinstance(rows, Mapping):
        return _dict_parts(rows, where)
    if isinstance(rows, pa.Array | pa.ChunkedArray):
        return _Parts(None, [rows], len(rows))
    if hasattr(rows, "__arrow_c_stream__") or isinstance(rows, pa.RecordBatch):
        table = pa.table(rows) if not isinstance(rows, pa.Table) else rows
        return _Parts(list(table.column_names), list(table.columns), table.num_rows, index_columns(table.schema))
    return _array_parts(as_array(rows, where), where)


def as_array(rows: Any, where: str) -> NDArray[Any]:
    """Return an array, a tensor, or a list of rows as an array of its type; cells of different types are objects.

    Raises:
        DataError: If it is something else, or sparse.
    """
    if is_a(rows, "torch", "Tensor"):
        if what := tensor_obstacle(rows):
            raise DataError(f"{where}: expected dense rows; got {what}")
        tensor = rows.detach().cpu().resolve_conj().resolve_neg()
        array: NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        return array
    if hasattr(rows, "tocsr"):
        raise DataError(f"{where}: expected dense rows; got a sparse {type(rows).__name__}; call .toarray() first")
    if isinstance(rows, list | tuple):
        try:
            is_masked = any(isinstance(row, np.ma.MaskedArray) for row in rows)
            return np.ma.array(rows) if is_masked else np.asarray(rows)
        except ValueError:
            lengths = [len(row) if hasattr(row, "__len__") else 1 for row in rows]
            odd = next((k for k, length in enumerate(lengths) if length != lengths[0]), 0)
            raise DataError(
                f"{where}: expected rows of equal lengths; got {lengths[0]} cells in row 1 and {lengths[odd]} in "
                f"row {odd + 1}"
            ) from None
    if hasattr(rows, "__array__"):
        # A subclass may have a mask, which must not be lost; a matrix has rows of two dimensions.
        return rows if isinstance(rows, np.ma.MaskedArray) else np.asarray(rows)
    kind = type(rows).__name__
    hint = "; make a list of it" if isinstance(rows, Iterator | set | frozenset) else ""
    raise DataError(f"{where}: expected {EXPECTED}; got {'nothing' if rows is None else kind}{hint}")


def tensor_obstacle(tensor: Any) -> str:
    """Return why a tensor of torch has no array, and what to do; empty if it has one."""
    if tensor.is_nested:
        return "a nested tensor; call .to_padded_tensor(nan) first"
    if str(tensor.layout) != "torch.strided":
        return "a sparse tensor; call .to_dense() first"
    if tensor.is_quantized:
        return "a quantized tensor; call .dequantize() first"
    return "a tensor without values, on the device meta" if tensor.is_meta else ""


def _array_parts(array: NDArray[Any], where: str) -> _Parts:
    if array.dtype.names:
        if array.ndim != 1:
            raise DataError(f"{where}: expected one row for each record of an array; got the shape {array.shape}")
        names = list(array.dtype.names)
        return _Parts(names, [_vector(array[name], name, where) for name in names], len(array))
    if array.ndim not in (1, 2):
        what = "a single number" if array.ndim == 0 else f"the shape {array.shape}"
        raise DataError(f"{where}: expected rows of the shape (rows, columns); got {what}")
    matrix = array[:, None] if array.ndim == 1 else array
    return _Parts(None, list(matrix.T), len(matrix))


def _pandas_parts(rows: Any, where: str) -> _Parts:
    if is_a(rows, "pandas", "Series"):
        return _Parts(None if rows.name is None else [str(rows.name)], [rows], len(rows))
    if rows.columns.nlevels > 1:
        raise DataError(f"{where}: expected columns with one name each; got a MultiIndex; join its levels to names")
    names = [str(name) for name in rows.columns]
    columns = [rows.iloc[:, k] for k in range(len(names))]
    is_range = is_a(rows.index, "pandas", "RangeIndex")
    levels = {} if is_range else {str(name): k for k, name in enumerate(rows.index.names) if name is not None}
    index = {name: rows.index.get_level_values(k).to_series() for name, k in levels.items() if name not in names}
    return _Parts([*names, *index], [*columns, *index.values()], len(rows), tuple(index))


def _dict_parts(rows: Mapping[Any, Any], where: str) -> _Parts:
    names = [str(name) for name in rows]
    columns = [_vector(column, name, where) for name, column in zip(names, rows.values(), strict=True)]
    for name, column in zip(names, columns, strict=True):
        if len(column) != len(columns[0]):
            raise DataError(
                f"{where}: expected columns of equal lengths; got {len(columns[0])} rows in {names[0]!r} and "
                f"{len(column)} in {name!r}"
            )
    return _Parts(names, columns, len(columns[0]) if columns else 0)


def _vector(column: Any, name: str, where: str) -> Any:
    """Return one column of several, which may be of any kind."""
    part = _parts(column, f"{where}: column {name!r}")
    if len(part.columns) != 1:
        raise DataError(f"{where}: column {name!r}: expected one dimension; got {len(part.columns)} columns")
    return part.columns[0]


def _to_arrow(column: Any) -> Any:
    """Convert a column of any kind to Arrow; cells that Arrow has no type for become text, which says what they are."""
    import pyarrow as pa

    try:
        return _by_type(column)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        cells = column.to_list() if hasattr(column, "to_list") else list(column)
        return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())


def _by_type(column: Any) -> Any:
    import pyarrow as pa

    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    if is_a(column, "polars", "Series"):
        return column.to_arrow()
    if not isinstance(column, np.ndarray):
        return pa.array(column, from_pandas=True)
    mask = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else None
    values = np.ma.getdata(column)
    if values.dtype.kind == "O":
        return pa.array(values, mask=mask, from_pandas=True)
    if values.dtype.kind in "fiu":
        values = values.astype(np.float64) if values.dtype.itemsize > 8 else values
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return pa.array(values, mask=mask)
