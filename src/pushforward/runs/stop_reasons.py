"""Why fits end, in words: the record names reasons as the loop knows them."""

from collections.abc import Mapping

_WORDS: Mapping[str, str] = {
    "budget": "the budget was used up",
    "seconds": "the time was used up",
    "steps": "all steps were done",
    "patience": "validation no longer improved",
    "sigint": "stopped by Ctrl-C",
    "sigterm": "stopped by SIGTERM",
    "pruned": "given up by the sweep",
}


def stop_reason_in_words(reason: str) -> str:
    """A ``stop_reason`` as it is told; one that is not known here as it is.

    Example:
        >>> stop_reason_in_words("patience"), stop_reason_in_words("a watcher")
        ('validation no longer improved', 'stopped by a watcher')
    """
    return _WORDS.get(reason, f"stopped by {reason}")
