"""Failures of W&B, the disk or the process: the fit ends with its model and all metrics, and one warning."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from pushforward.common.errors import MAKE_ROOM, RunError
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.evaluate.density import FittedDensity
from pushforward.experiment.evaluation import evaluate_run
from pushforward.experiment.run import fit as fit_here, resume
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import read_metrics
from pushforward.tracking.wandb.record import read_record
from pushforward.train.callbacks import Watch
from pushforward.train.problems.rows import RowsProblem
from tests.fixtures.wandb_server import WandbServer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, mounts and locks are POSIX")

STEPS = 1_200
KEYS = ("flow=maf", "flow.layers=1", "flow.hidden=8", "data.rows=500", "train.batch_size=32", "train.log_every=100")


class RunningFit:
    """A real fit of about two seconds in its own process."""

    def __init__(self, environment: Mapping[str, str], folder: Path, *arguments: str, steps: int = STEPS) -> None:
        self.run = folder / "run"
        command = [sys.executable, "-m", "pushforward", "fit", *arguments, *KEYS, f"train.steps={steps}"]
        if "--resume" not in arguments:
            command += ["--out", "run"]
        self.process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            self.lines += iter(stream.readline, "")

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        code = self.process.wait(timeout=120)
        self._reader.join()
        return code

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition while the fit runs."""
        limit = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < limit
            time.sleep(0.01)

    def until_row(self, count: int) -> None:
        """Wait until so many rows of metrics are written."""
        path = self.run / "metrics.jsonl"
        self.until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count)

    def until_wandb(self) -> None:
        """Wait until the client has started to record."""
        self.until(lambda: bool(list(self.run.glob("wandb/*run-*/run-*.wandb"))))

    def check_end(self, *, warnings: int = 1, steps: int = STEPS) -> list[str]:
        """Wait for the end, check the model and the metrics, and return the warnings."""
        self.wait()
        text = "".join(self.lines)
        assert self.process.returncode == 0, text
        assert "Traceback" not in text
        run = RunFolder.open(self.run)
        assert run.status == "finished"
        assert np.isfinite(FittedDensity.load(run.model).log_prob(np.zeros((3, 2)))).all()
        rows = read_metrics(run.metrics)
        assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(100, steps + 1, 100))
        assert len([row for row in rows if row["kind"] == "validation"]) == 41
        assert [row["kind"] for row in rows].count("summary") >= 1
        found = [line for line in self.lines if ("W&B " in line[:4] and "W&B   " not in line) or "warning" in line]
        assert len(found) == warnings, text
        return found


def client_of(fit: int) -> int:
    """Return the id of the client process of a fit."""
    listed = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return next(int(pid) for pid, parent, words in rows[1:] if int(parent) == fit and "wandb.client" in words)


def core_of(fit: int) -> int:
    """Return the id of the core process of the client of a fit."""
    listed = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    end = f"--pid {client_of(fit)}"
    return next(int(line.split()[0]) for line in listed.splitlines() if "wandb-core" in line and end in line)


def test_wandb_is_not_installed(tmp_path: Path, alone: dict[str, str]) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "wandb.py").write_text("raise ImportError('none')\n")
    fit = RunningFit(alone | {"PYTHONPATH": str(hidden)}, tmp_path, "moons", "train.evaluate=false", steps=200)
    (warning,) = fit.check_end(steps=200)
    assert "W&B is not installed (pip install wandb)" in warning


def test_not_logged_in(tmp_path: Path, alone: dict[str, str]) -> None:
    fit = RunningFit(alone, tmp_path, "moons", "train.evaluate=false", "--wandb", "online", steps=200)
    (warning,) = fit.check_end(steps=200)
    assert "W&B has no API key (wandb login); recording offline" in warning


@pytest.mark.slow
@pytest.mark.parametrize("victim", [core_of, client_of])
def test_a_killed_client_process_is_one_warning(
    victim: Callable[[int], int], tmp_path: Path, alone: dict[str, str]
) -> None:
    fit = RunningFit(alone, tmp_path, "moons", "train.evaluate=false", "--wandb", "offline")
    fit.until_wandb()
    os.kill(victim(fit.process.pid), signal.SIGKILL)
    (warning,) = fit.check_end()
    assert "it is off for the rest of this fit, metrics.jsonl goes on" in warning


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refuse", "silent"])
def test_lost_network_is_one_warning(how: str, tmp_path: Path, wandb_server: WandbServer) -> None:
    environment = wandb_server.environment | {"WANDB_FINISH_TIMEOUT": "2", "WANDB_INIT_TIMEOUT": "20"}
    began = time.monotonic()
    evaluate = f"train.evaluate={str(how == 'silent').lower()}"
    fit = RunningFit(environment, tmp_path, "moons", evaluate, "--wandb", "online")
    fit.until(lambda: bool(wandb_server.runs))
    wandb_server.misbehave(how)  # type: ignore[arg-type]  # a parametrized literal
    (warning,) = fit.check_end()
    assert time.monotonic() - began < 90, "without a time limit the client waits for ever"
    assert "W&B" in warning
    assert "pushforward wandb sync" in warning


@pytest.mark.slow
def test_an_unwritable_wandb_folder_is_one_warning(tmp_path: Path, alone: dict[str, str]) -> None:
    config = load_config("moons", overrides=(*KEYS, "train.evaluate=false", "train.steps=100", "wandb=off"))
    fit_here(config, out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / "wandb").write_text("not a folder")
    fit = RunningFit(alone, tmp_path, "--resume", "run", "--wandb", "offline", steps=STEPS)
    code, text = fit.wait(), "".join(fit.lines)
    assert code == 0, text
    found = [line for line in fit.lines if "W&B failed" in line]
    assert len(found) == 1, text
    assert "metrics.jsonl goes on" in found[0]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(100, STEPS + 1, 100))


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "off"])
def test_a_full_disk_does_not_lose_the_model(mode: str, tmp_path: Path, alone: dict[str, str]) -> None:
    """The disk fills up during the fit: the reserved space is enough for the model and all rows."""
    disk = tmp_path / "disk"
    with small_disk(disk, "24m"):
        fit = RunningFit(alone, disk, "moons", "--wandb", mode)
        fit.until_row(5)
        fit.process.send_signal(signal.SIGSTOP)  # on a busy machine the client may start after the fit
        if mode == "offline":
            fit.until_wandb()
        with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        fit.process.send_signal(signal.SIGCONT)
        (warning,) = fit.check_end()
        assert "no space left on device; make room: the fit goes on, and writes what is missing at its end" in warning
        assert (fit.run / "results.json").exists()
        assert not (fit.run / ".reserve").exists()


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_one_line(tmp_path: Path, alone: dict[str, str]) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "2m"):
        fit = RunningFit(alone, disk, "moons", "--wandb", "off")
        assert fit.wait() == 1
        assert fit.lines[-1].endswith(f"for the model and its report: no space left on device; {MAKE_ROOM}\n")
        assert "Traceback" not in "".join(fit.lines)


@pytest.mark.slow
def test_a_disk_that_is_full_before_the_first_checkpoint_is_one_line(tmp_path: Path, alone: dict[str, str]) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "20k"):  # for the files that describe the fit, and not for its weights
        fit = RunningFit(alone, disk, "moons", "--wandb", "off")
        assert fit.wait() == 1
        assert " fit: run: cannot reserve 4 MB for the model and its report" in fit.lines[-1]
        assert fit.lines[-1].endswith(f": no space left on device; {MAKE_ROOM}\n")
        found = {path.name for path in fit.run.rglob("*") if path.is_file()}
        assert found == {".lock", "config.yaml", "environment.json", "schema.json", "state.json"}
        assert RunFolder(fit.run).status == "failed"


@pytest.mark.slow
def test_a_disk_that_is_full_at_once_leaves_no_run(tmp_path: Path, alone: dict[str, str]) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "12k"):
        fit = RunningFit(alone, disk, "moons", "--wandb", "off")
        assert fit.wait() == 1
        assert fit.lines[-1].endswith(f": cannot write: no space left on device; {MAKE_ROOM}\n")
        assert not list(disk.iterdir())


def check_killed_fit(folder: Path, environment: Mapping[str, str], generator: random.Random) -> None:
    """Kill a fit; every validation that its callback had seen is in its metrics."""
    folder.mkdir()
    seen = folder / "seen"
    program = (
        "import sys\nfrom pathlib import Path\nfrom pushforward.config import load_config\n"
        "from pushforward.experiment import fit\n"
        "from pushforward.train.callbacks import Watch\n"
        "seen = open(sys.argv[1], 'ab', buffering=0)\n"
        "def watch(fraction, nll):\n"
        "    seen.write(f'{nll!r}\\n'.encode())\n"
        "    return ''\n"
        "config = load_config('moons', overrides=sys.argv[2:])\n"
        "fit(config, out=Path('run'), quiet=True, callbacks=[Watch(watch)])\n"
    )
    keys = (*KEYS, "train.steps=4000", "train.checkpoint_seconds=0.2", "wandb=offline", "train.evaluate=false")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(seen), *keys], cwd=folder, env=dict(environment), stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 60
    while not seen.exists() or not seen.read_bytes():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.005)
    time.sleep(generator.uniform(0.0, 3.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    expected = [float(line) for line in seen.read_text().splitlines()]
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    found = [row["val/nll"] for row in rows if row["kind"] == "validation"]
    # The client outlives the fit, and finishes its record with every row that it received.
    limit = time.monotonic() + 30
    record = None
    while record is None or record.exit_code is None:
        assert time.monotonic() < limit
        time.sleep(0.05)
        for log in (folder / "run").glob("wandb/offline-run-*/run-*.wandb"):
            record = read_record(log)
    history = [row["val/nll"] for row in record.history if "val/nll" in row]
    assert history[: len(expected)] == expected
    assert found[: len(expected)] == expected
    assert len(found) <= len(expected) + 1
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


@pytest.mark.parametrize("trial", [pytest.param(i, marks=[pytest.mark.slow] if i != 1 else []) for i in range(20)])
def test_sigkill_at_a_random_time_loses_no_row(trial: int, tmp_path: Path, alone: dict[str, str]) -> None:
    check_killed_fit(tmp_path / "fit", alone, random.Random(trial))


def small(tmp_path: Path, *more: str) -> Config:
    keys = (*KEYS, "train.steps=60", "wandb=off", *more)
    return load_config("moons", overrides=keys)


def test_an_evaluation_that_fails_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("not enough\nof it")

    monkeypatch.setattr(RowsProblem, "evaluate", fail)
    done = fit_here(small(tmp_path), out=tmp_path / "run", quiet=True)
    assert done.run.status == "finished"
    assert done.evaluation is None
    warned = [line for line in done.run.log.read_text().splitlines() if "warning" in line]
    assert [line.partition("warning: ")[2] for line in warned] == ["no evaluation: MemoryError: not enough of it"]
    assert "finished" in done.run.report.read_text()


def test_the_report_of_a_failed_fit_shows_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(RowsProblem, "score", fail)
    with pytest.raises(ZeroDivisionError):
        fit_here(small(tmp_path), out=tmp_path / "run", quiet=True)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The fit failed" in page
    assert "The fit is running" not in page


def test_a_resumed_fit_removes_the_old_evaluation(tmp_path: Path) -> None:
    done = fit_here(small(tmp_path, "train.evaluate=false"), out=tmp_path / "run", quiet=True)
    done.run.write_json("evaluation.json", {"steps": 60})
    (done.run.pictures / "density.png").write_bytes(b"of the model with 60 steps")
    resume(done.run.path, ("train.steps=120", "train.evaluate=false"), quiet=True)
    assert not (done.run.path / "evaluation.json").exists()
    assert not list(done.run.pictures.glob("*.png"))
    evaluate_run(done.run)
    assert json.loads((done.run.path / "evaluation.json").read_text())["steps"] == 120
    assert {path.stem for path in done.run.pictures.glob("*.png")} >= {"density", "quantiles", "training"}


def test_a_running_fit_is_not_evaluated(tmp_path: Path) -> None:
    done = fit_here(small(tmp_path, "train.evaluate=false"), out=tmp_path / "run", quiet=True)
    other = RunFolder(done.run.path)
    other.claim()
    try:
        with pytest.raises(RunError, match="in use by another process"):
            evaluate_run(done.run)
    finally:
        other.release()


def test_a_slow_callback_does_not_reduce_validation(tmp_path: Path) -> None:
    seen: list[float] = []

    def watch(fraction: float, nll: float) -> str:
        seen.append(fraction)
        if len(seen) == 3:
            time.sleep(
                0.25
            )  # if this counted as validation, which gets a tenth of the time, none would follow for seconds
        return ""

    config = load_config("moons", overrides=(*KEYS, "train.seconds=2", "wandb=off", "train.evaluate=false"))
    fit_here(config, out=tmp_path / "run", quiet=True, callbacks=[Watch(watch)])
    assert len([fraction for fraction in seen if 0.4 < fraction < 1.0]) > 3
