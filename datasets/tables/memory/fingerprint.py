"""The SHA-256 of rows in memory."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def rows_fingerprint(columns: Sequence[str], rows: NDArray[np.float64]) -> str:
    """Return the SHA-256 of rows ``(n, D)``: column names in order, and values in order."""
    digest = hashlib.sha256("\0".join(columns).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<f8").tobytes())
    return digest.hexdigest()
