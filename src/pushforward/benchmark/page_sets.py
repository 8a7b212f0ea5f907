"""The section on each data set of a benchmark's page: a chart of the scores and tables of paired differences."""

import math

from pushforward.benchmark.entries import BEST
from pushforward.benchmark.jobs import Task
from pushforward.benchmark.methods import Method
from pushforward.benchmark.published import Figure, Published
from pushforward.benchmark.scores import Estimate
from pushforward.benchmark.table import BenchmarkTable
from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import NOTHING, fixed, minus, plain
from pushforward.evaluate.plots.charts import Dot, dot_plot
from pushforward.reports.page import details, figure, table

_PUBLISHED_DOTS = 8
_PUBLISHED_COLOUR = 7


def task_sections(found: BenchmarkTable) -> Child:
    """Return the section: for each data set a chart of scores and a table of differences."""
    return join([tag("div", _plot(found, task), _behind(found, task), class_="two top") for task in found.tasks])


def bars_in_words(found: BenchmarkTable) -> str:
    """Return how to read the charts and the differences."""
    two = any(e.score is not None and math.isfinite(e.score.se_runs) for e in found.entries.values())
    kind = " (of the larger of the two kinds)" if two else ""
    text = f"Bars are two standard errors{kind} to either side; the ± after a number is one."
    if any(entry.behind is not None for entry in found.entries.values()):
        text += " Differences of more than two are coloured."
    if found.published:
        text += (
            " Published numbers are grey, with a bar if theirs is a known multiple of a standard error; the ± after "
            "them is as published; [m]: from memory."
        )
    return text


def size(found: BenchmarkTable, task: Task) -> str:
    """Return the number of rows and columns of a data set; a dash if no run has finished."""
    known = found.finished_result(task)
    if known is None or known.features is None:
        return NOTHING
    return f"{sum(known.rows.values()):,} \u00d7 {known.features}"


def _plot(found: BenchmarkTable, task: Task) -> Child:
    """Chart of the methods measured here and of the best published ones, best first."""
    sign, decimals = found.suite.sign, found.decimals(task)
    dots: list[tuple[float, Dot]] = []
    for place, method in enumerate(found.methods):
        score = found.entries[task, method.spec].score
        if score is not None and math.isfinite(score.mean):
            text = fixed(sign * score.mean, decimals, score.se)
            dots.append((score.mean, Dot(method.label, sign * score.mean, score.se, colour=place, text=text)))
    known = [row for row in found.published if task.dequantize == "off" and task.source in row.figures]
    other = found.published_columns(task)
    is_other = found.is_other_problem(task)
    # Doubtful numbers would lead every list and stretch the axis.
    certain = [row for row in known if not row.figures[task.source].is_doubted and not is_other]
    published = [(sign * row.figures[task.source].value, row) for row in certain]
    published.sort(key=lambda pair: -pair[0])
    dots += [(value, _published_dot(row, task, sign * value)) for value, row in published[:_PUBLISHED_DOTS]]
    if not dots:
        return figure(tag("p", "Nothing has been measured yet.", class_="missing"), title=found.labels[task])
    dots.sort(key=lambda pair: -pair[0])
    word = "test log-likelihood" if found.suite.score == "log-likelihood" else "test NLL"
    chart = dot_plot(
        [dot for _, dot in dots], label=f"Scores on {found.labels[task]}", x_name=f"{word} (nats), best at the top"
    )
    caption = None
    if known and is_other:
        which = "other rows" if other is None else f"{other} columns"
        caption = f"The {len(known)} published numbers are of {which}, another problem, and are not drawn."
    elif len(known) > (shown := min(len(published), _PUBLISHED_DOTS)):
        caption = f"Of {len(known)} published numbers the {shown} best are shown"
        caption += ", without those that are doubtful." if len(known) > len(certain) else "."
    return figure(chart, caption, title=f"{found.labels[task]}, {size(found, task)}")


def _published_dot(row: Published, task: Task, value: float) -> Dot:
    name = row.label if row.evidence == "source" else f"{row.label} [m]"
    text = _as_published(row.figures[task.source])
    return Dot(name, value, row.se(task.source), _PUBLISHED_COLOUR, text=text)


def _as_published(known: Figure) -> str:
    """Format a published number with its published digits."""
    about = "≈" if known.is_about else ""
    error = "" if known.error is None else f" ± {known.error:.{known.decimals}f}"
    return f"{about}{minus(f'{known.value:.{known.decimals}f}')}{error}"


def _behind(found: BenchmarkTable, task: Task) -> Child:
    """Tables of the paired differences to the best method, and of all pairs, which is folded."""
    entries = [found.entries[task, method.spec] for method in found.methods]
    best, decimals = found.best(task), found.decimals(task)
    if best is None:
        return None
    with_runs = any(entry.behind is not None and math.isfinite(entry.behind.se_runs) for entry in entries)
    body = [
        (
            entry.method.label,
            NOTHING if entry.rank is None else plain(entry.rank),
            "best" if entry.mark == BEST else _difference(entry.behind, decimals),
            NOTHING if entry.behind is None else fixed(entry.behind.se_rows, decimals),
            *([NOTHING if entry.behind is None else fixed(entry.behind.se_runs, decimals)] if with_runs else []),
        )
        for entry in sorted(entries, key=lambda e: math.inf if e.rank is None else e.rank)
    ]
    head = ("", "rank", "behind (nats)", "± rows", *([f"± {found.run_word}"] if with_runs else []))
    title = f"Behind {best.method.label}, paired row by row; ± one standard error over rows"
    title += f" and over {found.run_word}" if with_runs else ""
    shown = table(title, head, body)
    measured = [method for method in found.methods if (task, method.spec) in found.scores]
    pairs = None
    if len(measured) > 2:
        matrix = [(a.label, *(_pair(found, task, a, b) for b in measured)) for a in measured]
        inside = table(
            "Score of the row above that of the column, in nats",
            ("row \u2212 column", *(m.label for m in measured)),
            matrix,
        )
        pairs = details("All pairs", inside)
    return figure(join([shown, pairs]), title=f"{found.labels[task]}: paired differences")


def _pair(found: BenchmarkTable, task: Task, first: Method, second: Method) -> Child:
    gap = None if first == second else found.paired(task, first, second)
    if gap is None:
        return tag("span", "·", class_="same")
    return _difference(gap, found.decimals(task), signed=True)


def _difference(gap: Estimate | None, decimals: int, *, signed: bool = False) -> Child:
    """A difference, coloured if larger than two standard errors; unsigned, it is how far a method is behind."""
    if gap is None:
        return NOTHING
    known = math.isfinite(gap.mean) and math.isfinite(gap.se) and gap.se > 0
    look = "same"
    if known and abs(gap.mean) > 2 * gap.se:
        look = ("better" if gap.mean > 0 else "worse") if signed else "worse" if gap.mean > 0 else "better"
    return tag("span", fixed(gap.mean, decimals, gap.se if known else None, signed=signed), class_=look)
