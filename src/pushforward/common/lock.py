"""A lock on a file, so that two processes never write it at the same time."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of a file, which need not exist, while the block runs; wait for whoever holds it.

    The lock is a hidden file beside it that the system unlocks when the process dies, however it dies. Where there are
    no locks (another system than POSIX, a file system without them) everyone goes ahead.

    Args:
        path: The file; its folder exists.
        waiting: Called once if the lock is held by somebody else, before waiting for it.

    Yields:
        Whether somebody else held it: the file may have been finished meanwhile.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor, waited = _locked(lock, waiting)
    try:
        yield waited
    finally:
        if descriptor is not None:
            # While it is still held: whoever waits for it finds out that it is gone, and takes a new one.
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def _locked(lock: Path, waiting: Callable[[], None] | None) -> tuple[int | None, bool]:
    try:
        import fcntl
    except ImportError:
        return None, False
    waited = False
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # whoever writes there is told so
            return None, waited
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None and not waited:
                    waiting()
                waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(lock, descriptor):
                return descriptor, waited
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None, waited
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a file that was opened is the one that now has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
