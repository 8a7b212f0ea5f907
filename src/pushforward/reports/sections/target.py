"""What a run's page says of a fit to a target: its constant, and what points of the flow are worth."""

import numpy as np

from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import NOTHING, measured, significant, standard_errors
from pushforward.evaluate.plots.charts import Reference, Series, line_chart
from pushforward.reports.page import Card, figure, note, table
from pushforward.runs.record import RunRecord, number

_HEAVY = 0.7  # Pareto's k from which on an estimate by weights is not to be trusted


def target(record: RunRecord) -> Child:
    """The section about the target; None for a fit to rows."""
    if not record.is_target:
        return None
    if not record.results:
        return join([tag("p", "The weights are computed when the fit ends.", class_="missing"), *_curves(record)])
    value = {key: number(record.results, key) for key in _KEYS}
    rows = [
        ("log Z, by importance weights", measured(value["log_z"], value["log_z_se"]), " nats"),
        ("log Z, known", significant(value["log_z_known"], 8), " nats"),
        ("lower bound of log Z: the mean log-weight", measured(value["elbo"], value["elbo_se"]), " nats"),
        ("KL(truth ‖ flow), from exact samples", measured(value["kl_to_truth"], value["kl_to_truth_se"]), " nats"),
        ("NLL of exact samples", measured(value["test_nll"], value["test_nll_se"]), " nats"),
        ("entropy of the target: the best NLL there is", significant(value["entropy"], 8), " nats"),
        ("reverse ESS, share of an exact sample, from points of the flow", significant(value["reverse_ess"]), ""),
        ("forward ESS, the same from exact samples", significant(value["forward_ess"]), ""),
        ("tail of the weights, Pareto's k; above 0.7 do not trust log Z", significant(value["pareto_k"], 2), ""),
        (
            "the same of exact samples; above 0.7 do not trust the forward ESS",
            significant(value["forward_pareto_k"], 2),
            "",
        ),
    ]
    shown = [(name, f"{found}{unit}") for name, found, unit in rows if found != NOTHING]
    said = table(
        "What the weights say", ("of the target and the flow", "value"), shown, text_columns=(0,), hide_caption=True
    )
    k = value["pareto_k"]
    warning = (
        note("Few points carry most of the weight: log Z and its error are not reliable.", "bad")
        if k is not None and k > _HEAVY
        else None
    )
    return join([warning, figure(said), *_curves(record)])


def target_cards(record: RunRecord) -> list[Card]:
    """The first glance at a fit to a target."""
    value = {key: number(record.results, key) for key in _KEYS}
    if value["log_z"] is None:
        return [Card("log Z", NOTHING, "", "nothing has been weighted yet")]
    known, detail, judged = value["log_z_known"], "the constant is not known", ("", "")
    if known is not None:
        off = value["log_z"] - known
        errors = standard_errors(off, value["log_z_se"])
        detail = f"known: {significant(known, 7)}; off by {significant(off, 2, signed=True)}"
        judged = ("good", "close") if abs(off) < 0.05 else ("bad", "off")
        detail += f", {abs(errors):.1f} standard errors" if errors is not None else ""
    found = [Card("log Z", measured(value["log_z"], value["log_z_se"]), "nats", detail, *judged)]
    for key, label, of in (("reverse_ess", "Reverse ESS", "the flow"), ("forward_ess", "Forward ESS", "the truth")):
        share = value[key]
        if share is not None:
            verdict, word = (
                ("good", "high") if share > 0.5 else ("fair", "middling") if share > 0.05 else ("bad", "low")
            )
            found.append(
                Card(label, f"{100 * share:.3g}", "%", f"from points of {of}; 100 % is perfect", verdict, word)
            )
    if value["kl_to_truth"] is not None:
        kl = measured(value["kl_to_truth"], value["kl_to_truth_se"])
        found.append(Card("KL to the truth", kl, "nats", "KL(truth ‖ flow) on exact samples; 0 is perfect"))
    return found


_KEYS = (
    "log_z", "log_z_se", "log_z_known", "elbo", "elbo_se", "kl_to_truth", "kl_to_truth_se", "test_nll", "test_nll_se",
    "entropy", "reverse_ess", "forward_ess", "pareto_k", "forward_pareto_k",
)  # fmt: skip


def _curves(record: RunRecord) -> list[Html]:
    """Log Z and the effective sample sizes at every validation."""
    out = []
    known = number(record.results, "log_z_known")
    references = [] if known is None else [Reference("known", known, colour=2, dash=1)]
    drawn: tuple[tuple[str, str, tuple[tuple[str, str], ...], list[Reference]], ...] = (
        ("log Z and its lower bound", "nats", (("val/log_z", "log Z"), ("val/elbo", "lower bound")), references),
        ("Effective sample size", "share", (("val/reverse_ess", "reverse"), ("val/forward_ess", "forward")), []),
    )
    for title, unit, keys, lines in drawn:
        series = []
        for colour, (key, name) in enumerate(keys):
            at, values = record.curve(key)
            if np.isfinite(values).any():
                series.append(Series(name, at, values, colour=colour))
        if series:
            label = f"{title} against the step"
            chart = line_chart(
                series, label=label, x_name="step", y_name=unit, references=lines, settle=True, height=200
            )
            out.append(figure(chart, title=title))
    return [tag("div", *out, class_="two")] if out else []
