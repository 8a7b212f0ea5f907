"""What a benchmark's page says of every data set by itself: who is where, and by how much one is ahead of another."""

import math

from pushforward.benchmark.jobs import Column
from pushforward.benchmark.methods import Method
from pushforward.benchmark.published import Figure, Published
from pushforward.benchmark.scores import Estimate
from pushforward.benchmark.table import BEST, BenchmarkTable
from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import NOTHING, fixed, minus, plain
from pushforward.evaluate.plots.charts import Dot, dot_plot
from pushforward.reports.page import details, figure, table

_PUBLISHED_DOTS = 8
_PUBLISHED_COLOUR = 7


def sets(found: BenchmarkTable) -> Child:
    """The section: for each data set a chart of scores and a table of differences."""
    return join(
        [tag("div", _plot(found, column), _behind(found, column), class_="two top") for column in found.columns]
    )


def bars_in_words(found: BenchmarkTable) -> str:
    """How to read the charts and the differences."""
    two = any(e.score is not None and math.isfinite(e.score.se_runs) for e in found.entries.values())
    kind = " (of the larger of the two kinds)" if two else ""
    said = f"Bars are two standard errors{kind} to either side; behind a number stands one."
    if any(entry.behind is not None for entry in found.entries.values()):
        said += " Differences are coloured where they are larger than two."
    if found.published:
        said += (
            " Published numbers are grey and have a bar where theirs is known to be a multiple of a standard error; "
            "what stands behind them is as published, [m]: from memory."
        )
    return said


def size(found: BenchmarkTable, column: Column) -> str:
    """Rows and columns of a data set; a dash where no run knows them."""
    known = found.facts_of(column)
    if known is None or known.features is None:
        return NOTHING
    return f"{sum(known.rows.values()):,} \u00d7 {known.features}"


def _plot(found: BenchmarkTable, column: Column) -> Child:
    """Methods measured here and the best published ones, best first."""
    sign, decimals = found.suite.sign, found.decimals(column)
    dots: list[tuple[float, Dot]] = []
    for place, method in enumerate(found.methods):
        score = found.entries[column, method.spec].score
        if score is not None and math.isfinite(score.mean):
            text = fixed(sign * score.mean, decimals, score.se)
            dots.append((score.mean, Dot(method.label, sign * score.mean, score.se, colour=place, text=text)))
    known = [row for row in found.published if column.dequantize == "off" and column.source in row.figures]
    other = found.other_columns(column)
    is_other = found.is_other_problem(column)
    # Those that are doubted would lead every list, and stretch the axis.
    certain = [row for row in known if not row.figures[column.source].is_doubted and not is_other]
    reported = [(sign * row.figures[column.source].value, row) for row in certain]
    reported.sort(key=lambda pair: -pair[0])
    dots += [(value, _published_dot(row, column, sign * value)) for value, row in reported[:_PUBLISHED_DOTS]]
    if not dots:
        return figure(tag("p", "Nothing has been measured yet.", class_="missing"), title=found.labels[column])
    dots.sort(key=lambda pair: -pair[0])
    word = "test log-likelihood" if found.suite.score == "log-likelihood" else "test NLL"
    chart = dot_plot(
        [dot for _, dot in dots], label=f"Scores on {found.labels[column]}", x_name=f"{word} (nats), best at the top"
    )
    said = None
    if known and is_other:
        which = "other rows" if other is None else f"{other} columns"
        said = f"The {len(known)} published numbers are of {which}, another problem, and are not drawn."
    elif len(known) > (shown := min(len(reported), _PUBLISHED_DOTS)):
        said = f"Of {len(known)} published numbers the {shown} best are shown"
        said += ", without those that are doubtful." if len(known) > len(certain) else "."
    return figure(chart, said, title=f"{found.labels[column]}, {size(found, column)}")


def _published_dot(row: Published, column: Column, value: float) -> Dot:
    name = row.label if row.evidence == "source" else f"{row.label} [m]"
    text = _as_published(row.figures[column.source])
    return Dot(name, value, row.se(column.source), _PUBLISHED_COLOUR, text=text)


def _as_published(known: Figure) -> str:
    """A published number with the digits it was published with."""
    about = "≈" if known.is_about else ""
    error = "" if known.error is None else f" ± {known.error:.{known.decimals}f}"
    return f"{about}{minus(f'{known.value:.{known.decimals}f}')}{error}"


def _behind(found: BenchmarkTable, column: Column) -> Child:
    """What each is behind the best, row by row; and all pairs, to open."""
    entries = [found.entries[column, method.spec] for method in found.methods]
    best, decimals = found.best(column), found.decimals(column)
    if best is None:
        return None
    with_runs = any(entry.behind is not None and math.isfinite(entry.behind.se_runs) for entry in entries)
    body = [
        (
            entry.method.label,
            NOTHING if entry.rank is None else plain(entry.rank),
            "best" if entry.mark == BEST else _difference(entry.behind, decimals),
            NOTHING if entry.behind is None else fixed(entry.behind.se_points, decimals),
            *([NOTHING if entry.behind is None else fixed(entry.behind.se_runs, decimals)] if with_runs else []),
        )
        for entry in sorted(entries, key=lambda e: math.inf if e.rank is None else e.rank)
    ]
    head = ("", "rank", "behind (nats)", "± rows", *([f"± {found.run_word}"] if with_runs else []))
    title = f"Behind {best.method.label}, paired row by row; ± one standard error over rows"
    title += f" and over {found.run_word}" if with_runs else ""
    shown = table(title, head, body)
    some = [method for method in found.methods if (column, method.spec) in found.scores]
    pairs = None
    if len(some) > 2:
        matrix = [(a.label, *(_pair(found, column, a, b) for b in some)) for a in some]
        inside = table(
            "Score of the row above that of the column, in nats",
            ("row \u2212 column", *(m.label for m in some)),
            matrix,
        )
        pairs = details("All pairs", inside)
    return figure(join([shown, pairs]), title=f"{found.labels[column]}: paired differences")


def _pair(found: BenchmarkTable, column: Column, first: Method, second: Method) -> Child:
    gap = None if first == second else found.paired(column, first, second)
    if gap is None:
        return tag("span", "·", class_="same")
    return _difference(gap, found.decimals(column), signed=True)


def _difference(gap: Estimate | None, decimals: int, *, signed: bool = False) -> Child:
    if gap is None:
        return NOTHING
    known = math.isfinite(gap.mean) and math.isfinite(gap.se) and gap.se > 0
    look = "same"
    if known and abs(gap.mean) > 2 * gap.se:
        look = ("better" if gap.mean > 0 else "worse") if signed else "worse" if gap.mean > 0 else "better"
    return tag("span", fixed(gap.mean, decimals, gap.se if known else None, signed=signed), class_=look)
