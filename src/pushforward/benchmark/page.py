"""The page of a benchmark: the table, every data set by itself, and where each number comes from."""

import math
from collections.abc import Iterable, Mapping, Sequence

from pushforward.benchmark.jobs import Column, Result
from pushforward.benchmark.page_sets import bars_in_words, sets, size
from pushforward.benchmark.published import ERROR_BARS, EVIDENCE, ErrorBar, Published
from pushforward.benchmark.table import BEST, WITHIN, BenchmarkTable, headline
from pushforward.benchmark.text import (
    budget_in_words,
    cell_of,
    effort_rows,
    error_codes,
    letters_of,
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
"""What stands in small letters behind a number, each in a place of its own: mark, first and second error, runs."""


def benchmark_page(found: BenchmarkTable) -> str:
    """The page as text."""
    made: list[tuple[str, str, Child, Child]] = [
        ("scores", "Scores", _scores(found), _how_to_read(found)),
        ("sets", "Data set by data set", sets(found), bars_in_words(found)),
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


def _header(found: BenchmarkTable) -> Html:
    suite = found.suite
    measured_sets = {found.labels[column] for column in found.columns if found.facts_of(column) is not None}
    # What is not there any more, but was when it was measured, is missed by nobody who reads.
    trouble = [f"{name}: {why}" for name, why in found.missing.items() if name not in measured_sets]
    if found.left:
        trouble.append(f"{count(found.left)} run{'s are' if found.left > 1 else ' is'} still to come")
    failed = sum(result.status == "failed" for result in found.results)
    if failed:
        trouble.append(f"{count(failed)} run{'s have' if failed > 1 else ' has'} failed; why is told below")
    trouble += found.mismatches
    runs = sorted(set(found.planned.values()))
    each = f"{runs[0]} to {runs[-1]}" if len(runs) > 1 else f"{runs[0]}" if runs else "0"
    taken = f"{budget_in_words(found)}; {each} run{'s' if runs != [1] else ''} of each method on a data set"
    methods = f"{len(found.methods)} method{'s' if len(found.methods) != 1 else ''}"
    columns = f"{len(found.columns)} data set{'s' if len(found.columns) != 1 else ''}"
    return tag(
        "header",
        tag("p", f"Benchmark of {methods} on {columns}", class_="eyebrow"),
        tag("h1", suite.name),
        tag("p", f"{_sentence(suite.description)} {_sentence(headline(found))} {_sentence(taken)}", class_="about"),
        notes([f"{text}." for text in trouble], "fair"),
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
    detail = f"{best.method.label}, {measured(gap.mean, gap.se)} nats ahead of {nearest.method.label}"
    if gap.mean > 2 * gap.se:
        return Card(found.labels[column], value, "nats", detail, "good", "clear lead")
    return Card(found.labels[column], value, "nats", detail, "fair", "lead within two standard errors")


def _how_to_read(found: BenchmarkTable) -> Child:
    two = any(e.score is not None and math.isfinite(e.score.se_runs) for e in found.entries.values())
    said = ["± is one standard error over the test rows"]
    if two:
        said = [f"The first ± is one standard error over the test rows, the second over {found.runs_in_words}"]
    if any(entry.mark == BEST for entry in found.entries.values()):
        which = " (the larger of the two)" if two else ""
        said.append(
            f"Bold: the best of those measured here. Green, with ~: within one standard error{which} of it, of the "
            "difference row by row"
        )
    if found.published:
        said.append("Published numbers have the error bars they were published with")
    return f"{_sentence(headline(found))} {'. '.join(said)}."


def _scores(found: BenchmarkTable) -> Child:
    reported, codes = found.published, error_codes(found.published)
    mine = {column: [_score(found, column, method.spec) for method in found.methods] for column in found.columns}
    theirs = {column: [_reported(found, row, column) for row in reported] for column in found.columns}
    shown_cells = {column: _aligned([*mine[column], *theirs[column]]) for column in found.columns}
    rows: list[list[Child]] = [["rows \u00d7 columns", *(size(found, column) for column in found.columns)]]
    groups = []
    for place, method in enumerate(found.methods):
        rows.append([method.label, *(shown_cells[column][place] for column in found.columns)])
    if reported:
        groups.append(len(rows))
        rows.append(["published", *([""] * len(found.columns))])
    for place, row in enumerate(reported, start=len(found.methods)):
        rows.append([_name(row, codes), *(shown_cells[column][place] for column in found.columns)])
    title = f"Mean test score of every method, {found.suite.units_in_words()}"
    head = ["", *(found.labels[column] for column in found.columns)]
    shown = table(title, head, rows, group_rows=groups, hide_caption=True)
    said = [f"{code}: ± is {ERROR_BARS[kind]}." for kind, code in codes.items()]
    if any(row.evidence == "memory" for row in reported):
        said.append(f"m: {EVIDENCE['memory']}.")
    said += [f"{mark}: {text}." for mark, text in published_marks(found, "doubtful, as its note below says")]
    return figure(shown, " ".join(said) or None)


def _score(found: BenchmarkTable, column: Column, spec: str) -> tuple[Child, Slots, str]:
    """A number that was measured here: itself, what stands behind it, and its look."""
    entry = found.entries[column, spec]
    value, points, runs, _ = cell_of(found, entry)
    value = value.rstrip("*~ ")
    if entry.score is None:
        return (NOTHING, (), "same") if value == "-" else (value, (), "worse")
    few = f"{entry.finished} of {entry.planned}" if entry.finished < entry.planned else ""
    mark = "~" if entry.mark == WITHIN else ""
    number = tag("strong", minus(value)) if entry.mark == BEST else minus(value)
    return number, (mark, minus(points), minus(runs), few), "better" if entry.mark == WITHIN else ""


def _reported(found: BenchmarkTable, row: Published, column: Column) -> tuple[Child, Slots, str]:
    known = row.figures.get(column.source) if column.dequantize == "off" else None
    is_other = found.is_other_problem(column)
    value, error, _, _ = published_cell(known, is_other=is_other)
    mark = value[-1:].strip("0123456789.")
    return minus(value.rstrip("†‡ ")), (mark.strip(), error, "", ""), "same" if is_other else ""


def _aligned(cells: Sequence[tuple[Child, Slots, str]]) -> list[Child]:
    """Cells of a column whose numbers end in one line, whatever stands behind them."""
    widths = [max((len(slots[k]) for _, slots, _ in cells if slots), default=0) for k in range(4)]

    def behind(slots: Slots) -> Iterable[Child]:
        for k, width in enumerate(widths):
            if width:
                # Marks are wider than digits, by which they are counted.
                room = f"min-width:calc({width + 0.5}ch + .4em)"
                yield tag("small", slots[k] if slots else "", class_="errors", style=room)

    return [tag("span", number, *behind(slots), class_=look or None) if number else "" for number, slots, look in cells]


def _name(row: Published, codes: Mapping[ErrorBar, str]) -> Html:
    letters = letters_of(row, codes)
    return join([row.label, tag("small", f" {' '.join(letters)}", class_="same") if letters else None])


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
    how = {0: f"All {len(rows)} rows were read in a source.", len(rows): f"All {len(rows)} rows: {EVIDENCE['memory']}."}
    said = how.get(memory, f"{len(rows)} rows, {memory} of them {EVIDENCE['memory']}.")
    return join([figure(listed([said, *(f"{code}: ± is {ERROR_BARS[kind]}." for kind, code in codes.items())])),
                 details(f"Row by row ({len(rows)})", shown)])  # fmt: skip


def _conditions(found: BenchmarkTable) -> Child:
    told = found.facts.get("conditions") or {}
    known: list[tuple[str, Child | None]] = [
        ("time of a fit", None if told.get("seconds") is None else f"{told['seconds']:g} s"),
        ("steps of a fit", None if told.get("steps") is None else count(told["steps"])),
        ("threads of a fit", str(told.get("threads") or ", ".join(_threads(found)) or NOTHING)),
        ("device", str(told.get("device") or NOTHING)),
        ("division of the rows", _division(str(told.get("protocol") or "none"))),
        ("processor", str(found.facts.get("processor") or NOTHING)),
        ("begun", _when(str(found.facts.get("started") or NOTHING))),
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


def _when(started: str) -> str:
    """A time as people write it; as it is recorded, where that is in another way."""
    day, _, time = started.partition("T")
    return f"{day} {time[:5]} UTC" if time.endswith("+00:00") else started


def _runs(found: BenchmarkTable) -> Child:
    names, suite = found.labels, found.suite
    methods = {method.spec: method.label for method in found.methods}
    body = []
    for result in found.results:
        scale = result.log_scale if suite.units == "standardized" else 0.0
        score = None if result.log_prob is None else suite.sign * (result.log_prob + scale)
        known = result.cell.column in names
        shown = fixed(score, found.decimals(result.cell.column) if known else None, result.log_prob_se)
        body.append(
            (
                names.get(result.cell.column, result.source),
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
    head = ("data set", suite.fold_word, "seed", "method", "score (nats)", "steps", "time", "what came of it")
    every = table("Every run", head, body, text_columns=(0, 3, 7), hide_caption=True)
    first = {result.method: result.command for result in reversed(found.results) if result.command}
    # Baselines of one division come from one command.
    shown_commands = join(command(text) for text in dict.fromkeys(first.values()))
    return join([
        details(f"{len(body)} run{'s' if len(body) != 1 else ''}", every),
        details("The command of the first run of each method", shown_commands),
    ])  # fmt: skip


def _outcome(result: Result) -> str:
    """What was fitted or chosen, and why it ended."""
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
