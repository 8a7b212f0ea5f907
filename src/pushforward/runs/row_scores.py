"""Write and read the log-density of every test row in a run folder, for paired comparisons of runs."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pushforward.common.errors import RunError
from pushforward.common.files import atomic_write, report_write_errors
from pushforward.common.text import one_line
from pushforward.runs.folder import RunFolder

Array = npt.NDArray[np.float64]


def write_row_scores(run: RunFolder, numbers: npt.NDArray[np.intp], log_probs: Array) -> Path:
    """Write ``test_scores.parquet``: the index of each test row in the file or data set, and its log-density in nats.

    Raises:
        RunError: If the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"row": numbers.astype(np.int64), "log_prob": np.asarray(log_probs, dtype=np.float64)})
    with report_write_errors(run.test_scores), atomic_write(run.test_scores) as temporary:
        parquet.write_table(table, temporary)
    return run.test_scores


def read_row_scores(path: Path) -> tuple[npt.NDArray[np.int64], Array]:
    """Read a file of :func:`write_row_scores`.

    Returns:
        Indices of the test rows in the data set ``(n,)``, and their log-densities ``(n,)`` in nats and data units.

    Raises:
        RunError: If the file cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["row", "log_prob"])
        rows, log_probs = (np.asarray(table[name].to_numpy()) for name in ("row", "log_prob"))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise RunError(f"{path}: cannot be read: {one_line(error)}") from None
    return rows.astype(np.int64), log_probs.astype(np.float64)
