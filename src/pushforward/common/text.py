"""Text of messages: the nearest known name, shortened text, shell arguments."""

import json
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name closest to a mistyped one; empty if none is close.

    Case, and the difference between underscores and hyphens, are ignored.

    Args:
        name: The mistyped name.
        known: The known names.
        cutoff: Minimum similarity, from 0 (always return a name) to 1.

    Example:
        >>> nearest("Two_Moons", ["moons", "two-moons"])
        'two-moons'
    """
    plain = {other.lower().replace("_", "-"): other for other in known}
    close = get_close_matches(name.lower().replace("_", "-"), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else ""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``"did you mean 'moons'? "`` for the nearest known name; empty if none is close.

    Example:
        >>> did_you_mean("moon", ["moons"]) + "known: moons"
        "did you mean 'moons'? known: moons"
    """
    close = nearest(name, known, cutoff)
    return f"did you mean '{close}'? " if close else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name: the known names, and a near one is suggested.

    Example:
        >>> unknown_name("flow", "nfs-ar", ["maf", "nsf-ar"])
        "unknown flow 'nfs-ar'; did you mean 'nsf-ar'? known: maf, nsf-ar"
    """
    names = list(known)
    return f"unknown {what} {name!r}; {did_you_mean(name, names)}known: {', '.join(names)}"


def shorten(text: str, length: int) -> str:
    """Cut a text to at most ``length`` characters, with an ellipsis at the end.

    Example:
        >>> shorten("abcdef", 4)
        'abc…'
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shorten_middle(text: str, length: int) -> str:
    """Cut a text to at most ``length`` characters in its middle, because names often differ at the end.

    Example:
        >>> shorten_middle("wine-nsf-ar-seed-12", 10)
        'wine…ed-12'
    """
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length - length // 2) :]}"


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line; the name of its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names by commas; of many, the first ones and how many more there are.

    Example:
        >>> listed("abc"), listed("abc", most=2)
        ('a, b, c', 'a, b and 1 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def as_argument(names: Sequence[str]) -> str:
    """Return a list of names as the value of a configuration key: ``a,b``, or a JSON list if that would be misread.

    Example:
        >>> as_argument(["a", "b"]), as_argument(["a, b", "c"]), as_argument(["all"])
        ('a,b', '["a, b", "c"]', '["all"]')
    """
    is_plain = all(
        name and name == name.strip() and name.isprintable() and "," not in name and not name.startswith("[")
        for name in names
    )
    # The text 'all' stands for all columns, and is no name.
    if is_plain and list(names) != ["all"]:
        return ",".join(names)
    # The list is read as YAML, which knows the escapes of JSON and refuses or folds some characters as they are.
    return "".join(
        character if character.isprintable() else f"\\U{ord(character):08x}"
        for character in json.dumps(list(names), ensure_ascii=False)
    )


def leave_out(*names: str) -> str:
    """Return the command-line argument that leaves columns out, quoted for a shell: ``'data.drop=credit score'``."""
    return shlex.quote(f"data.drop={as_argument(names)}")


def number_text(value: float) -> str:
    """Return the fewest digits that read back as the same number, whole numbers without a point.

    Example:
        >>> number_text(-9999.0), number_text(0.1), number_text(3.4e38)
        ('-9999', '0.1', '3.4e+38')
    """
    return repr(float(value)).removesuffix(".0")
