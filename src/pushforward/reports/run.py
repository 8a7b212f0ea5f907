"""The page of a run: everything a run folder says, as one HTML file that opens without a network."""

import shlex
from collections.abc import Callable
from pathlib import Path

from pushforward.common.errors import RunError, RunUsageError, reason
from pushforward.common.files import atomic_write
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
from pushforward.reports.sections.likelihood import (
    UNSCORED,
    best_baseline,
    bounded,
    earlier_model,
    likelihood,
)
from pushforward.reports.sections.model import in_words, model
from pushforward.reports.sections.samples import pictures, samples_card
from pushforward.reports.sections.target import target, target_cards
from pushforward.reports.sections.training import loss_key, training
from pushforward.runs.folder import RunFolder
from pushforward.runs.record import Facts, RunRecord, group, items, number, read_run
from pushforward.runs.stop_reasons import stop_reason_in_words

GENERATOR = "pushforward report"

_STATUS = {
    "finished": ("good", ""),
    "running": (
        "fair",
        "The fit is running: what is here is what it has written so far. Make the page again for more.",
    ),
    "killed": ("bad", "The process of this fit is gone without having finished it."),
    "stopped": ("fair", "The fit was stopped by a signal; the best weights until then were kept."),
    "diverged": ("bad", "The fit diverged: the loss did not stay finite, and no density was kept."),
    "failed": ("bad", "The fit failed; log.txt and the terminal say why."),
    "unreadable": ("bad", "The state of this run cannot be read."),
}

# What says nothing of the model that is kept, where the evaluation is of an earlier one.
_OF_THE_EVALUATION = ("pictures", "calibration", "rows")


def write_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write the page of a run, from its files alone.

    Args:
        run: The run, in any state.
        out: The file to write; ``report.html`` in the run folder if not given.

    Returns:
        Where the page is.

    Raises:
        RunUsageError: If something else is in the place of ``out``.
        RunError: If it cannot be written.
    """
    if (run.path / "gradients.json").exists():
        raise RunUsageError(
            f"{run.path}: is a study of gradients, and has no page; gradients.png and gradients.json hold what it found"
        )
    path = run.report if out is None else out
    return write_page(path, run_page(read_run(run)), GENERATOR, keep_others=out is not None)


def write_page(path: Path, page: str, generator: str, *, keep_others: bool = True) -> Path:
    """Write a page where there is none, or an earlier one of the same generator.

    Args:
        path: The file to write.
        page: The page as text.
        generator: What made it.
        keep_others: Whether any other file in its place stays.

    Raises:
        RunUsageError: If such a file is in its place.
        RunError: If it cannot be written.
    """
    try:
        if keep_others and path.exists() and not made_by(path, generator):
            raise RunUsageError(f"{path}: is there already and is no page of {generator}; name another file with --out")
        with atomic_write(path) as partial:
            # JSON may hold halves of characters, which no file can.
            partial.write_bytes(page.encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(f"{path}: cannot write: {reason(error)}") from None
    return path


def run_page(record: RunRecord) -> str:
    """The page of a run as text."""
    made: list[tuple[str, str, Callable[[RunRecord], Child], str]] = [
        ("likelihood", "Likelihood", likelihood, "Mean negative log-likelihood (NLL); lower is better."),
        ("model", "Model", model, ""),
        ("training", "Training", training, ""),
        ("pictures", "Density and samples", pictures, ""),
        ("calibration", "Calibration", calibration, ""),
        ("rows", "Least and most likely rows", rows, ""),
        ("data", "Data", data, ""),
        ("configuration", "Configuration", _configuration, ""),
        ("reproduce", "Reproduce", _reproduce, ""),
    ]
    if record.is_target:  # there are no rows that could be scored or shown
        made[0] = ("target", "Target", target, "An unnormalised density, and how well points of the flow stand for it.")
        made = [part for part in made if part[0] not in ("calibration", "rows", "data")]
    if not record.results:  # all there is to see of a fit that has not ended well, or not yet
        made.sort(key=lambda part: part[0] != "training")
    sections, entries = [], []
    for anchor, heading, build, lead in made:
        content = _guarded(build, record)
        if content is not None:
            earlier = earlier_model(record) if anchor in _OF_THE_EVALUATION else None
            content = join([note(earlier, "fair"), content]) if earlier else content
            sections.append(section(heading, content, anchor=anchor, lead=lead))
            entries.append((anchor, heading))
    body = join([_header(record), contents(entries), *sections, _guarded(_footer, record)])
    return document(f"{_name(record)} · {record.run.name}", body, generator=GENERATOR)


def _guarded(build: Callable[[RunRecord], Child], record: RunRecord) -> Child:
    try:
        return build(record)
    except Exception as error:  # whatever a file holds, what the others say is as good as before
        return note(f"Left out: a file of the run is damaged here ({type(error).__name__}: {error}).", "bad")


def _header(record: RunRecord) -> Html:
    kind, sentence = _STATUS.get(record.status, ("", ""))
    return tag(
        "header",
        tag("p", f"Run {record.run.name}", class_="eyebrow"),
        tag("div", tag("h1", _name(record)), pill(record.status, kind), class_="headline"),
        _guarded(_about, record),
        tag("p", words, class_="about") if (words := _in_words(record)) else None,
        note(sentence, kind) if sentence else None,
        _guarded(_notes, record),
        _guarded(_glance, record),
    )


def _name(record: RunRecord) -> str:
    try:
        return f"{record.dataset} · {record.flow}".replace(" x ", " \u00d7 ")
    except Exception:  # a name that is no name
        return "A run"


def _about(record: RunRecord) -> Html:
    parts = group(record.schema, "rows")
    total = (
        sum(value for value in parts.values() if isinstance(value, int)) if parts else number(record.results, "rows")
    )
    width = len(record.columns)
    about = [
        f"{count(total)} rows" if total else "",
        f"{count(number(record.results, 'features'))} coordinates" if record.is_target and record.results else "",
        f"{width} column{'s' if width != 1 else ''}" if width else "",
        f"conditioned on {', '.join(record.context)}" if record.context else "",
        f"{count(number(record.results, 'parameters'))} parameters" if "parameters" in record.results else "",
        f"started {str(record.state.get('started', '')).replace('T', ' ')[:16]}" if record.state.get("started") else "",
    ]
    return tag("p", " · ".join(text for text in about if text), class_="about")


def _in_words(record: RunRecord) -> str:
    try:
        return in_words(record)
    except Exception:  # the section below says what is damaged
        return ""


def _notes(record: RunRecord) -> Html:
    texts = [str(row.get("text") or row.get("title") or "") for row in record.metrics if row.get("kind") == "alert"]
    said = [*dict.fromkeys(text for text in texts if text), *(text.removeprefix("warning: ") for text in record.told)]
    return join(note(f"{text[0].upper()}{text[1:]}", "fair") for text in (*said, *record.problems))


def _glance(record: RunRecord) -> Html:
    """How good, by how much, can it be trusted, how did training go: of the model that is kept alone."""
    if record.is_target:
        return cards([*target_cards(record), _training_card(record)])
    found = [_nll_card(record), _kl_card(record), _training_card(record)]
    if record.evaluated_step is None:
        evaluated = [samples_card(record), calibration_card(record), inversion_card(record)]
        found = [found[0], _gain_card(record), found[1], *evaluated, found[2]]
    return cards([card for card in found if card is not None])


def _nll_card(record: RunRecord) -> Card:
    nll, se = (number(record.results, key) for key in ("test_nll", "test_nll_se"))
    if nll is not None:
        scale = number(record.results, "test_nll_standardized")
        tested = number(record.evaluation, "test", "rows") or number(record.results, "test_rows_scored")
        tested = tested or number(record.schema, "rows", "test")
        detail = [f"{significant(scale)} in standardised units"] if scale is not None else []
        detail += [f"{count(tested)} test rows"] if tested is not None else []
        name = "Test NLL, at most" if bounded(record) else "Test NLL"
        return Card(name, measured(nll, se), "nats", "; ".join(detail))
    _, values = record.curve("val/nll")
    if len(values):
        _, errors = record.curve("val/nll_se")
        best = int(values.argmin())
        error = float(errors[best]) if len(errors) == len(values) else None
        why = "there are no test rows" if record.results else UNSCORED.get(record.status, "no test row was scored")
        return Card("Best validation NLL", measured(float(values[best]), error), "nats", why)
    return Card("Test NLL", NOTHING, "", "nothing has been scored yet")


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
    return Card("KL to the truth", measured(kl, se), "nats", "KL(truth ‖ flow) on the test rows; 0 is perfect")


def _training_card(record: RunRecord) -> Card:
    steps = number(record.results, "steps")
    seconds = number(record.results, "seconds")
    steps, seconds = record.step if steps is None else steps, record.seconds if seconds is None else seconds
    budget = number(record.config, "train.seconds")
    reason = str(record.results.get("stop_reason") or "")
    if reason:
        detail = stop_reason_in_words(reason) + (f" ({duration(budget)})" if reason == "budget" and budget else "")
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
    told = [(key, in_plain_words(value)) for key, value in record.config.items()]
    return join([details(f"All {len(told)} keys, every choice resolved", facts(told))])


def _reproduce(record: RunRecord) -> Child:
    environment, name = record.environment, record.run.name
    steps = record.results.get("steps")
    exact = (f"train.steps={steps}", "train.seconds=auto") if steps else ()
    parts: list[Child] = [
        tag("p", "From the folder that holds the run, with the configuration that was resolved:"),
        command(shlex.join(["pushforward", "fit", "-c", f"{name}/config.yaml", "--out", f"{name}-again"])),
    ]
    if exact:
        parts += [
            tag("p", "A budget in seconds ends at another step on another machine. The same number of steps:"),
            command(shlex.join(["pushforward", "fit", "-c", f"{name}/config.yaml", *exact, "--out", f"{name}-again"])),
        ]
    argv = environment.get("argv")
    if isinstance(argv, list):
        parts += [tag("p", "The command that was given:"), command(shlex.join(str(word) for word in argv))]
    flow_of_rows = not record.is_target and not bounded(record)
    evaluated = [shlex.join(["pushforward", "evaluate", name])] if flow_of_rows else []
    given = [word for column in items(record.schema, "context") for word in ("--given", _example(column))]
    if (record.run.model / "config.json").exists():
        parts += [
            tag("p", "What can be done with it:"),
            command(
                "\n".join(
                    (
                        shlex.join(["pushforward", "sample", name, "-n", "1000", *given, "--out", "new.csv"]),
                        shlex.join(["pushforward", "score", name, "rows.csv", "--out", "log_prob.csv"]),
                        *evaluated,
                    )
                )
            ),
        ]
    versions = group(environment, "versions")
    told = [(key, str(environment[key])) for key in ("seed", "device", "platform", "cpus", "git_commit") if
            environment.get(key) is not None]  # fmt: skip
    told += [(key, str(value)) for key, value in versions.items() if value is not None]
    return join([*parts, details("Versions and machine", facts(told)) if told else None])


def _example(column: Facts) -> str:
    """A column that is given, at a value it has."""
    value = number(column, "minimum")
    return f"{column.get('name')}={'VALUE' if value is None else f'{value:.15g}'}"


def _footer(record: RunRecord) -> Html:
    version = group(record.environment, "versions").get("pushforward", "")
    text = (
        f"Written by pushforward {version} from the files of the run folder, which are the record: metrics.jsonl, "
        "results.json, evaluation.json. Likelihoods are in nats and in the units of the data unless said otherwise; "
        "± is one standard error."
    )
    return tag("footer", tag("p", text))


def in_plain_words(value: object) -> str:
    """A value of the configuration as a command would say it."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or NOTHING
    return NOTHING if value is None else str(value).lower() if isinstance(value, bool) else str(value)
