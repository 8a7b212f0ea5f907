"""Write and read the log-density of every test row in a run folder, for paired comparisons of runs."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pushforward.common.errors import RunError
from pushforward.common.files import atomic_write, report_write_errors
from pushforward.common.text import one_line
from pushforward.runs.folder import RunFolder

Array = npt.NDArray[np.float64]


def write_row_scores(
    run: RunFolder, numbers: npt.NDArray[np.intp], log_probs: Array, weights: Array | None = None
) -> Path:
    """Write ``test_scores.parquet``: index of each test row in the file or data set, log-density in nats, any weight.

    Raises:
        RunError: If the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"row": numbers.astype(np.int64), "log_prob": np.asarray(log_probs, dtype=np.float64)}
    table = pa.table(columns if weights is None else columns | {"weight": weights})
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
    columns = _read(path)
    try:
        return columns["row"].astype(np.int64), columns["log_prob"].astype(np.float64)
    except KeyError as error:
        raise RunError(f"{path}: cannot be read: it lacks the column {error}") from None


def read_row_weights(path: Path) -> Array | None:
    """Read the weights of the test rows ``(n,)`` of such a file; None if they have none.

    Raises:
        RunError: If the file cannot be read.
    """
    return _read(path).get("weight")


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: cannot be read: {one_line(error)}") from None
    return {name: np.asarray(table[name].to_numpy()) for name in table.column_names}
