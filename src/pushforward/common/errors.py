"""The errors a user can cause, each with the exit code of the command.

Their messages are one line, ``where: what is wrong; what to do``, and are printed without a traceback.
"""


class UserError(Exception):
    """An error that the user can mend."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used."""

    exit_code = 2


class DataError(UserError, ValueError):
    """Data that cannot be used as they are."""

    exit_code = 3


class DamagedError(DataError):
    """A file does not hold what its publisher put there.

    The message says what is wrong; the caller, who knows where the file came from, adds what to do.
    """


class RunError(UserError, RuntimeError):
    """A run folder that cannot be made, opened or written."""


class RunUsageError(RunError):
    """What was named is not a run folder, or not one that may be made."""

    exit_code = 2


def reason(error: OSError) -> str:
    """Return why the system refused, in the words of a message."""
    return (error.strerror or str(error)).lower()
