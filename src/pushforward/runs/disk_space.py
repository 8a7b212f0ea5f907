"""Reserve disk space at the start of a fit for the files that it writes at its end."""

import contextlib
import errno
import os
from pathlib import Path

from pushforward.common.errors import RunError, reason

# Errors of file systems that cannot allocate space ahead of writing.
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class ReservedSpace:
    """A file that reserves disk space until :meth:`release`, so that the model can be saved if the disk fills up.

    Zeros are written if the file system cannot allocate (``ENOTSUP``).

    Args:
        path: The file; one that a killed fit left behind is replaced.
        size_bytes: Bytes to reserve.

    Raises:
        RunError: If there is not enough space.
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
            needed = f"{size_bytes / 1e6:.0f} MB for the model and its report"
            raise RunError(f"{path.parent}: cannot reserve {needed}: {reason(error)}") from None

    def release(self) -> None:
        """Remove the file; a second call does nothing."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _write_zeros(descriptor: int, size_bytes: int) -> None:
    zeros = bytes(1 << 20)
    while size_bytes > 0:
        size_bytes -= os.write(descriptor, zeros[:size_bytes])
    os.fsync(descriptor)
