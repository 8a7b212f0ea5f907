"""Read matrices from ``.npy`` files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets.tables.files.table_reader import BATCH_ROWS, INTEGERS

if TYPE_CHECKING:
    import pyarrow as pa

_SMALL_BYTES = 1 << 20


class NpyReader:
    """Reads a matrix from a .npy file; its columns are named ``x1``, ``x2``, ..."""

    named = False
    index: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        matrix = self._matrix(mapped=True)
        self.rows: int = matrix.shape[0]
        self.names = tuple(f"x{k + 1}" for k in range(matrix.shape[1]))
        self._integers = str(matrix.dtype.newbyteorder("=")) in INTEGERS

    def tables(self, names: Sequence[str]) -> Iterator["pa.Table"]:
        for start in range(0, self.rows, BATCH_ROWS):
            # Mapped anew for each chunk: pages that were read count as memory until the mapping is closed.
            yield self._table(self._matrix(mapped=True)[start : start + BATCH_ROWS]).select(list(names))

    def read(self) -> "pa.Table":
        return self._table(self._matrix(mapped=False))

    def holds_integers(self, name: str) -> bool:
        return self._integers

    def _matrix(self, *, mapped: bool) -> NDArray[Any]:
        """Read the matrix; with ``mapped``, a large one is memory-mapped.

        Raises:
            DataError: If the file holds something else.
        """
        mode: Literal["r"] | None = "r" if mapped and self.path.stat().st_size > _SMALL_BYTES else None
        try:
            matrix: NDArray[Any] = np.load(self.path, allow_pickle=False, mmap_mode=mode)
        except (ValueError, EOFError) as error:
            raise DataError(
                f"{self.path.name}: not a readable .npy matrix of numbers; save it with numpy.save"
            ) from error
        if matrix.ndim != 2 or matrix.dtype.kind not in "iuf" or matrix.dtype.itemsize > 8:
            shape = f"shape {matrix.shape} of {matrix.dtype}"
            raise DataError(f"{self.path.name}: expected a matrix of shape (rows, columns) of numbers; got {shape}")
        return matrix

    def _table(self, matrix: NDArray[Any]) -> "pa.Table":
        import pyarrow as pa

        matrix = matrix.astype(matrix.dtype.newbyteorder("="), copy=False)
        return pa.table([pa.array(np.ascontiguousarray(column)) for column in matrix.T], names=list(self.names))
