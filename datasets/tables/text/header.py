"""Which of the first rows of a text file are data: names of columns, default names such as ``0,1,2``, units."""

from collections.abc import Sequence
from itertools import pairwise

from pushforward.datasets.tables.numbers.number_marks import number_kind

NUMBERS = frozenset({"number", "percent", "currency"})

# Integers such as 0,1,2,3 are not a row of a table of integers if they were rarer than this among rows like the others.
_RARE = 1e-4
# Three may well be the first edge of a graph, with its weight.
_RARE_THREE = 1e-6
_FEW_ROWS = 10
_UNKNOWN = frozenset({"unknown", "missing", "n.d.", "nd", "not available", "no data"})


def is_data(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Whether the first row is data: it holds a number, and no column has text there and a number below.

    Args:
        first: Cells of the first row.
        below: Rows below it.
    """
    if not any(number_kind(cell) in NUMBERS for cell in first):
        return False
    # "id,2019,2020" above "7,1.5,2.5" is a header although it holds numbers; so is "5%,95%" above "1.2,3.4".
    second = below[0] if below else ()
    return not any(
        number_kind(under) in NUMBERS and number_kind(cell) not in {"number", "missing", number_kind(under)}
        for cell, under in zip(first, second, strict=False)
    )


def counts_up(first: Sequence[str]) -> bool:
    """Whether a row holds the default names of columns, consecutive integers from 0 or 1; the first may be empty."""
    names = list(first[1:]) if first and not first[0] else list(first)
    return bool(names) and any(names == [str(start + k) for k in range(len(names))] for start in (0, 1))


def is_default_header(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Whether a row that :func:`counts_up` is the header that pandas writes, and no row of data.

    It is if its first cell is empty and those below are not, or if the cells below are of another kind: numbers with
    decimals, or text. Among integers it is if such a row would be very rare. It is not if another row counts up too,
    as in a table of consecutive numbers.
    """
    columns = list(zip(*(row for row in below if len(row) == len(first)), strict=True))
    if not columns:
        return False
    if not first[0]:
        return all(columns[0])
    if any(_consecutive(row) for row in below) and len(first) > 1:
        return False
    others = [
        [cell for cell in column if not _is_integer(cell) and number_kind(cell) != "missing"] for column in columns
    ]
    if len(first) > 2 and any(len(cells) > len(column) / 2 for cells, column in zip(others, columns, strict=True)):
        return True
    if len(first) <= 2:
        # "0,1" may well be the first row of a curve whose other numbers have decimals.
        present = [sum(number_kind(cell) != "missing" for cell in column) for column in columns]
        return min(present) >= _FEW_ROWS and [len(cells) for cells in others] == present
    likelihood = 1.0
    for name, column in zip(first, columns, strict=True):
        likelihood *= (column.count(name) + 0.5) / (len(column) + 1)
    return likelihood < (_RARE_THREE if len(first) == 3 else _RARE)


def is_header_of_numbers(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool | None:
    """Whether a first row of numbers holds names, such as years, and no data; None if it does not look like names.

    It looks like names if its first cell is empty and the others are different numbers, as pandas writes them above an
    index: it is a header if no cell below the first is empty. It also does if all cells are different whole numbers
    above numbers with decimals: it is a header if most cells of every column have decimals. As in a pivot table, some
    cells may be text, above other text.

    Args:
        first: Cells of the first row.
        below: Rows below it.
    """
    columns = list(zip(*(row for row in below if len(row) == len(first)), strict=True))
    texts = [k for k, name in enumerate(first) if name and number_kind(name) == "text"]
    if texts and len(texts) < len(first) - 1 and len(columns) == len(first):
        if any(first[k] in columns[k] or number_kind(columns[k][0]) != "text" for k in texts):
            return None
        keep = [k for k in range(len(first)) if k not in texts]
        return is_header_of_numbers([first[k] for k in keep], list(zip(*(columns[k] for k in keep), strict=True)))
    names = first[1:] if not first[0] else first
    if not columns or len(set(names)) < len(names) or not all(number_kind(name) in NUMBERS for name in names):
        return None
    if not first[0]:
        return all(columns[0])
    if len(first) == 1 or not all(name.isdecimal() for name in names):
        return None
    present = [[cell for cell in column if number_kind(cell) != "missing"] for column in columns]
    decimals = [sum(number_kind(cell) in NUMBERS and not _is_integer(cell) for cell in cells) for cells in present]
    if not any(decimals):
        return None
    if len(first) == 2:
        # As with "0,1", two may well be the first row of a curve.
        return len(columns[0]) >= _FEW_ROWS and decimals == [len(cells) for cells in present]
    return all(2 * count > len(cells) for count, cells in zip(decimals, present, strict=True))


def is_units(row: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Whether a row under the names holds units: text without a digit in front or nothing, above numbers.

    Args:
        row: The first row under the names.
        below: The rows below it.
    """
    if any(number_kind(cell) in NUMBERS or cell[:1].isdigit() or cell.lower() in _UNKNOWN for cell in row):
        return False
    columns = zip(*(other for other in below if len(other) == len(row)), strict=True)
    return any(
        number_kind(unit) == "text" and _are_numbers([number_kind(cell) for cell in column])
        for unit, column in zip(row, columns, strict=False)
    )


def _are_numbers(kinds: Sequence[str]) -> bool:
    present = [kind for kind in kinds if kind != "missing"]
    return sum(kind in NUMBERS for kind in present) > 0.9 * len(present)


def _is_integer(cell: str) -> bool:
    return cell.lstrip("+-").isdecimal()


def _consecutive(row: Sequence[str]) -> bool:
    if not all(_is_integer(cell) for cell in row):
        return False
    numbers = [int(cell) for cell in row]
    return all(after - before == 1 for before, after in pairwise(numbers))
