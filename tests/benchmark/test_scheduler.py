"""Which jobs run, in which order and until when; processes that end with the benchmark."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import BenchmarkPlan, Budget, JobResult, Task
from pushforward.benchmark.methods import parse_methods
from pushforward.benchmark.run import benchmark_plan
from pushforward.benchmark.scheduler import JobScheduler, group_jobs
from pushforward.benchmark.suites import suite_of
from tests.fixtures.benchmark import invoke, posix


def test_failed_jobs_run_again_only_on_request(tmp_path: Path) -> None:
    plan = benchmark_plan(["iris"], folds="0-2", methods=["gaussian,auto"]).plan
    with BenchmarkFolder.open(tmp_path, plan.suite, plan.budget) as folder:
        folder.add(JobResult(*plan.jobs[0], status="finished"))
        folder.add(JobResult(*plan.jobs[1], status="failed"))
        assert JobScheduler(plan, folder).jobs_left == 4
        again = JobScheduler(plan, folder, is_retry=True)
        assert again.jobs_left == 5
        # The folder of an earlier attempt stays.
        first = folder.new_run_folder(plan.jobs[1])
        first.mkdir()
        assert folder.new_run_folder(plan.jobs[1]).name == f"{first.name}-2"


@posix
def test_a_fit_ends_if_its_benchmark_is_killed(tmp_path: Path) -> None:
    script = "import time, os; print(os.getpid(), flush=True); time.sleep(60)"
    (tmp_path / "sleeper.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pushforward.benchmark.child", "sleeper"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    assert child.stdin is not None
    assert int(child.stdout.readline()) == child.pid
    child.stdin.close()  # as the system does if the benchmark is killed
    assert child.wait(20) == -signal.SIGKILL
    child.stdout.close()


def test_no_job_starts_that_would_exceed_the_time_limit(data: Path, tmp_path: Path) -> None:
    """The expected time is that of other jobs of the method, or follows from the budget."""
    suite, budget = suite_of([str(data)]), Budget(60.0, None, 1)
    source = suite.sets[0]
    plan = BenchmarkPlan(suite, (Task(source, "auto"),), (0, 1), (0,), parse_methods(["auto"]), budget)
    messages = list[str]()
    with BenchmarkFolder.open(tmp_path / "out", suite, budget) as folder:
        scheduler = JobScheduler(plan, folder, seconds=70, notify=messages.append)
        scheduler.run()
        assert (scheduler.stopped, scheduler.jobs_left) == ("the time limit is reached", 2)
        folder.add(JobResult(source, "auto", 0, 0, "auto", "finished", wall_seconds=30.0))
        assert JobScheduler(plan, folder, seconds=70).expected_seconds(group_jobs(plan.jobs[1:])[0]) == 30.0
    assert messages == []
    line = invoke(data, "--seconds", "60", "--total-seconds", "1", "--wandb", "off", "--out", tmp_path / "b").stderr
    assert "the time limit is reached; 25 jobs are left; the same command continues" in line


def test_jobs_run_fold_by_fold_with_the_baselines_together(data: Path) -> None:
    plan = benchmark_plan([str(data), "iris"], folds="0-1", seeds=2, methods=["gaussian,auto,kde"]).plan
    order = [(job.fold, job.seed, job.source, job.method) for job in plan.jobs]
    assert [place[:2] for place in order] == [(f, s) for f in (0, 1) for s in (0, 1) for _ in range(6)]
    assert [place[3] for place in order[:3]] == ["gaussian", "auto", "kde"]
    groups = group_jobs(plan.jobs)
    assert [[job.method for job in group] for group in groups[:2]] == [["gaussian", "kde"], ["auto"]]
    assert sum(map(len, groups)) == len(plan.jobs)
