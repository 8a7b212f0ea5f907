"""Errors that a user can cause, each with the exit code of the command.

Their messages are one line, ``where: what is wrong; what to do``, and are printed without a traceback. Only a
:class:`TableError` has several: one for each column.
"""

import errno
from collections.abc import Sequence


class UserError(Exception):
    """An error that the user can fix."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used."""

    exit_code = 2


class DataError(UserError, ValueError):
    """Data that cannot be used as they are."""

    exit_code = 3


class TableError(DataError):
    """A table whose columns cannot be used as they are: one line for each obstacle, then what to do.

    Args:
        report: The lines without what to do.
        advice: What to do.
        drop: All columns that a fit would have to leave out; empty if that is not enough.
        incomplete: Whether rows with missing values would have to go, too.
        separator: What stands between report and advice.
    """

    def __init__(
        self, report: str, advice: str, drop: Sequence[str] = (), *, incomplete: bool = False, separator: str = "\n"
    ) -> None:
        super().__init__(f"{report}{separator}{advice}")
        self.report = report
        self.drop = tuple(drop)
        self.incomplete = incomplete


class DamagedError(DataError):
    """A file whose content differs from what was published.

    The message says what is wrong; the caller knows where the file came from and adds what to do.
    """


class RunError(UserError, RuntimeError):
    """A run folder that cannot be created, opened or written."""


class RunUsageError(RunError):
    """A path that is not a run folder, or at which no run folder may be created."""

    exit_code = 2


MAKE_ROOM = "make room on its disk, or choose another folder"
"""What to do about a full disk, for the end of a message."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error says that a disk, or a quota, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def reason(error: OSError) -> str:
    """Return the operating system's reason for an error, in lower case, for the end of a message.

    Example:
        >>> reason(OSError(28, "No space left on device"))
        'no space left on device; make room on its disk, or choose another folder'
    """
    text = (error.strerror or str(error)).lower()
    return f"{text}; {MAKE_ROOM}" if is_disk_full(error) else text
