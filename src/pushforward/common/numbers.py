"""Format numbers and durations for readers, with as many digits as their standard error justifies."""

import math
from collections.abc import Iterable

NOTHING = "\u2013"
"""Shown in place of a missing number."""

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def measured(value: float | None, se: float | None = None, *, signed: bool = False) -> str:
    """Format a number and its standard error; the error has two significant digits, the number as many decimals.

    Example:
        >>> measured(2.403599, 0.004739), measured(87.21, 0.93), measured(1234.5, 37.0), measured(1.5, None)
        ('2.4036 ± 0.0047', '87.21 ± 0.93', '1,234 ± 37', '1.500')
    """
    if value is None or math.isnan(value):
        return NOTHING
    if not math.isfinite(value):
        return _infinity(value)
    if se is None or not math.isfinite(se) or se <= 0:
        return significant(value, signed=signed)
    digits = min(8, max(0, 1 - math.floor(math.log10(se))))
    sign = "+" if signed else ""
    return minus(f"{value:{sign},.{digits}f} ± {se:,.{digits}f}")


def decimals_of(errors: Iterable[float | None]) -> int | None:
    """Return the number of decimals for a column of numbers, from their standard errors; None without any.

    The smallest error has two significant digits, or one if the largest would have more than three of them.

    Example:
        >>> decimals_of([0.81, 1.3]), decimals_of([0.046, None, 0.24]), decimals_of([0.0002, 3.0]), decimals_of([None])
        (2, 3, 4, None)
    """
    known = sorted(se for se in errors if se is not None and math.isfinite(se) and se > 0)
    if not known:
        return None
    least, most = (1 - math.floor(math.log10(se)) for se in (known[-1], known[0]))
    return min(8, max(0, most - 1, min(most, least + 1)))


def fixed(value: float | None, decimals: int | None, se: float | None = None, *, signed: bool = False) -> str:
    """Format a number, and its standard error if known, with a fixed number of decimals (for columns).

    Example:
        >>> fixed(20.43, 2, 1.276), fixed(-0.5, 3, signed=True), fixed(1.5, None, 0.11)
        ('20.43 ± 1.28', '−0.500', '1.50 ± 0.11')
    """
    if decimals is None or value is None or not math.isfinite(value):
        return measured(value, se, signed=signed)
    shown = f"{value:{'+' if signed else ''},.{decimals}f}"
    if se is not None and math.isfinite(se) and se > 0:
        shown += f" ± {se:,.{decimals}f}"
    return minus(shown)


def significant(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    r"""Format a number with significant digits, and a power of ten if it is very large or very small.

    Example:
        >>> significant(1.23456), significant(1.1e-14, 2), significant(250000.0), significant(-0.5), significant(0.0)
        ('1.235', '1.1\xa0×\xa010⁻¹⁴', '250,000', '−0.5000', '0')
    """
    if value is None or math.isnan(value):
        return NOTHING
    if not math.isfinite(value):
        return _infinity(value)
    if value == 0:
        return "0"
    sign = "+" if signed else ""
    power = math.floor(math.log10(abs(value)))
    if not -4 <= power <= 6:
        mantissa, _, exponent = f"{value:{sign}.{digits - 1}e}".partition("e")
        return minus(f"{mantissa}\u00a0\u00d7\u00a010{str(int(exponent)).translate(_SUPERSCRIPT)}")
    return minus(f"{value:{sign},.{max(0, digits - 1 - power)}f}")


def plain(value: float | None, digits: int = 6) -> str:
    """Format a table value: integers without decimals, other numbers with the digits they need.

    Example:
        >>> plain(3.0), plain(0.25), plain(12.3456789)
        ('3', '0.25', '12.3457')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e15:
        return minus(f"{int(value):,}")
    return minus(f"{value:.{digits}g}")


def count(value: float | None) -> str:
    """Format an integer with thousands separators."""
    return NOTHING if value is None or not math.isfinite(value) else minus(f"{value:,.0f}")


def duration(seconds: float | None) -> str:
    """Format a duration for text and tables.

    Example:
        >>> duration(8.0), duration(75.2), duration(7322)
        ('8.0 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short_duration(seconds: float) -> str:
    """Format a duration in few characters, in whole seconds or minutes.

    Example:
        >>> short_duration(5.0), short_duration(125.0), short_duration(7300.0)
        ('5s', '2m05s', '2h01m')
    """
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def short_count(number: float) -> str:
    """Format a positive number with a unit prefix.

    Example:
        >>> short_count(1234567.0), short_count(89.7)
        ('1.2M', '90')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def standard_errors(value: float | None, se: float | None) -> float | None:
    """Return how many standard errors a number is from zero; None if unknown."""
    if value is None or se is None or not (math.isfinite(value) and math.isfinite(se)) or se <= 0:
        return None
    return value / se


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "\u2212")


def _infinity(value: float) -> str:
    return "∞" if value > 0 else "\u2212∞"
