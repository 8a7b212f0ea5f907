"""Entries of the table of a benchmark: score, rank and mark of each method on one data set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pushforward.benchmark.jobs import JobResult, Task
from pushforward.benchmark.methods import Method
from pushforward.benchmark.scores import Estimate, RowScores, Run, difference, estimate, ranks

BEST, WITHIN = "best", "within"


@dataclass(frozen=True)
class TableEntry:
    """A method on a data set.

    Attributes:
        method: The method.
        task: The data set.
        score: Mean test score with its standard errors, in the units of the suite; None without a finished run.
        finished: Number of finished runs.
        planned: Number of runs that any method has or is to have on this data set.
        failures: Distinct reasons of failed runs.
        rank: Rank from 1 among the methods compared on the same runs; None if not compared.
        mark: ``best``, ``within`` (one standard error of the best), or empty.
        behind: Score of the best minus that of this method, paired row by row on the runs of all compared methods.
        steps: Mean number of training steps.
        seconds: Mean training time.
        wall_seconds: Mean time of the process.
        parameters: Mean number of parameters.
    """

    method: Method
    task: Task
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


def task_entries(
    task: Task,
    methods: Sequence[Method],
    scores: Sequence[Mapping[Run, RowScores]],
    results: Sequence[JobResult],
    planned: int,
) -> list[TableEntry]:
    """Compare the methods on one data set.

    Methods with at least half of the largest number of runs are compared, on the runs that all of them have.

    Args:
        task: The data set.
        methods: The methods.
        scores: Test scores of each method by run, higher is better.
        results: Results of all jobs on the data set.
        planned: Number of runs that any method has or is to have on it.

    Returns:
        An entry for each method.
    """
    most = max(map(len, scores), default=0)
    compared = [index for index, runs in enumerate(scores) if runs and 2 * len(runs) >= most]
    shared = set.intersection(*(set(scores[index]) for index in compared)) if compared else set()
    rank: dict[int, float] = {}
    best: int | None = None
    if shared and len(compared) > 1:
        means = [estimate({run: scores[index][run] for run in shared}).mean for index in compared]
        rank = dict(zip(compared, ranks(means), strict=True))
        best = min(compared, key=lambda index: rank[index])
    entries = []
    for index, method in enumerate(methods):
        behind, mark = None, BEST if index == best else ""
        if best is not None and index in rank and index != best:
            first, other = ({run: scores[which][run] for run in shared} for which in (best, index))
            behind = difference(first, other)
            mark = WITHIN if behind is not None and behind.mean <= _or_zero(behind.se) else ""
        own = [result for result in results if result.method == method.spec]
        entries.append(_entry(method, task, own, scores[index], planned, rank.get(index), mark, behind))
    return entries


def _entry(
    method: Method,
    task: Task,
    results: Sequence[JobResult],
    scores: Mapping[Run, RowScores],
    planned: int,
    rank: float | None,
    mark: str,
    behind: Estimate | None,
) -> TableEntry:
    finished = [result for result in results if result.status == "finished"]
    means = {
        key: _mean([getattr(result, key) for result in finished])
        for key in ("steps", "seconds", "wall_seconds", "parameters")
    }
    return TableEntry(
        method,
        task,
        estimate(scores) if scores else None,
        finished=len(scores),
        planned=planned,
        failures=tuple(dict.fromkeys(result.reason for result in results if result.status == "failed")),
        rank=rank,
        mark=mark,
        behind=behind,
        **means,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
