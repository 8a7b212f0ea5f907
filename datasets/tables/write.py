"""Write rows in the format of the table that the density was fitted to."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.common.files import atomic_write
from pushforward.datasets.tables.dequantize import snap
from pushforward.datasets.tables.schema import Column, Schema

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]

WRITABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")


def write_table(path: str | Path, rows: Array, context: Array | None, schema: Schema) -> None:
    """Write rows with the names, order, number types and resolutions of a schema.

    Integers stay integers, values of a column with a grid are rounded to it and printed with its decimals, and 32-bit
    floats stay 32-bit in Parquet. The file is written atomically.

    Args:
        path: Its suffix is ``.csv``, ``.csv.gz`` or ``.parquet``.
        rows: Features, shape (n, D).
        context: Conditioning columns, shape (n, C); None if the schema has none.
        schema: The columns.

    Raises:
        DataError: If the file has another suffix.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    kind = next((known for known in WRITABLE_SUFFIXES if path.name.lower().endswith(known)), None)
    if kind is None:
        raise DataError(f"{path.name}: cannot write this kind of file; use one of {', '.join(WRITABLE_SUFFIXES)}")
    table = _table(rows, context, schema, as_text=kind != ".parquet")
    with atomic_write(path) as partial:
        _write(table, partial, kind)


def _write(table: "pa.Table", path: Path, kind: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    if kind == ".parquet":
        parquet.write_table(table, path)
    elif kind == ".csv":
        with pa.OSFile(str(path), "wb") as stream:
            _write_csv(table, stream)
    else:
        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "gzip") as stream:
            _write_csv(table, stream)


def _write_csv(table: "pa.Table", stream: Any) -> None:
    from pyarrow import csv as arrow_csv

    # pyarrow quotes every name; the csv module only those that need it.
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(table.column_names)
    stream.write(header.getvalue().encode())
    arrow_csv.write_csv(table, stream, arrow_csv.WriteOptions(include_header=False))


def _table(rows: Array, context: Array | None, schema: Schema, as_text: bool) -> "pa.Table":
    import pyarrow as pa

    columns: dict[str, Any] = {}
    parts = ((rows, schema.columns), (np.empty((len(rows), 0)) if context is None else context, schema.context))
    for values, known in parts:
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (len(rows), len(known)):
            raise ValueError(f"write_table: expected shape ({len(rows)}, {len(known)}); got {values.shape}")
        for k, column in enumerate(known):
            drawn = values[:, k]
            if known is schema.columns and column.tied and column.step is not None:
                # A column with ties is a scale with ends, such as a count or a grade: clip to the recorded range.
                drawn = np.clip(drawn, column.minimum, column.maximum)
            columns[column.name] = _arrow_column(drawn, column, as_text)
    return pa.table([columns[name] for name in schema.order], names=list(schema.order))


def _arrow_column(values: Array, column: Column, as_text: bool) -> Any:
    import pyarrow as pa

    values = on_grid(values, column)
    kind = pa.type_for_alias(column.type)
    if column.integer:
        limits = np.iinfo(kind.to_pandas_dtype())
        # The float just below 2**63 is the largest that fits into a 64-bit integer.
        top = np.nextafter(float(limits.max), 0) if limits.bits == 64 else limits.max
        return pa.array(np.clip(values, limits.min, top).astype(kind.to_pandas_dtype()), type=kind)
    if as_text:
        if column.step is not None and values.size and (values == np.rint(values)).all() and column.decimals == 0:
            # pyarrow prints the float 3.0 as 3, which would be read back as an integer; a decimal keeps its digit.
            return pa.array(values).cast(pa.decimal128(38, 1))
        if column.type == "float" and column.step is None:
            # The shortest digits that give back the same 32-bit number.
            return pa.array(values.astype(np.float32))
        return pa.array(values)
    return pa.array(values.astype(kind.to_pandas_dtype()), type=kind)


def on_grid(values: Array, column: Column) -> Array:
    """Round values to the grid of a column, to the doubles that its decimals parse to (0.3, not 0.1 + 0.2)."""
    if column.step is None or column.offset is None:
        return np.rint(values) + 0.0 if column.integer else values
    values = snap(values, column.step, column.offset)
    decimals = column.decimals
    # Adding 0.0 turns -0.0 into 0.0.
    return (values if decimals is None else np.round(values, decimals)) + 0.0
