"""Whether a density can be trusted where it says something: calibration, inversion, and the rows at its ends."""

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

_FEW_COLUMNS = 4
"""Columns that are not left out for: a table that scrolls has room for a few more."""

_FEW_MORE = 6
"""A row of small charts, which is no more to look at than a line that opens it."""


def calibration(record: RunRecord) -> Child:
    """The section about calibration: PIT histograms, quantiles, and tests of the noise."""
    facts, latent = group(record.evaluation, "calibration"), group(record.evaluation, "latent")
    if not record.evaluation:
        return None
    if not facts and not latent:
        return tag("p", "The evaluation of this run has no calibration.", class_="missing")
    out: list[Child] = []
    counts = group(facts, "pit").get("counts")
    if counts:
        named = [f"noise {i}" for i in range(len(counts))]
        pits = sorted(pit_histograms(named, counts), key=lambda pit: -pit.misfit)
        out.append(
            figure(
                _worst_first(pits, pit_multiples),
                f"Probability integral transform of {count(number(facts, 'rows'))} test rows: the distribution "
                "function of N(0, 1) at the noise behind them, one histogram for each coordinate of the base, in an "
                "autoregressive flow given those before it. Flat is calibrated; a hump means that the density is too "
                "wide, a valley that it is too narrow, a slope that it is shifted. The band holds 95 % of the bins "
                "of a perfect fit; bins outside are in the second colour. Worst first.",
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
                _worst_first(pairs, quantile_multiples),
                f"Quantiles of each column from level {plain(levels[0])} to {plain(levels[-1])}: test rows to the "
                "right, samples upwards, in data units. On the diagonal both are spread alike. The gap is the largest "
                "distance between two quantiles, as a share of the range between the outer ones. Worst first.",
                title="Quantiles, samples against test rows",
            )
        )
    out.append(_latent_table(latent))
    return join(out)


def rows(record: RunRecord) -> Child:
    """The section of the rows with the lowest and the highest density."""
    extremes = group(record.evaluation, "extreme_rows")
    worst, best = items(extremes, "worst"), items(extremes, "best")
    if not record.evaluation:
        return None
    if not worst and not best:
        return tag("p", "The evaluation of this run lists no single rows.", class_="missing")
    usual = _usual(record)
    names = list(dict.fromkeys(str(name) for row in (*worst, *best) for name in group(row, "values")))
    shown = names
    if len(names) > WIDE + _FEW_COLUMNS:
        unusual = {name: sum(_rare(usual, name, number(row, "values", name)) for row in worst) for name in names}
        kept = set(sorted(names, key=lambda name: -unusual[name])[:WIDE])
        shown = [name for name in names if name in kept]
    said = "Row numbers count from 0 in the data set."
    if usual:
        said += " Bold values are among the lowest or the highest hundredth of their column in the test rows."
    if len(shown) < len(names):
        most = " with the most of those" if usual else ""
        said += f" Shown are {len(shown)} of {len(names)} columns{most}."
    digits = {name: _digits([number(row, "values", name) for row in (*worst, *best)]) for name in shown}
    out: list[Child] = []
    for kind, found in (("Lowest", worst), ("Highest", best)):
        if found:
            caption = f"{kind} log-density of the test rows, in nats"
            body = [
                (
                    count(number(row, "row")),
                    fixed(number(row, "log_prob"), 2),
                    *(_marked(usual, name, number(row, "values", name), digits[name]) for name in shown),
                )
                for row in found
            ]
            out.append(figure(table(caption, ("row", "log-density", *shown), body, text_columns=())))
    return join([*out, tag("p", said, class_="said")])


def calibration_card(record: RunRecord) -> Card | None:
    """Whether the noise behind the test rows is normal."""
    latent = group(record.evaluation, "latent")
    distance, chance = _worst_latent(latent)
    if distance is None or chance is None:
        return None
    what = "largest distance of the noise from N(0, 1)"
    radius, radius_chance = number(latent, "radius_ks"), number(latent, "radius_ks_p_value")
    if radius is not None and radius_chance is not None and radius_chance < chance:
        # Coordinates may each be normal, and not be so together.
        distance, chance, what = radius, radius_chance, "distance of the noise's squared radius from chi-squared"
    verdict, word = ("good", "no departure seen") if chance > 0.01 else ("fair", "small departures")
    if chance > 0.01 and (number(latent, "rows") or 0) < FEW:
        verdict, word = "", "few rows to tell"
    if chance <= 0.01 and distance > 0.05:
        verdict, word = "bad", "departs from N(0, I)"
    detail = f"{what}, {_chance(chance)}; {count(number(latent, 'rows'))} test rows"
    return Card("Calibration", significant(distance, 2), "KS distance", detail, verdict, word)


def inversion_card(record: RunRecord) -> Card | None:
    """Whether densities are what they say: the flow inverted, its log-determinant against automatic differentiation."""
    points = number(record.evaluation, "round_trip", "points")
    error = number(record.evaluation, "log_det", "error")
    if points is None or error is None:
        return None
    worst = max(points, error)
    verdict, word = ("good", "exact") if worst < 1e-6 else ("fair", "inexact") if worst < 1e-3 else ("bad", "broken")
    detail = f"log-determinant against automatic differentiation; there and back {significant(points, 2)} std"
    return Card("Inversion", significant(error, 2), "nats", detail, verdict, word)


def _latent_table(latent: Facts) -> Child:
    distance, chance = _worst_latent(latent)
    if distance is None:
        return None
    means, stds = (latent.get(key) or [0.0] for key in ("mean", "std"))
    body = [
        ("largest distance of a mean from 0", significant(max(abs(value) for value in means), 2)),
        ("standard deviations", f"{fixed(min(stds), 3)} to {fixed(max(stds), 3)}"),
        ("largest correlation of two coordinates", significant(number(latent, "max_correlation"), 2)),
        ("largest KS distance from N(0, 1)", f"{significant(distance, 2)} ({_chance(chance)})"),
        (
            "KS distance of the squared radius from chi-squared",
            f"{significant(number(latent, 'radius_ks'), 2)} ({_chance(number(latent, 'radius_ks_p_value'))})",
        ),
    ]
    title = f"Noise behind {count(number(latent, 'rows'))} test rows"
    return figure(
        table(title, ("of the noise", "found"), body),
        "p-values are corrected for the number of coordinates. On many rows even small departures are seen.",
    )


def _worst_latent(latent: Facts) -> tuple[float | None, float | None]:
    """Largest KS distance of a coordinate and its p-value, corrected for their number."""
    distances, chances = latent.get("ks"), latent.get("ks_p_value")
    if not isinstance(distances, list) or not isinstance(chances, list) or not distances or not chances:
        return None, None
    return max(distances), min(1.0, min(chances) * len(chances))


def _chance(value: float | None) -> str:
    if value is None:
        return "p unknown"
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _worst_first(drawn: Sequence[T], build: Callable[[Sequence[T]], Html]) -> Html:
    """So many of them, and the others to open; all where there are only a few more."""
    if len(drawn) <= SHOWN + _FEW_MORE:
        return build(drawn)
    return join([build(drawn[:SHOWN]), details(f"The other {len(drawn) - SHOWN}", build(drawn[SHOWN:]))])


def _usual(record: RunRecord) -> dict[str, tuple[float, float]]:
    """For each column the quantiles of the test rows beyond which values are called rare."""
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


def _rare(usual: dict[str, tuple[float, float]], name: str, value: float | None) -> bool:
    low, high = usual.get(name, (float("-inf"), float("inf")))
    return value is not None and not low <= value <= high


def _digits(values: Sequence[float | None]) -> int | None:
    """Decimals that tell the values of a column, the same for all; None where they need powers of ten."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    largest = max((abs(value) for value in known), default=0.0)
    if largest >= 1e15 or (largest and largest < 1e-3):
        return None
    most = max(0, min(6, 4 - math.floor(math.log10(largest)))) if largest else 0
    return next((n for n in range(most) if all(math.isclose(round(v, n), v, rel_tol=1e-9) for v in known)), most)


def _marked(usual: dict[str, tuple[float, float]], name: str, value: float | None, digits: int | None) -> Child:
    text = plain(value, 5) if digits is None else fixed(value, digits)
    return tag("b", text, class_="rare") if _rare(usual, name, value) else text
