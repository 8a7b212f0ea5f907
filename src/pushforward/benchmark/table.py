"""The table of a benchmark: every method on every data set, who is best, and what papers report.

It holds everything that the folder does, whatever the last command asked for.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Cell, Column, Result, read_scores
from pushforward.benchmark.methods import BASELINES, Method, parse_method
from pushforward.benchmark.published import COLUMNS, Published
from pushforward.benchmark.scores import Estimate, RowScores, Run, difference, estimate, ranks
from pushforward.benchmark.suites import Suite, labels, score_in_words
from pushforward.common.errors import RunError

BEST, WITHIN = "best", "within"
_NOT_PUBLISHED = "not the published"
"""What a note on a data set has in it where published numbers are not of its rows."""
_MOST_COLUMN_NOTES = 2


@dataclass(frozen=True)
class Entry:
    """A method on a data set.

    Attributes:
        method: The method.
        column: The data set.
        score: Mean test score with its standard errors, in the units of the suite; None without a finished run.
        finished: Runs that have ended well.
        planned: Runs that any method has on this data set, or shall have.
        failures: Why runs have failed, without repetition.
        rank: From 1 among the methods measured on the same runs; None where it is not compared.
        mark: ``best``, ``within`` one standard error of the best, or empty.
        behind: By how much the best is better, paired row by row on the runs that all compared methods have.
        steps: Mean number of training steps.
        seconds: Mean time of training.
        wall_seconds: Mean time of the process.
        parameters: Mean number of parameters.
    """

    method: Method
    column: Column
    score: Estimate | None
    finished: int
    planned: int
    failures: tuple[str, ...] = ()
    rank: float | None = None
    mark: str = ""
    behind: Estimate | None = None
    steps: float | None = None
    seconds: float | None = None
    wall_seconds: float | None = None
    parameters: float | None = None


@dataclass(frozen=True, eq=False)
class BenchmarkTable:
    """All that a benchmark has found so far.

    Attributes:
        suite: The suite.
        facts: The content of ``benchmark.json``.
        columns: Data sets, as they are measured.
        methods: What is compared.
        results: Every cell.
        scores: Scores of the test rows of every finished run, higher is better, by data set and method.
        planned: Runs that are meant, by data set.
        missing: Data sets that are not there, and what to do.
        left: Cells that have not been run.
        notes: What else a reader must know.
    """

    suite: Suite
    facts: Mapping[str, Any]
    columns: tuple[Column, ...]
    methods: tuple[Method, ...]
    results: Sequence[Result]
    scores: Mapping[tuple[Column, str], Mapping[Run, RowScores]]
    planned: Mapping[Column, int]
    missing: Mapping[str, str] = field(default_factory=dict)
    left: int = 0
    notes: tuple[str, ...] = ()
    _pairs: dict[tuple[Column, str, str], Estimate | None] = field(default_factory=dict, repr=False)

    @cached_property
    def labels(self) -> dict[Column, str]:
        """What each data set is called."""
        names = labels([column.source for column in self.columns])
        both = {c.source for c in self.columns if c._replace(dequantize="auto" if c.dequantize == "off" else "off")
                in self.columns}  # fmt: skip
        return {
            column: names[column.source] + (", spread" if column.dequantize == "auto" and column.source in both else "")
            for column in self.columns
        }

    @cached_property
    def entries(self) -> dict[tuple[Column, str], Entry]:
        """Entries by data set and method."""
        return {
            (column, method.spec): entry
            for column in self.columns
            for method, entry in zip(self.methods, self._column(column), strict=True)
        }

    @property
    def published(self) -> list[Published]:
        """Rows of the literature with a number for one of the data sets."""
        sources = {column.source for column in self.columns if column.dequantize == "off"}
        return [row for row in self.suite.published if sources & row.figures.keys()]

    @property
    def failures(self) -> dict[str, str]:
        """Why runs have failed, with the data sets and methods where they did."""
        found: dict[str, list[tuple[Column, str]]] = {}
        for result in self.results:
            if result.status == "failed":
                found.setdefault(result.reason, []).append((result.cell.column, result.method))
        out = {}
        for reason, places in found.items():
            sets = list(dict.fromkeys(self.labels[column].partition(", ")[0] for column, _ in places))
            methods = list(dict.fromkeys(parse_method(spec).label for _, spec in places))
            runs = f"{len(places)} run{'s' if len(places) > 1 else ''}"
            out[reason] = f"{runs} ({', '.join(sets)}: {', '.join(methods)})"
        return out

    @property
    def mismatches(self) -> list[str]:
        """Data sets that have not the columns, or the rows, they have in the published table."""
        lines = []
        for column in self.columns:
            known, wanted = self.facts_of(column), self.other_columns(column)
            if known is not None and wanted is not None:
                lines.append(
                    f"{self.labels[column]}: {known.features} columns here, {wanted} in the published table: the "
                    "numbers are not of the same problem"
                )
            if self.published and (other := self.other_rows(column)):
                lines.append(f"{self.labels[column]}: {other}: the numbers are not of the same problem")
        return lines

    def other_columns(self, column: Column) -> int | None:
        """How many columns a data set has in the published table, where they are others than here; else None."""
        known, wanted = self.facts_of(column), COLUMNS.get(self.suite.name, {}).get(column.source)
        is_other = column.dequantize == "off" and known is not None and wanted not in (None, known.features)
        return wanted if is_other else None

    def other_rows(self, column: Column) -> str:
        """In what the rows of a data set are not the published ones; empty where they are, or none are published."""
        known = self.facts_of(column)
        if known is None or column.dequantize != "off" or column.source not in COLUMNS.get(self.suite.name, {}):
            return ""
        told = [_without(note, column.source) for note in known.notes if _NOT_PUBLISHED in note]
        rows, published = sum(known.rows.values()), _catalogue().get(column.source)
        if not told and len(known.rows) == 3 and published not in (None, rows):
            told = [f"{rows:,} rows here, {published:,} in the published set"]
        return told[0] if told else ""

    def is_other_problem(self, column: Column) -> bool:
        """Whether a data set has other columns or rows than the one that published numbers are of."""
        return self.other_columns(column) is not None or bool(self.other_rows(column))

    def is_published(self, column: Column) -> bool | None:
        """Whether a data set is the one that published numbers are of; None without any, or where it is not known."""
        has_numbers = column.dequantize == "off" and column.source in COLUMNS.get(self.suite.name, {})
        return not self.is_other_problem(column) if has_numbers and self.facts_of(column) is not None else None

    def data_notes(self, column: Column) -> list[str]:
        """What a reader should know of a data set, once for all divisions of its rows."""
        found: dict[str, list[tuple[int, str]]] = {}
        for result in self.results:
            if result.cell.column == column and result.status == "finished":
                for note in result.notes:
                    text = _without(note, column.source)
                    if not re.match(r"(rnade|half|tenths), fold \d+: ", text):  # the suite says so
                        # How many rows stand in two parts is another number in each fold; names have numbers too.
                        key = text if text.startswith("column ") else re.sub(r"\d[\d,.]*", "#", text)
                        found.setdefault(key, []).append((result.fold, text))
        return [_told_once(texts, self.suite.fold_word) for texts in found.values()]

    @property
    def notes_on_data(self) -> list[str]:
        """The same of all data sets in lines, without those of more than two columns, which stand in ``table.json``."""
        lines = list[str]()
        for column in self.columns:
            name, told = self.labels[column].partition(", ")[0], self.data_notes(column)
            of_columns = [note for note in told if note.startswith("column ")]
            if self.published and self.other_rows(column):  # which the mismatches say
                told = [note for note in told if _NOT_PUBLISHED not in note]
            if len(of_columns) > _MOST_COLUMN_NOTES:
                told = [note for note in told if note not in of_columns]
                told.append(f"{len(of_columns)} notes on columns, in table.json")
            lines += [f"{name}: {note}" for note in told]
        # A data set that is there twice, as it is and spread, is one.
        return list(dict.fromkeys(lines))

    @property
    def is_empty(self) -> bool:
        """Whether no cell has finished."""
        return not self.scores

    @property
    def run_word(self) -> str:
        """What the second standard error is over, in the plural."""
        many = any(len({fold for fold, _ in runs}) > 1 for runs in self.scores.values())
        return self.suite.folds_word if many else "seeds"

    @property
    def runs_in_words(self) -> str:
        """The same, with what is done where they overlap."""
        overlapping = [part.overlap > 0 for runs in self.scores.values() for part in runs.values()]
        if self.run_word == "seeds" or not any(overlapping):
            return self.run_word
        which = "which overlap" if all(overlapping) else "where they overlap"
        return f"{self.run_word}, {which}: corrected, Nadeau and Bengio 2003"

    def best(self, column: Column) -> Entry | None:
        """The best method on a data set; None where none can be compared."""
        found = [self.entries[column, m.spec] for m in self.methods if self.entries[column, m.spec].mark == BEST]
        return found[0] if found else None

    def mean_rank(self, method: Method) -> tuple[float, int] | None:
        """Mean rank over the data sets on which all methods are compared, and their number; None without any."""
        known = [self.entries[column, method.spec].rank for column in self._ranked]
        found = [rank for rank in known if rank is not None]
        return (sum(found) / len(found), len(found)) if found else None

    @cached_property
    def _ranked(self) -> list[Column]:
        """Data sets on which all have a rank that have one anywhere: among fewer, a rank is easily a good one."""
        having = {spec for (_, spec), entry in self.entries.items() if entry.rank is not None}
        return [c for c in self.columns if all(self.entries[c, spec].rank is not None for spec in having)]

    def facts_of(self, column: Column) -> Result | None:
        """A finished run on a data set, which knows its rows and columns."""
        finished = [r for r in self.results if r.cell.column == column and r.status == "finished"]
        return finished[0] if finished else None

    def decimals(self, column: Column) -> int:
        """Digits after the point: as many as tell the standard error, two at least and three at most."""
        known = [e.score.se_points for (c, _), e in self.entries.items() if c == column and e.score is not None]
        least = min((se for se in known if math.isfinite(se) and se > 0), default=1.0)
        return 3 if least < 0.005 else 2

    def paired(self, column: Column, first: Method, second: Method) -> Estimate | None:
        """By how much the first is better than the second, in nats; None where they share no run."""
        key = column, first.spec, second.spec
        if key not in self._pairs:
            gap = self._difference(column, first, second)
            self._pairs[key] = gap
            self._pairs[column, second.spec, first.spec] = None if gap is None else gap._replace(mean=-gap.mean)
        return self._pairs[key]

    def _difference(self, column: Column, first: Method, second: Method) -> Estimate | None:
        scores = [self.scores.get((column, method.spec)) for method in (first, second)]
        return difference(scores[0], scores[1]) if scores[0] and scores[1] else None

    def _column(self, column: Column) -> list[Entry]:
        """Entries of a data set: methods that have at least half of the runs are compared on those all of them have."""
        runs = [self.scores.get((column, method.spec), {}) for method in self.methods]
        most = max(map(len, runs), default=0)
        compared = [place for place, found in enumerate(runs) if found and 2 * len(found) >= most]
        shared = set.intersection(*(set(runs[place]) for place in compared)) if compared else set()
        rank: dict[int, float] = {}
        best: int | None = None
        if shared and len(compared) > 1:
            means = [estimate({run: runs[place][run] for run in shared}).mean for place in compared]
            rank = dict(zip(compared, ranks(means), strict=True))
            best = min(compared, key=lambda place: rank[place])
        entries = []
        for place, method in enumerate(self.methods):
            behind, mark = None, BEST if place == best else ""
            if best is not None and place in rank and place != best:
                first, other = ({run: runs[which][run] for run in shared} for which in (best, place))
                behind = difference(first, other)
                mark = WITHIN if behind is not None and behind.mean <= _or_zero(behind.se) else ""
            entries.append(self._summary(method, column, runs[place], rank.get(place), mark, behind))
        return entries

    def _summary(
        self,
        method: Method,
        column: Column,
        runs: Mapping[Run, RowScores],
        rank: float | None,
        mark: str,
        behind: Estimate | None,
    ) -> Entry:
        mine = [r for r in self.results if r.cell.column == column and r.method == method.spec]
        finished = [r for r in mine if r.status == "finished"]
        means = {
            key: _mean_of([getattr(result, key) for result in finished])
            for key in ("steps", "seconds", "wall_seconds", "parameters")
        }
        return Entry(
            method,
            column,
            estimate(runs) if runs else None,
            finished=len(runs),
            planned=self.planned[column],
            failures=tuple(dict.fromkeys(r.reason for r in mine if r.status == "failed")),
            rank=rank,
            mark=mark,
            behind=behind,
            **means,
        )


def build_table(
    folder: BenchmarkFolder,
    suite: Suite,
    cells: Sequence[Cell] = (),
    *,
    left: int = 0,
    missing: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> BenchmarkTable:
    """Read what is in a benchmark's folder.

    Args:
        folder: The folder.
        suite: Its suite.
        cells: What was asked for; other cells that are in the folder are shown too.
        left: How many of them are still to be run.
        missing: Data sets that are not there, and what to do.
        notes: What else a reader must know.

    Raises:
        RunError: If scores of a finished cell cannot be read.
    """
    every = list(dict.fromkeys([*cells, *folder.results]))
    # In the order of the suite, whatever was asked for first.
    place = {source: number for number, source in enumerate(suite.sets)}
    columns = sorted({cell.column for cell in every}, key=lambda c: (place.get(c.source, len(place)), c.source,
                                                                    c.dequantize != "off"))  # fmt: skip
    kinds, first = {"baseline": 0, "peer": 1, "fit": 2}, list(BASELINES)
    methods = sorted(
        map(parse_method, dict.fromkeys(cell.method for cell in every)),
        key=lambda method: (kinds[method.kind], first.index(method.spec) if method.spec in first else 0),
    )
    scores: dict[tuple[Column, str], dict[Run, RowScores]] = {}
    problems = list(notes)
    for cell, result in sorted(folder.results.items()):
        if result.status != "finished":
            continue
        try:
            rows, log_probs = read_scores(folder.path / result.scores)
        except RunError as error:
            problems.append(f"left out: {error}")
            continue
        # What is drawn anew for every fold is never the same row.
        rows = rows + cell.fold * 10**12 if result.is_drawn else rows
        scale = result.log_scale if suite.units == "standardized" else 0.0
        # A toy's rows are drawn anew, unless a protocol divides them.
        is_random = suite.has_random_parts and not (result.is_drawn and suite.protocol == "none")
        found = RowScores(rows, log_probs + scale, result.fingerprint, result.test_share if is_random else 0.0)
        scores.setdefault((cell.column, cell.method), {})[cell.fold, cell.seed] = found
    versions = sorted({result.version or "unknown" for result in folder.results.values()})
    if len(versions) > 1:
        problems.append(f"runs of {len(versions)} versions of the program: {', '.join(versions)}")
    planned = {column: len({(c.fold, c.seed) for c in every if c.column == column}) for column in columns}
    return BenchmarkTable(
        suite,
        folder.facts,
        tuple(columns),
        tuple(methods),
        [folder.results[cell] for cell in sorted(folder.results)],
        scores,
        planned,
        missing or {},
        left=left,
        notes=tuple(problems),
    )


def headline(table: BenchmarkTable) -> str:
    """What the numbers are."""
    return score_in_words(table.suite)


@cache
def _catalogue() -> dict[str, int]:
    """Rows of the data sets as they were published."""
    from pushforward.datasets import names

    return {entry.name: entry.rows for entry in names() if entry.rows is not None and entry.kind != "toy"}


def _without(note: str, source: str) -> str:
    """A note without the name of what it is on."""
    for name in (source, Path(source).name, Path(source).stem):
        note = note.removeprefix(f"{name}: ")
    return note


def _told_once(texts: Sequence[tuple[int, str]], word: str) -> str:
    """A note that is the same on all folds, or on some with other numbers."""
    fold, first = min(texts)
    return first if len({text for _, text in texts}) == 1 else f"{first} ({word} {fold}; other numbers in others)"


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
