"""The section about a fit to an unnormalised target: log Z, effective sample sizes, KL divergence."""

import numpy as np

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import NOTHING, measured, significant, standard_errors
from pushforward.evaluate.plots.charts import Reference, Series, line_chart
from pushforward.reports.page import Card, figure, note, table
from pushforward.runs.record import RunRecord, number

_MAX_PARETO_K = 0.7  # above, importance-sampling estimates are not reliable


def target(record: RunRecord) -> Child:
    """Build the section about the target."""
    if not record.results:
        return join(
            [tag("p", "Importance weights are computed when the fit ends.", class_="missing"), *_curves(record)]
        )
    value = {key: number(record.results, key) for key in _KEYS}
    rows = [
        ("log Z, estimated by importance sampling", measured(value["log_z"], value["log_z_se"]), " nats"),
        ("log Z, exact", significant(value["log_z_known"], 8), " nats"),
        ("lower bound of log Z (ELBO), the mean log-weight", measured(value["elbo"], value["elbo_se"]), " nats"),
        ("KL(target ‖ flow), from exact samples", measured(value["kl_to_truth"], value["kl_to_truth_se"]), " nats"),
        ("NLL of exact samples", measured(value["test_nll"], value["test_nll_se"]), " nats"),
        ("entropy of the target, the lowest possible NLL", significant(value["entropy"], 8), " nats"),
        ("reverse ESS (effective sample size / n), from samples of the flow", significant(value["reverse_ess"]), ""),
        ("forward ESS, from exact samples of the target", significant(value["forward_ess"]), ""),
        ("Pareto k of the weights; above 0.7 log Z is not reliable", significant(value["pareto_k"], 2), ""),
        (
            "Pareto k from exact samples; above 0.7 the forward ESS is not reliable",
            significant(value["forward_pareto_k"], 2),
            "",
        ),
    ]
    shown = [(name, f"{text}{unit}") for name, text, unit in rows if text != NOTHING]
    results = table(
        "Results from importance weights", ("quantity", "value"), shown, text_columns=(0,), hide_caption=True
    )
    k = value["pareto_k"]
    warning = (
        note("A few samples carry most of the weight: log Z and its error are not reliable.", "bad")
        if k is not None and k > _MAX_PARETO_K
        else None
    )
    return join([warning, figure(results), *_curves(record)])


def target_cards(record: RunRecord) -> list[Card]:
    """Build the cards of a fit to a target."""
    value = {key: number(record.results, key) for key in _KEYS}
    if value["log_z"] is None:
        return [Card("log Z", NOTHING, "", "computed when the fit ends")]
    exact, detail, verdict_word = value["log_z_known"], "the exact value is unknown", ("", "")
    if exact is not None:
        error = value["log_z"] - exact
        errors = standard_errors(error, value["log_z_se"])
        detail = f"exact: {significant(exact, 7)}; error {significant(error, 2, signed=True)}"
        verdict_word = ("good", "close") if abs(error) < 0.05 else ("bad", "far off")
        detail += f", {abs(errors):.1f} standard errors" if errors is not None else ""
    shown = [Card("log Z", measured(value["log_z"], value["log_z_se"]), "nats", detail, *verdict_word)]
    for key, label, source in (
        ("reverse_ess", "Reverse ESS", "samples of the flow"),
        ("forward_ess", "Forward ESS", "exact samples"),
    ):
        share = value[key]
        if share is not None:
            verdict, word = ("good", "high") if share > 0.5 else ("fair", "medium") if share > 0.05 else ("bad", "low")
            shown.append(
                Card(
                    label,
                    f"{100 * share:.3g}",
                    "%",
                    f"effective sample size from {source}; 100 % is perfect",
                    verdict,
                    word,
                )
            )
    if value["kl_to_truth"] is not None:
        kl = measured(value["kl_to_truth"], value["kl_to_truth_se"])
        shown.append(Card("KL divergence", kl, "nats", "KL(target ‖ flow), from exact samples; 0 is perfect"))
    return shown


_KEYS = (
    "log_z", "log_z_se", "log_z_known", "elbo", "elbo_se", "kl_to_truth", "kl_to_truth_se", "test_nll", "test_nll_se",
    "entropy", "reverse_ess", "forward_ess", "pareto_k", "forward_pareto_k",
)  # fmt: skip


def _curves(record: RunRecord) -> list[Html]:
    """Draw log Z and the effective sample sizes at every validation."""
    out = []
    exact = number(record.results, "log_z_known")
    references = [] if exact is None else [Reference("exact", exact, colour=2, dash=1)]
    charts: tuple[tuple[str, str, tuple[tuple[str, str], ...], list[Reference]], ...] = (
        ("log Z and its lower bound", "nats", (("val/log_z", "log Z"), ("val/elbo", "lower bound")), references),
        ("Effective sample size", "share of n", (("val/reverse_ess", "reverse"), ("val/forward_ess", "forward")), []),
    )
    for title, unit, keys, lines in charts:
        series = []
        for colour, (key, name) in enumerate(keys):
            at, values = record.curve(key)
            if np.isfinite(values).any():
                series.append(Series(name, at, values, colour=colour))
        if series:
            label = f"{title} against the step"
            chart = line_chart(
                series, label=label, x_name="step", y_name=unit, references=lines, skip_start=True, height=200
            )
            out.append(figure(chart, title=title))
    return [tag("div", *out, class_="two")] if out else []
