"""Errors that a user can cause, each with the exit code of the command.

Their messages are one line, ``where: what is wrong; what to do``, and are printed without a traceback.
"""


class UserError(Exception):
    """An error that the user can fix."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used."""

    exit_code = 2


class DataError(UserError, ValueError):
    """Data that cannot be used as they are."""

    exit_code = 3


class DamagedError(DataError):
    """A file whose content differs from what was published.

    The message says what is wrong; the caller knows where the file came from and adds what to do.
    """


class RunError(UserError, RuntimeError):
    """A run folder that cannot be created, opened or written."""


class RunUsageError(RunError):
    """A path that is not a run folder, or at which no run folder may be created."""

    exit_code = 2


def reason(error: OSError) -> str:
    """Return the operating system's reason for an error, in lower case, for the end of a message."""
    return (error.strerror or str(error)).lower()
