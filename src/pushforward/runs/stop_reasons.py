"""Sentences for the ``stop_reason`` that a run records."""

from collections.abc import Mapping

_SENTENCES: Mapping[str, str] = {
    "budget": "the budget was used up",
    "seconds": "the time was used up",
    "steps": "all steps were done",
    "patience": "validation no longer improved",
    "sigint": "stopped by Ctrl-C",
    "sigterm": "stopped by SIGTERM",
    "sighup": "stopped by SIGHUP: the terminal was closed",
    "pruned": "stopped early by the sweep",
}


def stop_reason_in_words(reason: str) -> str:
    """Describe a ``stop_reason``; an unknown one is the name of what stopped the fit.

    Example:
        >>> stop_reason_in_words("patience"), stop_reason_in_words("a callback")
        ('validation no longer improved', 'stopped by a callback')
    """
    return _SENTENCES.get(reason, f"stopped by {reason}")
