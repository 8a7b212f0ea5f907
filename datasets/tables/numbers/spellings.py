"""How numbers are written in text: decimal commas, thousands separators, currency signs, percent, and the like.

A spelling belongs to a column, never to a cell: ``1.234`` is 1234 in a column with decimal commas, and 1.234 in others.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pushforward.common.text import listed
from pushforward.datasets.tables.numbers.number_marks import (
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
_KEPT: dict[str, type] = dict.fromkeys(("decimal", "thousands", "currency"), str)
_KEPT |= dict.fromkeys(("percent", "fortran", "minus", "trailing"), bool)
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
        trailing: Whether a minus sign may follow a number, as SAP writes it.
        words: The words and their values, for a column of true and false.
        example: A cell of this spelling.
        doubt: Whether no cell shows which of comma and point is the decimal mark.
        as_fitted: Whether the column's spelling at the fit decides this, because no cell does.
    """

    decimal: str = "."
    thousands: str = ""
    currency: str = ""
    percent: bool = False
    fortran: bool = False
    minus: bool = False
    trailing: bool = False
    words: Mapping[str, int] | None = None
    example: str = ""
    doubt: bool = False
    as_fitted: bool = False

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
        special = (self.thousands, self.currency, self.percent, self.fortran, self.minus, self.trailing, self.words)
        return not any(special) and self.decimal == decimal

    def fits(self, cell: str) -> bool:
        """Whether a cell is of this spelling."""
        return re.fullmatch(self._pattern(), cell) is not None

    def value(self, cell: str) -> float:
        """Return the number that a cell of this spelling stands for."""
        import pyarrow as pa

        return float(self.read(pa.chunked_array([[cell]]))[0].as_py())

    @property
    def unit(self) -> str:
        """The percent sign or the sign of a currency beside the numbers; empty if there is none."""
        return "%" if self.percent else self.currency

    def to_dict(self) -> dict[str, Any]:
        """Return what a schema keeps: the decimal mark, and what else differs from plain numbers."""
        kept = {key: getattr(self, key) for key in _KEPT if getattr(self, key)}
        return kept if self.words is None else {**kept, "words": dict(self.words)}

    @classmethod
    def from_dict(cls, content: Any) -> "Spelling":
        """Rebuild a spelling from the result of ``to_dict``.

        Raises:
            ValueError: If a key is missing or unknown, or a value has the wrong type.
        """
        if not isinstance(content, dict) or content.get("decimal") not in (".", ","):
            raise ValueError("no decimal mark")
        for key, value in content.items():
            if not (value in _WORDS if key == "words" else type(value) is _KEPT.get(key)):
                raise ValueError(key)
        return cls(**content)

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
        parts += ["minus signs after numbers"] * self.trailing
        text = f"{', '.join(parts) or 'decimal points'} ({self.example} is read as {self.value(self.example):.12g}"
        if self.doubt or self.as_fitted:
            mark = self.thousands or self.decimal
            other = Spelling(decimal=mark) if self.thousands else Spelling(thousands=mark, decimal=".")
            kept = re.sub(rf"[^\d{mark}]", "", self.example)
            why = "as at the fit, not" if self.as_fitted else "no cell shows that it is not"
            text += f"; {why} {other.value(kept):.12g}"
        return f"{text})"

    def _pattern(self) -> str:
        if self.words is not None:
            return "|".join(f"(?i:{word})" for word in self.words)
        blank, sign = f"[{BLANKS}]?", f"[+\\-{MINUS}]?"
        currency = f"(?:{re.escape(self.currency)})?" if self.currency else ""
        mark = re.escape(self.decimal)
        whole = r"\d+"
        exponent = f"(?:[eE{'dD' if self.fortran else ''}]{sign}\\d+)?"
        number = rf"(?:\d+(?:{mark}\d*)?|{mark}\d+){exponent}"
        if self.thousands:
            grouped = rf"\d{{1,3}}(?:[{re.escape(self._thousands())}]\d{{3}})+"
            whole = rf"(?:{grouped}|\d+)"
            # The comma of "3,456e-01" is never one between thousands.
            number = rf"(?:{number}|{grouped}(?:{mark}\d*{exponent})?)"
        # A digit stands before a minus sign: the price "5,-" is not negative.
        negative = rf"(?:{whole}(?:{mark}\d+)?|{mark}\d+){exponent}-"
        before = f"{sign}{currency}{blank}{sign}" if self.currency else sign
        number = f"(?:{number}|(?i:inf|infinity))"
        after = f"{blank}%" if self.percent else f"{blank}{currency}"
        pattern = f"{before}{number}{after}"
        return f"{pattern}|{currency}{blank}{negative}{after}" if self.trailing else pattern

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
        return pc.replace_substring_regex(cells, "^(.*)-$", r"-\1") if self.trailing else cells

    def _merge(self, cell: str | None, plain: str | None) -> str | None:
        if plain is not None or cell is None:
            return plain
        # Without the remark, a cell such as "1.5" among decimal commas would be a number.
        unlike = self.example or ("" if self.decimal == "." else "1,5")
        is_number = number_kind(cell) in {"number", "percent", "currency"}
        return f"{cell} (unlike {unlike})" if unlike and is_number else cell


TRUE_FALSE = Spelling(words=_WORDS[0], example="true")
"""The spelling of a column of true and false."""


def find_spelling(evidence: Evidence, mark: str | None, delimiter: str, fitted: Spelling | None = None) -> Spelling:
    """Choose the spelling of a column from what most of its cells show.

    Args:
        evidence: What they show.
        mark: The decimal mark of the file, which decides where the cells of the column do not; None if unknown.
        delimiter: The delimiter. Files with semicolons are written where commas are decimal.
        fitted: The spelling at the fit, which decides what this file leaves open; None if unknown.
    """
    marks, examples = evidence.marks, evidence.examples
    doubt = as_fitted = False
    decimal = evidence.most("decimal") or {",": ".", ".": ","}.get(evidence.most("thousands"), "") or mark
    if decimal is None and fitted is not None and not (delimiter == "," and marks["either"]["."]):
        decimal, as_fitted = fitted.decimal, bool(marks["either"])
    elif decimal is None:
        doubt = "," in marks["either"] or (delimiter == ";" and bool(marks["either"]))
        # Were "371" beside "1.932" no integer, it would have decimals, or other numbers fewer than three of them.
        grouped_by = "." if 100 <= evidence.largest < 1000 else ","
        decimal = "," if doubt and delimiter == ";" and set(marks["either"]) == {grouped_by} else "."
    grouped = marks["thousands"] + marks["either"]
    del grouped[decimal]
    kept = fitted.thousands if fitted is not None and fitted.thousands != decimal else ""
    thousands = max(grouped, key=grouped.__getitem__, default=kept)
    currency = evidence.most("currency")
    fortran, minus, trailing = (
        bool(evidence.most(what) or getattr(fitted, what, False)) for what in ("fortran", "minus", "trailing")
    )
    percent = "%" if 2 * marks["percent"]["%"] > evidence.numbers else ""
    spelling = Spelling(decimal, thousands, currency, bool(percent), fortran, minus, trailing)
    spelling = replace(spelling, doubt=doubt, as_fitted=as_fitted)
    shown = [("either", thousands or decimal), ("either", decimal)] if doubt or as_fitted else []
    shown += [("currency", currency), ("percent", percent), ("thousands", thousands), ("either", thousands)]
    shown += [("fortran", "D"), ("minus", MINUS), ("trailing", "-"), ("decimal", decimal), ("either", decimal)]
    candidates = (examples[key] for key in shown if key in examples)
    return replace(spelling, example=next((cell for cell in candidates if spelling.fits(cell)), ""))


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
    cells: "pa.Table",
    odd: Sequence[str],
    delimiter: str,
    mark: str | None = None,
    fitted: Mapping[str, Spelling] | None = None,
) -> tuple[str | None, dict[str, Spelling]]:
    """Find how the numbers of a table are written.

    Args:
        cells: Its rows or a sample of them, as strings.
        odd: The columns that may not be numbers with decimal points. Without any, none is looked at.
        delimiter: The delimiter of the file.
        mark: The decimal mark of the file, if it is known.
        fitted: How columns were written at the fit, by name.

    Returns:
        The decimal mark of the file if cells show it, else None; and the spellings of the columns of numbers.
    """
    fitted = {name: spelling for name, spelling in (fitted or {}).items() if spelling.words is None}
    # A file has one decimal mark as a rule, also in columns where the fit saw none.
    marks = {spelling.decimal for spelling in fitted.values()}
    other = Spelling(decimal=marks.pop()) if len(marks) == 1 else None
    found: dict[str, Spelling] = {}
    evidence: dict[str, Evidence] = {}
    for name in odd:
        if words := find_words(cells.column(name).unique().to_pylist()):
            found[name] = words
        elif shown := examine(cells.column(name)):
            evidence[name] = shown
    if not evidence:
        return mark, found
    for name in cells.column_names:
        if name not in odd and (shown := examine(cells.column(name))):
            evidence[name] = shown
    mark = mark or decimal_mark(evidence.values())
    for name, shown in evidence.items():
        found[name] = find_spelling(shown, mark, delimiter, fitted.get(name, other))
    return mark, found


def unusual_spellings(mark: str | None, spellings: Mapping[str, Spelling]) -> tuple[str, dict[str, Spelling]]:
    """Return the mark to read a file with, and the spellings that are to speak of."""
    decimal = mark or ("," if any(spelling.decimal == "," for spelling in spellings.values()) else ".")
    unusual = {
        name: spelling
        for name, spelling in spellings.items()
        if not spelling.is_plain(".") or (spelling.example and (spelling.doubt or spelling.as_fitted or decimal != "."))
    }
    return decimal, unusual


def understood_notes(spellings: Mapping[str, Spelling], names: Iterable[str]) -> tuple[str, ...]:
    """Return notes on how columns were understood, one for all columns of the same spelling.

    Args:
        spellings: The spellings of columns, by name.
        names: The columns to speak of.
    """
    understood = {name: spelling.understood() for name, spelling in spellings.items() if spelling.example}
    alike: dict[str, list[str]] = {}
    for name in names:
        if name in understood:
            alike.setdefault(understood[name].split("(")[0], []).append(name)
    return tuple(
        f"column{'s' if len(same) > 1 else ''} {listed([repr(name) for name in same], 3)}: {understood[same[0]]}"
        for same in alike.values()
    )


def unit_notes(
    fitted: Mapping[str, Spelling], found: Mapping[str, Spelling], names: Iterable[tuple[str, str]]
) -> tuple[str, ...]:
    """Return notes on columns whose percent or currency sign is not that of the fit.

    Args:
        fitted: How columns were written at the fit.
        found: How they are written in a file.
        names: The name of each column at the fit and in the file.
    """
    plain = Spelling()
    pairs = [(name, fitted.get(name, plain).unit, found.get(in_file, plain).unit) for name, in_file in names]
    return tuple(
        f"column {name!r}: has {unit or 'no sign'} beside its numbers, and had {before or 'no sign'} at the fit; they "
        "are taken as they stand, so see that the units are the same"
        for name, before, unit in pairs
        if unit != before
    )


def _cast(plain: Any) -> "pa.ChunkedArray":
    import pyarrow as pa

    try:
        return plain.cast(pa.int64())
    except pa.ArrowInvalid:
        return plain.cast(pa.float64())
