"""One thread for work that is too small to share."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let BLAS and OpenMP use one thread in the block.

    Mixtures, distances and trees on some ten thousand rows are thousands of short loops: a second thread gains nothing
    on an idle machine, and on a busy one every loop waits for it, which was seen to cost tenfold.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    with threadpool_limits(1):
        yield
