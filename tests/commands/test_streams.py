"""Standard streams that are closed, full, or read by a program that ends: no traceback, and no lost run.

Real processes below a shell, as a user or a batch system starts them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pushforward.datasets import load
from pushforward.evaluate.density import FittedDensity
from pushforward.flows import build
from pushforward.runs.folder import RunFolder
from tests.fixtures.tables import write_csv

STREAMS = {
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "stdin closed": "<&-",
    "stdout full": ">/dev/full",
    "stderr full": "2>/dev/full",
    "a reader of one line": "| head -1",
    "a reader of nothing": "| true",
}
TINY = ("train.steps=3", "flow=maf", "flow.layers=1", "flow.hidden=8", "data.rows=200", "--wandb", "offline")

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and a run without training."""
    folder = tmp_path_factory.mktemp("streams")
    path = write_csv(folder / "t.csv", np.random.default_rng(0).standard_normal((300, 3)))
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    FittedDensity(build("maf", 3, layers=1, hidden=8, blocks=1), load(path).schema, [0.0] * 3).save(run / "model")
    return folder


def end(arguments: Sequence[str], stream: str, folder: Path) -> tuple[int, str]:
    """Run the command with a stream in that state; return its exit code and everything that was printed."""
    pipe = f'"$@" {STREAMS[stream]}; exit ${{PIPESTATUS[0]}}'
    command = ["bash", "-c", pipe, "bash", sys.executable, "-m", "pushforward", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def check(arguments: Sequence[str], stream: str, folder: Path, code: int = 0) -> str:
    """Check the exit code, and that there is one line about a full stdout and nothing about other streams."""
    got, printed = end(arguments, stream, folder)
    where = f"pushforward {' '.join(arguments)} {STREAMS[stream]}: exit code {got}\n{printed}"
    is_lost = stream == "stdout full" and code == 0
    assert got == (1 if is_lost else code), where
    assert "Traceback" not in printed, where
    assert "Exception ignored" not in printed, where
    assert "Error: " not in printed or code == 2, where
    assert printed.count("stdout: No space left on device") == is_lost, where
    return printed


QUICK = (
    (["--help"], 0),
    (["--version"], 0),
    (["datasets"], 0),
    (["fit", "moons", "--print-config"], 0),
    (["nosuch"], 2),
)


@pytest.mark.parametrize("stream", STREAMS)
def test_light_commands(stream: str, here: Path) -> None:
    for arguments, code in QUICK:
        check(arguments, stream, here, code)


def test_many_rows_into_a_reader_of_one_line_or_a_full_disk(here: Path) -> None:
    """More rows than the buffers of the pipe and of Python hold."""
    printed = check(["sample", "run", "-n", "20000"], "a reader of one line", here)
    assert printed == "a,b,c\n"
    check(["sample", "run", "-n", "20000"], "stdout full", here)


@pytest.mark.parametrize("stream", ["all closed", "stderr full"])
def test_a_fit_without_streams_runs_to_its_end(stream: str, here: Path, tmp_path: Path) -> None:
    """Its files have the numbers of the closed streams otherwise, and get what is printed."""
    check(["fit", str(here / "t.csv"), *TINY, "train.evaluate=false", "--out", "made"], stream, tmp_path)
    run = RunFolder.open(tmp_path / "made")
    assert run.status == "finished"
    assert json.loads(run.results.read_text())["steps"] == 3
    assert all(json.loads(line) for line in run.metrics.read_text().splitlines())
    assert FittedDensity.load(run.model).sample(3).shape == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("stream", STREAMS)
def test_every_command(stream: str, here: Path, tmp_path: Path) -> None:
    table = str(here / "t.csv")
    fit = ["fit", table, *TINY]
    subprocess.run(
        [sys.executable, "-m", "pushforward", *fit, "--out", "run"], cwd=tmp_path, capture_output=True, check=True
    )
    for arguments in (
        [*fit, "--out", "made"],
        [*fit, "--dry-run"],
        ["score", "run", table],
        ["score", "run", table, "--json"],
        ["score", "run", table, "--out", "scores.csv"],
        ["sample", "run", "-n", "1000"],
        ["sample", "run", "-n", "1000", "--json"],
        ["sample", "run", "-n", "1000", "--out", "new.csv"],
        ["evaluate", "run"],
        ["evaluate", "run", table],
        ["report", "run"],
        ["compare", "run", "made"],
        ["runs", "."],
        ["runs", ".", "--json"],
        ["wandb", "dashboard", "--dry-run"],
        ["benchmark", "--list"],
        ["benchmark", table, "--methods", "gaussian", "--folds", "0", "--wandb", "off", "--out", "benchmark"],
        ["sweep", table, *TINY[:-2], "--trials", "1", "--out", "sweep"],
        ["gradients", "gaussian", "target.features=1", "flow=gaussian", "--steps", "0", "--out", "gradients"],
    ):
        printed = end(arguments, stream, tmp_path)
        silent = "--out" in arguments and arguments[0] in ("score", "sample") and "--json" not in arguments
        lost = stream == "stdout full" and not silent
        assert printed[0] == lost, (arguments, printed)
        assert "Traceback" not in printed[1], (arguments, printed)
        assert "Exception ignored" not in printed[1], (arguments, printed)
    for path in ("made", "run", "sweep/trials/000"):
        if (tmp_path / path).exists():
            assert RunFolder.open(tmp_path / path).status == "finished"
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 1_001
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 301
