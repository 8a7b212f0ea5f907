"""How numbers are written in text: decimal commas, thousands separators, currency signs, percent, and the like.

A spelling belongs to a column, never to a cell: ``1.234`` is 1234 in a column with decimal commas, and 1.234 in others.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pushforward.datasets.tables.number_marks import (
    APOSTROPHES,
    BLANKS,
    MINUS,
    MISSING_LOWER,
    Evidence,
    decimal_mark,
    examine,
    number_kind,
)

if TYPE_CHECKING:
    import pyarrow as pa

_WORDS = ({"true": 1, "false": 0, "1": 1, "0": 0}, {"t": 1, "f": 0})
_SEPARATOR_NAMES = {",": "commas", ".": "points", " ": "blanks", "'": "apostrophes"}


@dataclass(frozen=True)
class Spelling:
    """How the numbers of a column are written.

    Args:
        decimal: The decimal mark.
        thousands: The separator of thousands; a blank stands for every kind of blank, an apostrophe for both kinds.
        currency: The currency sign, before or after the number.
        percent: Whether a percent sign follows every number.
        fortran: Whether exponents may be written with a ``D``.
        minus: Whether there are typographic minus signs.
        words: The words and their values, for a column of true and false.
        example: A cell of this spelling.
        doubt: Whether no cell shows which of comma and point is the decimal mark.
    """

    decimal: str = "."
    thousands: str = ""
    currency: str = ""
    percent: bool = False
    fortran: bool = False
    minus: bool = False
    words: Mapping[str, int] | None = None
    example: str = ""
    doubt: bool = False

    def read(self, column: Any) -> Any:
        """Convert a chunked array of strings to numbers.

        Returns:
            Integers or floats, null for missing cells. If a cell is not of this spelling, strings: numbers written
            plainly, other cells as they are, and cells that this spelling contradicts with a remark, so that they are
            never taken for another number.
        """
        import pyarrow as pa
        from pyarrow import compute as pc

        cells = pc.utf8_trim_whitespace(column)
        missing = pc.is_in(pc.utf8_lower(cells), value_set=pa.array(sorted(MISSING_LOWER)))
        cells = pc.if_else(missing, pa.scalar(None, cells.type), cells)
        good = pc.match_substring_regex(cells, f"^(?:{self._pattern()})$")
        if pc.all(good, min_count=0).as_py():
            return _cast(self._plain(cells))
        plain = self._plain(pc.if_else(good, cells, pa.scalar(None, cells.type)))
        return pa.chunked_array(
            [[self._merge(*pair) for pair in zip(cells.to_pylist(), plain.to_pylist(), strict=True)]]
        )

    def is_plain(self, decimal: str) -> bool:
        """Whether the numbers have nothing special but this decimal mark."""
        special = (self.thousands, self.currency, self.percent, self.fortran, self.minus, self.words)
        return not any(special) and self.decimal == decimal

    def fits(self, cell: str) -> bool:
        """Whether a cell is of this spelling."""
        return re.fullmatch(self._pattern(), cell) is not None

    def value(self, cell: str) -> float:
        """Return the number that a cell of this spelling stands for."""
        import pyarrow as pa

        return float(self.read(pa.chunked_array([[cell]]))[0].as_py())

    def understood(self) -> str:
        """Say what was understood, for a note."""
        if self.words is not None:
            one, zero = (next(word for word, value in self.words.items() if value == wanted) for wanted in (1, 0))
            return f"{one} and {zero} are read as 1 and 0"
        parts = ["currency signs removed"] * bool(self.currency) + ["percent signs removed"] * self.percent
        if self.decimal == "," in self.example and not self.thousands:
            parts.append("decimal commas")
        if self.thousands:
            parts.append(f"{_SEPARATOR_NAMES[self.thousands]} between thousands")
        parts += ["exponents with D"] * self.fortran + ["typographic minus signs"] * self.minus
        text = f"{', '.join(parts) or 'decimal points'} ({self.example} is read as {self.value(self.example):.12g}"
        if self.doubt:
            mark = self.thousands or self.decimal
            other = Spelling(decimal=mark) if self.thousands else Spelling(thousands=mark, decimal=".")
            kept = re.sub(rf"[^\d{mark}]", "", self.example)
            text += f"; no cell shows that it is not {other.value(kept):.12g}"
        return f"{text})"

    def _pattern(self) -> str:
        if self.words is not None:
            return "|".join(f"(?i:{word})" for word in self.words)
        blank, sign = f"[{BLANKS}]?", f"[+\\-{MINUS}]?"
        currency = f"(?:{re.escape(self.currency)})?" if self.currency else ""
        mark = re.escape(self.decimal)
        whole = r"\d+"
        if self.thousands:
            separator = f"[{re.escape(self._thousands())}]"
            whole = rf"(?:\d{{1,3}}(?:{separator}\d{{3}})+|\d+)"
        number = rf"(?:{whole}(?:{mark}\d*)?|{mark}\d+)(?:[eE{'dD' if self.fortran else ''}]{sign}\d+)?"
        before = f"{sign}{currency}{blank}{sign}" if self.currency else sign
        number = f"(?:{number}|(?i:inf|infinity))"
        return f"{before}{number}{f'{blank}%' if self.percent else f'{blank}{currency}'}"

    def _thousands(self) -> str:
        return {" ": BLANKS, "'": APOSTROPHES}.get(self.thousands, self.thousands)

    def _plain(self, cells: Any) -> Any:
        """Write cells of this spelling as plain numbers."""
        from pyarrow import compute as pc

        if self.words is not None:
            cells = pc.utf8_lower(cells)
            for word, value in self.words.items():
                cells = pc.replace_substring_regex(cells, f"^{word}$", str(value))
            return cells
        removed = [self.currency, *self._thousands(), "+", *("%" if self.percent else ""), *BLANKS]
        for text in removed:
            if text:
                cells = pc.replace_substring(cells, text, "")
        for text, by in ((self.decimal, "."), (MINUS, "-"), ("D", "e"), ("d", "e")):
            if text != by and (text not in "Dd" or self.fortran):
                cells = pc.replace_substring(cells, text, by)
        return cells

    def _merge(self, cell: str | None, plain: str | None) -> str | None:
        if plain is not None or cell is None:
            return plain
        # Without the remark, a cell such as "1.5" among decimal commas would be a number.
        unlike = self.example or ("" if self.decimal == "." else "1,5")
        is_number = number_kind(cell) in {"number", "percent", "currency"}
        return f"{cell} (unlike {unlike})" if unlike and is_number else cell


def find_spelling(evidence: Evidence, mark: str | None, delimiter: str) -> Spelling:
    """Choose the spelling of a column from what most of its cells show.

    Args:
        evidence: What they show.
        mark: The decimal mark of the file, which decides where the cells of the column do not; None if unknown.
        delimiter: The delimiter. Files with semicolons are written where commas are decimal.
    """
    marks, examples = evidence.marks, evidence.examples
    doubt = False
    decimal = evidence.most("decimal") or {",": ".", ".": ","}.get(evidence.most("thousands"), "") or mark
    if decimal is None:
        doubt = "," in marks["either"] or (delimiter == ";" and bool(marks["either"]))
        decimal = "," if doubt and delimiter == ";" and "." not in marks["either"] else "."
    grouped = marks["thousands"] + marks["either"]
    del grouped[decimal]
    thousands = max(grouped, key=grouped.__getitem__, default="")
    currency, fortran, minus = (evidence.most(what) for what in ("currency", "fortran", "minus"))
    percent = "%" if 2 * marks["percent"]["%"] > evidence.numbers else ""
    spelling = Spelling(decimal, thousands, currency, bool(percent), bool(fortran), bool(minus), doubt=doubt)
    shown = [("either", thousands or decimal)] if doubt else []
    shown += [("currency", currency), ("percent", percent), ("thousands", thousands), ("either", thousands)]
    shown += [("fortran", fortran), ("minus", minus), ("decimal", decimal), ("either", decimal)]
    candidates = (examples[key] for key in shown if key in examples)
    return replace(spelling, example=next((cell for cell in candidates if spelling.fits(cell)), ""))


def find_column_spelling(column: Any, mark: str | None, delimiter: str) -> Spelling | None:
    """Choose the spelling of a column of strings; None if it holds text."""
    evidence = examine(column)
    return None if evidence is None else find_spelling(evidence, mark, delimiter)


def find_words(cells: Iterable[str | None]) -> Spelling | None:
    """Return the spelling of a column that holds nothing but true and false, or t and f; else None."""
    seen: set[str] = set()
    for cell in cells:
        text = (cell or "").strip().lower()
        if text not in MISSING_LOWER:
            seen.add(text)
        if len(seen) > 4:
            return None
    for words in _WORDS:
        if seen - {"0", "1"} and seen <= set(words):
            return Spelling(words=words, example=min(seen))
    return None


def find_spellings(
    cells: "pa.Table", odd: Sequence[str], delimiter: str
) -> tuple[str | None, str, dict[str, Spelling]]:
    """Find how the numbers of a table are written.

    Args:
        cells: A sample of its rows, as strings.
        odd: The columns that are not numbers with decimal points.
        delimiter: The delimiter of the file.

    Returns:
        The decimal mark of the file if cells show it, else None; the mark to read with; and the spellings of the
        columns that have one to speak of.
    """
    found: dict[str, Spelling] = {}
    evidence: dict[str, Evidence] = {}
    for name in odd:
        if words := find_words(cells.column(name).unique().to_pylist()):
            found[name] = words
        elif shown := examine(cells.column(name)):
            evidence[name] = shown
    if not evidence:
        return None, ".", found
    for name in cells.column_names:
        if name not in odd and (shown := examine(cells.column(name))):
            evidence[name] = shown
    mark = decimal_mark(evidence.values())
    spellings = {name: find_spelling(shown, mark, delimiter) for name, shown in evidence.items()}
    decimal = mark or ("," if any(spelling.decimal == "," for spelling in spellings.values()) else ".")
    unusual = {
        name: spelling
        for name, spelling in spellings.items()
        if spelling.example and (spelling.doubt or decimal != "." or not spelling.is_plain("."))
    }
    return mark, decimal, found | unusual


def understood_notes(understood: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    """Return notes on how columns were understood, one for all columns of the same spelling.

    Args:
        understood: What was understood, by column.
        names: The columns to speak of.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        if name in understood:
            alike.setdefault(understood[name].split("(")[0], []).append(name)
    return tuple(
        f"column{'s' if len(same) > 1 else ''} {_listed(same)}: {understood[same[0]]}" for same in alike.values()
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _cast(plain: Any) -> "pa.ChunkedArray":
    import pyarrow as pa

    try:
        return plain.cast(pa.int64())
    except pa.ArrowInvalid:
        return plain.cast(pa.float64())
