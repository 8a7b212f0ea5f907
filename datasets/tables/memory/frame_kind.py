"""The kind of object that rows came in as, so that samples can come out as the same."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.tables.memory.objects import as_array, is_a

if TYPE_CHECKING:
    import pyarrow as pa

_KINDS = ("numpy", "torch", "pandas", "polars", "arrow")


@dataclass(frozen=True)
class FrameKind:
    """The kind of object that rows came in as.

    Args:
        kind: ``numpy`` also stands for lists of rows; ``arrow`` for dicts of columns, structured arrays, files and data
            sets known by name.
        dtype: Type of an array or a tensor, such as ``float32``; empty for others.
        dtypes: Types by name of the columns of numbers of a pandas frame, of all columns of a polars frame, or of the
            truth values of an Arrow table.
        numbered: Columns of a pandas frame whose names are integers and no text.
    """

    kind: Literal["numpy", "torch", "pandas", "polars", "arrow"] = "arrow"
    dtype: str = ""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    numbered: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Any, context: Any = None) -> Self:
        """Return the kind of rows, with the types of the columns of their context if that is of the same kind."""
        found = cls._of(rows)
        other = found if context is None else cls._of(context)
        if other.kind != found.kind:
            return found
        return replace(found, dtypes={**other.dtypes, **found.dtypes}, numbered=(*found.numbered, *other.numbered))

    @classmethod
    def _of(cls, rows: Any) -> Self:
        if is_a(rows, "torch", "Tensor"):
            return cls("torch", str(rows.dtype).removeprefix("torch."))
        if is_a(rows, "pandas", "DataFrame", "Series"):
            from pandas.api.types import is_numeric_dtype

            types = rows.dtypes.items() if is_a(rows, "pandas", "DataFrame") else [(rows.name, rows.dtype)]
            numbers = {name: str(dtype) for name, dtype in types if is_numeric_dtype(dtype)}
            numbered = tuple(str(name) for name in numbers if isinstance(name, int | np.integer))
            return cls("pandas", "", {str(name): dtype for name, dtype in numbers.items()}, numbered)
        if is_a(rows, "polars", "DataFrame", "Series"):
            types = rows.schema.items() if is_a(rows, "polars", "DataFrame") else [(rows.name, rows.dtype)]
            return cls("polars", "", {name: str(dtype) for name, dtype in types})
        if is_a(rows, "pyarrow", "Table", "RecordBatch"):
            return cls("arrow", "", {field.name: "bool" for field in rows.schema if str(field.type) == "bool"})
        is_list = isinstance(rows, list | tuple)
        if is_list or (hasattr(rows, "__array__") and not hasattr(rows, "__arrow_c_stream__")):
            dtype = as_array(rows, "the rows").dtype
            if dtype.names is None:
                return cls("numpy", dtype.newbyteorder("=").name if dtype.kind in "biuf" else "float64")
        return cls()

    def build(self, table: "pa.Table") -> Any:
        """Turn a table of numbers without missing cells into an object of this kind.

        Columns keep their order and get their types back. Without the library, the table is returned as it is.

        Returns:
            A pandas or polars frame, an array or a tensor ``(n, D)`` on the CPU, or the table.
        """
        build: dict[str, Callable[[pa.Table], Any]] = {
            "numpy": self._array,
            "torch": self._tensor,
            "pandas": self._pandas,
            "polars": self._polars,
            "arrow": self._arrow,
        }
        try:
            return build[self.kind](table)
        except ImportError:
            return table

    def to_dict(self) -> dict[str, Any]:
        """Return strings and lists that JSON can hold."""
        return {**asdict(self), "dtypes": dict(self.dtypes), "numbered": list(self.numbered)}

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Rebuild a kind from the result of ``to_dict``.

        Raises:
            DataError: If it is something else.
        """
        expected = {"kind": str, "dtype": str, "dtypes": dict, "numbered": list}
        is_kind = isinstance(content, dict) and set(content) == set(expected) and content["kind"] in _KINDS
        if not is_kind or not all(isinstance(content[key], of) for key, of in expected.items()):
            raise DataError(f"kind of rows: expected the keys {', '.join(expected)}; the file is damaged")
        return cls(content["kind"], content["dtype"], content["dtypes"], tuple(content["numbered"]))

    def _arrow(self, table: "pa.Table") -> "pa.Table":
        """True and false again; other types are those of the schema."""
        for k, name in enumerate(table.column_names):
            if self.dtypes.get(name) == "bool":
                table = table.set_column(k, name, table.column(k).cast("bool"))
        return table

    def _array(self, table: "pa.Table") -> NDArray[Any]:
        matrix = np.stack([column.to_numpy() for column in table.columns], axis=1)
        # Context of another type may stand beside integers.
        return matrix if matrix.dtype.kind == "f" and np.dtype(self.dtype).kind != "f" else matrix.astype(self.dtype)

    def _tensor(self, table: "pa.Table") -> Any:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        matrix = torch.from_numpy(np.stack([column.to_numpy() for column in table.columns], axis=1))
        return matrix if matrix.is_floating_point() and not dtype.is_floating_point else matrix.to(dtype)

    def _pandas(self, table: "pa.Table") -> Any:
        import pandas as pd

        columns: dict[Any, Any] = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            values = pd.Series(np.array(column.to_numpy()))
            with contextlib.suppress(TypeError, ValueError):  # a type of a library that is not there
                values = values.astype(self.dtypes.get(name, values.dtype))
            columns[int(name) if name in self.numbered else name] = values
        return pd.DataFrame(columns)

    def _polars(self, table: "pa.Table") -> Any:
        import polars as pl

        frame: Any = pl.from_arrow(table)
        types = {name: getattr(pl, self.dtypes.get(name, ""), None) for name in table.column_names}
        numbers = {
            name: dtype for name, dtype in types.items() if dtype == pl.Boolean or (dtype and dtype.is_numeric())
        }
        return frame.cast(numbers)
