"""The one error a user's data can raise."""

import difflib
import shlex
from collections.abc import Iterable


class DataError(ValueError):
    """The data cannot be used as it is.

    The message is one line, ``where: what is wrong; what to do``, and is meant for the person whose data it
    is: the command prints it without a traceback.
    """


class DamagedError(DataError):
    """A file does not hold what its publisher put there.

    The message says what is wrong; what to do is added by whoever knows where the file came from.
    """


def leave_out(*names: str) -> str:
    """Return the argument that leaves columns out, quoted as a shell needs it: ``'data.drop=credit score'``."""
    return shlex.quote(f"data.drop={','.join(names)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'moons'?"`` for the known name closest to a mistyped one, else ``";"``."""
    folded = {other.lower().replace("_", "-"): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("_", "-"), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ";"
