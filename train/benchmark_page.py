"""The page of a benchmark: the table, every data set by itself, and where each number comes from."""

import math
from collections.abc import Mapping

from pushforward.evaluate.charts import Dot, dot_plot
from pushforward.evaluate.numbers import NOTHING, count, duration, measured, minus, plain
from pushforward.evaluate.page import (
    Card,
    Child,
    Html,
    cards,
    command,
    details,
    document,
    facts,
    figure,
    in_sections,
    join,
    note,
    table,
    tag,
)
from pushforward.train.benchmark_cells import Column
from pushforward.train.benchmark_methods import Method
from pushforward.train.benchmark_scores import Estimate
from pushforward.train.benchmark_table import BEST, WITHIN, BenchmarkTable, Entry, headline
from pushforward.train.benchmark_text import cell_of, effort_rows, error_codes, letters_of, published_cell, remarks
from pushforward.train.published import ERROR_BARS, EVIDENCE, ErrorBar, Published

GENERATOR = "pushforward benchmark"

_FOOTER = (
    "Written by pushforward benchmark from the files of its folder; table.json beside this page has every number and "
    "the exact command of every run."
)
_PUBLISHED_DOTS = 8
_PUBLISHED_COLOUR = 7


def benchmark_page(found: BenchmarkTable) -> str:
    """The page as text."""
    made: list[tuple[str, str, Child, Child]] = [
        ("scores", "Scores", _scores(found), _how_to_read(found)),
        ("sets", "Data set by data set", _sets(found), _BARS),
        ("effort", "What it took", _effort(found), None),
        ("published", "Published numbers", _published(found), _PUBLISHED),
        ("conditions", "Conditions", _conditions(found), None),
        ("runs", "Every run", _runs(found), None),
    ]
    body = in_sections(_header(found), made, _FOOTER)
    return document(f"Benchmark {found.suite.name}", body, generator=GENERATOR)


_PUBLISHED = (
    "Error bars of the literature are of different kinds: twice the standard error over the test rows of one run is "
    "not the spread of repeated runs. Numbers from memory are leads, to be checked before they are quoted."
)


_BARS = (
    "Bars are two standard errors to either side, the larger of the two kinds. Published numbers are grey, with m "
    "where they are from memory, and have a bar where theirs is known to be a multiple of a standard error."
)


def _header(found: BenchmarkTable) -> Html:
    suite = found.suite
    trouble = [f"{name}: {why}." for name, why in found.missing.items()]
    if found.left:
        trouble.append(f"{count(found.left)} runs are still to come.")
    failed = sum(result.status == "failed" for result in found.results)
    if failed:
        trouble.append(f"{count(failed)} run{'s have' if failed > 1 else ' has'} failed.")
    trouble += [f"{text}." for text in found.mismatches]
    return tag(
        "header",
        tag("p", f"Benchmark of {len(found.methods)} methods on {len(found.columns)} data sets", class_="eyebrow"),
        tag("h1", suite.name),
        tag("p", f"{_sentence(suite.description)} {_sentence(headline(found))}", class_="about"),
        note(" ".join(trouble), "fair") if trouble else None,
        cards([_card(found, column) for column in found.columns if found.best(column) is not None]),
    )


def _card(found: BenchmarkTable, column: Column) -> Card:
    """The best method on a data set, and by how much."""
    best = found.best(column)
    assert best is not None  # the caller has asked
    assert best.score is not None
    value = measured(found.suite.sign * best.score.mean, best.score.se)
    others = [e for (c, _), e in found.entries.items() if c == column and e.behind is not None]
    nearest = min(others, key=lambda e: e.behind.mean if e.behind is not None else math.inf, default=None)
    if nearest is None or nearest.behind is None:
        return Card(found.labels[column], value, "nats", best.method.label)
    gap = nearest.behind
    detail = f"{best.method.label}, ahead of {nearest.method.label} by {measured(gap.mean, gap.se)}"
    if gap.mean > 2 * gap.se:
        return Card(found.labels[column], value, "nats", detail, "good", "clear")
    return Card(found.labels[column], value, "nats", detail, "fair", "within two standard errors")


def _how_to_read(found: BenchmarkTable) -> Child:
    runs = ""
    if any(e.score is not None and math.isfinite(e.score.se_runs) for e in found.entries.values()):
        runs = f", the second over {found.run_word}"
    return (
        f"{_sentence(headline(found))} The first ± is one standard error over the test rows{runs}. Bold: the best of "
        "those measured here; green: within one standard error of it, the larger of the two, of the difference row by "
        "row. Published numbers have the error bars they were published with."
    )


def _scores(found: BenchmarkTable) -> Child:
    head = ["", *(found.labels[column] for column in found.columns)]
    rows: list[list[Child]] = []
    for method in found.methods:
        rows.append([method.label, *(_score(found, found.entries[column, method.spec]) for column in found.columns)])
    reported = found.published
    if reported:
        rows.append([tag("span", "published", class_="same"), *([""] * len(found.columns))])
    codes = error_codes(reported)
    for row in reported:
        rows.append([_name(row, codes), *(_reported(found, row, column) for column in found.columns)])
    sizes = [["rows \u00d7 columns", *(_size(found, column) for column in found.columns)]]
    title = f"Mean test score of every method, {found.suite.units_in_words()}"
    shown = table(title, head, [*sizes, *rows], hide_caption=True)
    said = [f"{code}: ± is {ERROR_BARS[kind]}." for kind, code in codes.items()]
    if any(row.evidence == "memory" for row in reported):
        said.append(f"m: {EVIDENCE['memory']}.")
    return figure(shown, " ".join(said) or None)


def _score(found: BenchmarkTable, entry: Entry) -> Child:
    value, points, runs, _ = cell_of(found, entry)
    value = value.rstrip("*~ ")
    if entry.score is None:
        return tag("span", NOTHING if value == "-" else value, class_="same" if value == "-" else "worse")
    errors = tag("small", minus(" ".join(["", *(part for part in (points, runs) if part)])))
    few = None
    if entry.finished < entry.planned:
        few = tag("small", f" {entry.finished} of {entry.planned}", class_="worse")
    shown: Child = tag("strong", minus(value)) if entry.mark == BEST else minus(value)
    return tag("span", shown, errors, few, class_="better" if entry.mark == WITHIN else None)


def _reported(found: BenchmarkTable, row: Published, column: Column) -> Child:
    figure_of = row.figures.get(column.source) if column.dequantize == "off" else None
    value, error, _, _ = published_cell(figure_of)
    return join([minus(value.strip()), tag("small", f" {error}") if error else None])


def _name(row: Published, codes: Mapping[ErrorBar, str]) -> Html:
    letters = letters_of(row, codes)
    return join([row.label, tag("small", f" {' '.join(letters)}", class_="same") if letters else None])


def _sets(found: BenchmarkTable) -> Child:
    return join([tag("div", _plot(found, column), _behind(found, column), class_="two") for column in found.columns])


def _plot(found: BenchmarkTable, column: Column) -> Child:
    """Methods measured here and the best published ones, best first."""
    sign = found.suite.sign
    dots: list[tuple[float, Dot]] = []
    for place, method in enumerate(found.methods):
        score = found.entries[column, method.spec].score
        if score is not None and math.isfinite(score.mean):
            dots.append((score.mean, Dot(method.label, sign * score.mean, score.se, colour=place)))
    known = [row for row in found.published if column.dequantize == "off" and column.source in row.figures]
    # Those that are doubted would lead every list, and stretch the axis.
    certain = [row for row in known if not row.figures[column.source].is_doubted]
    reported = [(sign * row.figures[column.source].value, row) for row in certain]
    reported.sort(key=lambda pair: -pair[0])
    for value, row in reported[:_PUBLISHED_DOTS]:
        number, error, _, _ = published_cell(row.figures[column.source])
        text = minus(f"{number.strip()} {error}".strip())
        detail = "" if row.evidence == "source" else "m"
        dots.append((value, Dot(row.label, sign * value, row.se(column.source), _PUBLISHED_COLOUR, detail, text)))
    if not dots:
        return figure(tag("p", "Nothing has been measured yet.", class_="missing"), title=found.labels[column])
    dots.sort(key=lambda pair: -pair[0])
    word = "test log-likelihood" if found.suite.score == "log-likelihood" else "test NLL"
    chart = dot_plot(
        [dot for _, dot in dots], label=f"Scores on {found.labels[column]}", x_name=f"{word} (nats), best at the top"
    )
    shown = min(len(reported), _PUBLISHED_DOTS)
    said = f"Of {len(known)} published numbers the {shown} best are shown." if len(known) > shown else None
    if said and len(known) > len(certain):
        said = f"{said[:-1]}, without those that are doubtful."
    return figure(chart, said, title=f"{found.labels[column]}, {_size(found, column)}")


def _behind(found: BenchmarkTable, column: Column) -> Child:
    """What each is behind the best, row by row; and all pairs, to open."""
    entries = [found.entries[column, method.spec] for method in found.methods]
    best = found.best(column)
    if best is None:
        return None
    with_runs = any(entry.behind is not None and math.isfinite(entry.behind.se_runs) for entry in entries)
    body = [
        (
            entry.method.label,
            NOTHING if entry.rank is None else plain(entry.rank),
            "best" if entry.mark == BEST else _difference(entry.behind),
            NOTHING if entry.behind is None else _bare(entry.behind.se_points),
            *([NOTHING if entry.behind is None else _bare(entry.behind.se_runs)] if with_runs else []),
        )
        for entry in sorted(entries, key=lambda e: math.inf if e.rank is None else e.rank)
    ]
    head = ("", "rank", "behind, nats", "se, rows", *([f"se, {found.run_word}"] if with_runs else []))
    title = f"Behind {best.method.label}, paired row by row"
    shown = table(title, head, body)
    some = [method for method in found.methods if (column, method.spec) in found.scores]
    pairs = None
    if len(some) > 2:
        matrix = [(a.label, *(_pair(found, column, a, b) for b in some)) for a in some]
        inside = table("Row above column, in nats", ("row \u2212 column", *(m.label for m in some)), matrix)
        pairs = details("All pairs", inside)
    return figure(join([shown, pairs]), title=f"{found.labels[column]}: paired differences")


def _pair(found: BenchmarkTable, column: Column, first: Method, second: Method) -> Child:
    gap = None if first == second else found.paired(column, first, second)
    return tag("span", "·", class_="same") if gap is None else _difference(gap, signed=True)


def _difference(gap: Estimate | None, *, signed: bool = False) -> Child:
    if gap is None:
        return NOTHING
    known = math.isfinite(gap.mean) and math.isfinite(gap.se) and gap.se > 0
    look = "same"
    if known and abs(gap.mean) > 2 * gap.se:
        look = ("better" if gap.mean > 0 else "worse") if signed else "worse" if gap.mean > 0 else "better"
    return tag("span", measured(gap.mean, gap.se if known else None, signed=signed), class_=look)


def _effort(found: BenchmarkTable) -> Child:
    head, *body = effort_rows(found)
    said = (
        "Means over the runs, from the smallest to the largest data set where they differ. Training is the time in the "
        "loop; the whole process, one for the baselines of a split, also starts Python, reads, validates and scores. "
        "Ranks are means over the data sets on which all methods are compared."
    )
    return figure(table("What each method took", head, body, hide_caption=True), said)


def _published(found: BenchmarkTable) -> Child:
    rows = found.published
    if not rows:
        return None
    codes = error_codes(rows)
    body = [
        (
            row.label,
            row.source,
            "read" if row.evidence == "source" else "memory",
            codes.get(row.error_bar, NOTHING),
            minus(row.note) or NOTHING,
        )
        for row in rows
    ]
    head = ("method", "where from", "evidence", "±", "note")
    title = "Where the published numbers are from"
    shown = table(title, head, body, text_columns=range(5), hide_caption=True)
    memory = sum(row.evidence == "memory" for row in rows)
    legend = tag("ul", *(tag("li", f"{code}: {ERROR_BARS[kind]}") for kind, code in codes.items())) if codes else None
    said = tag("p", f"{len(rows)} rows, {memory} of them {EVIDENCE['memory']}.")
    return join([figure(join([said, legend])), details("Row by row", shown)])


def _conditions(found: BenchmarkTable) -> Child:
    told = found.facts.get("conditions") or {}
    pairs: list[tuple[str, Child]] = [
        ("time of a fit", NOTHING if told.get("seconds") is None else f"{told['seconds']:g} s"),
        ("steps of a fit", NOTHING if told.get("steps") is None else count(told["steps"])),
        ("threads of a fit", str(told.get("threads") or ", ".join(_threads(found)) or NOTHING)),
        ("device", str(told.get("device") or NOTHING)),
        ("protocol", str(told.get("protocol") or NOTHING)),
        ("processor", str(found.facts.get("processor") or NOTHING)),
        ("begun", str(found.facts.get("started") or NOTHING)),
    ]
    peers = found.facts.get("peers") or {}
    pairs += [(name, str(version)) for name, version in peers.items()]
    trouble = remarks(found)
    listed = tag("ul", *(tag("li", text) for text in trouble)) if trouble else None
    return join([figure(facts(pairs)), figure(listed, title="What is missing") if listed else None])


def _runs(found: BenchmarkTable) -> Child:
    names, suite = found.labels, found.suite
    body = []
    for result in found.results:
        scale = result.log_scale if suite.units == "standardized" else 0.0
        score = None if result.log_prob is None else suite.sign * (result.log_prob + scale)
        body.append(
            (
                names.get(result.cell.column, result.source),
                str(result.fold),
                str(result.seed),
                result.method,
                measured(score, result.log_prob_se) if result.status == "finished" else "failed",
                count(result.steps),
                duration(result.wall_seconds),
                result.detail or result.stop_reason or result.reason or NOTHING,
            )
        )
    if not body:
        return None
    head = ("data set", suite.fold_word, "seed", "method", "score", "steps", "time", "what was chosen, why it ended")
    every = table("Every run", head, body, text_columns=(0, 3, 7), hide_caption=True)
    first = {result.method: result.command for result in reversed(found.results) if result.command}
    shown = join(command(text) for text in first.values())
    return join([details(f"{len(body)} runs", every), details("The command of the first run of each method", shown)])


def _size(found: BenchmarkTable, column: Column) -> str:
    known = found.facts_of(column)
    if known is None or known.features is None:
        return NOTHING
    return f"{sum(known.rows.values()):,} \u00d7 {known.features}"


def _threads(found: BenchmarkTable) -> list[str]:
    return sorted({str(result.threads) for result in found.results if result.threads is not None})


def _bare(value: float) -> str:
    return NOTHING if not math.isfinite(value) else f"{value:.2g}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
