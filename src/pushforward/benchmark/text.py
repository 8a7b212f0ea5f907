"""The table of a benchmark as plain text of a fixed width."""

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from pushforward.benchmark.jobs import Column
from pushforward.benchmark.published import ERROR_BARS, EVIDENCE, ErrorBar, Figure, Published
from pushforward.benchmark.table import BEST, WITHIN, BenchmarkTable, Entry, headline
from pushforward.common.numbers import NOTHING, count, duration

WIDTH = 120
"""Columns of text that the table keeps to, as long as one data set fits beside the methods."""

MARKS = {BEST: "*", WITHIN: "~", "": " "}
"""What stands behind a number."""

_NAME = 34
_GAP = "  "
# The number with its mark, its first and its second error, and what stands behind.
_Cell = tuple[str, str, str, str]


def table_lines(table: BenchmarkTable, width: int = WIDTH) -> list[str]:
    """The table, with what a reader must know to read it, in lines of so many characters as far as that can be."""
    lines = [*_wrapped(heading(table), width), "", *_scores(table, width), *_behind(table, width)]
    lines += _efforts(table, width)
    said = remarks(table)
    return [*lines, "", *_wrapped(said, width, "  ")] if said else lines


def heading(table: BenchmarkTable) -> list[str]:
    """What is measured and how, in lines."""
    suite, word = table.suite, table.runs_in_words
    errors = "± one standard error over the test rows"
    if any(e.score is not None and math.isfinite(e.score.se_runs) for e in table.entries.values()):
        errors = f"first ± one standard error over the test rows, second ± one standard error over {word}"
    return [
        f"{suite.name}: {suite.description}",
        headline(table),
        f"{errors}; {budget_in_words(table)}",
        "* best, ~ within one standard error of it (the larger of the two, of paired differences)",
    ]


def budget_in_words(table: BenchmarkTable) -> str:
    """What every fit was given."""
    conditions = table.facts.get("conditions") or {}
    seconds, steps, threads = (conditions.get(key) for key in ("seconds", "steps", "threads"))
    budget = f"{seconds:g} s" if seconds is not None else f"{count(steps)} steps"
    budget += f" on {threads} thread{'s' if threads != 1 else ''}" if threads is not None else ""
    return f"{budget} a fit"


def number(value: float, decimals: int) -> str:
    """A score."""
    return "nan" if math.isnan(value) else f"{value:.{decimals}f}" if math.isfinite(value) else f"{value}"


def error(value: float | None, decimals: int) -> str:
    """A standard error with its sign, as in ``±.02``; nothing where it is unknown."""
    if value is None or not math.isfinite(value):
        return ""
    return "±" + f"{value:.{decimals}f}".removeprefix("0")


def cell_of(table: BenchmarkTable, entry: Entry) -> _Cell:
    """An entry as the table shows it."""
    runs = "" if entry.finished == entry.planned else f" {entry.finished}/{entry.planned}"
    if entry.score is None:
        return ("failed " if entry.failures else "- ", "", "", "")
    decimals = table.decimals(entry.column)
    return (
        number(table.suite.sign * entry.score.mean, decimals) + MARKS[entry.mark],
        error(entry.score.se_points, decimals),
        error(entry.score.se_runs, decimals),
        runs,
    )


def published_cell(figure: Figure | None, *, is_other: bool = False) -> _Cell:
    """A published number, with the digits it was published with; ``is_other`` where it is of other columns or rows."""
    if figure is None:
        return "", "", "", ""
    about = "≈" if figure.is_about else ""
    mark = "‡" if is_other else "†" if figure.is_doubted else " "
    return f"{about}{number(figure.value, figure.decimals)}{mark}", error(figure.error, figure.decimals), "", ""


def published_marks(table: BenchmarkTable, doubt: str = "doubtful, its note says why") -> list[tuple[str, str]]:
    """The marks that published numbers have in the table, and what they mean."""
    cells = [
        (row.figures[column.source], table.is_other_problem(column))
        for row in table.published
        for column in table.columns
        if column.dequantize == "off" and column.source in row.figures
    ]
    marks = [
        ("†", doubt, any(figure.is_doubted and not is_other for figure, is_other in cells)),
        ("≈", "known roughly", any(figure.is_about for figure, _ in cells)),
        ("‡", f"{_other_in_words(table)} than here: not the same problem", any(is_other for _, is_other in cells)),
    ]
    return [(mark, text) for mark, text, occurs in marks if occurs]


def _other_in_words(table: BenchmarkTable) -> str:
    kinds = {
        "of other columns": any(table.other_columns(c) is not None for c in table.columns),
        "of other rows": any(table.other_rows(c) for c in table.columns),
    }
    return " or ".join(text for text, occurs in kinds.items() if occurs)


def letters_of(row: Published, codes: Mapping[ErrorBar, str]) -> list[str]:
    """What stands behind a published method: the letter of its error bar, and m if it comes from memory."""
    kind = [codes[row.error_bar]] if row.error_bar in codes else []
    return [*kind, "m"] if row.evidence == "memory" else kind


def error_codes(rows: Sequence[Published]) -> dict[ErrorBar, str]:
    """A letter for each kind of error bar that occurs."""
    kinds: list[ErrorBar] = [
        kind for kind in ERROR_BARS if kind != "none" and any(row.error_bar == kind for row in rows)
    ]
    return dict(zip(kinds, "abcde", strict=False))


def _scores(table: BenchmarkTable, width: int) -> Iterator[str]:
    codes = error_codes(table.published)
    measured = [(m.label, {c: cell_of(table, table.entries[c, m.spec]) for c in table.columns}) for m in table.methods]
    reported = []
    for row in table.published:
        found = {c: row.figures.get(c.source) if c.dequantize == "off" else None for c in table.columns}
        cells = {c: published_cell(f, is_other=table.is_other_problem(c)) for c, f in found.items()}
        letters = ",".join(letters_of(row, codes))
        reported.append((f"{row.label} [{letters}]" if letters else row.label, cells))
    body = [("measured here", measured), ("published", reported)] if reported else [("", measured)]
    yield from _blocks(table, body, width)
    if reported:
        yield ""
        yield from _wrapped([f"[{code}] ± is {ERROR_BARS[kind]}" for kind, code in codes.items()], width, "    ")
        if any(row.evidence == "memory" for row in table.published):
            yield f"[m] {EVIDENCE['memory']}"
        for mark, text in published_marks(table, "doubtful; table.html says why"):
            yield f"{mark} {text}"


def _blocks(
    table: BenchmarkTable,
    body: Sequence[tuple[str, Sequence[tuple[str, dict[Column, _Cell]]]]],
    width: int,
    *,
    sized: bool = True,
) -> Iterator[str]:
    """Rows of text with as many data sets side by side as there is room for."""
    widths = {
        column: [max((len(cells[column][k]) for _, rows in body for _, cells in rows), default=0) for k in range(4)]
        for column in table.columns
    }

    def text(column: Column, cell: _Cell) -> str:
        w = widths[column]
        parts = [cell[0].rjust(w[0]), *(cell[k].ljust(w[k]) for k in (1, 2) if w[k])]
        return " ".join(parts) + cell[3].ljust(w[3])

    cells_width = {column: len(text(column, ("", "", "", ""))) for column in table.columns}
    heads = {column: _head(table, column, cells_width[column], sized) for column in table.columns}
    full = {column: max(cells_width[column], *map(len, heads[column])) for column in table.columns}
    longest = max((len(label) for _, rows in body for label, _ in rows), default=0)
    name = min(_NAME, max(16, width // 3), longest)
    blocks: list[list[Column]] = [[]]
    for column in table.columns:
        used = name + sum(len(_GAP) + full[one] for one in [*blocks[-1], column])
        if blocks[-1] and used > width:
            blocks.append([])
        blocks[-1].append(column)
    for place, block in enumerate(blocks):
        if place:
            yield ""
        height = max(len(heads[column]) for column in block)
        for line in range(height):
            title = "rows x columns" if sized and line == height - 1 else ""
            parts = ([""] * (height - len(heads[c])) + heads[c] for c in block)
            texts = (_GAP + part[line].rjust(full[c]) for part, c in zip(parts, block, strict=True))
            yield (title.ljust(name) + "".join(texts)).rstrip()
        for title, rows in body:
            if title:
                yield f"{title}:"
            for label, cells in rows:
                numbers = (_GAP + text(c, cells[c]).rjust(full[c]) for c in block)
                yield (_short(label, name).ljust(name) + "".join(numbers)).rstrip()


def _behind(table: BenchmarkTable, width: int) -> Iterator[str]:
    """By how much the best is better, where more than two methods can be compared."""
    if not any(entry.behind is not None for entry in table.entries.values()):
        return
    cells: dict[tuple[Column, str], _Cell] = {}
    for (column, spec), entry in table.entries.items():
        decimals, behind = table.decimals(column), entry.behind
        cells[column, spec] = ("best" if entry.mark == BEST else "", "", "", "")
        if behind is not None:
            size = "" if not math.isfinite(behind.se) else error(behind.se, decimals)
            cells[column, spec] = (number(behind.mean, decimals), size, "", "")
    rows = [(m.label, {c: cells[c, m.spec] for c in table.columns}) for m in table.methods]
    yield ""
    yield from _wrapped(["behind the best in nats, paired row by row; ± the larger of the two standard errors"], width)
    yield from _blocks(table, [("", rows)], width, sized=False)


def effort_rows(table: BenchmarkTable) -> list[list[str]]:
    """What each method took, the head first: means over runs, from the least to the most of the data sets."""
    rows = [["", "mean rank", "parameters", "steps", "training", "whole process", "runs"]]
    for method in table.methods:
        entries = [table.entries[column, method.spec] for column in table.columns]
        rank = table.mean_rank(method)
        runs = f"{sum(e.finished for e in entries)} of {sum(e.planned for e in entries)}"
        rows.append(
            [
                method.label,
                NOTHING if rank is None else f"{rank[0]:.1f}",
                *(_range([getattr(e, key) for e in entries]) for key in ("parameters", "steps")),
                *(_seconds([getattr(e, key) for e in entries]) for key in ("seconds", "wall_seconds")),
                runs,
            ]
        )
    return rows


def _efforts(table: BenchmarkTable, width: int) -> Iterator[str]:
    rows = [[_short(first, _NAME), *rest] for first, *rest in effort_rows(table)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    yield ""
    yield from _wrapped(["means over the runs; smallest to largest data set where they differ"], width)
    blocks: list[list[int]] = [[]]
    for k in range(1, len(widths)):
        used = widths[0] + sum(len(_GAP) + widths[one] for one in [*blocks[-1], k])
        if blocks[-1] and used > width:
            blocks.append([])
        blocks[-1].append(k)
    for place, block in enumerate(blocks):
        if place:
            yield ""
        for row in rows:
            yield _GAP.join([row[0].ljust(widths[0]), *(row[k].rjust(widths[k]) for k in block)]).rstrip()


def remarks(table: BenchmarkTable) -> list[str]:
    """What is missing, what has failed, and what does not match."""
    lines = [f"{name}: {why}" for name, why in table.missing.items()]
    lines += [f"failed: {what}: {reason}" for reason, what in table.failures.items()]
    lines += [*table.mismatches, *table.notes_on_data]
    if table.left:
        lines.append(f"{table.left:,} runs have not been made; the same command goes on with them")
    return [*lines, *table.notes]


def _wrapped(lines: Sequence[str], width: int, indent: str = "") -> list[str]:
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    ]


def _head(table: BenchmarkTable, column: Column, width: int, sized: bool) -> list[str]:
    """Lines above the numbers of a data set: its name, its size, and that it is spread where it is there twice."""
    name, _, spread = table.labels[column].partition(", ")
    parts = re.sub(r"([-_/ ])", "\\1\n", name).split("\n")
    lines = [""]
    for part in parts:  # a long name is broken where it has a hyphen
        if lines[-1] and len(lines[-1] + part) > max(width, 12):
            lines.append("")
        lines[-1] += part
    below = ", ".join(part for part in (_size(table, column) if sized else "", spread) if part)
    return [*(_short(line, 26) for line in lines), *([below] if below or sized else [])]


def _size(table: BenchmarkTable, column: Column) -> str:
    known = table.facts_of(column)
    if known is None or known.features is None:
        return "-"
    return f"{sum(known.rows.values()):,} x {known.features}"


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    low, high = count(min(known)), count(max(known))
    return low if low == high else f"{low} to {high}"


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return NOTHING if not known else duration(sum(known) / len(known))


def _short(name: str, most: int) -> str:
    """A name that fits; what differs is often at its end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"
