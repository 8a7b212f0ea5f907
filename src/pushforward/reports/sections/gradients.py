"""The section about a study of gradient estimators: a picture, and a table of the last checkpoint."""

from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import NOTHING, count, measured, significant
from pushforward.reports.page import Card, figure, picture, table
from pushforward.runs.record import Facts, RunRecord, group, items, number

GRADIENTS_LEAD = (
    "Estimators of the gradient of the reverse KL divergence, measured while the flow was trained. All have the same "
    "mean; the smaller the variance, the fewer samples a step needs."
)


def gradients(record: RunRecord) -> Child:
    """Build the section; None for a run that is not a study."""
    checkpoints = items(record.gradients, "checkpoints")
    if not checkpoints:
        return tag("p", "Nothing has been measured yet.", class_="missing")
    last, path = checkpoints[-1], record.run.path / "gradients.png"
    rows = [
        (
            name,
            measured(number(each, "norm"), number(each, "norm_se")),
            measured(number(each, "variance"), number(each, "variance_se")),
            measured(number(each, "snr"), number(each, "snr_se")),
            f"{significant(number(_estimator(last, name), 'milliseconds'), 3)} ms",
        )
        for name, each in _estimators(last).items()
    ]
    head = ("estimator", "norm of the mean", "variance", "signal to noise", "time of a gradient")
    shown: list[Child] = []
    if path.exists():
        alt = f"Variance, signal-to-noise ratio and cost of each estimator by step, of run {record.run.name}"
        shown.append(figure(picture(path, alt)))
    caption = f"At step {count(number(last, 'step'))}, all parameters together"
    shown.append(figure(table(caption, head, rows)))
    return join(shown)


def gradients_cards(record: RunRecord) -> list[Card]:
    """Build the cards of a study."""
    facts, checkpoints = record.gradients, items(record.gradients, "checkpoints")
    if not checkpoints:
        return [Card("Gradient estimators", NOTHING, "", "nothing has been measured yet")]
    last = checkpoints[-1]
    variances = {name: number(each, "variance") for name, each in _estimators(last).items()}
    known = {name: value for name, value in variances.items() if value is not None}
    best = min(known, key=lambda name: known[name]) if known else NOTHING
    samples = f"{count(number(facts, 'samples'))} samples a gradient, {count(number(facts, 'replicates'))} gradients"
    divergence = number(last, "reverse_kl")
    value, name = (number(last, "loss"), "Loss") if divergence is None else (divergence, "Reverse KL divergence")
    return [
        Card("Smallest variance", best, "", f"at step {count(number(last, 'step'))}; {samples}"),
        Card(name, measured(value, number(last, "loss_se")), "nats", "of the flow at the last checkpoint"),
    ]


def _estimators(checkpoint: Facts) -> dict[str, Facts]:
    """The statistics of each estimator over all parameters."""
    return {
        str(name): group(group(each, "groups"), "all")
        for name, each in group(checkpoint, "estimators").items()
        if isinstance(each, dict)
    }


def _estimator(checkpoint: Facts, name: str) -> Facts:
    return group(group(checkpoint, "estimators"), name)
