"""The section about a conditional density: the error of the mean, prediction intervals, CRPS and CDE loss."""

from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import count, measured, significant
from pushforward.reports.page import figure, table
from pushforward.runs.record import Facts, RunRecord, group, items, number

REGRESSION_LEAD = "Each response given the other columns, on the test rows."

_CAPTION = (
    "RMSE: root mean squared error of the mean. CRPS: continuous ranked probability score, the error of the whole "
    "distribution; that of a single value is its absolute error. KS distance: of the probability integral transform "
    "from the uniform distribution, 0 if the distributions are right."
)


def regression(record: RunRecord) -> Child:
    """Build the section; None for a density that is not conditional."""
    found = group(record.evaluation, "regression")
    responses = items(found, "responses")
    if not responses:
        return None
    rows = [
        (
            str(one.get("name")),
            measured(number(one, "rmse"), number(one, "rmse_se")),
            measured(number(one, "crps"), number(one, "crps_se")),
            significant(number(group(one, "pit"), "ks")),
        )
        for one in responses
    ]
    numbers = table("Errors in the units of the column", ("response", "RMSE", "CRPS", "KS distance"), rows)
    intervals = [row for one in responses for row in _intervals(one)]
    widths = table(
        "Central prediction intervals",
        ("response", "probability", "test rows within", "mean width"),
        intervals,
    )
    loss = measured(number(found, "cde_loss"), number(found, "cde_loss_se"))
    note = (
        f"CDE loss {loss}: the squared error of the density up to a constant, the lower the better. From "
        f"{count(number(found, 'draws'))} samples for each of {count(number(found, 'rows'))} test rows."
    )
    return join([tag("div", figure(numbers, _CAPTION), figure(widths), class_="two top"), tag("p", note)])


def _intervals(response: Facts) -> list[tuple[str, str, str, str]]:
    return [
        (
            str(response.get("name")),
            f"{100 * (number(one, 'level') or 0):g} %",
            f"{_percent(number(one, 'coverage'))} ± {_percent(number(one, 'coverage_se'))} %",
            measured(number(one, "width"), number(one, "width_se")),
        )
        for one in items(response, "intervals")
    ]


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f}"
