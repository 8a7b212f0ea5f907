"""Read Parquet and Feather (Arrow IPC) files, and what pandas wrote into them about its index."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import DataError
from pushforward.common.text import one_line, shorten
from pushforward.datasets.tables.files.table_reader import BATCH_ROWS, INTEGERS

if TYPE_CHECKING:
    import pyarrow as pa


class _ArrowReader:
    """What the two have in common: names and types from a schema, and errors in one line."""

    named = True
    _kind: str

    def __init__(self, path: Path, schema: "pa.Schema", rows: int) -> None:
        self.path = path
        self._schema = schema
        self.names = tuple(schema.names)
        self.rows = rows
        self.index = index_columns(schema)

    def holds_integers(self, name: str) -> bool:
        kind = self._schema.field(name).type
        return str(getattr(kind, "value_type", kind)) in INTEGERS

    @classmethod
    def _damaged(cls, path: Path, error: BaseException) -> DataError:
        """Return an error that quotes Arrow in one line."""
        reason = shorten(one_line(error), 120)
        return DataError(f"{path.name}: not a readable {cls._kind} file ({reason}); write it again")


class ParquetReader(_ArrowReader):
    """Reads a Parquet file."""

    _kind = "Parquet"

    def __init__(self, path: Path) -> None:
        with self._open(path) as file:
            super().__init__(path, file.schema_arrow, file.metadata.num_rows)

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        import pyarrow as pa

        # Otherwise whole columns of a row group, which may be the whole file, are read at once and kept.
        with self._open(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(names), use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise self._damaged(self.path, error) from error
                if batch is None:
                    return
                yield pa.Table.from_batches([batch])

    def read(self) -> "pa.Table":
        import pyarrow as pa

        # ParquetFile, not read_table: the latter turns folder names such as "year=2020" into columns.
        with self._open(self.path) as file:
            try:
                return file.read()
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(self.path, error) from error

    @classmethod
    def _open(cls, path: Path, **options: Any) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(path, **options)
        except PermissionError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise cls._damaged(path, error) from error


class FeatherReader(_ArrowReader):
    """Reads a Feather file, also called Arrow IPC, in its file or its streaming format."""

    _kind = "Feather"

    def __init__(self, path: Path) -> None:
        with self._file(path) as source:
            schema: pa.Schema = self._open(path, source).schema
        super().__init__(path, schema, 0)
        if self.names:  # one column is enough to count the rows
            self.rows = sum(table.num_rows for table in self.tables(self.names[:1]))

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        import pyarrow as pa
        from pyarrow import ipc

        wanted = [self.names.index(name) for name in names]
        with self._file(self.path) as source:
            reader = self._open(self.path, source, ipc.IpcReadOptions(included_fields=wanted, use_threads=False))
            for batch in self._batches(self.path, reader):
                for start in range(0, len(batch), BATCH_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)]).select(list(names))

    def read(self) -> "pa.Table":
        import pyarrow as pa

        with self._file(self.path) as source:
            batches = list(self._batches(self.path, self._open(self.path, source)))
        return pa.Table.from_batches(batches, self._schema)

    @staticmethod
    def _file(path: Path) -> Any:
        import pyarrow as pa

        # Not mapped into memory: pages that were read would count as memory of the process.
        return pa.OSFile(str(path))

    @classmethod
    def _open(cls, path: Path, source: Any, options: Any = None) -> Any:
        import pyarrow as pa
        from pyarrow import ipc

        try:
            if source.read(6) == b"ARROW1":
                return ipc.open_file(source, options=options)
            source.seek(0)
            return ipc.open_stream(source, options=options)
        except (pa.ArrowException, OSError) as error:
            raise cls._damaged(path, error) from error

    @classmethod
    def _batches(cls, path: Path, reader: Any) -> Iterator["pa.RecordBatch"]:
        import pyarrow as pa

        try:
            if hasattr(reader, "num_record_batches"):
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number)
            else:
                yield from reader
        except (pa.ArrowException, OSError) as error:
            raise cls._damaged(path, error) from error


def index_columns(schema: "pa.Schema") -> tuple[str, ...]:
    """Return the columns that pandas declares to be its index; an index that only counts the rows has no column."""
    try:
        declared = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        index = tuple(name for name in declared if isinstance(name, str) and name in schema.names)
    except (KeyError, TypeError, ValueError):
        return ()
    return index if len(index) < len(schema.names) else ()
