"""Whole numbers as arguments in Python."""

import operator
from typing import Any

MAX_SEED = 2**63 - 1
"""The largest seed that torch takes."""


def whole_number(what: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number, also one of NumPy, as an ``int``.

    Args:
        what: Name of the argument, for the message.
        value: The argument.
        least: The least that is allowed.
        most: The most that is allowed; None for no limit.

    Raises:
        ValueError: If it is something else, such as text, a fraction or a truth value.

    Example:
        >>> whole_number("n", 3, 1)
        3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{what}: expected a whole number {limits}; got {value!r}")
    return number
