"""The section about samples: pictures, and the comparison of samples with test rows."""

from collections.abc import Sequence
from pathlib import Path

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import count, decimals_of, fixed, measured, standard_errors
from pushforward.reports.page import Card, details, figure, note, picture, table
from pushforward.runs.record import RunRecord, group, number

PICTURE_BYTES = 2_000_000
"""Maximum size of the embedded pictures; base64 adds a third, and the page stays below three million bytes."""

FEW = 100
"""With fewer rows, a test without a significant result is inconclusive."""

_EARLIER = 4
"""Maximum number of pictures from earlier steps."""

WIDE = 12
"""Maximum number of columns shown for single rows."""

_ALTS = {
    "density": (
        "Density",
        "Three panels: the true density or held-out rows, the fitted density, samples of the flow",
        "True density or held-out rows, fitted density on the same colour scale, and samples.",
    ),
    "corner": (
        "Samples against data",
        "Corner plot: histograms of columns and contours of pairs, samples of the flow over held-out rows",
        "Each column and each pair of columns: samples of the flow over held-out rows. Contours hold 50 % and 90 % of "
        "the rows; if there are few, the rows themselves are shown.",
    ),
    "latent": (
        "Latents of the test rows",
        "Left: quantiles of the latents of test rows minus those of N(0, 1), with a 95 percent band; "
        "right: the two latent features with the largest correlation",
        "The flow maps test rows to latents, which follow N(0, I) under a perfect fit.",
    ),
    "samples": (
        "Samples",
        "A grid of images sampled from the model",
        "Decoded from samples of the prior.",
    ),
    "reconstructions": (
        "Reconstructions",
        "Pairs of lines of images: test rows, and below each its reconstruction",
        "Test rows, and the mean of the decoder at the centre of each row's posterior.",
    ),
    "latent-plane": (
        "Latent plane",
        "Scatter plot of the posterior centres of test rows over samples of the prior, on two principal axes",
        "Posterior centres of test rows. They cover the prior if encoder and prior match.",
    ),
}

# The page shows these as interactive charts.
DRAWN_ELSEWHERE = ("training", "pit", "quantiles")


def pictures(record: RunRecord) -> Child:
    """Build the section of pictures and the comparison of samples with test rows."""
    remaining, left_out = PICTURE_BYTES, list[str]()
    shown, early = list[Html](), list[Html]()

    def add(path: Path, title: str, alt: str, caption: str, to: list[Html]) -> None:
        nonlocal remaining
        try:
            size = path.stat().st_size
            if size > remaining:
                left_out.append(path.name)
                return
            to.append(figure(picture(path, f"{alt}, of run {record.run.name}"), caption or None, title=title))
            remaining -= size
        except OSError as error:
            to.append(note(f"{path.name} cannot be read: {error.strerror}", "bad"))

    for path in _pictures(record.run.pictures):
        title = path.stem.replace("-", " ").replace("_", " ").capitalize()
        title, alt, caption = _ALTS.get(path.stem, (title, title, ""))
        add(path, title, alt, caption, shown)
    others = _pictures(record.run.pictures / "progress")
    last = others.pop() if others else None
    if last is not None and not shown:
        step = _step(last)
        add(last, f"Density at {step}", f"Fitted density and samples at {step}", "With validation rows.", shown)
    for path in [others[len(others) * i // _EARLIER] for i in range(min(_EARLIER, len(others)))]:
        add(path, _step(path).capitalize(), f"Fitted density and samples at {_step(path)}", "", early)
    if not shown and not record.evaluation:
        return None
    if not shown:
        shown.append(tag("p", "The run has no pictures of its density (yet).", class_="missing"))
    if early:
        shown.append(details("Earlier steps, with validation rows", tag("div", *early, class_="two")))
    if left_out:
        shown.append(note(f"Left out to keep the page small: {', '.join(left_out)}; see the folder pictures."))
    return join([*shown, _sample_table(record)])


def samples_card(record: RunRecord) -> Card | None:
    """Build the card of the classifier two-sample test."""
    c2st = group(group(record.evaluation, "samples"), "c2st")
    accuracy, se = number(c2st, "accuracy"), number(c2st, "se")
    if accuracy is None:
        return None
    errors = standard_errors(accuracy - 0.5, se)
    verdict, word = "good", "indistinguishable"
    if (number(c2st, "rows") or 0) < FEW:
        verdict, word = "", "too few rows"
    if errors is not None and errors >= 2:
        verdict, word = ("fair", "slightly different") if accuracy < 0.6 else ("bad", "distinguishable")
    return Card(
        "Samples against data",
        measured(accuracy, se),
        "accuracy",
        "of a classifier that separates samples from test rows; 0.5 is chance",
        verdict,
        word,
    )


def _sample_table(record: RunRecord) -> Child:
    samples = group(record.evaluation, "samples")
    if not samples:
        if "samples" not in record.sections:
            return None
        return tag("p", "Samples have not been compared with held-out rows.", class_="missing")
    c2st = group(samples, "c2st")
    body: list[tuple[Child, ...]] = []
    compared = (
        ("sliced Wasserstein distance, in standard deviations", "sliced_wasserstein", "sliced_wasserstein_reference"),
        ("largest difference of a correlation", "correlation_difference", "correlation_difference_reference"),
    )
    digits = max(_decimals([number(samples, value), number(samples, real)]) for _, value, real in compared)
    for title, value, real in compared:
        body.append((title, fixed(number(samples, value), digits), fixed(number(samples, real), digits)))
    accuracy = fixed(number(c2st, "accuracy"), digits, number(c2st, "se"))
    body.append(("classifier accuracy; 0.5 is chance", accuracy, ""))
    body.append(("area under the ROC curve of the classifier; 0.5 is chance", fixed(number(c2st, "auc"), digits), ""))
    drawn, held = count(number(samples, "rows")), count(number(samples, "held_out_rows"))
    head = ("distance", "samples to test rows", "training to test rows")
    overall = table(f"{drawn} samples against {held} test rows", head, body)
    distances, references = group(samples, "ks"), group(samples, "ks_reference")
    ordered = sorted(distances, key=lambda name: -(number(distances, name) or 0.0))
    digits = _decimals([number(of, name) for of in (distances, references) for name in ordered])
    columns = [
        (name, fixed(number(distances, name), digits), fixed(number(references, name), digits)) for name in ordered
    ]
    each = table("Kolmogorov-Smirnov distance of each column", ("column", *head[1:]), columns) if columns else None
    wide = details(f"All {len(columns)} columns", each) if each is not None and len(columns) > WIDE else None
    caption = (
        "Training and test rows differ by sampling noise alone: samples cannot be expected to be closer to test rows."
    )
    if record.context:
        caption += f" Each sample was drawn given {', '.join(record.context)} of a test row."
    return figure(
        join([overall, each if wide is None else None, wide]),
        caption,
        title="Samples against test rows, in numbers",
    )


def _decimals(distances: Sequence[float | None]) -> int:
    """Return the decimals for distances between 0 and 1: two significant digits of the smallest, at least three."""
    return max(3, decimals_of(distances) or 0)


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures to show, the most informative first."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() == ".png" and not path.name.startswith(".")]
    except OSError:
        return []
    order = list(_ALTS)
    kept = [path for path in found if path.stem not in DRAWN_ELSEWHERE]
    return sorted(kept, key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.name))


def _step(path: Path) -> str:
    """Return the step of a picture drawn during the fit, such as ``step-0001200.png``, as text."""
    digits = path.stem.rpartition("-")[2]
    return f"step {int(digits):,}" if digits.isdecimal() else path.stem
