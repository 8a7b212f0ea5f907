"""The report of a run: the contents of its folder as one self-contained HTML file."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pushforward.common.errors import RunUsageError
from pushforward.common.files import atomic_write, report_write_errors
from pushforward.common.markup import Child, Html, join, tag
from pushforward.common.numbers import NOTHING, count, duration, measured, significant, standard_errors
from pushforward.reports.page import (
    Card,
    cards,
    command,
    contents,
    details,
    document,
    facts,
    made_by,
    note,
    pill,
    section,
)
from pushforward.reports.sections.calibration import calibration, calibration_card, inversion_card, rows
from pushforward.reports.sections.data import data
from pushforward.reports.sections.gradients import GRADIENTS_LEAD, gradients, gradients_cards
from pushforward.reports.sections.likelihood import (
    UNSCORED,
    best_baseline,
    earlier_model_note,
    has_likelihood_bound,
    likelihood,
)
from pushforward.reports.sections.model import model, model_sentence
from pushforward.reports.sections.regression import REGRESSION_LEAD, regression
from pushforward.reports.sections.samples import pictures, samples_card
from pushforward.reports.sections.target import target, target_cards
from pushforward.reports.sections.training import loss_key, training
from pushforward.runs.folder import RunFolder
from pushforward.runs.listing import has_source
from pushforward.runs.record import Facts, RunRecord, group, items, number, read_run
from pushforward.runs.stop_reasons import stop_reason_in_words

GENERATOR = "pushforward report"

_STATUS = {
    "finished": ("good", ""),
    "running": (
        "fair",
        "The fit is running. This page shows what it had written so far; update it with pushforward report RUN.",
    ),
    "killed": ("bad", "The process of this fit ended before the fit was finished."),
    "stopped": ("fair", "The fit was stopped by a signal; the best weights so far were kept."),
    "diverged": ("bad", "The fit diverged: the loss became infinite or NaN, and no density was saved."),
    "failed": ("bad", "The fit failed; the error is in log.txt or on the terminal."),
    "unreadable": ("bad", "The state of this run cannot be read."),
}

# Sections that show the evaluation, which may be of an earlier model than the saved one.
_EVALUATION_SECTIONS = ("regression", "pictures", "calibration", "rows")


def write_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write the report of a run from the files of its folder.

    Args:
        run: The run, in any state.
        out: The file to write; by default ``report.html`` in the run folder.

    Returns:
        Path of the report.

    Raises:
        RunUsageError: If ``out`` exists and is not a report.
        RunError: If the file cannot be written.
    """
    path = run.report if out is None else out
    return write_page(path, run_page(read_run(run)), GENERATOR, keep_others=out is not None)


def write_page(path: Path, page: str, generator: str, *, keep_others: bool = True) -> Path:
    """Write a page, replacing only an earlier page of the same generator.

    Args:
        path: The file to write.
        page: The page as text.
        generator: Name of the generator.
        keep_others: Whether to refuse to replace any other file.

    Raises:
        RunUsageError: If another file exists at the path.
        RunError: If the file cannot be written.
    """
    with report_write_errors(path):
        if keep_others and path.exists() and not made_by(path, generator):
            raise RunUsageError(f"{path}: exists and is not a page of {generator}; choose another file with --out")
        with atomic_write(path) as partial:
            # Strings from JSON may contain lone surrogates.
            partial.write_bytes(page.encode("utf-8", "replace"))
    return path


def run_page(record: RunRecord) -> str:
    """Build the report of a run as text."""
    plan = [part for part in _SECTIONS if part.anchor in (*record.sections, *_ALWAYS)]
    if not record.results and not record.gradients:  # an unfinished fit has little else to show
        plan.sort(key=lambda part: part.anchor != "training")
    sections, entries = [], []
    for anchor, heading, build, lead in plan:
        content = _guarded(build, record)
        if content is not None:
            earlier = earlier_model_note(record) if anchor in _EVALUATION_SECTIONS else None
            content = join([note(earlier, "fair"), content]) if earlier else content
            sections.append(section(heading, content, anchor=anchor, lead=lead))
            entries.append((anchor, heading))
    body = join([_header(record), contents(entries), *sections, _guarded(_footer, record)])
    return document(f"{_name(record)} · {record.run.name}", body, generator=GENERATOR)


def _guarded(build: Callable[[RunRecord], Child], record: RunRecord) -> Child:
    try:
        return build(record)
    except Exception as error:  # a damaged file must not prevent the other sections
        return note(f"Left out: a file of this section is damaged ({type(error).__name__}: {error}).", "bad")


def _header(record: RunRecord) -> Html:
    kind, sentence = _STATUS.get(record.status, ("", ""))
    return tag(
        "header",
        tag("p", f"Run {record.run.name}", class_="eyebrow"),
        tag("div", tag("h1", _name(record)), pill(record.status, kind), class_="headline"),
        _guarded(_about, record),
        tag("p", words, class_="about") if (words := _model_sentence(record)) else None,
        note(sentence, kind) if sentence else None,
        _guarded(_notes, record),
        _guarded(_cards, record),
    )


def _name(record: RunRecord) -> str:
    try:
        return f"{record.dataset} · {record.flow}".replace(" x ", " \u00d7 ")
    except Exception:  # the recorded names may be damaged
        return "A run"


def _about(record: RunRecord) -> Html:
    parts = group(record.schema, "rows")
    total = (
        sum(value for value in parts.values() if isinstance(value, int)) if parts else number(record.results, "rows")
    )
    width = len(record.columns)
    about = [
        f"{count(total)} rows" if total else "",
        f"{count(number(record.results, 'features'))} features" if not width and record.results else "",
        f"{width} column{'s' if width != 1 else ''}" if width else "",
        f"conditioned on {', '.join(record.context)}" if record.context else "",
        f"{count(number(record.results, 'parameters'))} parameters" if "parameters" in record.results else "",
        f"started {str(record.state.get('started', '')).replace('T', ' ')[:16]}" if record.state.get("started") else "",
    ]
    return tag("p", " · ".join(text for text in about if text), class_="about")


def _model_sentence(record: RunRecord) -> str:
    try:
        return model_sentence(record)
    except Exception:  # the section about the model reports the damage
        return ""


def _notes(record: RunRecord) -> Html:
    alerts = [str(row.get("text") or row.get("title") or "") for row in record.metrics if row.get("kind") == "alert"]
    texts = [
        *dict.fromkeys(text for text in alerts if text),
        *(text.removeprefix("warning: ") for text in record.warnings),
    ]
    return join(note(f"{text[0].upper()}{text[1:]}", "fair") for text in (*texts, *record.problems))


def _cards(record: RunRecord) -> Html:
    """Summarise likelihood, samples, calibration, inversion and training of the saved model."""
    if "gradients" in record.sections:
        return cards(gradients_cards(record))
    if "target" in record.sections:
        return cards([*target_cards(record), _training_card(record)])
    if "likelihood" not in record.sections:
        return cards([*_headline_cards(record), _training_card(record)])
    shown = [_nll_card(record), _kl_card(record), _training_card(record)]
    if record.evaluated_step is None:
        evaluated = [samples_card(record), calibration_card(record), inversion_card(record)]
        shown = [shown[0], _gain_card(record), shown[1], *evaluated, shown[2]]
    more = _headline_cards(record)[1:]  # the first is the NLL
    return cards([card for card in (*shown[:-1], *more, shown[-1]) if card is not None])


def _headline_cards(record: RunRecord) -> list[Card]:
    """The numbers by which a problem sums up its fit."""
    return [_headline_card(item) for item in items(record.results, "headline")]


def _headline_card(item: Mapping[str, Any]) -> Card:
    name = " ".join(str(item.get("name", "")).split())
    return Card(
        f"{name[:1].upper()}{name[1:]}",
        measured(number(item, "value"), number(item, "se")),
        str(item.get("unit", "")),
        str(item.get("note", "")).strip(" ,;"),
    )


def _nll_card(record: RunRecord) -> Card:
    nll, se = (number(record.results, key) for key in ("test_nll", "test_nll_se"))
    if nll is not None:
        standardized = number(record.results, "test_nll_standardized")
        tested = number(record.evaluation, "test", "rows") or number(record.results, "test_rows_scored")
        tested = tested or number(record.schema, "rows", "test")
        detail = [f"{significant(standardized)} in standardised units"] if standardized is not None else []
        detail += [f"{count(tested)} test rows"] if tested is not None else []
        name = "Test negative log-likelihood" + (", upper bound" if has_likelihood_bound(record) else "")
        return Card(name, measured(nll, se), "nats", "; ".join(detail))
    _, values = record.curve("val/nll")
    if len(values):
        _, errors = record.curve("val/nll_se")
        best = int(values.argmin())
        error = float(errors[best]) if len(errors) == len(values) else None
        why = "there are no test rows" if record.results else UNSCORED.get(record.status, "no test row was scored")
        return Card("Best validation negative log-likelihood", measured(float(values[best]), error), "nats", why)
    return Card("Test negative log-likelihood", NOTHING, "", "nothing has been scored yet")


def _gain_card(record: RunRecord) -> Card | None:
    best = best_baseline(record)
    if best is None:
        return None
    gain, se = best.gain, best.gain_se
    errors = standard_errors(gain, se)
    verdict, word = "fair", "no clear difference"
    if errors is not None and abs(errors) >= 2:
        verdict, word = ("good", "better") if errors > 0 else ("bad", "worse")
    distance = f", {abs(errors):.1f} standard errors" if errors is not None else ""
    return Card(
        "Gain over the best baseline",
        measured(gain, se, signed=True),
        "nats",
        f"{best.label}: {significant(best.nll)}; paired on the test rows{distance}",
        verdict,
        word,
    )


def _kl_card(record: RunRecord) -> Card | None:
    kl, se = (number(record.results, key) for key in ("kl_to_truth", "kl_to_truth_se"))
    if kl is None:
        return None
    detail = "KL(true distribution ‖ flow), estimated on the test rows; 0 is perfect"
    return Card("KL divergence", measured(kl, se), "nats", detail)


def _training_card(record: RunRecord) -> Card:
    steps = number(record.results, "steps")
    seconds = number(record.results, "seconds")
    steps, seconds = record.step if steps is None else steps, record.seconds if seconds is None else seconds
    budget = number(record.config, "train.seconds")
    stop_reason = str(record.results.get("stop_reason") or "")
    if stop_reason:
        detail = stop_reason_in_words(stop_reason)
        detail += f" ({duration(budget)})" if stop_reason == "budget" and budget else ""
    else:
        detail = f"of a budget of {duration(budget)}" if budget else record.status
    at, values = record.curve(loss_key(record, "val"))
    if len(values):
        detail += f"; best validation at step {count(float(at[int(values.argmin())]))}"
    kind, _ = _STATUS.get(record.status, ("", ""))
    return Card("Training", count(steps), f"steps in {duration(seconds)}", detail, kind, record.status)


def _configuration(record: RunRecord) -> Child:
    if not record.config:
        return tag("p", "config.yaml cannot be read.", class_="missing")
    entries = [(key, config_text(value)) for key, value in record.config.items()]
    return join([details(f"All {len(entries)} options, with every auto resolved", facts(entries))])


def _reproduce(record: RunRecord) -> Child:
    environment, name = record.environment, record.run.name
    steps = record.results.get("steps")
    exact = (f"train.steps={steps}", "train.seconds=auto") if steps else ()
    argv = environment.get("argv")
    original = shlex.join(str(word) for word in argv) if isinstance(argv, list) else ""
    if not record.schema:  # a study, which leaves no density
        return command(original) if original else None
    can_repeat = has_source(record.config)
    parts: list[Child] = [
        tag("p", "Run in the parent folder of the run, with the resolved configuration:"),
        command(shlex.join(["pushforward", "fit", "-c", f"{name}/config.yaml", "--out", f"{name}-again"])),
    ]
    if not can_repeat:
        parts = [tag("p", "It was fitted from Python to rows in memory, which were not kept.")]
    if exact and can_repeat:
        parts += [
            tag("p", "A time budget ends at a different step on another machine. For the same number of steps:"),
            command(shlex.join(["pushforward", "fit", "-c", f"{name}/config.yaml", *exact, "--out", f"{name}-again"])),
        ]
    if original and can_repeat:
        parts += [tag("p", "The original command:"), command(original)]
    evaluate = [shlex.join(["pushforward", "evaluate", name])] if can_repeat else []
    given = [word for column in items(record.schema, "context") for word in ("--given", _example(column))]
    if (record.run.model / "config.json").exists():
        parts += [
            tag("p", "Use the density:"),
            command(
                "\n".join(
                    (
                        shlex.join(["pushforward", "sample", name, "-n", "1000", *given, "--out", "new.csv"]),
                        shlex.join(["pushforward", "score", name, "rows.csv", "--out", "log_prob.csv"]),
                        *evaluate,
                    )
                )
            ),
        ]
    versions = group(environment, "versions")
    entries = [(key, str(environment[key])) for key in ("seed", "device", "platform", "cpus", "git_commit") if
            environment.get(key) is not None]  # fmt: skip
    entries += [(key, str(value)) for key, value in versions.items() if value is not None]
    return join([*parts, details("Versions and machine", facts(entries)) if entries else None])


def _example(column: Facts) -> str:
    """Return ``name=value`` of a context column, with its smallest value."""
    value = number(column, "minimum")
    return f"{column.get('name')}={'VALUE' if value is None else f'{value:.15g}'}"


def _footer(record: RunRecord) -> Html:
    version = group(record.environment, "versions").get("pushforward", "")
    text = (
        f"Written by pushforward {version} from metrics.jsonl, results.json and evaluation.json in the run folder. "
        "Likelihoods are in nats and in the units of the data unless stated otherwise; ± is one standard error."
    )
    return tag("footer", tag("p", text))


def config_text(value: object) -> str:
    """Format a value of the configuration as on the command line."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or NOTHING
    return NOTHING if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class _Section(NamedTuple):
    """A section of the page: its anchor, its heading, what builds it, and the sentence it begins with."""

    anchor: str
    heading: str
    build: Callable[[RunRecord], Child]
    lead: str = ""


_SECTIONS = (
    _Section("likelihood", "Likelihood", likelihood, "Mean negative log-likelihood (NLL) per row; lower is better."),
    _Section("regression", "Regression", regression, REGRESSION_LEAD),
    _Section("target", "Target", target, "Fit to an unnormalised density, judged by importance weights of samples."),
    _Section("gradients", "Gradient estimators", gradients, GRADIENTS_LEAD),
    _Section("model", "Model", model),
    _Section("training", "Training", training),
    _Section("pictures", "Density and samples", pictures),
    _Section("calibration", "Calibration", calibration),
    _Section("rows", "Least and most likely rows", rows),
    _Section("data", "Data", data),
    _Section("configuration", "Configuration", _configuration),
    _Section("reproduce", "Reproduce", _reproduce),
)

_ALWAYS = ("configuration", "reproduce")
