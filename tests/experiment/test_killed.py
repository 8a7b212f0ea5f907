"""Fits that are killed by SIGKILL at any time: they go on, or start over in their folder, and nothing is lost."""

import functools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pushforward.config.read import load_config
from pushforward.runs.folder import RunFolder
from tests.fixtures.processes import Command, Start

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="signals are POSIX"), pytest.mark.slow]

BESIDE = ("--wandb", "off", "train.evaluate=false")
OPEN = ("iris", "train.steps=10000", "train.patience=0.1", "flow.hidden=8", "flow.blocks=0", "flow.members=1")
"""A fit that compares two kinds of flows, 400 steps each, before it trains the better one."""


def results(run: Path) -> dict[str, object]:
    """The final numbers that do not depend on the clock or the folder."""
    found: dict[str, object] = json.loads((run / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in ("run", "seconds")}


def log_has(run: Path, text: str) -> bool:
    log = run / "log.txt"
    return log.exists() and text in log.read_text()


def has_step(run: Path, step: int) -> bool:
    """Whether the complete rows of metrics reach a step."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return any(json.loads(line)["step"] >= step for line in lines if line.endswith("\n"))


def end(command: Command) -> None:
    assert command.wait() == 0, command.stderr


@pytest.mark.parametrize("milliseconds", [0, 10, 20, 35, 60])
def test_killed_before_its_first_checkpoint(milliseconds: int, start: Start, tmp_path: Path) -> None:
    """Killed while its folder is being made, at any file: the same command works, and so does what --resume says."""
    arguments = ("moons", "flow=maf", "data.rows=2000", "train.steps=20", *BESIDE)
    run, other = tmp_path / "run", tmp_path / "other"
    command = start("fit", *arguments, "--out", "run")
    command.until(lambda: (run / "state.json").exists())
    time.sleep(milliseconds / 1e3)
    command.kill()
    if (run / "checkpoints" / "last.pt").exists():
        pytest.skip("the first checkpoint was faster")
    shutil.copytree(run, other)

    end(start("fit", *arguments, "--out", "run"))
    assert RunFolder(run).status == "finished"

    has_config = (other / "config.yaml").exists()
    resumed = start("fit", "--resume", "other")
    if has_config:
        end(resumed)
    else:
        assert resumed.wait() == 2
        line = "other: its fit was killed before it began; start it again with: pushforward fit DATA --out other"
        assert resumed.stderr.splitlines()[-1].endswith(line)
        end(start("fit", *arguments, "--out", "other"))
    assert results(other) == results(run)
    assert (other / "model" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "at"),
    [
        (OPEN, "model: comparing"),
        (OPEN, "validation NLL so far"),
        (OPEN, 1000),
        (("target:funnel", "train.steps=300", "flow.layers=2", "flow.hidden=16"), 100),
        (("digits", "train.objective=elbo", "train.steps=300", "flow.hidden=32"), 100),
    ],
    ids=["while-comparing", "just-after-the-choice", "after-the-choice", "target", "autoencoder"],
)
def test_killed_and_resumed_is_bit_for_bit_the_uninterrupted_fit(
    arguments: tuple[str, ...], at: str | int, start: Start, tmp_path: Path, made_once: Callable[..., Path]
) -> None:
    """With a budget in steps and one thread."""
    run = tmp_path / "run"
    fit = functools.partial(start, "fit", *arguments, *BESIDE, "--out")
    whole = made_once(f"whole-{arguments[0].replace(':', '-')}", lambda folder: end(fit(folder / "run"))) / "run"
    command = start("fit", *arguments, *BESIDE, "--out", "run", "train.checkpoint_seconds=0.1")
    command.until(lambda: log_has(run, at) if isinstance(at, str) else has_step(run, at))
    command.kill()
    assert not (run / "results.json").exists()

    end(start("fit", "--resume", "run"))
    assert (run / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert results(run) == results(whole)
    if (whole / "selection.json").exists():
        first, second = (json.loads((path / "selection.json").read_text()) for path in (run, whole))
        assert first["candidates"] == second["candidates"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_comparing_leaves_the_choice_open(
    number: signal.Signals, start: Start, tmp_path: Path, made_once: Callable[..., Path]
) -> None:
    """Signalled in the first candidate, killed in the second: the same choice and numbers as without."""
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints" / "selection"
    whole = made_once("whole-iris", lambda made: end(start("fit", *OPEN, *BESIDE, "--out", made / "run"))) / "run"
    command = start("fit", *OPEN, *BESIDE, "--out", "run", "train.checkpoint_seconds=0.02")
    command.until((folder / "candidate-0.pt").exists)
    time.sleep(0.3)
    command.process.send_signal(number)
    assert command.wait() == 128 + number
    assert load_config(files=[run / "config.yaml"]).flow.name == "auto"
    (cut,) = json.loads((run / "selection.json").read_text())["candidates"]
    assert 0 < cut["steps"] < 400
    assert (run / "model" / "model.safetensors").exists()  # of the best candidate so far
    assert not (run / "checkpoints" / "last.pt").exists()

    second = start("fit", "--resume", "run", "train.checkpoint_seconds=0.02")
    second.until((folder / "candidate-1.pt").exists)
    second.kill()
    assert log_has(run, "the selection of its model goes on")
    refused = start("fit", *OPEN, *BESIDE, "--out", "run")
    assert refused.wait() == 2
    assert "to go on: pushforward fit --resume run" in refused.stderr
    end(start("fit", "--resume", "run"))
    assert (run / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert results(run) == results(whole)
    first, last = (json.loads((path / "selection.json").read_text()) for path in (run, whole))
    assert first["candidates"] == last["candidates"]
    assert not folder.exists()


def test_with_a_budget_in_seconds_the_choice_and_the_clock_are_restored(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("iris", "flow.hidden=8", "flow.blocks=0", "train.seconds=10", "train.patience=1", *BESIDE)
    command = start("fit", *arguments, "--out", "run", "train.checkpoint_seconds=0.1")
    command.until(lambda: has_step(run, 200))
    command.kill()
    chosen, config = (run / "selection.json").read_text(), (run / "config.yaml").read_text()
    spent = max(json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines())
    log = (run / "log.txt").read_text()

    began = time.monotonic()
    end(start("fit", "--resume", "run"))
    took = time.monotonic() - began
    assert (run / "selection.json").read_text() == chosen
    assert (run / "config.yaml").read_text() == config
    assert "model: " not in (run / "log.txt").read_text().removeprefix(log), "the choice is not made again"
    results = json.loads((run / "results.json").read_text())
    assert 10 <= results["seconds"] < 11
    assert took >= 10 - spent - 0.5, "the rest of the budget was used"
    resumed_at = min(
        json.loads(line)["seconds"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["step"] > 200
    )
    assert resumed_at > 0.5 * spent
