"""The sections about calibration and about extreme rows, and the cards of calibration and inversion."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import count, fixed, plain, significant
from pushforward.evaluate.plots.calibration_charts import (
    SHOWN,
    pit_histograms,
    pit_multiples,
    quantile_multiples,
    quantile_pairs,
)
from pushforward.reports.page import Card, details, figure, table
from pushforward.reports.sections.samples import FEW, WIDE
from pushforward.runs.record import Facts, RunRecord, group, items, number

T = TypeVar("T")

_EXTRA_COLUMNS = 4
"""Columns are only left out if there are more than this number too many."""

_EXTRA_CHARTS = 6
"""Charts are only folded if there are more than this number (one line) too many."""


def calibration(record: RunRecord) -> Child:
    """Build the section about calibration: PIT histograms, quantiles, tests of the latents."""
    facts, latent = group(record.evaluation, "calibration"), group(record.evaluation, "latent")
    if not record.evaluation:
        return None
    if not facts and not latent:
        return tag("p", "The evaluation of this run has no calibration.", class_="missing")
    out: list[Child] = []
    counts = group(facts, "pit").get("counts")
    if counts:
        names = [f"latent {i}" for i in range(len(counts))]
        pits = sorted(pit_histograms(names, counts), key=lambda pit: -pit.misfit)
        out.append(
            figure(
                _fold_rest(pits, pit_multiples),
                f"Probability integral transform (PIT) of {count(number(facts, 'rows'))} test rows: the distribution "
                "function of N(0, 1) at their latents, one histogram for each latent feature (in an autoregressive "
                "flow given the features before it). Flat is calibrated; a hump means that the density is too wide, a "
                "valley that it is too narrow, a slope that it is shifted. The band holds 95 % of the bins of a "
                "perfect fit; bins outside have the second colour. Worst first.",
                title="PIT histograms",
            )
        )
    quantiles = group(facts, "quantiles")
    if quantiles.get("held_out") and quantiles.get("samples"):
        pairs = quantile_pairs(
            [str(name) for name in facts.get("columns") or record.columns], quantiles["held_out"], quantiles["samples"]
        )
        pairs = sorted(pairs, key=lambda pair: -pair.gap)
        levels = quantiles.get("levels") or [0.0, 1.0]
        out.append(
            figure(
                _fold_rest(pairs, quantile_multiples),
                f"Quantiles of each column from level {plain(levels[0])} to {plain(levels[-1])}: test rows on the "
                "horizontal axis, samples on the vertical axis, in data units. On the diagonal both agree. The gap is "
                "the largest difference, relative to the range between the outer quantiles. Worst first.",
                title="Quantiles, samples against test rows",
            )
        )
    out.append(_latent_table(latent))
    return join(out)


def rows(record: RunRecord) -> Child:
    """Build the section of the test rows with the lowest and the highest log-density."""
    recorded = group(record.evaluation, "extreme_rows")
    worst, best = items(recorded, "worst"), items(recorded, "best")
    if not record.evaluation:
        return None
    if not worst and not best:
        return tag("p", "The evaluation of this run lists no rows.", class_="missing")
    usual = _usual_ranges(record)
    names = list(dict.fromkeys(str(name) for row in (*worst, *best) for name in group(row, "values")))
    shown = names
    if len(names) > WIDE + _EXTRA_COLUMNS:
        unusual = {name: sum(_is_rare(usual, name, number(row, "values", name)) for row in worst) for name in names}
        kept = set(sorted(names, key=lambda name: -unusual[name])[:WIDE])
        shown = [name for name in names if name in kept]
    caption = "Rows are numbered from 0 in the data set."
    if usual:
        caption += " Bold values are among the lowest or highest 1 % of their column in the test rows."
    if len(shown) < len(names):
        most = ", those with the most bold values" if usual else ""
        caption += f" Shown are {len(shown)} of {len(names)} columns{most}."
    digits = {name: _decimals([number(row, "values", name) for row in (*worst, *best)]) for name in shown}
    out: list[Child] = []
    for kind, extremes in (("Lowest", worst), ("Highest", best)):
        if extremes:
            title = f"{kind} log-density of the test rows, in nats"
            body = [
                (
                    count(number(row, "row")),
                    fixed(number(row, "log_prob"), 2),
                    *(_value_cell(usual, name, number(row, "values", name), digits[name]) for name in shown),
                )
                for row in extremes
            ]
            out.append(figure(table(title, ("row", "log-density", *shown), body, text_columns=())))
    return join([*out, tag("p", caption, class_="said")])


def calibration_card(record: RunRecord) -> Card | None:
    """Build the card about the latents of the test rows."""
    latent = group(record.evaluation, "latent")
    distance, p_value = _largest_ks(latent)
    if distance is None or p_value is None:
        return None
    what = "largest distance of a latent feature from N(0, 1)"
    radius, radius_p_value = number(latent, "radius_ks"), number(latent, "radius_ks_p_value")
    if radius is not None and radius_p_value is not None and radius_p_value < p_value:
        # Single features may be normal although their joint distribution is not.
        distance, p_value, what = (
            radius,
            radius_p_value,
            "distance of the squared radius of the latents from chi-squared",
        )
    verdict, word = ("good", "no deviation found") if p_value > 0.01 else ("fair", "small deviations")
    if p_value > 0.01 and (number(latent, "rows") or 0) < FEW:
        verdict, word = "", "too few rows"
    if p_value <= 0.01 and distance > 0.05:
        verdict, word = "bad", "deviates from N(0, I)"
    detail = f"{what}, {_p_value_text(p_value)}; {count(number(latent, 'rows'))} test rows"
    return Card("Calibration", significant(distance, 2), "KS distance", detail, verdict, word)


def inversion_card(record: RunRecord) -> Card | None:
    """Build the card about numerical errors of inversion and log-determinant."""
    points = number(record.evaluation, "round_trip", "points")
    error = number(record.evaluation, "log_det", "error")
    if points is None or error is None:
        return None
    worst = max(points, error)
    verdict, word = ("good", "exact") if worst < 1e-6 else ("fair", "inexact") if worst < 1e-3 else ("bad", "broken")
    detail = f"log-determinant against automatic differentiation; round trip {significant(points, 2)} std"
    return Card("Inversion", significant(error, 2), "nats", detail, verdict, word)


def _latent_table(latent: Facts) -> Child:
    distance, p_value = _largest_ks(latent)
    if distance is None:
        return None
    means, stds = (latent.get(key) or [0.0] for key in ("mean", "std"))
    body = [
        ("largest distance of a mean from 0", significant(max(abs(value) for value in means), 2)),
        ("standard deviations", f"{fixed(min(stds), 3)} to {fixed(max(stds), 3)}"),
        ("largest correlation of two features", significant(number(latent, "max_correlation"), 2)),
        ("largest KS distance from N(0, 1)", f"{significant(distance, 2)} ({_p_value_text(p_value)})"),
        (
            "KS distance of the squared radius from chi-squared",
            f"{significant(number(latent, 'radius_ks'), 2)} ({_p_value_text(number(latent, 'radius_ks_p_value'))})",
        ),
    ]
    title = f"Latents of {count(number(latent, 'rows'))} test rows"
    return figure(
        table(title, ("statistic", "value"), body),
        "p-values are corrected for the number of features. With many rows even small deviations have small p-values.",
    )


def _largest_ks(latent: Facts) -> tuple[float | None, float | None]:
    """Return the largest KS distance of a latent feature, and its p-value corrected for the number of features."""
    distances, p_values = latent.get("ks"), latent.get("ks_p_value")
    if not isinstance(distances, list) or not isinstance(p_values, list) or not distances or not p_values:
        return None, None
    return max(distances), min(1.0, min(p_values) * len(p_values))


def _p_value_text(value: float | None) -> str:
    if value is None:
        return "p unknown"
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _fold_rest(items: Sequence[T], build: Callable[[Sequence[T]], Html]) -> Html:
    """Build charts of the first items, and fold the others unless they are few."""
    if len(items) <= SHOWN + _EXTRA_CHARTS:
        return build(items)
    return join([build(items[:SHOWN]), details(f"The other {len(items) - SHOWN}", build(items[SHOWN:]))])


def _usual_ranges(record: RunRecord) -> dict[str, tuple[float, float]]:
    """Return the 1 % and 99 % quantiles of each column of the test rows."""
    facts = group(record.evaluation, "calibration")
    quantiles, names = group(facts, "quantiles"), facts.get("columns") or []
    levels = quantiles.get("levels") or []
    low = [i for i, level in enumerate(levels) if level <= 0.0101]
    high = [i for i, level in enumerate(levels) if level >= 0.9899]
    if not low or not high:
        return {}
    return {
        str(name): (values[low[-1]], values[high[0]]) for name, values in zip(names, quantiles["held_out"], strict=True)
    }


def _is_rare(usual: dict[str, tuple[float, float]], name: str, value: float | None) -> bool:
    low, high = usual.get(name, (float("-inf"), float("inf")))
    return value is not None and not low <= value <= high


def _decimals(values: Sequence[float | None]) -> int | None:
    """Return the decimals that distinguish the values of a column; None if they need powers of ten."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    largest = max((abs(value) for value in known), default=0.0)
    if largest >= 1e15 or (largest and largest < 1e-3):
        return None
    most = max(0, min(6, 4 - math.floor(math.log10(largest)))) if largest else 0
    return next((n for n in range(most) if all(math.isclose(round(v, n), v, rel_tol=1e-9) for v in known)), most)


def _value_cell(usual: dict[str, tuple[float, float]], name: str, value: float | None, digits: int | None) -> Child:
    text = plain(value, 5) if digits is None else fixed(value, digits)
    return tag("b", text, class_="rare") if _is_rare(usual, name, value) else text
