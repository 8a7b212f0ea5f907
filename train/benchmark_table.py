"""The table of a benchmark: every method on every data set, who is best, and what papers report.

It holds everything that the folder does, whatever the last command asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pushforward.train.benchmark_cells import Cell, Column, Result, read_scores
from pushforward.train.benchmark_folder import BenchmarkFolder
from pushforward.train.benchmark_methods import BASELINES, Method, parse_method
from pushforward.train.benchmark_scores import Estimate, RowScores, Run, difference, estimate, ranks
from pushforward.train.published import COLUMNS, Published
from pushforward.train.runs import RunError
from pushforward.train.suites import Suite, labels, score_in_words

BEST, WITHIN = "best", "within"


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
        """Data sets that have not the columns they have in the published table."""
        lines = []
        for column in self.columns:
            known, wanted = self.facts_of(column), COLUMNS.get(self.suite.name, {}).get(column.source)
            if column.dequantize == "off" and known is not None and wanted not in (None, known.features):
                lines.append(
                    f"{self.labels[column]}: {known.features} columns here, {wanted} in the published table: the "
                    "numbers are not of the same problem"
                )
        return lines

    @property
    def is_empty(self) -> bool:
        """Whether no cell has finished."""
        return not self.scores

    @property
    def run_word(self) -> str:
        """What the second standard error is over, in the plural."""
        many = any(len({fold for fold, _ in runs}) > 1 for runs in self.scores.values())
        return self.suite.folds_word if many else "seeds"

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
        found = RowScores(rows, log_probs + scale, result.fingerprint)
        scores.setdefault((cell.column, cell.method), {})[cell.fold, cell.seed] = found
    versions = sorted({result.version or "unknown" for result in folder.results.values()})
    if len(versions) > 1:
        problems.append(f"cells of {len(versions)} versions of the program: {', '.join(versions)}")
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


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
