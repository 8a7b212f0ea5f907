"""The section about likelihood: NLL of the flow and its baselines, NLL of each part of the data."""

from dataclasses import dataclass

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import (
    NOTHING,
    count,
    decimals_of,
    fixed,
    measured,
    minus,
    standard_errors,
)
from pushforward.evaluate.plots.charts import Dot, dot_plot
from pushforward.reports.page import figure, table
from pushforward.runs.listing import has_source
from pushforward.runs.record import RunRecord, group, items, number

UNSCORED = {"running": "test rows are scored when the fit ends"}
"""Why there is no test NLL, by the status of the run."""

_PARTS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class BaselineScore:
    """A baseline of the evaluation; ``gain`` is its test NLL minus that of the flow."""

    label: str
    nll: float | None
    se: float | None
    gain: float | None
    gain_se: float | None
    detail: str


def baseline_scores(record: RunRecord) -> list[BaselineScore]:
    """Return the baselines, in the order of the evaluation."""
    # Gains of an earlier model do not hold for the saved one; the NLLs of the baselines do.
    gains = group(record.evaluation, "gains") if record.evaluated_step is None else {}
    return [
        BaselineScore(
            str(item.get("label", "baseline")),
            number(item, "nll", "nll"),
            number(item, "nll", "se"),
            number(gains, str(item.get("name")), "nats"),
            number(gains, str(item.get("name")), "se"),
            str(item.get("detail", "")),
        )
        for item in items(record.evaluation, "baselines")
    ]


def has_likelihood_bound(record: RunRecord) -> bool:
    """Return whether likelihoods are known by bounds only, as those of autoencoders."""
    return bool(record.results.get("is_bound"))


def earlier_model_note(record: RunRecord) -> str:
    """Return a note if the evaluation is of an earlier model than the saved one; else an empty string."""
    step = record.evaluated_step
    if step is None:
        return ""
    update = "; update them with pushforward evaluate RUN" if has_source(record.config) else ""
    return (
        f"These results are of the model at step {count(step)}, before the fit continued to step "
        f"{count(record.kept_step)}{update}."
    )


def best_baseline(record: RunRecord) -> BaselineScore | None:
    """Return the baseline with the lowest test NLL; None without baselines."""
    scored = [(score.nll, index, score) for index, score in enumerate(baseline_scores(record)) if score.nll is not None]
    return min(scored)[2] if scored else None


def likelihood(record: RunRecord) -> Child:
    """Build the section about likelihood."""
    results, evaluation = record.results, record.evaluation
    nll, se = number(results, "test_nll"), number(results, "test_nll_se")
    if not results:
        text = UNSCORED.get(record.status, f"no test row was scored; the status of the run is {record.status}")
        return tag("p", f"{text[0].upper()}{text[1:]}.", class_="missing")
    out: list[Child] = []
    baselines = baseline_scores(record)
    if nll is not None and baselines:
        # The name of the run may be too long; it is in the table below.
        dots = [Dot("this run", nll, se, colour=0)]
        dots += [Dot(one.label, one.nll, one.se, colour=7) for one in baselines if one.nll is not None]
        ordered = sorted(dots, key=lambda dot: dot.value)
        chart = dot_plot(ordered, label="Test NLL of the flow and its baselines", x_name="test NLL (nats)")
        gains = [
            Dot(one.label, one.gain, one.gain_se, colour=2 if one.gain >= 0 else 1)
            for one in baselines
            if one.gain is not None
        ]
        differences = dot_plot(
            sorted(gains, key=lambda dot: dot.value),
            label="Test NLL of each baseline minus that of the flow, paired",
            x_name="nats; above zero this run is better",
            zero=True,
            signed=True,
        )
        both = [figure(chart, "Bars show ± two standard errors.", title="Test NLL, best first")]
        if gains:
            caption = "Paired row by row on the test rows; bars show ± two standard errors."
            both.append(figure(differences, caption, title="Gain over each baseline"))
        out.append(tag("div", *both, class_="two") if gains else both[0])
        out.append(figure(_baseline_table(record, baselines, nll, se), _baseline_caption(record, baselines)))
    elif nll is not None:
        if has_likelihood_bound(record):
            samples = count(number(results, "bound_samples"))
            why = f"The NLL of an autoencoder is estimated by an upper bound, with {samples} latent samples a row."
        elif record.context:
            why = "There are no baselines for conditional densities."
        elif not evaluation:
            adds = "baselines, calibration, a comparison of samples with test rows, and the most extreme rows"
            how = "pushforward evaluate RUN" if has_source(record.config) else "a fit with evaluate=True"
            why = f"This run has not been evaluated: {how} adds {adds}."
        else:
            why = "The evaluation has no baselines."
        out.append(tag("p", why, class_="missing"))
    else:
        out.append(tag("p", "There are no test rows (data.test_fraction=0).", class_="missing"))
    out.append(_parts(record))
    return join(out)


def _baseline_table(record: RunRecord, baselines: list[BaselineScore], nll: float, se: float | None) -> Html:
    standardized = number(record.results, "test_nll_standardized")
    shift = None if standardized is None else nll - standardized

    digits = decimals_of([se, *(one.se for one in baselines)])
    gain_digits = decimals_of(one.gain_se for one in baselines)

    def in_standard_units(value: float | None) -> str:
        return NOTHING if value is None or shift is None else fixed(value - shift, digits)

    name = f"{record.flow} (this run)".replace(" x ", " \u00d7 ")
    body: list[tuple[Child, ...]] = [(name, fixed(nll, digits, se), in_standard_units(nll), "", "")]
    for one in baselines:
        errors = standard_errors(one.gain, one.gain_se)
        class_ = "same" if errors is None or abs(errors) < 2 else "better" if errors > 0 else "worse"
        body.append(
            (
                one.label,
                fixed(one.nll, digits, one.se),
                in_standard_units(one.nll),
                tag("span", fixed(one.gain, gain_digits, one.gain_se, signed=True), class_=class_),
                NOTHING if errors is None else minus(f"{errors:+,.1f}"),
            )
        )
    head = ("density", "test NLL (nats)", "standardised units", "this run is better by", "standard errors")
    return table("Test NLL beside baselines, with paired differences", head, body, strong_row=0, hide_caption=True)


def _baseline_caption(record: RunRecord, baselines: list[BaselineScore]) -> Child:
    parts = [tag("span", f"{one.label}: {one.detail}. ") for one in baselines if one.detail]
    caption = "Differences are paired row by row on the test rows, and coloured from two standard errors on. "
    if record.evaluated_step is not None:
        caption = (
            "There are no paired differences: they were computed for the model at step "
            f"{count(record.evaluated_step)}, before the fit continued. "
        )
    return join([caption, *parts])


def _parts(record: RunRecord) -> Child:
    evaluation, results = record.evaluation, record.results
    body = []
    nlls, errors = dict[str, float | None](), dict[str, float | None]()
    for part in _PARTS:
        key = {"train": "train_nll", "validation": "val_nll", "test": "test_nll"}[part]
        nll, se = number(results, key), number(results, f"{key}_se")
        if record.evaluated_step is None:
            nll = number(evaluation, part, "nll") if nll is None else nll
            se = number(evaluation, part, "se") if se is None else se
        nlls[part], errors[part] = nll, se
        # The number of scored rows does not depend on the model.
        scored, total = number(evaluation, part, "rows"), number(record.schema, "rows", part)
        scored = number(results, f"{part}_rows_scored") if scored is None else scored
        if nll is not None:
            body.append((_PARTS[part], nll, se, count(total if scored is None else scored), count(total)))
    if not body:
        return None
    digits = decimals_of(errors.values())
    rows = [(name, fixed(nll, digits, se), *counts) for name, nll, se, *counts in body]
    train, test = nlls["train"], nlls["test"]
    caption = None
    if train is not None and test is not None:
        train_se, test_se = errors["train"], errors["test"]
        se = None if train_se is None or test_se is None else (train_se**2 + test_se**2) ** 0.5
        side = "above" if test >= train else "below"
        caption = f"The test NLL is {measured(abs(test - train), se)} nats {side} the training NLL."
    head = ("rows", "NLL (nats)", "scored rows", "all rows")
    return figure(table("NLL of training, validation and test rows", head, rows), caption)
