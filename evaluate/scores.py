"""Writing log-densities: one column ``log_prob``, one line a row, in order."""

import os
import sys
from pathlib import Path

import numpy as np

from pushforward.evaluate.likelihood import Array


def write_scores(scores: Array, path: Path | None) -> None:
    """Write scores to a CSV or Parquet file, whole or not at all, or as CSV to stdout.

    Args:
        scores: Log-densities ``(n,)`` in nats; written with all their digits.
        path: The file; ``.parquet`` decides for Parquet, anything else is CSV. None is stdout.

    Raises:
        OSError: If the file cannot be written.
    """
    if path is None:
        sys.stdout.write(_csv(scores))
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"log_prob": np.asarray(scores, dtype=np.float64)}), temporary)
        else:
            temporary.write_text(_csv(scores), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _csv(scores: Array) -> str:
    return "log_prob\n" + "".join(f"{value!r}\n" for value in scores.tolist())
