"""The table of a benchmark: all methods on all data sets, built from the results in the folder.

It contains all results in the folder, also those that the last command did not ask for.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pushforward.benchmark.entries import BEST, TableEntry, task_entries
from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Job, JobResult, Task
from pushforward.benchmark.methods import BASELINE_LABELS, Method, recorded_method
from pushforward.benchmark.published import COLUMNS, Published
from pushforward.benchmark.scores import Estimate, RowScores, Run, difference
from pushforward.benchmark.suites import Suite, labels
from pushforward.common.errors import RunError
from pushforward.runs.row_scores import read_row_scores

# Text in the note on a data set whose rows are not those of the published numbers.
_NOT_PUBLISHED = "not the published"
_MAX_COLUMN_NOTES = 2


@dataclass(frozen=True, eq=False)
class BenchmarkTable:
    """All results of a benchmark so far.

    Attributes:
        suite: The suite.
        facts: The content of ``benchmark.json``.
        tasks: The data sets.
        methods: The methods.
        results: The results of all jobs.
        scores: Scores of the test rows of every finished run, higher is better, by data set and method.
        planned: Number of runs that any method has or is to have, by data set.
        missing: Data sets that are not available, and what to do.
        jobs_left: Number of jobs without a result.
        notes: Other notes for the reader.
    """

    suite: Suite
    facts: Mapping[str, Any]
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    results: Sequence[JobResult]
    scores: Mapping[tuple[Task, str], Mapping[Run, RowScores]]
    planned: Mapping[Task, int]
    missing: Mapping[str, str] = field(default_factory=dict)
    jobs_left: int = 0
    notes: tuple[str, ...] = ()
    _pairs: dict[tuple[Task, str, str], Estimate | None] = field(default_factory=dict, repr=False)

    @cached_property
    def labels(self) -> dict[Task, str]:
        """Name of each data set in the table."""
        names = labels([task.source for task in self.tasks])
        both = {t.source for t in self.tasks if t._replace(dequantize="auto" if t.dequantize == "off" else "off")
                in self.tasks}  # fmt: skip
        return {
            task: names[task.source] + (", dequantized" if task.dequantize == "auto" and task.source in both else "")
            for task in self.tasks
        }

    @cached_property
    def entries(self) -> dict[tuple[Task, str], TableEntry]:
        """Entries by data set and method."""
        found: dict[tuple[Task, str], TableEntry] = {}
        for task in self.tasks:
            scores = [self.scores.get((task, method.spec), {}) for method in self.methods]
            results = [result for result in self.results if result.job.task == task]
            entries = task_entries(task, self.methods, scores, results, self.planned[task])
            found |= {(task, entry.method.spec): entry for entry in entries}
        return found

    @property
    def published(self) -> list[Published]:
        """Rows of the literature with a number for one of the data sets."""
        sources = {task.source for task in self.tasks if task.dequantize == "off"}
        return [row for row in self.suite.published if sources & row.figures.keys()]

    @property
    def failures(self) -> dict[str, str]:
        """Distinct reasons of failed runs, with their number, data sets and methods in words."""
        places: dict[str, list[tuple[Task, str]]] = {}
        for result in self.results:
            if result.status == "failed":
                places.setdefault(result.reason, []).append((result.job.task, result.method))
        out = {}
        for reason, failed in places.items():
            sets = list(dict.fromkeys(self.labels[task].partition(", ")[0] for task, _ in failed))
            methods = list(dict.fromkeys(recorded_method(spec).label for _, spec in failed))
            runs = f"{len(failed)} run{'s' if len(failed) > 1 else ''}"
            out[reason] = f"{runs} ({', '.join(sets)}: {', '.join(methods)})"
        return out

    @property
    def mismatches(self) -> list[str]:
        """Lines about data sets with other columns or rows than in the published table."""
        lines = []
        for task in self.tasks:
            known, published = self.finished_result(task), self.published_columns(task)
            if known is not None and published is not None:
                lines.append(
                    f"{self.labels[task]}: {known.features} columns here, {published} in the published table: the "
                    "numbers are not of the same problem"
                )
            if self.published and (other := self.other_rows(task)):
                lines.append(f"{self.labels[task]}: {other}: the numbers are not of the same problem")
        return lines

    def published_columns(self, task: Task) -> int | None:
        """Return the number of columns of a data set in the published table if it differs from that here, else None."""
        known, published = self.finished_result(task), COLUMNS.get(self.suite.name, {}).get(task.source)
        is_other = task.dequantize == "off" and known is not None and published not in (None, known.features)
        return published if is_other else None

    def other_rows(self, task: Task) -> str:
        """Return how the rows differ from the published ones; empty if they do not, or none are published."""
        known = self.finished_result(task)
        if known is None or task.dequantize != "off" or task.source not in COLUMNS.get(self.suite.name, {}):
            return ""
        notes = [_without_name(note, task.source) for note in known.notes if _NOT_PUBLISHED in note]
        rows, published = sum(known.rows.values()), _published_rows().get(task.source)
        if not notes and len(known.rows) == 3 and published not in (None, rows):
            notes = [f"{rows:,} rows here, {published:,} in the published set"]
        return notes[0] if notes else ""

    def is_other_problem(self, task: Task) -> bool:
        """Whether a data set has other columns or rows than in the published table."""
        return self.published_columns(task) is not None or bool(self.other_rows(task))

    def is_published(self, task: Task) -> bool | None:
        """Whether a data set is that of the published numbers; None if there are none, or before the first result."""
        has_numbers = task.dequantize == "off" and task.source in COLUMNS.get(self.suite.name, {})
        return not self.is_other_problem(task) if has_numbers and self.finished_result(task) is not None else None

    def data_notes(self, task: Task) -> list[str]:
        """Return the notes on a data set, merged over all divisions of its rows."""
        found: dict[str, list[tuple[int, str]]] = {}
        for result in self.results:
            if result.job.task == task and result.status == "finished":
                for note in result.notes:
                    text = _without_name(note, task.source)
                    if not re.match(r"(rnade|half|tenths), fold \d+: ", text):  # the suite says so
                        # Counts of rows differ from fold to fold; numbers in names of columns do not.
                        key = text if text.startswith("column ") else re.sub(r"\d[\d,.]*", "#", text)
                        found.setdefault(key, []).append((result.fold, text))
        return [_merge_notes(texts, self.suite.fold_word) for texts in found.values()]

    @property
    def notes_on_data(self) -> list[str]:
        """Notes on all data sets, in lines; more than two notes on columns become a reference to ``table.json``."""
        lines = list[str]()
        for task in self.tasks:
            name, notes = self.labels[task].partition(", ")[0], self.data_notes(task)
            on_columns = [note for note in notes if note.startswith(("column ", "columns "))]
            if self.published and self.other_rows(task):  # it is among the mismatches
                notes = [note for note in notes if _NOT_PUBLISHED not in note]
            if len(on_columns) > _MAX_COLUMN_NOTES:
                notes = [note for note in notes if note not in on_columns]
                notes.append(f"{len(on_columns)} notes on columns, in table.json")
            lines += [f"{name}: {note}" for note in notes]
        # A data set that is there twice, dequantized and not, has the same notes.
        return list(dict.fromkeys(lines))

    @property
    def is_empty(self) -> bool:
        """Whether no job has finished."""
        return not self.scores

    @property
    def run_word(self) -> str:
        """What the second standard error is over: folds, halves, splits or seeds."""
        many = any(len({fold for fold, _ in runs}) > 1 for runs in self.scores.values())
        return self.suite.folds_word if many else "seeds"

    @property
    def runs_in_words(self) -> str:
        """What the second standard error is over, and its correction if divisions overlap."""
        overlapping = [part.overlap > 0 for runs in self.scores.values() for part in runs.values()]
        if self.run_word == "seeds" or not any(overlapping):
            return self.run_word
        which = "which overlap" if all(overlapping) else "where they overlap"
        return f"{self.run_word}, {which}: corrected, Nadeau and Bengio 2003"

    def best(self, task: Task) -> TableEntry | None:
        """Return the entry of the best method on a data set; None if methods cannot be compared."""
        found = [self.entries[task, m.spec] for m in self.methods if self.entries[task, m.spec].mark == BEST]
        return found[0] if found else None

    def mean_rank(self, method: Method) -> tuple[float, int] | None:
        """Return the mean rank over the data sets on which all methods are compared, and their number, or None."""
        known = [self.entries[task, method.spec].rank for task in self._ranked_tasks]
        found = [rank for rank in known if rank is not None]
        return (sum(found) / len(found), len(found)) if found else None

    @cached_property
    def _ranked_tasks(self) -> list[Task]:
        """Data sets that rank every method that is ranked anywhere: with fewer methods a good rank is easier."""
        ranked = {spec for (_, spec), entry in self.entries.items() if entry.rank is not None}
        return [t for t in self.tasks if all(self.entries[t, spec].rank is not None for spec in ranked)]

    def finished_result(self, task: Task) -> JobResult | None:
        """Return the first finished result on a data set, for its rows and columns; None if there is none."""
        finished = [r for r in self.results if r.job.task == task and r.status == "finished"]
        return finished[0] if finished else None

    def decimals(self, task: Task) -> int:
        """Return the number of decimals that the smallest standard error justifies, 2 or 3."""
        known = [e.score.se_rows for (t, _), e in self.entries.items() if t == task and e.score is not None]
        least = min((se for se in known if math.isfinite(se) and se > 0), default=1.0)
        return 3 if least < 0.005 else 2

    def paired(self, task: Task, first: Method, second: Method) -> Estimate | None:
        """Return the score of the first minus that of the second method, in nats; None if they share no run."""
        key = task, first.spec, second.spec
        if key not in self._pairs:
            gap = self._difference(task, first, second)
            self._pairs[key] = gap
            self._pairs[task, second.spec, first.spec] = None if gap is None else gap._replace(mean=-gap.mean)
        return self._pairs[key]

    def _difference(self, task: Task, first: Method, second: Method) -> Estimate | None:
        scores = [self.scores.get((task, method.spec)) for method in (first, second)]
        return difference(scores[0], scores[1]) if scores[0] and scores[1] else None


def build_table(
    folder: BenchmarkFolder,
    suite: Suite,
    jobs: Sequence[Job] = (),
    *,
    jobs_left: int = 0,
    missing: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> BenchmarkTable:
    """Build the table from the results in the folder of a benchmark.

    Args:
        folder: The folder.
        suite: Its suite.
        jobs: The jobs that were asked for; other jobs with a result are shown too.
        jobs_left: How many of them have no result.
        missing: Data sets that are not available, and what to do.
        notes: Other notes for the reader. If the scores of a finished job cannot be read, a note says so.
    """
    every = list(dict.fromkeys([*jobs, *folder.results]))
    # In the order of the suite, not of the commands.
    place = {source: number for number, source in enumerate(suite.sets)}
    tasks = sorted({job.task for job in every}, key=lambda t: (place.get(t.source, len(place)), t.source,
                                                               t.dequantize != "off"))  # fmt: skip
    kinds, first = {"baseline": 0, "peer": 1, "plugin": 2, "fit": 3}, list(BASELINE_LABELS)
    methods = sorted(
        map(recorded_method, dict.fromkeys(job.method for job in every)),
        key=lambda method: (kinds[method.kind], first.index(method.spec) if method.spec in first else 0),
    )
    scores: dict[tuple[Task, str], dict[Run, RowScores]] = {}
    problems = list(notes)
    for job, result in sorted(folder.results.items()):
        if result.status != "finished":
            continue
        try:
            rows, log_probs = read_row_scores(folder.path / result.scores)
        except RunError as error:
            problems.append(f"left out: {error}")
            continue
        # Rows that are drawn anew for every fold are different rows.
        rows = rows + job.fold * 10**12 if result.is_drawn else rows
        scale = result.log_scale if suite.units == "standardized" else 0.0
        # The rows of a toy are drawn anew, unless a protocol divides them.
        is_random = suite.has_random_parts and not (result.is_drawn and suite.protocol == "none")
        found = RowScores(rows, log_probs + scale, result.fingerprint, result.test_share if is_random else 0.0)
        scores.setdefault((job.task, job.method), {})[job.fold, job.seed] = found
    versions = sorted({result.version or "unknown" for result in folder.results.values()})
    if len(versions) > 1:
        problems.append(f"runs of {len(versions)} versions of the program: {', '.join(versions)}")
    planned = {task: len({(job.fold, job.seed) for job in every if job.task == task}) for task in tasks}
    return BenchmarkTable(
        suite,
        folder.facts,
        tuple(tasks),
        tuple(methods),
        [folder.results[job] for job in sorted(folder.results)],
        scores,
        planned,
        missing or {},
        jobs_left=jobs_left,
        notes=tuple(problems),
    )


@cache
def _published_rows() -> dict[str, int]:
    """Number of rows of each known data set, as published."""
    from pushforward.datasets import names

    return {entry.name: entry.rows for entry in names() if entry.rows is not None and entry.kind != "toy"}


def _without_name(note: str, source: str) -> str:
    """A note without the name of its data set in front."""
    for name in (source, Path(source).name, Path(source).stem):
        note = note.removeprefix(f"{name}: ")
    return note


def _merge_notes(texts: Sequence[tuple[int, str]], word: str) -> str:
    """Merge the notes of several folds that differ at most in numbers into that of the first fold."""
    fold, first = min(texts)
    return first if len({text for _, text in texts}) == 1 else f"{first} ({word} {fold}; other numbers in others)"
