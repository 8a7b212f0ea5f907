"""The table, built from given scores: ranks, marks, differences and notes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pushforward.benchmark.entries import BEST, WITHIN
from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Budget, Job, JobResult
from pushforward.benchmark.page import benchmark_page
from pushforward.benchmark.suites import SUITES, suite_of
from pushforward.benchmark.table import BenchmarkTable, build_table
from pushforward.benchmark.table_data import table_dict
from pushforward.benchmark.text import table_lines
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import write_row_scores
from tests.fixtures.benchmark import make_table


def test_random_divisions_overlap_and_folds_do_not(tmp_path: Path) -> None:
    """Neither do the rows of a toy, which are drawn anew."""
    base = np.random.default_rng(0).normal(size=20)
    rows = {"train": 30, "validation": 10, "test": 20}
    own = suite_of(["iris"])
    for suite, source, is_drawn, factor, text in (
        (SUITES["half"], "wine", False, 1 / 2 + 20 / 40, "over halves, which overlap: corrected, Nadeau and Bengio"),
        (own, "iris", False, 1 / 2 + 20 / 40, "over splits, which overlap: corrected, Nadeau and Bengio 2003"),
        (SUITES["tables"], "protein", False, 1 / 2 + 20 / 40, "over splits, which overlap"),
        (SUITES["rnade"], "red-wine", False, 1 / 2, "over folds; "),
        (own, "moons", True, 1 / 2, "over splits; "),
    ):
        with BenchmarkFolder.open(tmp_path / f"{suite.name}-{source}", suite, Budget(60.0, None, 1)) as folder:
            for fold in range(2):
                job = Job(source, "off", fold, 0, "kde")
                run = folder.new_run_folder(job)
                run.mkdir()
                write_row_scores(RunFolder(run), np.arange(20), base + fold)
                name = f"runs/{run.name}/test_scores.parquet"
                folder.add(JobResult(*job, "finished", scores=name, rows=rows, is_drawn=is_drawn))
            table = build_table(folder, suite)
        (entry,) = table.entries.values()
        assert entry.score is not None
        assert entry.score.se_runs == pytest.approx(np.std([0, 1], ddof=1) * math.sqrt(factor)), source
        assert text in " ".join(table_lines(table)), source
        assert text.removesuffix("; ") in table_dict(table)["standard_errors"]["se_runs"]


def marks(table: BenchmarkTable, source: str = "red-wine") -> dict[str, tuple[str, float | None]]:
    return {spec: (entry.mark, entry.rank) for (task, spec), entry in table.entries.items() if task.source == source}


def test_the_best_method_and_those_within_a_standard_error_are_marked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = 5 * rng.normal(size=50)
    near = base - 0.1 + rng.normal(size=50)  # its paired error is 0.14, that of the scores 0.7
    far = base - 0.5 + 0.1 * rng.normal(size=50)
    table = make_table(tmp_path / "a", SUITES["rnade"], {
        ("red-wine", "auto", 0): base, ("red-wine", "gaussian-mixture", 0): near, ("red-wine", "kde", 0): far,
    })  # fmt: skip
    assert (near - base).mean() < 0
    assert marks(table) == {"gaussian-mixture": (WITHIN, 2), "kde": ("", 3), "auto": (BEST, 1)}
    assert table.entries[table.tasks[0], "auto"].score is not None
    # With an NLL the lowest score is the best.
    nll = make_table(tmp_path / "b", SUITES["half"], {("wine", "auto", 0): base, ("wine", "kde", 0): far})
    assert marks(nll, "wine") == {"kde": ("", 2), "auto": (BEST, 1)}
    entry = next(one for one in table_dict(nll)["entries"] if one["method"] == "auto")
    assert entry["score"] == pytest.approx(-(base.mean() + 1))


def test_methods_are_compared_on_the_folds_they_share(tmp_path: Path) -> None:
    """An easy fold of one method alone does not improve its rank; a method with few folds is not compared."""
    rng = np.random.default_rng(0)
    scores: dict[tuple[str, str, int], Any] = {}
    for fold in range(4):
        hard = rng.normal(size=20) - 10 * fold
        scores["red-wine", "auto", fold] = hard + 1
        scores["red-wine", "gaussian-mixture", fold] = hard + (5 if fold == 3 else 0)
        if fold < 3:
            scores["red-wine", "nflows:maf", fold] = hard + 0.5
    scores["red-wine", "kde", 0] = rng.normal(size=20) + 50
    scores |= {("red-wine", "kde", fold): None for fold in (1, 2, 3)}
    table = make_table(tmp_path / "a", SUITES["rnade"], scores)
    assert marks(table) == {"gaussian-mixture": ("", 3), "kde": ("", None), "nflows:maf": ("", 2), "auto": (BEST, 1)}
    entries = {spec: entry for (_, spec), entry in table.entries.items()}
    assert (entries["nflows:maf"].finished, entries["nflows:maf"].planned) == (3, 4)
    assert entries["nflows:maf"].behind is not None
    assert entries["nflows:maf"].behind.mean == pytest.approx(0.5)
    assert entries["gaussian-mixture"].behind is not None
    assert entries["gaussian-mixture"].behind.mean == pytest.approx(1.0)  # on the shared folds, which decide the rank
    assert entries["kde"].failures == ("out of memory",)
    text = "\n".join(table_lines(table))
    assert "failed: 3 runs (red-wine: Kernel density): out of memory" in text
    assert " 3/4" in text
    assert "1/4" in text


def test_paired_differences_and_rows_that_are_drawn_anew(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=30)
    scores: dict[tuple[str, str, int], Any] = {("red-wine", m, f): base + f for m in ("auto", "kde") for f in range(2)}
    scores["red-wine", "auto", 0] = base + 1
    table = make_table(tmp_path / "a", SUITES["rnade"], scores)
    (task,), (kde, auto) = table.tasks, table.methods
    there, back = table.paired(task, auto, kde), table.paired(task, kde, auto)
    assert there is not None
    assert back is not None
    assert there.mean == pytest.approx(0.5)
    assert back.mean == pytest.approx(-0.5)
    # Row 0 of another draw is another row: with twice as many rows the error is smaller.
    errors = []
    for is_drawn in (False, True):
        with BenchmarkFolder.open(tmp_path / str(is_drawn), SUITES["embedded"], Budget(60.0, None, 1)) as folder:
            for fold in range(2):
                job = Job("iris", "off", fold, 0, "kde")
                run = folder.new_run_folder(job)
                run.mkdir()
                write_row_scores(RunFolder(run), np.arange(30), base)
                name = f"runs/{run.name}/test_scores.parquet"
                folder.add(JobResult(*job, "finished", log_prob=0.0, scores=name, is_drawn=is_drawn))
            score = next(iter(build_table(folder, SUITES["embedded"]).entries.values())).score
            assert score is not None
            errors.append(score.se_rows)
    assert errors[0] == pytest.approx(base.std(ddof=1) / math.sqrt(30))
    assert errors[1] == pytest.approx(np.tile(base, 2).std(ddof=1) / math.sqrt(60))


def test_mean_ranks_are_over_data_sets_with_all_methods(tmp_path: Path) -> None:
    """A method does not get a better rank by failing where it would be worst."""
    base = np.random.default_rng(0).normal(size=30)
    scores: dict[tuple[str, str, int], Any] = {}
    for source in ("red-wine", "white-wine", "housing"):
        scores |= {(source, "auto", 0): base + 1, (source, "kde", 0): base, (source, "gaussian-mixture", 0): base - 1}
    scores["housing", "auto", 0] = None
    table = make_table(tmp_path, SUITES["rnade"], scores)
    ranks = {method.spec: table.mean_rank(method) for method in table.methods}
    assert ranks == {"auto": (1, 2), "kde": (2, 2), "gaussian-mixture": (3, 2)}


def test_notes_on_data_are_merged_over_folds(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=30)
    made = make_table(
        tmp_path / "a",
        SUITES["rnade"],
        {("red-wine", method, fold): base for method in ("auto", "kde") for fold in range(3)},
    )

    def noted(result: JobResult, *more: str) -> JobResult:
        notes = [f"red-wine: rnade, fold {result.fold}: ten folds", "red-wine: rnade left out quality (6 values)"]
        notes.append(f"red-wine: {3 + result.fold // 2} of 160 test rows also stand among the training rows")
        return replace(result, notes=(*notes, *(f"column 'c{k}' is odd" for k in range(3)), *more))

    table = replace(made, results=[noted(result) for result in made.results])
    text = " ".join(" ".join(table_lines(table)).split())
    merged = "red-wine: 3 of 160 test rows also stand among the training rows (fold 0; other numbers in others)"
    for part in (merged, "red-wine: rnade left out quality (6 values)", "red-wine: 3 notes on columns, in table.json"):
        assert text.count(part) == 1
        assert part.partition(": ")[2][4:] in benchmark_page(table)
    assert "fold 1: ten folds" not in text
    (one,) = table_dict(table)["sets"]
    assert len(one["notes"]) == 5
    assert one["is_published"] is True
    assert not any("notes" in job for job in table_dict(table)["jobs"])
    # Rows that are not the published ones: by a note, or by their number.
    other = "red-wine: 200 rows of 1,599: not the published set"
    rows = {"train": 160, "validation": 20, "test": 20}
    for results, why in (
        ([noted(r, other) for r in made.results], "200 rows of 1,599: not the published set"),
        ([replace(r, rows=rows) for r in made.results], "200 rows here, 1,599 in the published set"),
    ):
        table = replace(made, results=results)
        text = " ".join(" ".join(table_lines(table)).split())
        assert text.count(f"red-wine: {why}: the numbers are not of the same problem") == 1
        assert text.count(why) == 1
        assert "‡ of other rows than here: not the same problem" in text
        page = benchmark_page(table)
        assert why in page
        assert "published numbers are of other rows, another problem, and are not drawn" in page
        assert table_dict(table)["sets"][0]["is_published"] is False
