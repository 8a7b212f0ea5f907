"""The page of a comparison: who is best, whether that is clear, and where the difference comes from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import count, decimals_of, duration, fixed, measured, significant
from pushforward.evaluate.plots.axes import Array
from pushforward.evaluate.plots.charts import Dot, Series, dot_plot, histogram, line_chart
from pushforward.reports.page import Card, cards, document, figure, in_sections, note, table
from pushforward.reports.run import in_plain_words, write_page
from pushforward.reports.sections.training import errors_at
from pushforward.runs.comparison import NO_DIFFERENCE, Comparison, Difference
from pushforward.runs.record import number

GENERATOR = "pushforward compare"

MATRIX = 8
"""Runs whose pairs are all shown; of more, each is compared with the best."""

_FOOTER = (
    "Written by pushforward compare from the files of the run folders. Likelihoods are in nats and in the units of the "
    "data; ± is one standard error."
)

_ROWS = 10
_BINS = 41


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the page of a comparison.

    Args:
        comparison: The runs.
        out: The file to write. One that is there must be an earlier comparison.

    Raises:
        RunUsageError: If something else is in its place.
        RunError: If it cannot be written.
    """
    return write_page(out, comparison_page(comparison), GENERATOR)


def comparison_page(comparison: Comparison) -> str:
    """The page of a comparison as text."""
    made: list[tuple[str, str, Child, str]] = [
        ("likelihood", "Test likelihood", _likelihood(comparison), ""),
        ("differences", "Paired differences", _differences(comparison), _PAIRED),
        ("curves", "Validation while fitting", _curves(comparison), ""),
        ("where", "Where the difference comes from", _where(comparison), ""),
        ("configuration", "What was configured differently", _configuration(comparison), ""),
    ]
    names = [one.label for one in comparison.contenders]
    body = in_sections(_header(comparison, names), made, _FOOTER)
    return document(f"{comparison.contenders[0].record.dataset}: {' · '.join(names)}", body, generator=GENERATOR)


_PAIRED = (
    "Test NLL of the run in the row minus that of the run in the column, row by row on the same test rows. "
    "Negative: the run in the row is better."
)


def _header(comparison: Comparison, names: Sequence[str]) -> Html:
    rows = len(comparison.contenders[0].rows)
    dataset = comparison.contenders[0].record.dataset
    others = [i for i in range(len(names)) if i != comparison.best]
    clear = all(comparison.difference(i, comparison.best).clear for i in others)
    verdict = comparison.verdict()
    return tag(
        "header",
        tag("p", f"Comparison of {len(names)} runs", class_="eyebrow"),
        tag("h1", dataset),
        tag("p", f"{', '.join(names)} · the same {count(rows)} test rows", class_="about"),
        note(f"{verdict}.", "good" if clear else "fair"),
        cards([_card(comparison, place) for place in range(len(names))]) if len(names) <= MATRIX else None,
    )


def _card(comparison: Comparison, place: int) -> Card:
    one, gap = comparison.contenders[place], comparison.difference(place, comparison.best)
    time = duration(number(one.record.results, "seconds"))
    about = f"{one.record.flow}, {count(number(one.record.results, 'parameters'))} parameters, {time}"
    if place == comparison.winner:
        others = [comparison.difference(i, place) for i in range(len(comparison.contenders)) if i != place]
        verdict, word = ("good", "best") if all(gap.clear for gap in others) else ("", "lowest, not clearly")
        return Card(one.label, measured(one.test_nll, one.test_nll_se), "nats", about, verdict, word)
    if place in comparison.leaders:
        word = NO_DIFFERENCE if len(comparison.leaders) > 1 else ""
        return Card(one.label, measured(one.test_nll, one.test_nll_se), "nats", about, "", word)
    word = f"{measured(gap.nats, gap.se, signed=True)} nats above"
    return Card(one.label, measured(one.test_nll, one.test_nll_se), "nats", about, "bad" if gap.clear else "fair", word)


def _likelihood(comparison: Comparison) -> Child:
    head, *body = comparison.table()
    dots = [
        Dot(one.label, one.test_nll, one.test_nll_se, colour=place) for place, one in enumerate(comparison.contenders)
    ]
    gaps = []
    for place, one in enumerate(comparison.contenders):
        gap = comparison.difference(place, comparison.best)
        if place != comparison.best:
            gaps.append(Dot(one.label, gap.nats, gap.se, colour=place))
    best = comparison.contenders[comparison.best].label
    both = [
        figure(
            dot_plot(dots, label="Test NLL of the runs", x_name="test NLL (nats)"),
            "Each run by itself; bars are two standard errors to either side.",
            title="Test NLL",
        ),
        figure(
            dot_plot(
                gaps,
                label=f"Test NLL above that of {best}, paired",
                x_name=f"nats; right of zero worse than {best}",
                zero=True,
                signed=True,
            ),
            "Paired, row by row: the same rows are hard for all, so differences are known better than the numbers.",
            title=f"Test NLL above that of {best}",
        ),
    ]
    strong = comparison.winner
    if len({row[1] for row in body}) == 1:  # which the heading of the page says
        head, body = [head[0], *head[2:]], [[row[0], *row[2:]] for row in body]
    texts = tuple(place for place, name in enumerate(head) if name in ("run", "data set", "flow"))
    shown = table("The runs", head, body, text_columns=texts, strong_row=strong, hide_caption=True)
    said = "NLL in nats and data units, ± one standard error; se: standard errors of the paired difference."
    return join([tag("div", *both, class_="two"), figure(shown, said)])


def _differences(comparison: Comparison) -> Child:
    names = [one.label for one in comparison.contenders]
    many = len(names) > MATRIX
    columns = [comparison.best] if many else list(range(len(names)))
    gaps = {(i, j): comparison.difference(i, j) for i in range(len(names)) for j in columns if i != j}
    digits = decimals_of(gap.se for gap in gaps.values())
    body = [(names[i], *(_cell(gaps.get((i, j)), digits) for j in columns)) for i in range(len(names))]
    title = "Difference of test NLL, in nats, with its paired standard error"
    shown = table(title, ("row minus column", *(names[j] for j in columns)), body)
    said = "Coloured where the difference is two standard errors (se) or more."
    if many:
        said += f" Each of the {len(names)} runs is compared with the best."
    return figure(shown, said)


def _cell(gap: Difference | None, digits: int | None) -> Child:
    if gap is None:
        return tag("span", "·", class_="same")
    if gap.none:
        return tag("span", NO_DIFFERENCE, class_="same")
    look = "same" if not gap.clear else "better" if gap.nats < 0 else "worse"
    errors = gap.standard_errors
    small = tag("small", f" {abs(errors):.1f} se") if errors is not None else None
    return tag("span", fixed(gap.nats, digits, gap.se, signed=True), small, class_=look)


def _curves(comparison: Comparison) -> Child:
    out, two = list[Html](), len(comparison.contenders) == 2
    for axis, name in (("seconds", "seconds of fitting"), ("step", "step")):
        series = list[Series]()
        ceiling = -np.inf  # where the fits began: what overfits beyond that needs no room
        for place, one in enumerate(comparison.contenders):
            x, y = one.record.curve("val/nll", axis)
            if len(y):
                ceiling = max(ceiling, float(y[0]))
                error = errors_at(one.record, one.record.curve("val/nll")[0])
                # More than two bands over each other cannot be told apart.
                error = error if error is not None and len(error) == len(y) and two else None
                series.append(Series(one.label, x, y, error=error, colour=place, dash=place // 8))
        if series:
            chart = line_chart(series, label=f"Validation NLL against {name}, one curve a run", x_name=name,
                               y_name="validation NLL (nats)", settle=True, ceiling=ceiling, height=300)  # fmt: skip
            has_bands = any(one.error is not None for one in series)
            said = "Bands are one standard error to either side." if has_bands else None
            out.append(figure(chart, said, title=f"Against {name}"))
    if not out:
        return tag("p", "None of the runs has recorded its validation.", class_="missing")
    return tag("div", *out, class_="two")


def _where(comparison: Comparison) -> Child:
    """The two best runs, row by row."""
    order = sorted(range(len(comparison.contenders)), key=lambda i: (i != comparison.best, _last(comparison, i)))
    first, second = (comparison.contenders[i] for i in order[:2])
    with np.errstate(invalid="ignore"):
        gains = first.log_probs - second.log_probs
    finite = np.isfinite(gains)
    if not finite.any():
        return tag("p", "No test row has a finite density under both runs.", class_="missing")
    if not gains[finite].any():
        return tag("p", f"{first.label} and {second.label} give every row the same density.", class_="missing")
    edges, counts = _bins(gains[finite])
    share = float((gains[finite] > 0).mean())
    shown = histogram(
        edges, counts, label=f"Histogram of log-density under {first.label} minus that under {second.label}",
        x_name="nats", y_name="test rows",
    )  # fmt: skip
    said = (
        f"Log-density under {first.label} minus that under {second.label}, one count a test row: {first.label} finds "
        f"{100 * share:.0f} % of the rows more likely. The outermost bins hold all that lies beyond."
    )
    if not finite.all():
        said += f" {count(int((~finite).sum()))} rows without a finite density are left out."
    places = np.flatnonzero(finite)[np.argsort(-np.abs(gains[finite]), kind="stable")][:_ROWS]
    total = float(gains[finite].sum())
    digits = max(2, decimals_of(np.abs(gains[places][gains[places] != 0]).tolist()) or 2)
    body = [
        (
            count(int(first.rows[i])),
            fixed(float(first.log_probs[i]), digits),
            fixed(float(second.log_probs[i]), digits),
            tag("span", fixed(float(gains[i]), digits, signed=True), class_="better" if gains[i] > 0 else "worse"),
        )
        for i in places
    ]
    rows = table(
        "Test rows on which the two differ most",
        ("row", first.label, second.label, "difference"),
        body,
        text_columns=(),
    )
    of_all = (
        f"All rows together differ by {significant(total, 3, signed=True)} nats. Rows count from 0 in the data set."
    )
    title = f"{first.label} against {second.label}"
    return tag("div", figure(shown, said, title=title), figure(rows, of_all), class_="two")


def _configuration(comparison: Comparison) -> Child:
    if not comparison.differing:
        return tag("p", "The configurations are the same.", class_="missing")
    names = [one.label for one in comparison.contenders]
    body = [(key, *(in_plain_words(value) for value in values)) for key, values in comparison.differing.items()]
    every = tuple(range(len(names) + 1))
    return figure(table("Keys whose values differ", ("key", *names), body, text_columns=every, hide_caption=True))


def _bins(values: Array) -> tuple[Array, Array]:
    """Bins symmetric about zero, which is an edge, and what falls into them; the outermost take what lies beyond."""
    reach = float(np.quantile(np.abs(values), 0.99)) or 1.0
    edges = np.linspace(-reach, reach, _BINS)
    return edges, np.histogram(np.clip(values, -reach, reach), edges)[0]


def _last(comparison: Comparison, place: int) -> float:
    nll = comparison.contenders[place].test_nll
    return nll if np.isfinite(nll) else float("inf")
