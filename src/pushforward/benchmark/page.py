"""The page ``table.html`` of a benchmark: all sections but that on each data set, which is in ``page_sets``."""

import math
from collections.abc import Iterable, Mapping, Sequence

from pushforward.benchmark.entries import BEST, WITHIN
from pushforward.benchmark.jobs import JobResult, Task
from pushforward.benchmark.page_sets import bars_in_words, size, task_sections
from pushforward.benchmark.published import ERROR_BARS, EVIDENCE, ErrorBar, Published
from pushforward.benchmark.suites import score_in_words
from pushforward.benchmark.table import BenchmarkTable
from pushforward.benchmark.text import (
    budget_in_words,
    effort_rows,
    entry_cell,
    error_codes,
    letters,
    published_cell,
    published_marks,
)
from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import NOTHING, count, duration, fixed, measured, minus
from pushforward.reports.page import (
    Card,
    cards,
    command,
    details,
    document,
    facts,
    figure,
    in_sections,
    listed,
    notes,
    table,
)
from pushforward.runs.stop_reasons import stop_reason_in_words

GENERATOR = "pushforward benchmark"

_FOOTER = (
    "Written by pushforward benchmark from the files of its folder; table.json beside this page has every number and "
    "the exact command of every run."
)
Slots = tuple[str, ...]
"""The small text after a number, in aligned slots: mark, first and second standard error, number of runs."""


def benchmark_page(found: BenchmarkTable) -> str:
    """Return the page as HTML."""
    sections: list[tuple[str, str, Child, Child]] = [
        ("scores", "Scores", _scores(found), _how_to_read(found)),
        ("sets", "Data set by data set", task_sections(found), bars_in_words(found)),
        ("effort", "What it took", _effort(found), None),
        ("published", "Published numbers", _published(found), _PUBLISHED),
        ("conditions", "Conditions", _conditions(found), None),
        ("runs", "Every run", _runs(found), None),
    ]
    body = in_sections(_header(found), sections, _FOOTER)
    return document(f"Benchmark {found.suite.name}", body, generator=GENERATOR)


_PUBLISHED = (
    "Error bars of the literature are of different kinds: twice the standard error over the test rows of one run is "
    "not the spread of repeated runs. Numbers from memory are leads, to be checked before they are quoted."
)


def _header(found: BenchmarkTable) -> Html:
    suite = found.suite
    measured_sets = {found.labels[task] for task in found.tasks if found.finished_result(task) is not None}
    # A data set with results may be missing now: a reader of the page does not need it.
    problems = [f"{name}: {why}" for name, why in found.missing.items() if name not in measured_sets]
    if found.jobs_left:
        problems.append(f"{count(found.jobs_left)} run{'s are' if found.jobs_left > 1 else ' is'} still to come")
    failed = sum(result.status == "failed" for result in found.results)
    if failed:
        problems.append(f"{count(failed)} run{'s have' if failed > 1 else ' has'} failed; the reasons are below")
    problems += found.mismatches
    runs = sorted(set(found.planned.values()))
    number = f"{runs[0]} to {runs[-1]}" if len(runs) > 1 else f"{runs[0]}" if runs else "0"
    budget = f"{budget_in_words(found)}; {number} run{'s' if runs != [1] else ''} of each method on a data set"
    methods = f"{len(found.methods)} method{'s' if len(found.methods) != 1 else ''}"
    sets = f"{len(found.tasks)} data set{'s' if len(found.tasks) != 1 else ''}"
    return tag(
        "header",
        tag("p", f"Benchmark of {methods} on {sets}", class_="eyebrow"),
        tag("h1", suite.name),
        tag(
            "p",
            f"{_sentence(suite.description)} {_sentence(score_in_words(found.suite))} {_sentence(budget)}",
            class_="about",
        ),
        notes([f"{text}." for text in problems], "fair"),
        cards([_card(found, task) for task in found.tasks if found.best(task) is not None]),
    )


def _card(found: BenchmarkTable, task: Task) -> Card:
    """The best method on a data set, and its lead."""
    best = found.best(task)
    assert best is not None  # the caller leaves out other data sets
    assert best.score is not None
    value = measured(found.suite.sign * best.score.mean, best.score.se)
    others = [e for (t, _), e in found.entries.items() if t == task and e.behind is not None]
    nearest = min(others, key=lambda e: e.behind.mean if e.behind is not None else math.inf, default=None)
    if nearest is None or nearest.behind is None:
        return Card(found.labels[task], value, "nats", best.method.label)
    gap = nearest.behind
    detail = f"{best.method.label}, {measured(gap.mean, gap.se)} nats ahead of {nearest.method.label}"
    if gap.mean > 2 * gap.se:
        return Card(found.labels[task], value, "nats", detail, "good", "clear lead")
    return Card(found.labels[task], value, "nats", detail, "fair", "lead within two standard errors")


def _how_to_read(found: BenchmarkTable) -> Child:
    two = any(e.score is not None and math.isfinite(e.score.se_runs) for e in found.entries.values())
    sentences = ["± is one standard error over the test rows"]
    if two:
        sentences = [f"The first ± is one standard error over the test rows, the second over {found.runs_in_words}"]
    if any(entry.mark == BEST for entry in found.entries.values()):
        which = " (the larger of the two)" if two else ""
        sentences.append(
            f"Bold: the best of those measured here. Green, with ~: within one standard error{which} of it, of the "
            "difference row by row"
        )
    if found.published:
        sentences.append("Published numbers have the error bars they were published with")
    return f"{_sentence(score_in_words(found.suite))} {'. '.join(sentences)}."


def _scores(found: BenchmarkTable) -> Child:
    published, codes = found.published, error_codes(found.published)
    measured_cells = {task: [_measured_cell(found, task, m.spec) for m in found.methods] for task in found.tasks}
    published_cells = {task: [_published_cell(found, row, task) for row in published] for task in found.tasks}
    cells = {task: _align([*measured_cells[task], *published_cells[task]]) for task in found.tasks}
    rows: list[list[Child]] = [["rows \u00d7 columns", *(size(found, task) for task in found.tasks)]]
    groups = []
    for place, method in enumerate(found.methods):
        rows.append([method.label, *(cells[task][place] for task in found.tasks)])
    if published:
        groups.append(len(rows))
        rows.append(["published", *([""] * len(found.tasks))])
    for place, row in enumerate(published, start=len(found.methods)):
        rows.append([_name(row, codes), *(cells[task][place] for task in found.tasks)])
    title = f"Mean test score of every method, {found.suite.units_in_words()}"
    head = ["", *(found.labels[task] for task in found.tasks)]
    shown = table(title, head, rows, group_rows=groups, hide_caption=True)
    legend = [f"{code}: ± is {ERROR_BARS[kind]}." for kind, code in codes.items()]
    if any(row.evidence == "memory" for row in published):
        legend.append(f"m: {EVIDENCE['memory']}.")
    legend += [f"{mark}: {text}." for mark, text in published_marks(found, "doubtful, as its note below says")]
    return figure(shown, " ".join(legend) or None)


def _measured_cell(found: BenchmarkTable, task: Task, spec: str) -> tuple[Child, Slots, str]:
    """The cell of a measured score: the number, the text after it, and its CSS class."""
    entry = found.entries[task, spec]
    value, points, runs, _ = entry_cell(found, entry)
    value = value.rstrip("*~ ")
    if entry.score is None:
        return (NOTHING, (), "same") if value == "-" else (value, (), "worse")
    finished = f"{entry.finished} of {entry.planned}" if entry.finished < entry.planned else ""
    mark = "~" if entry.mark == WITHIN else ""
    number = tag("strong", minus(value)) if entry.mark == BEST else minus(value)
    return number, (mark, minus(points), minus(runs), finished), "better" if entry.mark == WITHIN else ""


def _published_cell(found: BenchmarkTable, row: Published, task: Task) -> tuple[Child, Slots, str]:
    """The same for a published number."""
    known = row.figures.get(task.source) if task.dequantize == "off" else None
    is_other = found.is_other_problem(task)
    value, error, _, _ = published_cell(known, is_other=is_other)
    mark = value[-1:].strip("0123456789.")
    return minus(value.rstrip("†‡ ")), (mark.strip(), error, "", ""), "same" if is_other else ""


def _align(cells: Sequence[tuple[Child, Slots, str]]) -> list[Child]:
    """Align the cells of a column: numbers end at the same place, whatever text comes after them."""
    widths = [max((len(slots[k]) for _, slots, _ in cells if slots), default=0) for k in range(4)]

    def behind(slots: Slots) -> Iterable[Child]:
        for k, width in enumerate(widths):
            if width:
                # Marks are wider than the digits that the unit ch counts.
                room = f"min-width:calc({width + 0.5}ch + .4em)"
                yield tag("small", slots[k] if slots else "", class_="errors", style=room)

    return [tag("span", number, *behind(slots), class_=look or None) if number else "" for number, slots, look in cells]


def _name(row: Published, codes: Mapping[ErrorBar, str]) -> Html:
    codes_of_row = letters(row, codes)
    return join([row.label, tag("small", f" {' '.join(codes_of_row)}", class_="same") if codes_of_row else None])


def _effort(found: BenchmarkTable) -> Child:
    head, *body = effort_rows(found)
    caption = (
        "Means over the runs, from the smallest to the largest data set where they differ. Training is the time in the "
        "loop; the whole process, one for the baselines of a split, also starts Python, reads, validates and scores. "
        "Ranks are means over the data sets on which all methods are compared."
    )
    return figure(table("What each method took", head, body, hide_caption=True), caption)


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
    origin = {
        0: f"All {len(rows)} rows were read in a source.",
        len(rows): f"All {len(rows)} rows: {EVIDENCE['memory']}.",
    }
    summary = origin.get(memory, f"{len(rows)} rows, {memory} of them {EVIDENCE['memory']}.")
    return join([figure(listed([summary, *(f"{code}: ± is {ERROR_BARS[kind]}." for kind, code in codes.items())])),
                 details(f"Row by row ({len(rows)})", shown)])  # fmt: skip


def _conditions(found: BenchmarkTable) -> Child:
    conditions = found.facts.get("conditions") or {}
    known: list[tuple[str, Child | None]] = [
        ("time of a fit", None if conditions.get("seconds") is None else f"{conditions['seconds']:g} s"),
        ("steps of a fit", None if conditions.get("steps") is None else count(conditions["steps"])),
        ("threads of a fit", str(conditions.get("threads") or ", ".join(_threads(found)) or NOTHING)),
        ("device", str(conditions.get("device") or NOTHING)),
        ("division of the rows", _division(str(conditions.get("protocol") or "none"))),
        ("processor", str(found.facts.get("processor") or NOTHING)),
        ("started", _format_time(str(found.facts.get("started") or NOTHING))),
    ]
    used = {method.spec.partition(":")[0] for method in found.methods}
    peers = found.facts.get("peers") or {}
    known += [(f"version of {name}", str(version)) for name, version in peers.items() if name in used]
    pairs = [(name, value) for name, value in known if value is not None]
    more = [f"Failed: {what}: {reason}" for reason, what in found.failures.items()]
    more += [*found.notes_on_data, *found.notes]
    shown = figure(listed([_sentence(text) for text in more]), title="What else to know") if more else None
    return join([figure(facts(pairs)), shown])


def _division(protocol: str) -> str:
    return {
        "none": "at random",
        "rnade": "ten folds (rnade)",
        "half": "random halves (half)",
        "tenths": "last tenth for testing (tenths)",
    }.get(protocol, protocol)


def _format_time(started: str) -> str:
    """Format a recorded time as day and minutes; unchanged unless it is in UTC."""
    day, _, time = started.partition("T")
    return f"{day} {time[:5]} UTC" if time.endswith("+00:00") else started


def _runs(found: BenchmarkTable) -> Child:
    names, suite = found.labels, found.suite
    methods = {method.spec: method.label for method in found.methods}
    body = []
    for result in found.results:
        scale = result.log_scale if suite.units == "standardized" else 0.0
        score = None if result.log_prob is None else suite.sign * (result.log_prob + scale)
        known = result.job.task in names
        shown = fixed(score, found.decimals(result.job.task) if known else None, result.log_prob_se)
        body.append(
            (
                names.get(result.job.task, result.source),
                str(result.fold),
                str(result.seed),
                methods.get(result.method, result.method),
                shown if result.status == "finished" else "failed",
                count(result.steps),
                duration(result.wall_seconds),
                _outcome(result),
            )
        )
    if not body:
        return None
    head = ("data set", suite.fold_word, "seed", "method", "score (nats)", "steps", "time", "outcome")
    every = table("Every run", head, body, text_columns=(0, 3, 7), hide_caption=True)
    first = {result.method: result.command for result in reversed(found.results) if result.command}
    # The baselines of a division share one command.
    commands = join(command(text) for text in dict.fromkeys(first.values()))
    return join([
        details(f"{len(body)} run{'s' if len(body) != 1 else ''}", every),
        details("The command of the first run of each method", commands),
    ])  # fmt: skip


def _outcome(result: JobResult) -> str:
    """The fitted model or the chosen settings, and why training ended."""
    if result.status != "finished":
        return result.reason or NOTHING
    if result.detail:
        return result.detail
    ended = stop_reason_in_words(result.stop_reason) if result.stop_reason else ""
    return "; ".join(text for text in (result.flow.replace(" x ", " \u00d7 "), ended) if text) or NOTHING


def _threads(found: BenchmarkTable) -> list[str]:
    return sorted({str(result.threads) for result in found.results if result.threads is not None})


def _sentence(text: str) -> str:
    end = "" if text.endswith(("?", "!", ".")) else "."
    return f"{text[0].upper()}{text[1:]}{end}"
