"""What the cells of a column show about how its numbers are written."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

ERRORS = ("#DIV/0!", "#REF!", "#VALUE!", "#NUM!", "#NAME?", "#NULL!", "#N/A")
"""What spreadsheets write for a value that cannot be computed."""

MISSING = ("?", "None", "none", "NAN", "-", ".", *ERRORS)
"""Spellings of a missing value in addition to those of pyarrow (empty, NA, N/A, NaN, NULL, #NA, ...)."""

MISSING_LOWER = frozenset({*(word.lower() for word in MISSING), "", "na", "n/a", "nan", "null", "#na"})
"""Missing values in lower case, also those of pyarrow."""

BLANKS = " \u00a0\u202f\u2009"
APOSTROPHES = "'\u2019"
MINUS = "\u2212"
_CURRENCY = "(?:[$€£¥₹₽₩₺₴₪]|US\\$|R\\$|USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL|Fr\\.|kr|zł)"
_SIGN = rf"[+\-{MINUS}]?"
_LEADING_SIGN = rf"[^\d]*[+\-{MINUS}].*\d"
# Any spelling of a number; which of comma and point is the decimal mark is left open.
_BODY = rf"\d{{1,3}}(?:[.,{APOSTROPHES}{BLANKS}]\d{{3}})+(?:[.,]\d*)?|\d+(?:[.,]\d*)?|[.,]\d+"
_NUMBER = re.compile(
    rf"{_SIGN}(?P<before>{_CURRENCY})?[{BLANKS}]?{_SIGN}(?P<body>{_BODY})(?:(?P<e>[eEdD]){_SIGN}\d+)?(?P<trailing>(?<=\d)-)?"
    rf"[{BLANKS}]?(?P<after>%|{_CURRENCY})?"
)
_PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|infinity)", re.IGNORECASE)
# Cells that are examined before a column is given up as text, and the share of them that must be numbers.
_TRIED, _SHARE = 1000, 0.5


def number_kind(cell: str) -> str:
    """Return ``number``, ``percent`` or ``currency`` for a number in any spelling, else ``missing`` or ``text``."""
    cell = cell.strip()
    if _PLAIN.fullmatch(cell):
        return "number"
    if cell.lower() in MISSING_LOWER or cell.strip("#-").lower() in MISSING_LOWER:
        return "missing"
    match = _match(cell)
    if match is None:
        return "text"
    if match["after"] == "%":
        return "percent"
    return "currency" if match["before"] or match["after"] else "number"


class Evidence:
    """What the cells of a column show about their spelling.

    Attributes:
        marks: For ``decimal``, ``thousands``, ``either`` (a comma or point as in ``1,234``), ``currency``, ``percent``,
            ``fortran``, ``minus`` and ``trailing`` (a minus sign after the number): how many cells show which sign.
        examples: The first cell for each of these and each sign.
        largest: The largest number without any sign but digits; -1 if there is none.
        numbers: How many cells are numbers.
        cells: How many cells there are.
    """

    def __init__(self) -> None:
        self.marks: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[tuple[str, str], str] = {}
        self.largest = -1.0
        self.numbers = 0
        self.cells = 0

    def add(self, cell: str, count: int = 1) -> None:
        """Take in a cell that is not a missing value, and that occurs this many times."""
        self.cells += count
        match = _match(cell)
        shown = None if match is None else _separators(match["body"], exponent=bool(match["e"]))
        if match is None or shown is None:
            self.numbers += count * bool(_PLAIN.fullmatch(cell))  # infinite
            return
        self.numbers += count
        if match["body"].isdecimal() and not match["e"]:
            self.largest = max(self.largest, float(match["body"]))
        if sign := (match["before"] or match["after"] or "").rstrip("%"):
            shown.append(("currency", sign))
        if match["after"] == "%":
            shown.append(("percent", "%"))
        if match["e"] in {"D", "d"}:
            shown.append(("fortran", "D"))
        if match["trailing"]:
            shown.append(("trailing", "-"))
        if MINUS in cell:
            shown.append(("minus", MINUS))
        for what, sign in shown:
            self.marks[what][sign] += count
            self.examples.setdefault((what, sign), cell)

    def most(self, what: str) -> str:
        """Return the sign that most cells show in some role; empty if none does."""
        return max(self.marks[what], key=self.marks[what].__getitem__, default="")


def _match(cell: str) -> "re.Match[str] | None":
    match = _NUMBER.fullmatch(cell)
    return None if match and match["trailing"] and re.match(_LEADING_SIGN, cell) else match


def _separators(body: str, *, exponent: bool) -> list[tuple[str, str]] | None:
    """Return what the digits of a number show about its separators; None if it is not a number.

    Args:
        body: The digits and their separators.
        exponent: Whether an exponent follows. Such numbers have no separators of thousands as a rule.
    """
    if body.isdecimal():
        return []
    shown = []
    groups = re.split(f"[{BLANKS}{APOSTROPHES}]", body)
    if len(groups) > 1:
        shown.append(("thousands", " " if re.search(f"[{BLANKS}]", body) else "'"))
    marks = [mark for mark in body if mark in ".,"]
    if not marks:
        return shown
    last = marks[-1]
    if len(set(marks)) == 2:
        return None if marks.count(last) > 1 else [*shown, ("decimal", last), ("thousands", marks[0])]
    if len(marks) > 1:
        return [*shown, ("thousands", last)]
    whole, fraction = body.split(last)
    grouped = len(fraction) == 3 and 1 <= len(whole) <= 3 and not whole.startswith("0")
    return [*shown, ("either" if grouped and len(groups) == 1 and not exponent else "decimal", last)]


def examine(column: Any) -> Evidence | None:
    """Collect what the cells of a column of strings show; None if most of them are not numbers."""
    evidence = Evidence()
    for part in (column.slice(0, _TRIED), column.slice(_TRIED)):
        for counted in part.value_counts():
            cell, count = counted["values"].as_py(), counted["counts"].as_py()
            text = (cell or "").strip()
            if text.lower() not in MISSING_LOWER:
                evidence.add(text, count)
        if evidence.numbers < _SHARE * evidence.cells:
            return None
    return evidence if evidence.cells else None


def is_empty(column: Any) -> bool:
    """Whether all cells of a column of strings are missing."""
    return all((cell or "").strip().lower() in MISSING_LOWER for cell in column.unique().to_pylist())


def decimal_mark(columns: Iterable[Evidence]) -> str | None:
    """Return the decimal mark of most columns, ``.`` or ``,``; None if no cell shows it."""
    votes: Counter[str] = Counter()
    for evidence in columns:
        thousands = evidence.most("thousands")
        votes[evidence.most("decimal") or {",": ".", ".": ","}.get(thousands, "")] += 1
    if not votes["."] and not votes[","]:
        return None
    return "," if votes[","] > votes["."] else "."
