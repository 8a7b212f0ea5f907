"""Read a sheet of a workbook (Excel, LibreOffice) by writing it as delimited text, which has one reader for all."""

import csv
from pathlib import Path
from typing import Any

from pushforward.common.errors import DataError
from pushforward.common.text import did_you_mean, one_line, shorten


def sheet_as_text(path: Path, sheet: str | None, out: Path) -> str:
    """Write a sheet as delimited text.

    Args:
        path: The workbook.
        sheet: Name of the sheet; None for the only one with cells.
        out: The file to write.

    Returns:
        The name of the sheet.

    Raises:
        DataError: If python-calamine is not installed, the workbook is damaged, it has no such sheet, or it has several
            and none is named.
    """
    try:
        from python_calamine import CalamineError, CalamineWorkbook
    except ImportError as error:
        raise DataError(f"{path.name}: is a workbook; read it after: pip install 'pushforward[excel]'") from error
    try:
        with CalamineWorkbook.from_path(str(path)) as book:
            filled = {name: rows for name in book.sheet_names if (rows := book.get_sheet_by_name(name).to_python())}
    except (CalamineError, OSError, ValueError) as error:
        reason = shorten(one_line(error), 120)
        raise DataError(f"{path.name}: not a readable workbook ({reason}); save it again, or as CSV") from error
    if sheet is None and len(filled) > 1:
        raise DataError(
            f"{path.name}: has {len(filled)} sheets: {', '.join(filled)}; "
            f"name one, as in '{path.name}#{next(iter(filled))}'"
        )
    if sheet is not None and sheet not in filled:
        raise DataError(
            f"{path.name}: has no sheet {sheet!r} with cells; {did_you_mean(sheet, filled)}"
            f"it has {', '.join(filled) or 'none'}"
        )
    if not filled:
        raise DataError(f"{path.name}: the workbook is empty")
    chosen = sheet or next(iter(filled))
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([_cell(value) for value in row] for row in filled[chosen] if any(cell != "" for cell in row))
    return chosen


def _cell(value: Any) -> str:
    """Return a cell as text; numbers of a workbook are all floating point."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
