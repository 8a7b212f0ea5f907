"""Compare runs by paired differences of test NLL, whose standard errors are much smaller than those of the NLLs.

Everything is read from the files of the run folders. Only runs that were scored on the same rows can be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pushforward.common.errors import RunUsageError
from pushforward.common.files import json_safe
from pushforward.common.numbers import NOTHING, count, duration, measured, significant, standard_errors
from pushforward.evaluate.statistics import mean_and_se
from pushforward.runs.folder import RunFolder
from pushforward.runs.listing import has_source
from pushforward.runs.record import Array, RunRecord, number, read_run
from pushforward.runs.row_scores import read_row_scores, read_row_weights

NO_DIFFERENCE = "no difference"
"""Shown for runs that are exactly equal."""

# These keys do not change the fit.
_NOT_COMPARED = ("track", "wandb.name", "wandb.group", "wandb.tags", "wandb.mode", "wandb.project")


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        label: Name of the folder, with parent folders if two runs share it.
        record: The content of the run folder.
        rows: Indices of the test rows in the data set ``(n,)``.
        log_probs: Log-densities of the test rows ``(n,)``, in nats.
        weights: Weights of the test rows ``(n,)``; None if they count the same.
    """

    label: str
    record: RunRecord
    rows: npt.NDArray[np.int64]
    log_probs: Array
    weights: Array | None = None

    @property
    def is_bound(self) -> bool:
        """Whether its log-densities are lower bounds, as those of an autoencoder."""
        return bool(self.record.results.get("is_bound"))

    @property
    def test_nll(self) -> float:
        """Mean negative log-likelihood of the test rows, in nats."""
        return mean_and_se(-self.log_probs, self.weights, where="test_nll")[0]

    @property
    def test_nll_se(self) -> float:
        """Standard error of the test NLL."""
        return mean_and_se(-self.log_probs, self.weights, where="test_nll")[1]


@dataclass(frozen=True)
class Difference:
    """NLL of a first run minus NLL of a second one, on the same rows.

    Attributes:
        nats: Mean difference; positive if the first run is worse.
        se: Paired standard error of the difference.
    """

    nats: float
    se: float

    @property
    def standard_errors(self) -> float | None:
        """The difference in standard errors; None if unknown."""
        return standard_errors(self.nats, self.se)

    @property
    def is_clear(self) -> bool:
        """Whether the difference is at least two standard errors from zero."""
        if self.se == 0:  # the same on every row
            return self.nats != 0
        return abs(self.standard_errors or 0.0) >= 2

    @property
    def is_zero(self) -> bool:
        """Whether the runs are equal, for instance if both kept the Gaussian."""
        return self.nats == 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs that were scored on the same rows.

    Attributes:
        runs: The runs, in the order they were given.
        best: Index of the run with the lowest test NLL, the first one of equal runs.
        differing: Configuration keys whose values differ, with the value of each run.
    """

    runs: Sequence[ComparedRun]
    best: int
    differing: dict[str, list[Any]]

    def difference(self, first: int, second: int) -> Difference:
        """NLL of the first run minus that of the second, row by row."""
        p, q, weights = self.runs[second].log_probs, self.runs[first].log_probs, self.runs[first].weights
        with np.errstate(invalid="ignore"):  # a row with density zero under both: inf - inf
            return Difference(*mean_and_se(p - q, weights, where="difference"))

    @property
    def leaders(self) -> list[int]:
        """Indices of the best run and of the runs equal to it."""
        return [i for i in range(len(self.runs)) if i == self.best or self.difference(i, self.best).is_zero]

    @property
    def clear_best(self) -> int | None:
        """Index of the only run with the lowest test NLL; None if several are equal, or no NLL is finite."""
        alone = len(self.leaders) == 1 and math.isfinite(self.runs[self.best].test_nll)
        return self.best if alone else None

    def verdict(self) -> str:
        """Return the outcome as a sentence, and which NLLs are upper bounds."""
        bounds = [one.label for one in self.runs if one.is_bound]
        if not bounds:
            return self._outcome()
        what = "is an upper bound" if len(bounds) == 1 else "are upper bounds"
        return f"{self._outcome()}; the NLL of {' and '.join(bounds)} {what}, the true one is lower"

    def _outcome(self) -> str:
        leaders = self.leaders
        best, names = self.runs[self.best], [self.runs[i].label for i in leaders]
        if not math.isfinite(best.test_nll):
            return "No run has a finite test NLL"
        others = [i for i in range(len(self.runs)) if i not in leaders]
        equal = f"There is no difference between {', '.join(names[:-1])} and {names[-1]}" if len(leaders) > 1 else ""
        if not others:
            return equal
        nearest = min(others, key=lambda i: _rank(self.runs[i].test_nll))
        second, gap = self.runs[nearest], self.difference(nearest, self.best)
        margin = f"{measured(gap.nats, gap.se)} nats"
        if gap.standard_errors is not None:
            margin += f" ({gap.standard_errors:.1f} standard errors)"
        elif gap.se == 0:
            margin += ", the same on every row"
        elif equal:
            return f"{equal}; they have the lowest test NLL; the difference from the others has no standard error"
        else:
            return f"{best.label} has the lowest test NLL; the difference has no standard error"
        if equal:
            return f"{equal}; {second.label} is {'' if gap.is_clear else 'not clearly '}behind by {margin}"
        if gap.is_clear:
            return f"{best.label} is best, ahead of {second.label} by {margin}"
        return f"No clear difference: {best.label} is ahead of {second.label} by {margin}"

    def table(self) -> list[list[str]]:
        """Return the table of the runs as rows of text, the header first."""
        header = ["run", "data set", "flow", "parameters", "steps", "time", "val NLL", "test NLL", "above the best"]
        body = []
        leaders, clear_best = self.leaders, self.clear_best
        for index, one in enumerate(self.runs):
            results, gap = one.record.results, self.difference(index, self.best)
            if index in leaders:
                behind = "best" if index == clear_best else NO_DIFFERENCE if len(leaders) > 1 else NOTHING
            else:
                behind = measured(gap.nats, gap.se, signed=True)
                behind += f" ({gap.standard_errors:.1f} se)" if gap.standard_errors is not None else ""
            body.append(
                [
                    one.label,
                    one.record.dataset,
                    one.record.flow,
                    count(number(results, "parameters")),
                    count(number(results, "steps")),
                    duration(number(results, "seconds")),
                    significant(number(results, "val_nll")),
                    ("at most " if one.is_bound else "") + measured(one.test_nll, one.test_nll_se),
                    behind,
                ]
            )
        return [header, *body]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values; differences are from the best run, ``best`` is null among equal runs."""
        runs = []
        for index, one in enumerate(self.runs):
            gap = self.difference(index, self.best)
            results = one.record.results
            runs.append(
                {
                    "run": one.label,
                    "path": str(one.record.run.path),
                    "dataset": one.record.dataset,
                    "flow": one.record.flow,
                    **{key: number(results, key) for key in ("parameters", "steps", "seconds", "val_nll")},
                    "test_nll": one.test_nll,
                    "test_nll_se": one.test_nll_se,
                    "difference": gap.nats,
                    "difference_se": gap.se,
                    "standard_errors": gap.standard_errors,
                }
            )
        out = {
            "best": None if self.clear_best is None else self.runs[self.clear_best].label,
            "test_rows": len(self.runs[0].rows),
            "verdict": self.verdict(),
            "runs": runs,
            "differing": self.differing,
        }
        return dict(json_safe(out))


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """Compare runs on the test rows they share.

    Args:
        runs: Two runs or more.

    Raises:
        RunUsageError: For fewer than two runs, the same run twice, a run without test scores, or different test rows.
        RunError: If a file of test scores cannot be read.
    """
    if len(runs) < 2:
        raise RunUsageError(f"expected two runs or more; got {len(runs)}")
    seen: dict[Path, RunFolder] = {}
    for run in runs:
        if (path := run.path.resolve()) in seen:
            raise RunUsageError(f"{run.path} is given twice")
        seen[path] = run
    records = [read_run(run) for run in runs]
    for record in records:
        _expect_scored(record)
    first = records[0]
    for other in records[1:]:
        if other.results["test_rows_sha256"] != first.results["test_rows_sha256"]:
            raise RunUsageError(
                f"{first.run.path} and {other.run.path} were scored on different test rows: "
                f"{_what_differs(first, other)}"
            )
    compared = [
        ComparedRun(label, record, *_row_scores(record)) for label, record in zip(labels(runs), records, strict=True)
    ]
    for one in compared[1:]:
        if not np.array_equal(one.rows, compared[0].rows):
            raise RunUsageError(
                f"{one.record.run.path}: test_scores.parquet lists other rows than that of "
                f"{first.run.path}; score it again with pushforward evaluate"
            )
        if not _are_equal(one.weights, compared[0].weights):
            raise RunUsageError(
                f"{first.run.path} and {one.record.run.path} weigh their test rows differently: "
                f"{_what_differs(first, one.record)}"
            )
    best = min(range(len(compared)), key=lambda index: _rank(compared[index].test_nll))
    return Comparison(compared, best, _differing(records))


def labels(runs: Sequence[RunFolder]) -> list[str]:
    """Return short unique names of runs: the folder names, with parent folders where folder names are equal."""
    parts = [run.path.resolve().parts for run in runs]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(part[-d:]).lstrip("/") for part, d in zip(parts, depth, strict=True)]
        ambiguous = [i for i, name in enumerate(names) if names.count(name) > 1 and depth[i] < len(parts[i])]
        if not ambiguous:
            return names
        for i in ambiguous:
            depth[i] += 1


def _expect_scored(record: RunRecord) -> None:
    path, results = record.run.path, record.results
    if record.gradients:
        raise RunUsageError(f"{path} is a study of gradients; it has no test rows to compare on")
    if not results:
        raise RunUsageError(f"{path} has no results to compare; it is {record.status}")
    if number(record.schema, "rows", "test") == 0:
        raise RunUsageError(f"{path} has no test rows (data.test_fraction=0)")
    if "test_rows_sha256" in results and results["test_rows_sha256"] is None and "log_z" in results:
        raise RunUsageError(f"{path} is a fit to a target without exact samples: there are no samples to compare on")
    if not results.get("test_rows_sha256") or not record.run.test_scores.exists():
        write = f"; write them with: pushforward evaluate {path}" if has_source(record.config) else ""
        raise RunUsageError(f"{path} has no log-densities of test rows{write}")


def _row_scores(record: RunRecord) -> tuple[npt.NDArray[np.int64], Array, Array | None]:
    rows, log_probs = read_row_scores(record.run.test_scores)
    if not len(rows):
        raise RunUsageError(f"{record.run.path} has no test rows")
    return rows, log_probs, read_row_weights(record.run.test_scores)


def _are_equal(first: Array | None, second: Array | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def _what_differs(first: RunRecord, other: RunRecord) -> str:
    """Explain why the rows differ, as far as the files show."""
    checks: list[tuple[str, Any, Any]] = [
        ("data set", first.dataset, other.dataset),
        ("columns", first.columns, other.columns),
        ("contents of the file", first.schema.get("sha256"), other.schema.get("sha256")),
        ("number of test rows", number(first.schema, "rows", "test"), number(other.schema, "rows", "test")),
        ("seed of the split", _data_seed(first), _data_seed(other)),
    ]
    keys = dict.fromkeys(key for key in (*first.config, *other.config) if key.startswith("data."))
    settings = [key for key in keys if key not in ("data.source", "data.seed")]
    checks += [(key, first.config.get(key), other.config.get(key)) for key in settings]
    checks.append(("bin widths", first.schema.get("bin_widths"), other.schema.get("bin_widths")))
    found: list[str] = []
    for name, a, b in checks:
        if a == b:
            continue
        if name == "data set":  # everything else differs too
            return f"{name} {a} against {b}"
        if name == "columns":
            only = [column for column in (*a, *b) if (column in a) != (column in b)]
            found.append(f"columns ({', '.join(only[:3])}{', ...' if len(only) > 3 else ''} in one of them only)"
                         if only else "order of the columns")  # fmt: skip
        elif name == "contents of the file":
            found.append(name)
        elif name == "bin widths":  # usually the consequence of one of the keys
            found += [] if found else ["the bin widths of some columns"]
        elif name in settings:
            found.append(f"{name}={_text(a)} against {name}={_text(b)}")
        else:
            found.append(f"{name} {_text(a)} against {_text(b)}")
    if found == [f"seed of the split {_text(_data_seed(first))} against {_text(_data_seed(other))}"]:
        found[0] += " (data.seed=N fits both on one split)"
    return "; ".join(found) or "their values"


def _data_seed(record: RunRecord) -> Any:
    seed = record.config.get("data.seed", "auto")
    return record.config.get("seed") if seed == "auto" else seed


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return count(value) if isinstance(value, float) else str(value)


def _differing(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    keys = list(dict.fromkeys(key for record in records for key in record.config if key not in _NOT_COMPARED))
    values = {key: [record.config.get(key) for record in records] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _rank(nll: float) -> float:
    return nll if not math.isnan(nll) else math.inf
