"""What the evaluation says of likelihood and samples, as sections of a page: scores beside baselines, pictures."""

from dataclasses import dataclass
from pathlib import Path

from pushforward.evaluate.charts import Dot, dot_plot
from pushforward.evaluate.numbers import NOTHING, count, measured, significant, standard_errors
from pushforward.evaluate.page import Card, Child, Html, details, figure, join, note, picture, table, tag
from pushforward.train.run_record import RunRecord, group, items, number

PICTURE_BYTES = 2_000_000
"""Bytes of pictures a page takes; with a third more in text, and all else, it stays below three million."""

UNSCORED = {"running": "test rows are scored when the fit ends"}
"""Why there is no test NLL, by the status of the run."""

FEW = 100
"""Rows below which a test that sees nothing says little."""

_EARLIER = 4
"""Pictures from earlier in the fit."""

WIDE = 12
"""Columns of single rows that are shown."""

_ALTS = {
    "density": (
        "Density in the plane",
        "Three panels: the true density or held-out points, the fitted density, samples of the flow",
        "Truth or held-out points, fitted density on the same colour scale, and samples.",
    ),
    "corner": (
        "Samples against data",
        "Corner plot: histograms of columns and scatter plots of pairs, samples of the flow over held-out rows",
        "Each column and pairs of columns: samples of the flow over held-out rows.",
    ),
    "latent": (
        "Noise behind the test rows",
        "Left: quantiles of the noise behind test rows minus those of the normal law, with a 95 percent band; "
        "right: the pair of noise coordinates that correlates most",
        "Sent to the base, test rows are N(0, I) under a perfect fit.",
    ),
    "samples": (
        "Samples",
        "A grid of images that the model has drawn",
        "Drawn from the decoder at latent points of the prior.",
    ),
    "reconstructions": (
        "Reconstructions",
        "Pairs of lines of images: test rows, and below each what the model expects of it",
        "Test rows, and the mean of the decoder at the centre of each row's posterior.",
    ),
    "latent-plane": (
        "Latent plane",
        "Scatter plot of the posterior centres of test rows over points of the prior, on two principal axes",
        "Where the encoder sends test rows. They cover the prior where both fit together.",
    ),
}

# Its curves are in the page already, where they can be read out; calibration has its own charts.
DRAWN_ELSEWHERE = ("training", "pit", "quantiles")


@dataclass(frozen=True)
class BaselineScore:
    """A baseline as the evaluation has it; ``gain`` is by how much the flow's test NLL is lower."""

    label: str
    nll: float | None
    se: float | None
    gain: float | None
    gain_se: float | None
    detail: str


def baseline_scores(record: RunRecord) -> list[BaselineScore]:
    """The baselines, as the evaluation lists them."""
    # What an earlier model gained is no gain of this one; the baselines are what they were.
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


def bounded(record: RunRecord) -> bool:
    """Whether the model is an autoencoder: its likelihoods are bounds, and it cannot be evaluated as a flow."""
    return record.flow == "vae"


def earlier_model(record: RunRecord) -> str:
    """What to know of an evaluation that was made before the fit went on; empty where it is of the model as it is."""
    step = record.evaluated_step
    if step is None:
        return ""
    return (
        f"This is of the model at step {count(step)}, before the fit went on to step {count(record.kept_step)}: "
        "pushforward evaluate RUN looks at the model as it is now."
    )


def best_baseline(record: RunRecord) -> BaselineScore | None:
    """The baseline with the lowest test NLL; None where there is none."""
    scored = [(score.nll, place, score) for place, score in enumerate(baseline_scores(record)) if score.nll is not None]
    return min(scored)[2] if scored else None


def likelihood(record: RunRecord) -> Child:
    """The section about likelihood: the flow beside its baselines, and the three parts of the data."""
    results, evaluation = record.results, record.evaluation
    nll, se = number(results, "test_nll"), number(results, "test_nll_se")
    if not results:
        said = UNSCORED.get(record.status, f"no test row was scored; the status of the run is {record.status}")
        return tag("p", f"{said[0].upper()}{said[1:]}.", class_="missing")
    out: list[Child] = []
    baselines = baseline_scores(record)
    if nll is not None and baselines:
        dots = [Dot(f"{record.flow} (this run)", nll, se, colour=0)]
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
            label="By how much the flow's test NLL is below that of each baseline, paired",
            x_name="nats; right of zero the flow is better",
            zero=True,
            signed=True,
        )
        both = [figure(chart, "Bars are two standard errors to either side.", title="Test NLL, best first")]
        if gains:
            said = "Paired differences: row by row on the same rows."
            both.append(figure(differences, said, title="Gain over each baseline"))
        out.append(tag("div", *both, class_="two") if gains else both[0])
        out.append(figure(_baseline_table(record, baselines, nll, se), _how(record, baselines)))
    elif nll is not None:
        if bounded(record):
            points = count(number(results, "bound_samples"))
            why = f"The NLL of an autoencoder is not known: what is shown is an upper bound by {points} points a row."
        elif record.context:
            why = "Baselines are fitted to densities without context only, so there are none beside this one."
        elif not evaluation:
            why = (
                "This run has not been evaluated: pushforward evaluate RUN adds baselines, calibration, the comparison "
                "of samples with test rows, and single rows."
            )
        else:
            why = "The evaluation has no baselines."
        out.append(tag("p", why, class_="missing"))
    else:
        out.append(tag("p", "There are no test rows (data.test_fraction=0).", class_="missing"))
    out.append(_parts(record))
    return join(out)


def pictures(record: RunRecord) -> Child:
    """The section of pictures: those in the run folder, and how samples compare with held-out rows."""
    room, left_out = PICTURE_BYTES, list[str]()
    found, early = list[Html](), list[Html]()

    def add(path: Path, title: str, alt: str, caption: str, to: list[Html]) -> None:
        nonlocal room
        try:
            size = path.stat().st_size
            if size > room:
                left_out.append(path.name)
                return
            to.append(figure(picture(path, f"{alt}, of run {record.run.name}"), caption or None, title=title))
            room -= size
        except OSError as error:
            to.append(note(f"{path.name} cannot be read: {error.strerror}", "bad"))

    for path in _pictures(record.run.pictures):
        title = path.stem.replace("-", " ").replace("_", " ").capitalize()
        title, alt, caption = _ALTS.get(path.stem, (title, title, ""))
        add(path, title, alt, caption, found)
    others = _pictures(record.run.pictures / "progress")
    last = others.pop() if others else None
    if last is not None and not found:
        at = _step(last)
        add(last, f"The density at {at}", f"Fitted density and samples at {at}", "Against validation rows.", found)
    # A few of them tell the story.
    for path in [others[len(others) * i // _EARLIER] for i in range(min(_EARLIER, len(others)))]:
        add(path, _step(path).capitalize(), f"Fitted density and samples at {_step(path)}", "", early)
    if not found and not record.evaluation:
        return None
    if not found:
        found.append(tag("p", "The run has drawn no pictures of its density (yet).", class_="missing"))
    if early:
        found.append(details("Earlier in the fit, against validation rows", tag("div", *early, class_="two")))
    if left_out:
        found.append(note(f"Left out to keep the page small: {', '.join(left_out)}, in the folder pictures."))
    return join([*found, _sample_table(record)])


def samples_card(record: RunRecord) -> Card | None:
    """Whether a classifier can tell samples from data."""
    c2st = group(group(record.evaluation, "samples"), "c2st")
    accuracy, se = number(c2st, "accuracy"), number(c2st, "se")
    if accuracy is None:
        return None
    errors = standard_errors(accuracy - 0.5, se)
    verdict, word = "good", "cannot be told apart"
    if (number(c2st, "rows") or 0) < FEW:
        verdict, word = "", "few rows to tell"
    if errors is not None and errors >= 2:
        verdict, word = ("fair", "slightly different") if accuracy < 0.6 else ("bad", "can be told apart")
    return Card(
        "Samples against data", measured(accuracy, se), "accuracy", "of a classifier; 0.5 is chance", verdict, word
    )


def _baseline_table(record: RunRecord, baselines: list[BaselineScore], nll: float, se: float | None) -> Html:
    standardized = number(record.results, "test_nll_standardized")
    shift = None if standardized is None else nll - standardized

    def in_standard_units(value: float | None) -> str:
        return NOTHING if value is None or shift is None else significant(value - shift)

    body: list[tuple[Child, ...]] = [(f"{record.flow} (this run)", measured(nll, se), in_standard_units(nll), "", "")]
    for one in baselines:
        errors = standard_errors(one.gain, one.gain_se)
        look = "same" if errors is None or abs(errors) < 2 else "better" if errors > 0 else "worse"
        body.append(
            (
                one.label,
                measured(one.nll, one.se),
                in_standard_units(one.nll),
                tag("span", measured(one.gain, one.gain_se, signed=True), class_=look),
                NOTHING if errors is None else significant(errors, 2, signed=True),
            )
        )
    head = ("density", "test NLL (nats)", "standardised", "flow is better by", "in standard errors")
    return table("Test NLL beside baselines, with paired differences", head, body, strong_row=0, hide_caption=True)


def _how(record: RunRecord, baselines: list[BaselineScore]) -> Child:
    parts = [tag("span", f"{one.label}: {one.detail}. ") for one in baselines if one.detail]
    said = "Differences are paired, row by row on the test rows. "
    if record.evaluated_step is not None:
        said = (
            f"Paired differences are left out: they are known of the model at step {count(record.evaluated_step)}, "
            "before the fit went on. "
        )
    return join([said, *parts])


def _parts(record: RunRecord) -> Child:
    evaluation, results = record.evaluation, record.results
    body = []
    nlls, errors = dict[str, float | None](), dict[str, float | None]()
    for part in ("train", "validation", "test"):
        key = {"train": "train_nll", "validation": "val_nll", "test": "test_nll"}[part]
        nll, se = number(results, key), number(results, f"{key}_se")
        if record.evaluated_step is None:
            nll = number(evaluation, part, "nll") if nll is None else nll
            se = number(evaluation, part, "se") if se is None else se
        nlls[part], errors[part] = nll, se
        # How many rows are scored is a matter of the data, not of the model.
        scored, of = number(evaluation, part, "rows"), number(record.schema, "rows", part)
        scored = number(results, f"{part}_rows_scored") if scored is None else scored
        if nll is not None:
            body.append((part, measured(nll, se), count(of if scored is None else scored), count(of)))
    if not body:
        return None
    train, test = nlls["train"], nlls["test"]
    said = None
    if train is not None and test is not None:
        one, other = errors["train"], errors["test"]
        spread = None if one is None or other is None else (one**2 + other**2) ** 0.5
        side = "above" if test >= train else "below"
        said = f"The test NLL is {measured(abs(test - train), spread)} nats {side} that of the training rows."
    head = ("rows", "NLL (nats)", "rows scored", "rows there are")
    return figure(table("NLL of the three parts of the data", head, body), said)


def _sample_table(record: RunRecord) -> Child:
    samples = group(record.evaluation, "samples")
    if not samples:
        if bounded(record) or record.is_target:
            return None
        return tag("p", "Samples have not been compared with held-out rows.", class_="missing")
    c2st = group(samples, "c2st")
    body: list[tuple[Child, ...]] = []
    for title, value, real in (
        ("sliced Wasserstein distance, in std", "sliced_wasserstein", "sliced_wasserstein_reference"),
        ("largest difference of a correlation", "correlation_difference", "correlation_difference_reference"),
    ):
        body.append((title, significant(number(samples, value), 3), significant(number(samples, real), 3)))
    accuracy = measured(number(c2st, "accuracy"), number(c2st, "se"))
    body.append(("accuracy of a classifier", accuracy, "0.5"))
    body.append(("area under its ROC curve", significant(number(c2st, "auc"), 3), "0.5"))
    drawn, held = count(number(samples, "rows")), count(number(samples, "held_out_rows"))
    head = ("distance", "samples to test rows", "training to test rows")
    whole = table(f"{drawn} samples against {held} test rows", head, body)
    distances, references = group(samples, "ks"), group(samples, "ks_reference")
    ordered = sorted(distances, key=lambda name: -(number(distances, name) or 0.0))
    columns = [
        (name, significant(number(distances, name), 3), significant(number(references, name), 3)) for name in ordered
    ]
    each = table("Kolmogorov-Smirnov distance of each column", ("column", *head[1:]), columns) if columns else None
    wide = details(f"All {len(columns)} columns", each) if each is not None and len(columns) > WIDE else None
    return figure(
        join([whole, each if wide is None else None, wide]),
        "What is as small as between training and test rows could not be smaller.",
        title="Samples against test rows, in numbers",
    )


def _pictures(folder: Path) -> list[Path]:
    """Pictures to show, those that say most first."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() == ".png" and not path.name.startswith(".")]
    except OSError:
        return []
    order = list(_ALTS)
    kept = [path for path in found if path.stem not in DRAWN_ELSEWHERE]
    return sorted(kept, key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.name))


def _step(path: Path) -> str:
    """The step of a picture that was drawn while fitting, ``step-0001200.png``."""
    digits = path.stem.rpartition("-")[2]
    return f"step {int(digits):,}" if digits.isdecimal() else path.stem
