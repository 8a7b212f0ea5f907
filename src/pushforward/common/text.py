"""Words for messages: the nearest known name, short text, arguments as a shell needs them."""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name closest to a mistyped one; empty if none is close.

    Upper case and underscores count as lower case and hyphens.

    Args:
        name: What was typed.
        known: The names there are.
        cutoff: Least similarity, from 0 (any name will do) to 1.

    Example:
        >>> nearest("Two_Moons", ["moons", "two-moons"])
        'two-moons'
    """
    plain = {other.lower().replace("_", "-"): other for other in known}
    close = get_close_matches(name.lower().replace("_", "-"), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else ""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``"did you mean 'moons'? "`` for the nearest known name, or nothing.

    Example:
        >>> did_you_mean("moon", ["moons"]) + "known: moons"
        "did you mean 'moons'? known: moons"
    """
    close = nearest(name, known, cutoff)
    return f"did you mean '{close}'? " if close else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the message about a name that is not among the known ones; the nearest one is always named.

    Example:
        >>> unknown_name("flow", "nfs-ar", ["maf", "nsf-ar"])
        "unknown flow 'nfs-ar'; did you mean 'nsf-ar'? known: maf, nsf-ar"
    """
    names = list(known)
    return f"unknown {what} {name!r}; {did_you_mean(name, names, 0.0)}known: {', '.join(names)}"


def shorten(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters; what is cut off becomes an ellipsis.

    Example:
        >>> shorten("abcdef", 4)
        'abc…'
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shorten_middle(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters that keeps its end, where names often differ.

    Example:
        >>> shorten_middle("wine-nsf-ar-seed-12", 10)
        'wine…ed-12'
    """
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length - length // 2) :]}"


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def leave_out(*names: str) -> str:
    """Return the argument that leaves columns out, quoted for a shell: ``'data.drop=credit score'``."""
    return shlex.quote(f"data.drop={','.join(names)}")
