"""Write the log-density of every test row into a run folder, for paired comparisons of runs."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pushforward.common.errors import RunError, reason
from pushforward.common.files import atomic_write
from pushforward.runs.folder import RunFolder

Array = npt.NDArray[np.float64]


def rows_fingerprint(columns: tuple[str, ...], rows: Array) -> str:
    """Return the SHA-256 of the scored rows: column names in order, and values in order."""
    digest = hashlib.sha256("\0".join(columns).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<f8").tobytes())
    return digest.hexdigest()


def write_row_scores(run: RunFolder, numbers: npt.NDArray[np.intp], log_probs: Array) -> Path:
    """Write ``test_scores.parquet``: the index of each test row in the data set, and its log-density in nats.

    Raises:
        RunError: If the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"row": numbers.astype(np.int64), "log_prob": np.asarray(log_probs, dtype=np.float64)})
    try:
        with atomic_write(run.test_scores, sync=True) as partial:
            parquet.write_table(table, partial)
    except OSError as error:
        raise RunError(f"{run.test_scores}: cannot write: {reason(error)}") from None
    return run.test_scores
