"""Sweeps: real fits in real processes, interrupted by real signals; the same file with the real wandb client."""

import hashlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.common.errors import ConfigError, RunError
from pushforward.config.read import load_config
from pushforward.experiment.run import fit
from pushforward.runs.folder import RunFolder
from pushforward.runs.listing import list_runs
from pushforward.sweeps.parameter import Parameter
from pushforward.sweeps.scheduler import TrialScheduler, run_sweep
from pushforward.sweeps.space import parse_space, read_space
from pushforward.sweeps.study import SweepStudy, TrialRecord
from pushforward.sweeps.summary import refit_command
from pushforward.sweeps.sweep import Sweep
from pushforward.sweeps.worker import Worker
from pushforward.tracking.jsonl import read_metrics
from pushforward.tracking.wandb.remote import RUN_VARIABLES, client_environment
from pushforward.train.callbacks import Watch
from tests.fixtures.wandb_server import WandbServer

SMALL = ("data.rows=400", "flow.blocks=1", "flow.hidden=8", "flow.layers=1", "train.batch_size=64", "wandb=off")
FILE = """
program: pushforward
method: {method}
parameters:
  data.source: {{value: {data}}}
  data.rows: {{value: 400}}
  flow.blocks: {{value: 1}}
  flow.hidden: {{value: 8}}
  train.batch_size: {{value: 64}}
  train.evaluate: {{value: false}}
  wandb.mode: {{value: {mode}}}
{more}
command: ["${{env}}", pushforward, fit, "${{args_no_hyphens}}"]
"""
posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks are POSIX")


def sweep_file(folder: Path, *more: str, method: str = "bayes", data: str = "moons", mode: str = "'off'") -> Path:
    path = folder / "sweep.yaml"
    path.write_text(FILE.format(method=method, data=data, mode=mode, more="\n".join(more)), encoding="utf-8")
    return path


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["sweep", *(str(a) for a in arguments)], prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    assert "Traceback" not in done.output
    return done


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def has_steps(run: RunFolder) -> bool:
    return run.metrics.exists() and any(row["step"] > 0 for row in read_metrics(run.metrics))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    running: list[subprocess.Popen[str]] = []

    def started(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "pushforward", "sweep", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def worker_of(process: "subprocess.Popen[str]") -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [int(pid) for pid in children if "sweeps.worker" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(found) == 1
    return found[0]


def test_a_sweep_of_a_target_compares_the_validation_loss(tmp_path: Path) -> None:
    """A key that has no effect in some trials, such as one of another objective, is not a mistake in a sweep."""
    keys = ("flow.blocks=1", "flow.hidden=8", "flow.layers=1", "train.steps=10", "train.batch_size=64", "wandb=off")
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "program: pushforward\nmethod: grid\nparameters:\n"
        "  train.gradient: {values: [path, path-wise]}\n  train.alpha: {value: 2.0}\n"
        "  flow.name: {value: maf}\n  flow.bins: {value: 4}\n"
    )
    folder = tmp_path / "found"
    invoke("target:u1", "-c", path, *keys, "--out", folder)
    trials = summary(folder)["trials"]
    assert {trial["status"] for trial in trials} == {"finished"}
    for trial in trials:
        results = json.loads((folder / "trials" / str(trial["number"]) / "results.json").read_text())
        assert results["val_nll"] is None
        assert trial["val_nll"] == results["val_loss"]
    best = min(trials, key=lambda trial: trial["val_nll"])
    assert os.readlink(folder / "best") == f"trials/{best['number']}"


def test_a_sweep_leaves_a_folder_of_runs_with_a_best_no_worse_than_the_defaults(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    keys = ("train.steps=20", *SMALL[:4], "wandb=off")
    done = invoke("moons", *keys, "--trials", "3", "--workers", "2", "--seed", "3", "--out", folder, "--json")
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert {k: v for k, v in found.items() if k != "importances"} == summary(folder)
    trials = found["trials"]
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert trials[0]["is_default"]
    assert trials[0]["status"] == "finished"
    finished = [trial for trial in trials if trial["status"] == "finished"]
    assert found["best"]["number"] == min(finished, key=lambda t: t["val_nll"])["number"]
    assert found["best"]["val_nll"] <= found["default_val_nll"]
    # Each trial is an ordinary run with its parameters, compared by its validation NLL.
    assert {run.status for run in list_runs(folder / "trials")} == {"finished"}
    for trial in trials:
        run = RunFolder.open(folder / "trials" / str(trial["number"]))
        config = load_config(files=[run.config])
        results = json.loads(run.results.read_text())
        assert {key: config.flat()[key] for key in trial["parameters"]} == trial["parameters"]
        assert trial["val_nll"] == results["val_nll"]
        assert (config.train.steps, config.seed, config.flow.hidden) == (20, 3, 8)
        assert (config.wandb.group, config.wandb.name) == ("found", f"found-{trial['number']}")
        assert not config.train.evaluate
    assert os.readlink(folder / "best") == f"trials/{found['best']['number']}"
    # The sweep has all its trials: resuming it does nothing.
    assert read_space(folder / "sweep.yaml").constants["data.source"] == "moons"
    again = invoke("--resume", folder)
    assert summary(folder)["trials"] == trials
    assert found["best"]["refit"] in again.stdout
    assert f"{found['best']['val_nll']:.4f}" in again.stdout
    assert "train.steps=80" in found["best"]["refit"]


@pytest.mark.slow
def test_a_grid_is_searched_once_with_points_that_fail_and_points_that_are_pruned(tmp_path: Path) -> None:
    # The defaults of a toy are one of the points. A spline takes at most 500 bins; the last rate learns nothing.
    constants = ("  train.steps: {value: 200}", "  flow.name: {value: nsf-c}", "  flow.layers: {value: 1}")
    grid = ("  flow.bins: {values: [501, 8]}", "  train.learning_rate: {values: [0.005, 1.0e-9]}")
    ends = "early_terminate: {type: hyperband, min_iter: 10, eta: 3}"
    path = sweep_file(tmp_path, *constants, *grid, ends, method="grid")
    done = invoke("-c", path, "--out", tmp_path / "s")
    trials = summary(tmp_path / "s")["trials"]
    points = [tuple(trial["parameters"].values()) for trial in trials]
    assert points == [(8, 0.005), (501, 0.005), (501, 1e-9), (8, 1e-9)]
    assert [trial["status"] for trial in trials] == ["finished", "failed", "failed", "pruned"]
    assert [trial["is_default"] for trial in trials] == [True, False, False, False]
    assert "expected bins of 2 to 500; got 501" in trials[1]["reason"]
    assert f"trial   1  failed: {trials[1]['reason']}" in done.stderr
    results = json.loads(RunFolder.open(tmp_path / "s" / "trials" / "3").results.read_text())
    assert results["stop_reason"] == "pruned"
    assert 50 <= results["steps"] < 60, "the first band is at a quarter of the budget"


def test_the_defaults_are_never_pruned(tmp_path: Path) -> None:
    ends = "early_terminate: {type: hyperband, min_iter: 10, eta: 3}"
    path = sweep_file(tmp_path, "  flow.layers: {min: 1, max: 6}", "  train.steps: {value: 5}", ends)
    with Sweep.create(read_space(path), out=tmp_path / "s") as sweep:
        scheduler = TrialScheduler(sweep, 1, print, lambda done, text: None)
        scheduler.histories = {number: [(10, -1.0)] for number in range(7, 10)}
        trials = [sweep.study.ask(1, 20) for _ in range(2)]
        answers = [scheduler.handle_validation(trial, 0.25, 5.0) for trial in trials if trial is not None]
        assert answers == ["", "pruned"]
        trial = trials[1]
        assert trial is not None
        # The last band decides, by the best value of each trial so far.
        later = [scheduler.handle_validation(trial, share, nll) for share, nll in ((0.3, -2.0), (0.4, 9.0))]
        assert later == ["pruned", "pruned"]
        assert scheduler.histories[trial.number] == [(10, 5.0), (12, -2.0), (16, -2.0)]
        assert dict(sweep.study.histories())[trial.number] == scheduler.histories[trial.number]


@pytest.mark.slow
def test_a_sweep_whose_trials_all_diverge_ends_with_their_error(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, "  train.learning_rate: {value: 1.0e+30}", "  flow.layers: {min: 1, max: 4}")
    done = invoke("-c", path, "train.steps=60", "flow=maf", "--out", tmp_path / "s", "--trials", "9", code=4)
    assert "pushforward sweep: no trial works: " in done.stderr
    assert summary(tmp_path / "s")["counts"]["failed"] == 3


@pytest.mark.slow
def test_a_sweep_whose_later_trials_all_fail_ends_with_its_result(tmp_path: Path) -> None:
    constants = ("  flow.name: {value: nsf-c}", "  flow.layers: {value: 1}", "  train.steps: {value: 5}")
    path = sweep_file(tmp_path, *constants, "  flow.bins: {min: 501, max: 900}", method="random")
    done = invoke("-c", path, "--out", tmp_path / "s", "--json", code=1)
    found = json.loads(done.stdout)
    assert found["counts"] == {"finished": 1, "pruned": 0, "failed": 8, "running": 0}
    assert found["best"]["number"] == 0
    assert "no more trials begin: the last 8 failed, the last one with: " in done.stderr
    assert "continue with: pushforward sweep --resume" in done.stderr
    assert "no trial" not in done.stderr


def test_a_sweep_without_any_result_exits_with_an_error(tmp_path: Path) -> None:
    done = invoke("moons", *SMALL[:-2], "wandb=off", "--seconds", "0.01", "--out", tmp_path / "s", code=1)
    assert f"no trial has a result yet; sweep {tmp_path / 's'}" in done.stderr
    assert not done.stdout


def test_the_error_of_a_worker_is_the_last_line_of_its_own_log(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, "  flow.layers: {min: 1, max: 3}", "  train.steps: {value: 5}")
    with Sweep.create(read_space(path), out=tmp_path / "s") as sweep:
        scheduler = TrialScheduler(sweep, 2, print, lambda done, text: None)
        first = scheduler.idle_worker()
        first.trial = 0
        second = scheduler.idle_worker()
        first.send({"overrides": []})
        wait_until(lambda: not first.is_alive)
        assert scheduler.idle_worker() is second, "the log of the first is not yet read"
        second.send({"out": "x"})
        assert second.last_output() == "its process ended with code 1: KeyError: 'overrides'"
        assert first.last_output() == "its process ended with code 1: KeyError: 'out'"
        for worker in (first, second):
            worker.close(5.0)


def test_a_worker_keeps_the_mode_of_wandb_and_drops_the_variables_of_a_single_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("WANDB_NAME", "WANDB_RUN_NAME", "WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
    assert set(names) <= set(RUN_VARIABLES)
    for name in (*names, "WANDB_MODE"):
        monkeypatch.setenv(name, "offline")
    seen: dict[str, str] = {}

    def popen(command: list[str], *, env: dict[str, str], **options: Any) -> None:
        seen.update(env)
        raise OSError("not started")

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="not started"):
        Worker(1, tmp_path / "log", queue.SimpleQueue())
    assert [name for name in seen if name in (*names, "WANDB_MODE")] == ["WANDB_MODE"]
    assert not set(names) & set(client_environment(tmp_path))
    assert "WANDB_MODE" not in client_environment(tmp_path)


@pytest.mark.parametrize(
    ("line", "own", "refit"),
    [
        ("train.steps: {values: [5, 50]}", {"train.steps": 50}, ["train.steps=200", "train.seconds=12"]),
        ("train.seconds: {min: 1.0, max: 9.0}", {"train.seconds": 2.6}, ["train.steps=28", "train.seconds=11"]),
        ("train.steps: {values: ['1e2', auto]}", {"train.steps": "1e2"}, ["train.steps=400", "train.seconds=12"]),
        ("train.steps: {values: [5, auto]}", {"train.steps": "auto"}, ["train.seconds=12"]),
        ("flow.layers: {min: 1, max: 3}", {"flow.layers": 2}, ["train.steps=28", "train.seconds=12"]),
    ],
)
def test_the_refit_has_four_times_the_budget_of_the_trial(line: str, own: dict[str, Any], refit: list[str]) -> None:
    space = parse_space(FILE.format(method="random", data="moons", mode="'off'", more=f"  {line}"), "f")
    defaults = load_config("moons", overrides=["train.steps=7", "train.seconds=3"])
    best = TrialRecord(1, "finished", 1.0, own, is_default=False, seconds=1.0, reason="", is_repeated=False)
    arguments = shlex.split(refit_command(space, defaults, best))
    assert sorted(part for part in arguments if part.startswith(("train.steps=", "train.seconds="))) == sorted(refit)


def test_a_grid_is_searched_completely_unless_trials_are_given(tmp_path: Path) -> None:
    lines = ("  flow.layers: {min: 1, max: 5}", "  flow.bins: {min: 4, max: 9}", "  train.steps: {value: 5}")
    space = read_space(sweep_file(tmp_path, *lines, method="grid"))
    for name, trials, wanted in (("a", None, 31), ("b", 4, 4)):
        with Sweep.create(space, out=tmp_path / name, trials=trials) as sweep:
            assert sweep.trials_wanted == wanted, "the defaults are not on the grid"
        with Sweep.open(tmp_path / name) as sweep:
            assert sweep.trials_wanted == wanted


def test_the_summary_has_no_gain_if_the_folder_of_a_trial_is_gone(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, "  flow.layers: {min: 1, max: 3}", "  train.steps: {value: 5}")
    with Sweep.create(read_space(path), out=tmp_path / "s") as sweep:
        for val_nll in (2.0, 1.0):
            trial = sweep.study.ask(1, 20)
            assert trial is not None
            sweep.study.finish(trial, val_nll, seconds=1.0)
        written = sweep.write(compared=True)
    assert written["best"]["number"] == 1
    assert "gain" not in written


@posix
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)]
)
def test_an_interrupted_sweep_can_be_resumed(
    number: signal.Signals, code: int, tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    folder = tmp_path / "s"
    process = start("moons", *SMALL[:-2], "wandb=off", "train.seconds=30", "--out", "s", "--trials", "2")
    run = RunFolder(folder / "trials" / "0")
    wait_until(lambda: has_steps(run))
    with pytest.raises(RunError, match="in use by another process"):
        Sweep.open(folder)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "continue with: pushforward sweep --resume s" in stderr
    assert run.status == "stopped"
    assert (run.model / "model.safetensors").is_file()
    (before,) = summary(folder)["trials"]
    assert (before["status"], before["reason"]) == ("failed", "interrupted")
    # The interrupted trial is repeated with its parameters, once.
    with Sweep.open(folder) as sweep:
        assert sweep.study.repeat_interrupted() == [0]
        trial = sweep.study.ask(1, 2)
        assert trial is not None
        assert (trial.number, trial.values, trial.is_default) == (1, before["parameters"], True)
        assert sweep.study.repeat_interrupted() == []


@pytest.mark.slow
def test_the_time_limit_of_the_sweep_ends_the_running_trial(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    invoke("moons", *SMALL[:-2], "wandb=off", "train.seconds=90", "--seconds", "15", "--out", folder)
    (trial,) = summary(folder)["trials"]
    assert (trial["status"], trial["reason"]) == ("pruned", "out of time")
    assert RunFolder(folder / "trials" / "0").status == "stopped"
    assert summary(folder)["best"]["number"] == 0, "a trial cut short is better than none"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_trials_of_a_killed_sweep_are_repeated_once(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    folder = tmp_path / "s"
    process = start("moons", *SMALL[:-2], "wandb=off", "train.seconds=4", "--out", "s", "--trials", "2")
    first, second = (RunFolder(folder / "trials" / str(number)) for number in (0, 1))
    wait_until(lambda: has_steps(first))
    # If a worker dies its trial fails, and the sweep goes on.
    os.kill(worker_of(process), signal.SIGKILL)
    wait_until(lambda: has_steps(second))
    assert summary(folder)["trials"][0]["status"] == "failed"
    assert "SIGKILL" in summary(folder)["trials"][0]["reason"]
    # If the sweep dies its worker stops.
    process.kill()
    wait_until(lambda: second.status == "stopped")
    invoke("--resume", folder, "train.seconds=1", code=2)
    done = invoke("--resume", folder)
    trials = summary(folder)["trials"]
    assert [trial["status"] for trial in trials] == ["failed", "failed", "finished"]
    assert trials[1]["reason"] == "its process was killed"
    assert trials[2]["parameters"] == trials[1]["parameters"]
    assert "trials that were interrupted are fitted again: 1" in done.stderr
    # --trials is the total; existing trials stay as they are.
    more = json.loads(invoke("--resume", folder, "--trials", "3", "--json").stdout)
    assert more["trials"][:3] == trials
    (last,) = more["trials"][3:]
    # On a slow machine it may be pruned, but only if it is worse than the best.
    assert last["status"] == "finished" or (last["status"], last["val_nll"] > more["best"]["val_nll"]) == (
        "pruned",
        True,
    )


def test_wrong_arguments_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "expected DATA, or a sweep file" in invoke("train.steps=3", code=2).stderr
    assert "unknown key 'flow.layer'; did you mean 'flow.layers'?" in invoke("moons", "flow.layer=3", code=2).stderr
    assert "unknown dataset 'mooons'; did you mean 'moons'?" in invoke("mooons", code=3).stderr
    path = sweep_file(tmp_path, "  flow.layers: {min: 0, max: 3}")
    assert "sweep.yaml line 12: flow.layers: expected a whole number above 0" in invoke("-c", path, code=2).stderr
    assert "is not the folder of a sweep (no sweep.yaml)" in invoke("--resume", tmp_path / "none", code=2).stderr
    assert "it is not empty (to go on: --resume ." in invoke("moons", *SMALL, "--out", ".", code=2).stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.yaml"]
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'pushforward[sweep]'" in invoke("moons", *SMALL, code=2).stderr


def test_a_broken_record_is_one_line(tmp_path: Path) -> None:
    space = read_space(sweep_file(tmp_path, "  flow.layers: {min: 1, max: 3}", "  train.steps: {value: 5}"))
    with Sweep.create(space, out=tmp_path / "s") as sweep:
        assert sweep.trials_wanted == 20
    (tmp_path / "s" / "sweep.db").write_bytes(b"no database" * 1000)
    assert "sweep.db: file is not a database" in invoke("--resume", tmp_path / "s", code=1).stderr
    (tmp_path / "s" / "sweep.json").write_text("{")
    assert "sweep.json: expected the summary of a sweep" in invoke("--resume", tmp_path / "s", code=1).stderr


def test_other_data_under_the_same_name_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"{i * 7 % 97 + 0.25},{i * i % 89 + 0.5}" for i in range(300)]
    table.write_text("a,b\n" + "\n".join(rows) + "\n")
    path = sweep_file(tmp_path, "  flow.layers: {min: 1, max: 3}", "  train.steps: {value: 5}", data=str(table))
    with Sweep.create(read_space(path), out=tmp_path / "s"):
        pass
    content = table.read_bytes()
    table.write_text("a,b\n" + "\n".join(reversed(rows)) + "\n")
    again = f"pushforward sweep --resume {tmp_path / 's'} FILE"
    other, same = (hashlib.sha256(found).hexdigest()[:12] for found in (table.read_bytes(), content))
    said = invoke("--resume", tmp_path / "s", code=3).stderr
    assert f"t.csv: not the data that {tmp_path / 's'} was fitted to: its SHA-256 is {other}..." in said
    assert f"that of the run is {same}...; give the file with that content: {again}" in said
    table.unlink()
    said = invoke("--resume", tmp_path / "s", code=3).stderr
    assert said.endswith(f"t.csv: no such file; {tmp_path / 's'} was fitted to it; if it is elsewhere now: {again}\n")
    # The same content at another place, which is recorded for the trials to come.
    moved = tmp_path / "moved.csv"
    moved.write_bytes(content)
    with Sweep.open(tmp_path / "s", source=str(moved)):
        pass
    with Sweep.open(tmp_path / "s") as sweep:
        assert sweep.space.constants["data.source"] == str(moved)


def proposals(path: Path, *, reopen: bool) -> list[dict[str, Any]]:
    """The parameters that a search proposes if the score is the distance from five layers."""
    lines = ("  flow.layers: {min: 1, max: 9}", "  flow.dropout: {min: 0.0, max: 0.5}")
    space = parse_space(FILE.format(method="bayes", data="moons", mode="'off'", more="\n".join(lines)), "f")
    config = load_config("moons", overrides=["flow.layers=6", "flow.dropout=0"])
    study, values = SweepStudy(path, space, config, seed=4), []
    for _ in range(10):
        if reopen:
            study = SweepStudy(path, space, config, seed=4)
        trial = study.ask(1, 10)
        assert trial is not None
        values.append(trial.values)
        study.finish(trial, abs(trial.values["flow.layers"] - 5) + trial.values["flow.dropout"], seconds=1.0)
    assert set(study.importances()) == {"flow.layers", "flow.dropout"}
    return values


def test_a_search_is_reproducible_also_if_it_is_resumed(tmp_path: Path) -> None:
    first = proposals(tmp_path / "a.db", reopen=False)
    assert first[0] == {"flow.layers": 6, "flow.dropout": 0.0}, "the defaults come first"
    assert len({tuple(v.values()) for v in first}) == 10
    assert proposals(tmp_path / "a b%20#?.db", reopen=True) == first


def test_a_target_ends_the_search(tmp_path: Path) -> None:
    text = sweep_file(tmp_path, "  flow.layers: {min: 1, max: 3}", "  train.steps: {value: 5}").read_text()
    path = tmp_path / "target.yaml"
    path.write_text(text + "metric: {name: best/val_nll, goal: minimize, target: 2.5}\n")
    messages: list[str] = []
    with Sweep.create(read_space(path), out=tmp_path / "s") as sweep:
        trial = sweep.study.ask(1, 20)
        assert trial is not None
        sweep.study.fail(trial, "no result, no target")
        for val_nll in (2.8, 2.4, 2.6):
            trial = sweep.study.ask(1, 20)
            assert trial is not None
            sweep.study.finish(trial, val_nll, seconds=1.0)
        run_sweep(sweep, notify=messages.append)
    assert messages == ["the target is reached: 2.4000"]
    assert [trial["val_nll"] for trial in summary(tmp_path / "s")["trials"]] == [None, 2.8, 2.4, 2.6]
    assert summary(tmp_path / "s")["best"]["number"] == 2


def test_a_fit_can_be_ended_with_a_reason_after_a_validation(tmp_path: Path) -> None:
    config = load_config("moons", overrides=[*SMALL, "train.steps=80", "train.evaluate=false"])
    done = fit(
        config, out=tmp_path / "r", quiet=True, callbacks=[Watch(lambda share, nll: "pruned" if share >= 0.5 else "")]
    )
    assert done.results["stop_reason"] == "pruned"
    assert done.results["steps"] == 40
    assert done.run.status == "finished"


def test_the_printed_space_names_its_data_and_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{i * 7 % 97 + 0.25},{i * i % 89 + 0.5}" for i in range(300))
    Path("t.csv").write_text(f"a,b\n{rows}\n")
    printed = invoke("t.csv", "train.seconds=5", "--seed", "2", "--print-space").stdout
    Path("space.yaml").write_text(printed)
    space = read_space(Path("space.yaml"))
    constants = {"data.source": str(tmp_path / "t.csv"), "train.seconds": 5.0, "seed": 2, "train.evaluate": False}
    assert space.constants == constants
    assert "below 600 training rows" in printed
    assert parse_space(invoke("-c", "space.yaml", "--print-space").stdout, "again") == space
    with pytest.raises(ConfigError, match="nothing to search"):
        space.fixed(Parameter.constant(p.key, p.extremes()[0]) for p in space.searched).check()
    assert "at least 6,000 training rows and for toys" in invoke("moons", "--print-space").stdout


def test_help_imports_neither_torch_nor_optuna() -> None:
    code = (
        "import sys; from pushforward.cli import main\n"
        "try: main(['sweep', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'optuna', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
    code = "import sys, pushforward.sweeps.worker; assert not {'torch', 'wandb', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


@pytest.mark.slow
def test_the_same_file_works_with_wandb(tmp_path: Path, wandb_server: WandbServer) -> None:
    keys = ("data.rows=400", "flow.blocks=1", "flow.hidden=8", "train.steps=20", "wandb.project=flows")
    text = invoke("moons", *keys, "--print-space").stdout
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    sent = [
        {"flow.name": "maf", "flow.layers": 2, "flow.dropout": 0.05, "train.batch_size": 128},
        {"flow.name": "nsf-c", "flow.layers": 3, "train.learning_rate": 0.001, "flow.bins": 4},
    ]
    constants = read_space(tmp_path / "sweep.yaml").constants
    wandb_server.sweep_configurations = [constants | values for values in sent]
    bin_folder = str(Path(sys.executable).parent)
    environment = wandb_server.environment | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}

    def wandb(*arguments: str) -> str:
        command = [sys.executable, "-m", "wandb", *arguments]
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, timeout=180, check=False, **options)
        assert done.returncode == 0, done.stderr
        return str(done.stderr)

    created = wandb("sweep", "--project", "flows", "sweep.yaml")
    (sweep_id,) = wandb_server.sweeps
    assert sweep_id in created
    wandb("agent", "--count", "2", f"tester/flows/{sweep_id}")
    assert len(wandb_server.runs) == 2
    for run in wandb_server.runs.values():
        assert run.state == "finished"
        values = next(values for values in sent if values["flow.name"] == run.config["flow.name"])
        assert {key: run.config[key] for key in constants | values} == constants | values
        # Keys are not recorded twice, as typed by the agent and as a group.
        assert not [key for key in run.config if key in ("flow", "train", "data")]
        history = [row["best/val_nll"] for row in run.history if "best/val_nll" in row]
        assert len(history) > 10
        assert history == sorted(history, reverse=True)
        assert run.summary["best/val_nll"] == pytest.approx(history[-1], abs=0.1)
    assert {run.config["flow.name"] for run in wandb_server.runs.values()} == {"maf", "nsf-c"}
    assert {run.status for run in list_runs(tmp_path / "runs")} == {"finished"}
