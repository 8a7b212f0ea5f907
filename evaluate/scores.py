"""Writing log-densities: one column ``log_prob``, one line a row, in order."""

import contextlib
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
        sys.stdout.flush()  # a full disk behind a redirection is an error here, not a remark at exit
        return
    # A device or a pipe is written to, never replaced by a file; behind a link, it is the link's file that appears.
    special = path.exists() and not path.is_file()
    target = path if special else Path(os.path.realpath(path))
    temporary = target if special else target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"log_prob": np.asarray(scores, dtype=np.float64)}), temporary)
        else:
            temporary.write_text(_csv(scores), encoding="utf-8")
        if not special:
            os.replace(temporary, target)
    except OSError as error:
        # pyarrow puts the name of the temporary file into its reason.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"cannot write: {reason}", str(path)) from error
    finally:
        if not special:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _csv(scores: Array) -> str:
    return "log_prob\n" + "".join(f"{value!r}\n" for value in scores.tolist())
