"""Space on the disk that is kept free for what a fit must be able to write at its end."""

import contextlib
import errno
import os
from pathlib import Path

from pushforward.common.errors import RunError, reason

# What file systems say that cannot allocate ahead.
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class ReservedSpace:
    """A file that takes up space until it is given back: a disk that fills up meanwhile cannot take the model's place.

    Where the file system does not know how to allocate (``ENOTSUP``), zeros are written.

    Args:
        path: The file; what a killed fit left there is replaced.
        size_bytes: Space to keep.

    Raises:
        RunError: If there is not as much space now: better known before a fit than after it.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        try:
            with open(path, "wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
                except (AttributeError, OSError) as error:
                    if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
                        raise
                    _write_zeros(file.fileno(), size_bytes)
        except OSError as error:
            self.release()
            needed = f"{size_bytes / 1e6:.0f} MB free for the model and its report"
            raise RunError(f"{path.parent}: cannot keep {needed}: {reason(error)}") from None

    def release(self) -> None:
        """Give the space back; a second call does nothing."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _write_zeros(descriptor: int, size_bytes: int) -> None:
    zeros = bytes(1 << 20)
    while size_bytes > 0:
        size_bytes -= os.write(descriptor, zeros[:size_bytes])
    os.fsync(descriptor)
