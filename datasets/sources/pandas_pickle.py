"""Read pickled pandas tables without pandas, and without executing the pickle.

A pickle is a program that names functions and calls them. Here every name that a pickled ``DataFrame`` needs is mapped
to a small class or function below that only stores its arguments; any other name is refused before anything is called.
Supported are tables of numbers from pandas 0.14 to 0.25 (also from Python 2), 1, 2 and 3.
"""

import pickle
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DamagedError, DataError

Array = NDArray[np.float64]


class Frame(NamedTuple):
    """A table: the names of its columns and their values ``(n, D)``."""

    names: tuple[str, ...]
    matrix: Array


def read_frame(path: Path) -> Frame:
    """Read a pickled ``DataFrame`` of numbers.

    Memory: the file and the matrix.

    Raises:
        DamagedError: If the file is damaged.
        DataError: If it holds something else, or a name that no table needs.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        if not isinstance(content, _DataFrame):
            raise _NotTableError("holds no DataFrame")
        return content.table()
    except _NotTableError as error:
        raise DataError(f"{path.name}: {error}; it is not read further, since a pickle may run any code") from error
    except OSError:
        raise
    # A damaged pickle can raise any error.
    except Exception as error:
        raise DamagedError(f"{path.name}: not a readable pickle of a table ({type(error).__name__})") from error


class _NotTableError(Exception):
    """A pickle does not hold a table of numbers; the message says what it holds."""


class _Function:
    """A function that a pickle may call, but whose attributes it cannot set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _NotTableError("sets attributes of a function")


class _DataFrame:
    """Replaces ``pandas.DataFrame``: keeps the state, which holds the block manager."""

    def __setstate__(self, state: Any) -> None:
        self.manager = state.get("_mgr", state.get("_data")) if isinstance(state, dict) else state

    def table(self) -> Frame:
        if not isinstance(self.manager, _Manager):
            raise _NotTableError("holds a DataFrame without its blocks")
        return self.manager.table()


class _Manager:
    """Replaces ``BlockManager`` of pandas: arrays of columns, each with the indices of these columns."""

    def __init__(self, blocks: Any = (), axes: Any = ()) -> None:
        self.labels = _labels(axes[0]) if axes else []
        self.blocks = [(_values(values), _column_indices(where)) for values, where in blocks]

    def __setstate__(self, state: Any) -> None:
        axes, values, items, *extra = state
        self.labels = _labels(axes[0])
        newer = extra[0].get("0.14.1") if extra and isinstance(extra[0], dict) else None
        if newer is not None:
            self.blocks = [(_values(b["values"]), _column_indices(b["mgr_locs"])) for b in newer["blocks"]]
        else:  # before pandas 0.14, blocks named their columns
            numbers = {label: k for k, label in enumerate(self.labels)}
            self.blocks = [
                (_values(block), [numbers[label] for label in _labels(its)])
                for block, its in zip(values, items, strict=True)
            ]

    def table(self) -> Frame:
        rows = {block.shape[1] for block, _ in self.blocks}
        if len(rows) != 1:
            raise _NotTableError("holds a DataFrame without rows")
        matrix = np.full((rows.pop(), len(self.labels)), np.nan)
        filled: list[int] = []
        for block, indices in self.blocks:
            if block.dtype.kind not in "iufb":
                raise _NotTableError("holds columns that are not numbers")
            matrix[:, indices] = block.T
            filled += range(*indices.indices(len(self.labels))) if isinstance(indices, slice) else indices
        if sorted(filled) != list(range(len(self.labels))):
            raise _NotTableError("holds a DataFrame whose blocks are not its columns")
        return Frame(tuple(self.labels), matrix)


class _Dtype:
    """Replaces ``numpy.dtype``."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    @property
    def is_object(self) -> bool:
        return self.code[:1] == "O"

    @property
    def dtype(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[iufb][1248]", self.code) or self.order not in "<>=|":
            raise _NotTableError(f"holds values of type {self.code[:20]!r}")
        return np.dtype(self.order + self.code)


class _NumpyArray:
    """Replaces ``numpy.ndarray``: numbers from bytes, or a list of objects."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.fill(content, dtype, shape, "F" if is_fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> "_NumpyArray":
        if not isinstance(dtype, _Dtype):
            raise _NotTableError("holds an array without a type")
        shape = tuple(int(n) for n in shape)
        self.objects = list(content) if dtype.is_object else None
        if self.objects is None:
            # Python 2 wrote bytes as text.
            raw = content.encode("latin1") if isinstance(content, str) else content
            flat = np.frombuffer(raw, dtype=dtype.dtype)
            if flat.size != prod(shape):
                raise _NotTableError("holds an array with more or less than its cells")
            self.numbers = flat.reshape(shape, order="F" if order == "F" else "C")
        return self


class _Slice(NamedTuple):
    """Replaces ``slice``."""

    start: int | None
    stop: int | None
    step: int | None

    def __setstate__(self, state: Any) -> None:
        raise _NotTableError("sets attributes of a slice")


class _IndexClass:
    """Replaces the index classes of pandas, which are named but never instantiated."""

    def __setstate__(self, state: Any) -> None:
        raise _NotTableError("sets attributes of an index")


class _Text:
    """Replaces text arrays of pandas and their types: keeps the state."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrowText:
    """Replaces a pyarrow array of text: ``(type, length, nulls, offset, buffers, children, dictionary)``."""

    def __init__(self, content: Any) -> None:
        kind, length, _, offset, buffers, *_ = content
        ends = np.frombuffer(buffers[1], dtype=np.int64 if str(kind).startswith("large") else np.int32)
        text = bytes(buffers[2] or b"")
        self.texts = [text[ends[k] : ends[k + 1]].decode() for k in range(offset, offset + length)]

    def __setstate__(self, state: Any) -> None:
        raise _NotTableError("sets attributes of text")


def _reconstruct(*_: Any) -> _NumpyArray:
    return _NumpyArray()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _NumpyArray:
    return _NumpyArray().fill(content, dtype, shape, order)


def _block(values: Any, where: Any, *_: Any) -> tuple[Any, Any]:
    return values, where


def _index(_: Any, content: Any) -> Any:
    return content["data"] if isinstance(content, dict) and "data" in content else None


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _NotTableError("holds text in an unknown encoding")
    return text.encode("latin1")


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    return _encode(content, encoding) if isinstance(content, str) else bytes(content) if type(content) is bytes else b""


def _new(cls: Any, *_: Any) -> Any:
    if cls not in (_DataFrame, _Manager, _Text):
        raise _NotTableError("creates an object that is not a table")
    return cls()


def _same(content: Any) -> Any:
    return content


_INDEXES = ("Index", "RangeIndex", "Int64Index", "Float64Index", "NumericIndex", "UInt64Index")
_INDEX_MODULES = (
    *("pandas", "pandas.core.index", "pandas.indexes.base", "pandas.indexes.numeric", "pandas.indexes.range"),
    *("pandas.core.indexes.base", "pandas.core.indexes.numeric", "pandas.core.indexes.range"),
)
# Each class defines __setstate__: without it, a pickle that sets the state of a class instead of an object would change
# the class for the rest of the process.
ALLOWED_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, "DataFrame"): _DataFrame for module in ("pandas", "pandas.core.frame")},
    **{
        (module, "BlockManager"): _Manager
        for module in ("pandas.core.internals", "pandas.core.internals.managers", "pandas._libs.internals")
    },
    ("pandas._libs.internals", "_unpickle_block"): _block,
    **{(module, name): _IndexClass for module in _INDEX_MODULES for name in _INDEXES},
    **{
        (module, "_new_Index"): _index
        for module in ("pandas.core.index", "pandas.indexes.base", "pandas.core.indexes.base")
    },
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _NumpyArray,
    ("numpy", "dtype"): _Dtype,
    ("builtins", "slice"): _Slice,
    ("builtins", "bytearray"): _bytes,
    ("builtins", "object"): _IndexClass,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _new,
    ("pandas.arrays", "ArrowStringArray"): _Text,
    ("pandas.core.arrays.string_arrow", "ArrowStringArray"): _Text,
    ("pandas", "StringDtype"): _Text,
    ("pandas.core.arrays.string_", "StringDtype"): _Text,
    ("pyarrow.lib", "_restore_array"): _ArrowText,
    ("pyarrow.lib", "type_for_alias"): _same,
    ("pyarrow.lib", "py_buffer"): _same,
}
"""What replaces each name, ``(module, attribute)``, that a pickle may use."""

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _Unpickler(pickle.Unpickler):
    """Finds only the names in :data:`ALLOWED_NAMES`."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = ALLOWED_NAMES.get((_PYTHON_2.get(module_name, module_name), global_name))
        if found is None:
            raise _NotTableError(f"asks for {module_name}.{global_name}, which no table of numbers needs")
        # The opcode NEWOBJ accepts only classes.
        return found if isinstance(found, type) else _Function(found)


def _labels(index: Any) -> list[str]:
    """Return the names of the columns."""
    if isinstance(index, _NumpyArray) and index.objects is not None:
        labels = index.objects
    elif (
        isinstance(index, _Text)
        and isinstance(index.state, dict)
        and isinstance(index.state.get("_pa_array"), _ArrowText)
    ):
        labels = index.state["_pa_array"].texts
    else:
        raise _NotTableError("holds a table whose columns have no names")
    return [str(label) for label in labels]


def _values(array: Any) -> NDArray[Any]:
    if not isinstance(array, _NumpyArray) or array.objects is not None or array.numbers.ndim != 2:
        raise _NotTableError("holds columns that are not numbers")
    return array.numbers


def _column_indices(where: Any) -> slice | list[int]:
    if isinstance(where, _Slice):
        return slice(*where)
    if isinstance(where, _NumpyArray) and where.objects is None:
        return [int(k) for k in where.numbers.ravel()]
    raise _NotTableError("holds blocks that do not say which columns they are")
