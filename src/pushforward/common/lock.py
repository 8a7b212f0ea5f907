"""File locks (``flock``), so that two processes do not write the same thing at the same time.

The operating system releases a lock when its process ends, however it ends. Where there are no locks (not a POSIX
system, or a file system without them) every process goes ahead.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def file_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of a file, which need not exist, during the block; wait while another process holds it.

    The lock is a hidden file beside it, removed at the end.

    Args:
        path: The file; its folder must exist.
        waiting: Called once, before waiting for another process.

    Yields:
        Whether another process held it: that process may have written the file meanwhile.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor, waited = _wait_for_lock(lock, waiting)
    try:
        yield waited
    finally:
        if descriptor is not None:
            # Removed before it is released: a process that waits for it notices, and makes a new one.
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Create a file, and hold its lock during the block, so that :func:`remove_unlocked` leaves it alone."""
    descriptor, _ = _wait_for_lock(path, None, mode=0o666)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_unlocked(path: Path) -> None:
    """Remove a file, unless a process holds its lock or that cannot be found out."""
    with contextlib.suppress(OSError):  # also BlockingIOError: it is locked
        descriptor = try_lock(path)
        if descriptor is not None:
            try:
                path.unlink()
            finally:
                os.close(descriptor)


def try_lock(lock: Path) -> int | None:
    """Lock a lock file, which is created if it is missing, without waiting.

    Returns:
        A file descriptor; closing it releases the lock. None where there are no locks.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the lock file cannot be opened.
    """
    if fcntl is None:
        return None
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def is_locked(lock: Path) -> bool:
    """Return whether a process holds the lock of :func:`try_lock`; True if that cannot be found out."""
    if fcntl is None:
        return True
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _wait_for_lock(lock: Path, waiting: Callable[[], None] | None, mode: int = 0o644) -> tuple[int | None, bool]:
    """Return the descriptor of the locked file, None where there are no locks, and whether another process held it."""
    if fcntl is None:
        return None, False
    waited = False
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, mode)
        except OSError:  # the caller's own write fails too, with a better message
            return None, waited
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None and not waited:
                    waiting()
                waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_same_file(lock, descriptor):
                return descriptor, waited
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None, waited
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at the path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
