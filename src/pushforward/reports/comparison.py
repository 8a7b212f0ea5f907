"""The report of a comparison of runs: NLLs, paired differences, validation curves, rows that differ most."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import count, decimals_of, duration, fixed, measured, significant
from pushforward.evaluate.plots.charts import Dot, Series, dot_plot, histogram, line_chart
from pushforward.evaluate.statistics import Array
from pushforward.reports.page import Card, cards, document, figure, in_sections, note, table
from pushforward.reports.run import config_text, write_page
from pushforward.reports.sections.training import standard_errors_at
from pushforward.runs.comparison import NO_DIFFERENCE, Comparison, Difference
from pushforward.runs.record import number

GENERATOR = "pushforward compare"

MATRIX = 8
"""Up to this number of runs, all pairs are compared; of more, each run is compared with the best."""

_FOOTER = (
    "Written by pushforward compare from the files of the run folders. Likelihoods are in nats and in the units of the "
    "data; ± is one standard error."
)

_MAX_ROWS = 10
_BIN_EDGES = 41


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the report of a comparison.

    Args:
        comparison: The comparison.
        out: The file to write; an existing file must be an earlier comparison.

    Raises:
        RunUsageError: If another file exists there.
        RunError: If the file cannot be written.
    """
    return write_page(out, comparison_page(comparison), GENERATOR)


def comparison_page(comparison: Comparison) -> str:
    """Build the report of a comparison as text."""
    plan: list[tuple[str, str, Child, str]] = [
        ("likelihood", "Test likelihood", _likelihood(comparison), ""),
        ("differences", "Paired differences", _differences(comparison), _PAIRED_LEAD),
        ("curves", "Validation during the fit", _curves(comparison), ""),
        ("where", "Where the difference comes from", _where(comparison), ""),
        ("configuration", "Configuration differences", _configuration(comparison), ""),
    ]
    names = [one.label for one in comparison.runs]
    body = in_sections(_header(comparison, names), plan, _FOOTER)
    return document(f"{comparison.runs[0].record.dataset}: {' · '.join(names)}", body, generator=GENERATOR)


_PAIRED_LEAD = (
    "Test NLL of the run in the row minus that of the run in the column, row by row on the same test rows. "
    "Negative: the run in the row is better."
)


def _header(comparison: Comparison, names: Sequence[str]) -> Html:
    rows = len(comparison.runs[0].rows)
    dataset = comparison.runs[0].record.dataset
    others = [i for i in range(len(names)) if i != comparison.best]
    clear = all(comparison.difference(i, comparison.best).is_clear for i in others)
    verdict = comparison.verdict()
    return tag(
        "header",
        tag("p", f"Comparison of {len(names)} runs", class_="eyebrow"),
        tag("h1", dataset),
        tag("p", f"{', '.join(names)} · the same {count(rows)} test rows", class_="about"),
        note(f"{verdict}.", "good" if clear else "fair"),
        cards([_card(comparison, index) for index in range(len(names))]) if len(names) <= MATRIX else None,
    )


def _card(comparison: Comparison, index: int) -> Card:
    one, gap = comparison.runs[index], comparison.difference(index, comparison.best)
    time = duration(number(one.record.results, "seconds"))
    about = f"{one.record.flow}, {count(number(one.record.results, 'parameters'))} parameters, {time}"
    if index == comparison.clear_best:
        others = [comparison.difference(i, index) for i in range(len(comparison.runs)) if i != index]
        verdict, word = ("good", "best") if all(gap.is_clear for gap in others) else ("", "lowest, not clearly")
        return Card(one.label, measured(one.test_nll, one.test_nll_se), "nats", about, verdict, word)
    if index in comparison.leaders:
        word = NO_DIFFERENCE if len(comparison.leaders) > 1 else ""
        return Card(one.label, measured(one.test_nll, one.test_nll_se), "nats", about, "", word)
    word = f"{measured(gap.nats, gap.se, signed=True)} nats above"
    return Card(
        one.label, measured(one.test_nll, one.test_nll_se), "nats", about, "bad" if gap.is_clear else "fair", word
    )


def _likelihood(comparison: Comparison) -> Child:
    head, *body = comparison.table()
    dots = [Dot(one.label, one.test_nll, one.test_nll_se, colour=index) for index, one in enumerate(comparison.runs)]
    gaps = []
    for index, one in enumerate(comparison.runs):
        gap = comparison.difference(index, comparison.best)
        if index != comparison.best:
            gaps.append(Dot(one.label, gap.nats, gap.se, colour=index))
    best = comparison.runs[comparison.best].label
    both = [
        figure(
            dot_plot(dots, label="Test NLL of the runs", x_name="test NLL (nats)"),
            "Each run by itself; bars show ± two standard errors.",
            title="Test NLL",
        ),
        figure(
            dot_plot(
                gaps,
                label=f"Test NLL above that of {best}, paired",
                x_name=f"nats; above zero worse than {best}",
                zero=True,
                signed=True,
            ),
            "Paired row by row on the same test rows: differences have smaller standard errors than the NLLs.",
            title=f"Test NLL above that of {best}",
        ),
    ]
    strong_row = comparison.clear_best
    if len({row[1] for row in body}) == 1:  # the data set is in the heading of the page
        head, body = [head[0], *head[2:]], [[row[0], *row[2:]] for row in body]
    text_columns = tuple(index for index, name in enumerate(head) if name in ("run", "data set", "flow"))
    shown = table("The runs", head, body, text_columns=text_columns, strong_row=strong_row, hide_caption=True)
    caption = "NLL in nats and data units, ± one standard error; se: standard errors of the paired difference."
    return join([tag("div", *both, class_="two"), figure(shown, caption)])


def _differences(comparison: Comparison) -> Child:
    names = [one.label for one in comparison.runs]
    many = len(names) > MATRIX
    columns = [comparison.best] if many else list(range(len(names)))
    gaps = {(i, j): comparison.difference(i, j) for i in range(len(names)) for j in columns if i != j}
    digits = decimals_of(gap.se for gap in gaps.values())
    body = [(names[i], *(_cell(gaps.get((i, j)), digits) for j in columns)) for i in range(len(names))]
    title = "Difference of test NLL, in nats, with its paired standard error"
    shown = table(title, ("row minus column", *(names[j] for j in columns)), body)
    caption = "Coloured where the difference is two standard errors (se) or more."
    if many:
        caption += f" Each of the {len(names)} runs is compared with the best."
    return figure(shown, caption)


def _cell(gap: Difference | None, digits: int | None) -> Child:
    if gap is None:
        return tag("span", "·", class_="same")
    if gap.is_zero:
        return tag("span", NO_DIFFERENCE, class_="same")
    class_ = "same" if not gap.is_clear else "better" if gap.nats < 0 else "worse"
    errors = gap.standard_errors
    small = tag("small", f" {abs(errors):.1f} se") if errors is not None else None
    return tag("span", fixed(gap.nats, digits, gap.se, signed=True), small, class_=class_)


def _curves(comparison: Comparison) -> Child:
    out, two = list[Html](), len(comparison.runs) == 2
    for axis, name in (("seconds", "seconds of training"), ("step", "step")):
        series = list[Series]()
        ceiling = -np.inf  # the largest initial value: overfitting beyond it is not shown
        for index, one in enumerate(comparison.runs):
            x, y = one.record.curve("val/nll", axis)
            if len(y):
                ceiling = max(ceiling, float(y[0]))
                error = standard_errors_at(one.record, one.record.curve("val/nll")[0])
                # More than two overlapping bands are hard to read.
                error = error if error is not None and len(error) == len(y) and two else None
                series.append(Series(one.label, x, y, error=error, colour=index, dash=index // 8))
        if series:
            chart = line_chart(
                series,
                label=f"Validation NLL against {name}, one curve a run",
                x_name=name,
                y_name="validation NLL (nats)",
                skip_start=True,
                ceiling=ceiling,
                height=300,
            )
            has_bands = any(one.error is not None for one in series)
            caption = "Bands show ± one standard error." if has_bands else None
            out.append(figure(chart, caption, title=f"Against {name}"))
    if not out:
        return tag("p", "None of the runs has recorded validation NLLs.", class_="missing")
    return tag("div", *out, class_="two")


def _where(comparison: Comparison) -> Child:
    """Compare the two best runs row by row."""
    order = sorted(range(len(comparison.runs)), key=lambda i: (i != comparison.best, _sort_key(comparison, i)))
    first, second = (comparison.runs[i] for i in order[:2])
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
    caption = (
        f"Log-density under {first.label} minus that under {second.label}, for each test row. {first.label} gives "
        f"{100 * share:.0f} % of the rows a higher density. The outermost bins include all values beyond."
    )
    if not finite.all():
        caption += f" {count(int((~finite).sum()))} rows without a finite density are left out."
    indices = np.flatnonzero(finite)[np.argsort(-np.abs(gains[finite]), kind="stable")][:_MAX_ROWS]
    total = float(gains[finite].sum())
    digits = max(2, decimals_of(np.abs(gains[indices][gains[indices] != 0]).tolist()) or 2)
    body = [
        (
            count(int(first.rows[i])),
            fixed(float(first.log_probs[i]), digits),
            fixed(float(second.log_probs[i]), digits),
            tag("span", fixed(float(gains[i]), digits, signed=True), class_="better" if gains[i] > 0 else "worse"),
        )
        for i in indices
    ]
    rows = table(
        "Test rows on which the two runs differ most",
        ("row", first.label, second.label, "difference"),
        body,
        text_columns=(),
    )
    total_caption = (
        f"The sum over all rows is {significant(total, 3, signed=True)} nats. Rows are numbered from 0 in the data set."
    )
    title = f"{first.label} against {second.label}"
    return tag("div", figure(shown, caption, title=title), figure(rows, total_caption), class_="two")


def _configuration(comparison: Comparison) -> Child:
    if not comparison.differing:
        return tag("p", "The configurations are the same.", class_="missing")
    names = [one.label for one in comparison.runs]
    body = [(key, *(config_text(value) for value in values)) for key, values in comparison.differing.items()]
    text_columns = tuple(range(len(names) + 1))
    return figure(
        table("Options whose values differ", ("key", *names), body, text_columns=text_columns, hide_caption=True)
    )


def _bins(values: Array) -> tuple[Array, Array]:
    """Return bin edges symmetric about zero, and counts; the outermost bins include all values beyond."""
    reach = float(np.quantile(np.abs(values), 0.99)) or 1.0
    edges = np.linspace(-reach, reach, _BIN_EDGES)
    return edges, np.histogram(np.clip(values, -reach, reach), edges)[0]


def _sort_key(comparison: Comparison, index: int) -> float:
    nll = comparison.runs[index].test_nll
    return nll if np.isfinite(nll) else float("inf")
