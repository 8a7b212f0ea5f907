"""Limit BLAS and OpenMP to one thread, for work too small to parallelise."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread inside the block.

    Mixtures, distances and trees on about ten thousand rows run thousands of short loops. A second thread gains nothing
    on an idle machine; on a busy one every loop waits for it, and the work has taken ten times as long.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    with threadpool_limits(1):
        yield
