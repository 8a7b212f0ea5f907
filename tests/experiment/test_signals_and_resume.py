"""Fits that are stopped, killed and resumed, with real processes and signals."""

import json
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.config.read import load_config
from pushforward.evaluate.density import FittedDensity
from pushforward.experiment.run import fit, resume
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import MetricsFile, read_metrics
from pushforward.train.problems.rows import RowsProblem
from tests.fixtures.processes import Start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")

SMALL = (
    "data.rows=2000",
    "flow=maf",
    "flow.layers=1",
    "flow.hidden=16",
    "train.batch_size=64",
    "train.evaluate=false",
    "wandb=off",
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def steps(run: RunFolder) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in read_metrics(run.metrics) if row["kind"] in ("train", "validation")]


def reaches(run: RunFolder, step: int) -> Callable[[], bool]:
    def reached() -> bool:
        return run.metrics.exists() and any(s >= step for _, s in steps(run))

    return reached


def assert_continuous(run: RunFolder, last: int, *, log_every: int = 25) -> None:
    """Check that there is a training row at every multiple, no row twice, and steps in order."""
    seen = steps(run)
    assert [step for _, step in seen] == sorted(step for _, step in seen)
    assert len(seen) == len(set(seen))
    assert [step for kind, step in seen if kind == "train"] == list(range(log_every, last + 1, log_every))


def assert_scorable(run: RunFolder) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(run.results.read_text())
    density = FittedDensity.load(run.model)
    scores = density.log_prob(density.draw(50, seed=0))
    assert np.isfinite(scores).all()
    return results


def fit_in_process(folder: Path, name: str, *overrides: str) -> dict[str, Any]:

    return fit(load_config("moons", overrides=(*SMALL, *overrides)), out=folder / name, quiet=True).results


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGTERM, 143, "sigterm"),
        pytest.param(signal.SIGINT, 130, "sigint", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, "sighup", marks=pytest.mark.slow),
    ],
)
def test_signal_then_resume(
    number: signal.Signals, code: int, reason: str, start: Start, run: RunFolder, tmp_path: Path
) -> None:
    """A signal saves the best weights; the resumed fit equals the uninterrupted one."""
    # Checkpoints after every step make the fit slow enough.
    command = start(
        "fit", "moons", "--out", "run", "--json", *SMALL, "train.steps=300", "train.checkpoint_seconds=1e-6"
    )
    command.until(reaches(run, 40))
    command.process.send_signal(number)
    assert command.wait() == code
    stopped = json.loads(command.stdout)
    assert command.stdout.count("\n") == 1
    assert stopped["stop_reason"] == reason
    assert 40 <= stopped["steps"] < 300
    assert "continue with: pushforward fit --resume run" in command.stderr
    assert run.status == "stopped"
    assert assert_scorable(run)["steps"] == stopped["steps"]
    assert_continuous(run, stopped["steps"])
    assert read_metrics(run.metrics)[-1]["kind"] == "summary"

    results = resume(run.path, ("train.checkpoint_seconds=30",), quiet=True).results
    assert results["steps"] == 300
    assert results["seconds"] > stopped["seconds"]
    assert run.status == "finished"
    assert_continuous(run, 300)

    whole = fit_in_process(tmp_path, "whole", "train.steps=300")
    for key in ("train_nll", "val_nll", "test_nll"):
        assert results[key] == pytest.approx(whole[key], rel=1e-6)


def test_a_terminal_that_is_closed_saves_the_fit(run: RunFolder, tmp_path: Path) -> None:
    """The connection is lost: SIGHUP comes, and the terminal takes no more messages."""
    arguments = ["fit", "moons", "--out", "run", *SMALL, "train.steps=20000", "train.checkpoint_seconds=1e-6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a process below nohup would inherit that it is ignored
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "pushforward", *arguments], environment)
    signal.signal(signal.SIGHUP, before)
    limit = time.monotonic() + 60
    try:
        while not reaches(run, 40)():
            assert time.monotonic() < limit
            if select.select([terminal], [], [], 0.01)[0]:
                os.read(terminal, 65_536)
    finally:
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 129
    assert run.status == "stopped"
    results = assert_scorable(run)
    assert results["stop_reason"] == "sighup"
    assert 40 <= results["steps"] < 20_000
    assert (run.checkpoints / "last.pt").exists()
    assert run.report.exists()


@pytest.mark.slow
def test_a_fit_below_nohup_goes_on(start: Start, run: RunFolder) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        command = start("fit", "moons", "--out", "run", *SMALL, "train.steps=300", "train.checkpoint_seconds=1e-6")
    finally:
        signal.signal(signal.SIGHUP, before)
    command.until(reaches(run, 40))
    command.process.send_signal(signal.SIGHUP)
    assert command.wait() == 0
    assert assert_scorable(run)["steps"] == 300


@pytest.mark.slow
def test_kill_then_resume(start: Start, run: RunFolder, tmp_path: Path) -> None:
    """SIGKILL leaves the last checkpoint, complete metrics up to the kill, and the status killed."""
    command = start("fit", "moons", "--out", "run", *SMALL, "train.steps=400", "train.checkpoint_seconds=0.05")
    command.until(lambda: (run.checkpoints / "last.pt").exists() and reaches(run, 60)())
    command.process.kill()
    assert command.wait() == -signal.SIGKILL
    assert run.status == "killed"
    before = steps(run)
    assert not run.results.exists()
    # As if it had been killed while it wrote a checkpoint.
    left = run.checkpoints / f".last.pt.{command.process.pid}.partial"
    left.write_bytes(b"half")

    resumed = start("fit", "--resume", "run", "--json")
    assert resumed.wait() == 0
    results = json.loads(resumed.stdout)
    assert results["steps"] == 400
    assert steps(run)[: len(before) // 2] == before[: len(before) // 2]
    assert_continuous(run, 400)
    assert run.status == "finished"
    assert not left.exists()
    whole = fit_in_process(tmp_path, "whole", "train.steps=400")
    assert results["test_nll"] == pytest.approx(whole["test_nll"], rel=1e-6)


@pytest.mark.slow
def test_second_interrupt_and_second_process(start: Start, run: RunFolder) -> None:
    """No other process can resume a running fit; two interrupts end it at once, and it can be resumed."""
    command = start("fit", "moons", "--out", "run", *SMALL, "train.seconds=50", "train.checkpoint_seconds=0.05")
    command.until(lambda: (run.checkpoints / "last.pt").exists() and reaches(run, 50)())
    second = start("fit", "--resume", "run")
    third = start("fit", "moons", "--out", "run", *SMALL, "train.steps=5")
    assert second.wait() == 1
    assert second.stderr.endswith("fit: run: in use by another process\n")
    assert third.wait() == 2
    assert run.status == "running"
    command.process.send_signal(signal.SIGINT)
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130
    assert run.status == "stopped"
    resumed = start("fit", "--resume", "run", "--json", "train.seconds=5")
    assert resumed.wait() == 0
    assert_scorable(run)


def test_damaged_checkpoints_are_refused(tmp_path: Path, run: RunFolder) -> None:
    fit_in_process(tmp_path, "run", "train.steps=20")
    last = run.checkpoints / "last.pt"
    good = last.read_bytes()
    state, metrics = run.state.read_text(), run.metrics.read_bytes()

    def attempt() -> tuple[int, str]:
        done = CliRunner().invoke(main, ["fit", "--resume", str(run.path), "train.steps=30"], prog_name="pushforward")
        assert done.stdout == ""
        return done.exit_code, done.stderr

    for content in (good[: len(good) // 2], bytes(len(good)), b""):
        last.write_bytes(content)
        code, line = attempt()
        assert code == 1
        assert line == f"pushforward fit: {last}: damaged: its checksum is not that of its contents\n"
    last.write_bytes(good)
    # The attempts did not change the run, and with its checkpoint it can be resumed.
    assert (run.state.read_text(), run.metrics.read_bytes()) == (state, metrics)
    done = CliRunner().invoke(main, ["fit", "--resume", str(run.path), "train.steps=30", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["steps"] == 30


def test_a_run_without_a_checkpoint_starts_over(tmp_path: Path, run: RunFolder) -> None:
    """As after a kill before the first one: the rows and the numbers are those of a fit of its own."""
    fit_in_process(tmp_path, "run", "train.steps=20")
    (run.checkpoints / "last.pt").unlink()
    again = resume(run.path, ("train.steps=30",), quiet=True)
    assert f"{run.path}: has no checkpoint yet: the fit starts over" in run.log.read_text()
    assert run.status == "finished"
    assert_continuous(run, 30)
    assert steps(run)[0] == ("validation", 0)
    whole = fit_in_process(tmp_path, "whole", "train.steps=30")
    for key in ("steps", "train_nll", "val_nll", "test_nll"):
        assert again.results[key] == whole[key]


def test_signal_during_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is finished by then; the remaining pictures are skipped, and the signal is reported."""

    evaluate_really = RowsProblem.evaluate

    def evaluate(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_really(*arguments, **options)

    monkeypatch.setattr(RowsProblem, "evaluate", evaluate)
    before = signal.getsignal(signal.SIGTERM)
    config = load_config("moons", overrides=(*SMALL, "train.steps=5", "train.evaluate=true"))
    done = fit(config, out=tmp_path / "run", quiet=True)
    assert done.signum == signal.SIGTERM
    assert done.run.status == "finished"
    assert not list(done.run.pictures.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before
    assert_scorable(done.run)


def test_interrupt_twice_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    written = MetricsFile.log

    def interrupt(self: MetricsFile, metrics: Any, step: int, **rest: Any) -> None:
        written(self, metrics, step, **rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsFile, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(load_config("moons", overrides=(*SMALL, "train.steps=20")), out=tmp_path / "run", quiet=True)
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "stopped"
    assert steps(run)[-1][1] == 3
    run.claim()  # the lock was released
    run.release()
