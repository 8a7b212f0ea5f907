"""What the evaluation says of samples, as a section of a page: pictures, and how samples compare with test rows."""

from collections.abc import Sequence
from pathlib import Path

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import count, decimals_of, fixed, measured, standard_errors
from pushforward.reports.page import Card, details, figure, note, picture, table
from pushforward.reports.sections.likelihood import bounded
from pushforward.runs.record import RunRecord, group, number

PICTURE_BYTES = 2_000_000
"""Bytes of pictures a page takes; with a third more in text, and all else, it stays below three million."""

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
        "Each column and pairs of columns: samples of the flow over held-out rows. Contours hold 50 % and 90 % of the "
        "points, where there are enough.",
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
        "Samples against data",
        measured(accuracy, se),
        "accuracy",
        "of a classifier that tells samples from test rows; 0.5 is chance",
        verdict,
        word,
    )


def _sample_table(record: RunRecord) -> Child:
    samples = group(record.evaluation, "samples")
    if not samples:
        if bounded(record) or record.is_target:
            return None
        return tag("p", "Samples have not been compared with held-out rows.", class_="missing")
    c2st = group(samples, "c2st")
    body: list[tuple[Child, ...]] = []
    compared = (
        ("sliced Wasserstein distance, in standard deviations", "sliced_wasserstein", "sliced_wasserstein_reference"),
        ("largest difference of a correlation", "correlation_difference", "correlation_difference_reference"),
    )
    digits = max(_digits([number(samples, value), number(samples, real)]) for _, value, real in compared)
    for title, value, real in compared:
        body.append((title, fixed(number(samples, value), digits), fixed(number(samples, real), digits)))
    accuracy = fixed(number(c2st, "accuracy"), digits, number(c2st, "se"))
    body.append(("accuracy of a classifier, by chance one half", accuracy, ""))
    body.append(("area under its ROC curve, by chance one half", fixed(number(c2st, "auc"), digits), ""))
    drawn, held = count(number(samples, "rows")), count(number(samples, "held_out_rows"))
    head = ("distance", "samples to test rows", "training to test rows")
    whole = table(f"{drawn} samples against {held} test rows", head, body)
    distances, references = group(samples, "ks"), group(samples, "ks_reference")
    ordered = sorted(distances, key=lambda name: -(number(distances, name) or 0.0))
    digits = _digits([number(of, name) for of in (distances, references) for name in ordered])
    columns = [
        (name, fixed(number(distances, name), digits), fixed(number(references, name), digits)) for name in ordered
    ]
    each = table("Kolmogorov-Smirnov distance of each column", ("column", *head[1:]), columns) if columns else None
    wide = details(f"All {len(columns)} columns", each) if each is not None and len(columns) > WIDE else None
    said = "No sample can be expected to come closer to the test rows than the training rows do."
    if record.context:
        said += f" Each sample was drawn given {', '.join(record.context)} of a test row."
    return figure(
        join([whole, each if wide is None else None, wide]),
        said,
        title="Samples against test rows, in numbers",
    )


def _digits(distances: Sequence[float | None]) -> int:
    """Decimals for distances between 0 and 1: two significant digits of the smallest, as errors have them."""
    return max(3, decimals_of(distances) or 0)


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
