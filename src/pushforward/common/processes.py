"""Why a child process ended: its exit code and the last line of its output, for messages."""

import signal


def ended_by(code: int) -> str:
    """Return how a process ended, from the exit code of :class:`subprocess.Popen`, which is negative for a signal.

    Example:
        >>> ended_by(-15), ended_by(3)
        ('its process was ended by SIGTERM', 'its process ended with code 3')
    """
    if code >= 0:
        return f"its process ended with code {code}"
    often = " (often: out of memory)" if code == -9 else ""
    return f"its process was ended by {signal.Signals(-code).name}{often}"


def last_line(text: str) -> str:
    r"""Return the last line of a text that is not blank, without blanks around it; empty if there is none.

    Example:
        >>> last_line("Traceback\n  MemoryError \n\n")
        'MemoryError'
    """
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
