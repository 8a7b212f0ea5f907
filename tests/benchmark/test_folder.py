"""The folder of a benchmark: data that change, and a record that is damaged."""

from pathlib import Path
from typing import Any

import pytest

from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Budget, Job, JobResult
from pushforward.benchmark.run import benchmark_plan
from pushforward.benchmark.scheduler import JobScheduler
from pushforward.benchmark.suites import suite_of
from pushforward.common.errors import RunError


def test_results_on_other_data_are_set_aside(tmp_path: Path) -> None:
    """Results on another version of a file are run again, and count again if the file is restored."""
    plan = benchmark_plan(["iris"], folds="0-1", methods=["gaussian,kde"]).plan
    first, second, *_ = plan.jobs

    def of(job: Job, sha256: str, rows: str = "", status: Any = "finished") -> JobResult:
        return JobResult(*job, status=status, fingerprint=rows, sha256=sha256)

    with BenchmarkFolder.open(tmp_path / "a", plan.suite, plan.budget) as folder:
        for result in (of(first, "old"), of(second, "old", status="failed")):
            folder.add(result)
        folder.select_current_data({"iris": "new"})
        assert (folder.results, folder.set_aside) == ({}, {"iris": 2})
        assert JobScheduler(plan, folder).jobs_left == 4  # the failed one too
        folder.add(of(first, "new"))
        folder.select_current_data({"iris": "new"})
        assert (list(folder.results), folder.set_aside) == ([first], {"iris": 1})
        folder.select_current_data({"iris": "old"})
        assert ({r.sha256 for r in folder.results.values()}, folder.set_aside) == ({"old"}, {})
    # For data that are not read now, the last result decides.
    with BenchmarkFolder.open(tmp_path / "a", plan.suite, plan.budget) as folder:
        assert [r.sha256 for r in folder.results.values()] == ["new"]
    # Results from before checksums were recorded, and data without a file, are identified by their test rows.
    with BenchmarkFolder.open(tmp_path / "b", plan.suite, plan.budget) as folder:
        for result in (of(first, "", "rows"), of(plan.jobs[2], "", "fold 1"), of(second, "new", "other rows")):
            folder.add(result)
        folder.select_current_data({"iris": "new"})
        assert set(folder.results) == {second, plan.jobs[2]}
        assert folder.set_aside == {"iris": 1}


def test_an_incomplete_last_line_is_dropped_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    suite, budget = suite_of(["iris"]), Budget(None, 5, 1)
    result = JobResult("iris", "auto", 0, 0, "gaussian", "finished", log_prob=-1.0)
    with BenchmarkFolder.open(tmp_path, suite, budget) as folder:
        folder.add(result)
    whole = (tmp_path / "jobs.jsonl").read_bytes()
    (tmp_path / "jobs.jsonl").write_bytes(whole + whole[:30])
    with BenchmarkFolder.open(tmp_path, suite, budget) as folder:
        assert list(folder.results.values()) == [result]
        folder.add(result)
    assert (tmp_path / "jobs.jsonl").read_bytes() == 2 * whole
    (tmp_path / "jobs.jsonl").write_bytes(b"[]\n" + whole)
    with pytest.raises(RunError, match="line 1: expected a job"):
        BenchmarkFolder.open(tmp_path, suite, budget)
    (tmp_path / "benchmark.json").write_text("[]")
    with pytest.raises(RunError, match="it is damaged"):
        BenchmarkFolder.open(tmp_path, suite, budget)
