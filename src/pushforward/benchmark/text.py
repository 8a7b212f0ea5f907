"""The table of a benchmark as plain text of limited width: ``table.txt`` and the output of the command."""

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from pushforward.benchmark.entries import BEST, WITHIN, TableEntry
from pushforward.benchmark.jobs import Task
from pushforward.benchmark.published import ERROR_BARS, EVIDENCE, ErrorBar, Figure, Published
from pushforward.benchmark.suites import score_in_words
from pushforward.benchmark.table import BenchmarkTable
from pushforward.common.numbers import NOTHING, count, duration
from pushforward.common.text import shorten_middle

WIDTH = 120
"""Largest width of the table in characters; exceeded only if a single data set does not fit."""

MARKS = {BEST: "*", WITHIN: "~", "": " "}
"""The character after a number, by mark."""

_NAME = 34
_GAP = "  "
# Parts of a table cell: the number with its mark, its first and second standard error, the number of runs.
_Cell = tuple[str, str, str, str]


def table_lines(table: BenchmarkTable, width: int = WIDTH) -> list[str]:
    """Return the table and its explanations as lines of at most ``width`` characters, as far as possible."""
    lines = [*_wrap(heading(table), width), "", *_score_lines(table, width), *_behind_lines(table, width)]
    lines += _effort_lines(table, width)
    notes = remarks(table)
    return [*lines, "", *_wrap(notes, width, "  ")] if notes else lines


def heading(table: BenchmarkTable) -> list[str]:
    """Return lines about what is measured, and how."""
    suite, word = table.suite, table.runs_in_words
    errors = "± one standard error over the test rows"
    if any(e.score is not None and math.isfinite(e.score.se_runs) for e in table.entries.values()):
        errors = f"first ± one standard error over the test rows, second ± one standard error over {word}"
    return [
        f"{suite.name}: {suite.description}",
        score_in_words(table.suite),
        f"{errors}; {budget_in_words(table)}",
        "* best, ~ within one standard error of it (the larger of the two, of paired differences)",
    ]


def budget_in_words(table: BenchmarkTable) -> str:
    """Return the budget of a fit in words."""
    conditions = table.facts.get("conditions") or {}
    seconds, steps, threads = (conditions.get(key) for key in ("seconds", "steps", "threads"))
    budget = f"{seconds:g} s" if seconds is not None else f"{count(steps)} steps"
    budget += f" on {threads} thread{'s' if threads != 1 else ''}" if threads is not None else ""
    return f"{budget} a fit"


def number(value: float, decimals: int) -> str:
    """Format a score."""
    return "nan" if math.isnan(value) else f"{value:.{decimals}f}" if math.isfinite(value) else f"{value}"


def error(value: float | None, decimals: int) -> str:
    """Format a standard error, as in ``±.02``; empty if unknown."""
    if value is None or not math.isfinite(value):
        return ""
    return "±" + f"{value:.{decimals}f}".removeprefix("0")


def entry_cell(table: BenchmarkTable, entry: TableEntry) -> _Cell:
    """Return the parts of the table cell of an entry."""
    runs = "" if entry.finished == entry.planned else f" {entry.finished}/{entry.planned}"
    if entry.score is None:
        return ("failed " if entry.failures else "- ", "", "", "")
    decimals = table.decimals(entry.task)
    return (
        number(table.suite.sign * entry.score.mean, decimals) + MARKS[entry.mark],
        error(entry.score.se_rows, decimals),
        error(entry.score.se_runs, decimals),
        runs,
    )


def published_cell(figure: Figure | None, *, is_other: bool = False) -> _Cell:
    """Return the parts of the table cell of a published number, with its published digits.

    Args:
        figure: The number; None for an empty cell.
        is_other: Whether it is of other columns or rows than here.
    """
    if figure is None:
        return "", "", "", ""
    about = "≈" if figure.is_about else ""
    mark = "‡" if is_other else "†" if figure.is_doubted else " "
    return f"{about}{number(figure.value, figure.decimals)}{mark}", error(figure.error, figure.decimals), "", ""


def published_marks(table: BenchmarkTable, doubt: str = "doubtful, its note says why") -> list[tuple[str, str]]:
    """Return the marks of published numbers that occur in the table, and their meanings.

    Args:
        table: The table.
        doubt: Meaning of the mark of doubtful numbers.
    """
    cells = [
        (row.figures[task.source], table.is_other_problem(task))
        for row in table.published
        for task in table.tasks
        if task.dequantize == "off" and task.source in row.figures
    ]
    marks = [
        ("†", doubt, any(figure.is_doubted and not is_other for figure, is_other in cells)),
        ("≈", "known roughly", any(figure.is_about for figure, _ in cells)),
        ("‡", f"{_other_in_words(table)} than here: not the same problem", any(is_other for _, is_other in cells)),
    ]
    return [(mark, text) for mark, text, occurs in marks if occurs]


def _other_in_words(table: BenchmarkTable) -> str:
    kinds = {
        "of other columns": any(table.published_columns(task) is not None for task in table.tasks),
        "of other rows": any(table.other_rows(task) for task in table.tasks),
    }
    return " or ".join(text for text, occurs in kinds.items() if occurs)


def letters(row: Published, codes: Mapping[ErrorBar, str]) -> list[str]:
    """Return the letters after a published method: that of its error bar, and m if it is from memory."""
    kind = [codes[row.error_bar]] if row.error_bar in codes else []
    return [*kind, "m"] if row.evidence == "memory" else kind


def error_codes(rows: Sequence[Published]) -> dict[ErrorBar, str]:
    """Return a letter for each kind of error bar that occurs."""
    kinds: list[ErrorBar] = [
        kind for kind in ERROR_BARS if kind != "none" and any(row.error_bar == kind for row in rows)
    ]
    return dict(zip(kinds, "abcde", strict=False))


def _score_lines(table: BenchmarkTable, width: int) -> Iterator[str]:
    codes = error_codes(table.published)
    measured = [(m.label, {t: entry_cell(table, table.entries[t, m.spec]) for t in table.tasks}) for m in table.methods]
    published = []
    for row in table.published:
        figures = {t: row.figures.get(t.source) if t.dequantize == "off" else None for t in table.tasks}
        cells = {t: published_cell(figure, is_other=table.is_other_problem(t)) for t, figure in figures.items()}
        row_letters = ",".join(letters(row, codes))
        published.append((f"{row.label} [{row_letters}]" if row_letters else row.label, cells))
    body = [("measured here", measured), ("published", published)] if published else [("", measured)]
    yield from _blocks(table, body, width)
    if published:
        yield ""
        yield from _wrap([f"[{code}] ± is {ERROR_BARS[kind]}" for kind, code in codes.items()], width, "    ")
        if any(row.evidence == "memory" for row in table.published):
            yield f"[m] {EVIDENCE['memory']}"
        for mark, text in published_marks(table, "doubtful; table.html says why"):
            yield f"{mark} {text}"


def _blocks(
    table: BenchmarkTable,
    body: Sequence[tuple[str, Sequence[tuple[str, dict[Task, _Cell]]]]],
    width: int,
    *,
    sized: bool = True,
) -> Iterator[str]:
    """Lines of the table, in blocks of as many data sets side by side as fit in the width."""
    widths = {
        task: [max((len(cells[task][k]) for _, rows in body for _, cells in rows), default=0) for k in range(4)]
        for task in table.tasks
    }

    def text(task: Task, cell: _Cell) -> str:
        w = widths[task]
        parts = [cell[0].rjust(w[0]), *(cell[k].ljust(w[k]) for k in (1, 2) if w[k])]
        return " ".join(parts) + cell[3].ljust(w[3])

    cells_width = {task: len(text(task, ("", "", "", ""))) for task in table.tasks}
    heads = {task: _head(table, task, cells_width[task], sized) for task in table.tasks}
    full = {task: max(cells_width[task], *map(len, heads[task])) for task in table.tasks}
    longest = max((len(label) for _, rows in body for label, _ in rows), default=0)
    name = min(_NAME, max(16, width // 3), longest)
    blocks: list[list[Task]] = [[]]
    for task in table.tasks:
        used = name + sum(len(_GAP) + full[one] for one in [*blocks[-1], task])
        if blocks[-1] and used > width:
            blocks.append([])
        blocks[-1].append(task)
    for place, block in enumerate(blocks):
        if place:
            yield ""
        height = max(len(heads[task]) for task in block)
        for line in range(height):
            title = "rows x columns" if sized and line == height - 1 else ""
            parts = ([""] * (height - len(heads[task])) + heads[task] for task in block)
            texts = (_GAP + part[line].rjust(full[task]) for part, task in zip(parts, block, strict=True))
            yield (title.ljust(name) + "".join(texts)).rstrip()
        for title, rows in body:
            if title:
                yield f"{title}:"
            for label, cells in rows:
                numbers = (_GAP + text(task, cells[task]).rjust(full[task]) for task in block)
                yield (shorten_middle(label, name).ljust(name) + "".join(numbers)).rstrip()


def _behind_lines(table: BenchmarkTable, width: int) -> Iterator[str]:
    """Lines of the paired differences to the best method; none if methods cannot be compared."""
    if not any(entry.behind is not None for entry in table.entries.values()):
        return
    cells: dict[tuple[Task, str], _Cell] = {}
    for (task, spec), entry in table.entries.items():
        decimals, behind = table.decimals(task), entry.behind
        cells[task, spec] = ("best" if entry.mark == BEST else "", "", "", "")
        if behind is not None:
            size = "" if not math.isfinite(behind.se) else error(behind.se, decimals)
            cells[task, spec] = (number(behind.mean, decimals), size, "", "")
    rows = [(m.label, {task: cells[task, m.spec] for task in table.tasks}) for m in table.methods]
    yield ""
    yield from _wrap(["behind the best in nats, paired row by row; ± the larger of the two standard errors"], width)
    yield from _blocks(table, [("", rows)], width, sized=False)


def effort_rows(table: BenchmarkTable) -> list[list[str]]:
    """Return the costs of each method, the head first: means over runs, from the smallest to the largest data set."""
    rows = [["", "mean rank", "parameters", "steps", "training", "whole process", "runs"]]
    for method in table.methods:
        entries = [table.entries[task, method.spec] for task in table.tasks]
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


def _effort_lines(table: BenchmarkTable, width: int) -> Iterator[str]:
    rows = [[shorten_middle(first, _NAME), *rest] for first, *rest in effort_rows(table)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    yield ""
    yield from _wrap(["means over the runs; smallest to largest data set where they differ"], width)
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
    """Return lines about missing data sets, failures, mismatches with published numbers, and other notes."""
    lines = [f"{name}: {why}" for name, why in table.missing.items()]
    lines += [f"failed: {what}: {reason}" for reason, what in table.failures.items()]
    lines += [*table.mismatches, *table.notes_on_data]
    if table.jobs_left:
        lines.append(f"{table.jobs_left:,} runs are still to be made; the same command continues")
    return [*lines, *table.notes]


def _wrap(lines: Sequence[str], width: int, indent: str = "") -> list[str]:
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    ]


def _head(table: BenchmarkTable, task: Task, width: int, sized: bool) -> list[str]:
    """Lines above the numbers of a data set: name, size, and "dequantized" if it is in the table in both forms."""
    name, _, form = table.labels[task].partition(", ")
    parts = re.sub(r"([-_/ ])", "\\1\n", name).split("\n")
    lines = [""]
    for part in parts:  # a long name is broken after a hyphen
        if lines[-1] and len(lines[-1] + part) > max(width, 12):
            lines.append("")
        lines[-1] += part
    below = ", ".join(part for part in (_size(table, task) if sized else "", form) if part)
    return [*(shorten_middle(line, 26) for line in lines), *([below] if below or sized else [])]


def _size(table: BenchmarkTable, task: Task) -> str:
    known = table.finished_result(task)
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
