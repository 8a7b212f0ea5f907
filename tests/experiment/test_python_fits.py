"""Fits from Python with a run folder: signals, callbacks, silence."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import pushforward
from pushforward.experiment.run import resume
from pushforward.runs.folder import RunFolder
from pushforward.train import Callback, State, selection
from tests.fixtures.callbacks import Functions
from tests.fixtures.tables import bent, write_csv

KEYS: dict[str, Any] = {"flow": "maf", "layers": 1, "hidden": 8, "steps": 60, "progress": False, "evaluate": False}

needs_signals = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "bent.csv", bent(300))


class At(Callback):
    """Does something once, before a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    def should_stop(self, state: State) -> str:
        if state.progress.step == self.step:
            self.act()
        return ""


@needs_signals
def test_an_interrupt_is_raised_after_the_checkpoint(table: Path, tmp_path: Path) -> None:
    interrupt = At(30, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        pushforward.fit(table, out=tmp_path / "run", callbacks=[interrupt], **KEYS)
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "stopped"
    whole = pushforward.fit(table, **KEYS)
    assert resume(run.path, quiet=True).results["test_nll"] == whole.results["test_nll"]
    with pytest.raises(KeyboardInterrupt):
        pushforward.fit(table, callbacks=[interrupt], **KEYS)


def test_the_checkpoint_of_a_stop_is_that_of_a_fit_that_was_not_stopped(table: Path) -> None:
    """Without the validation at the end, which might keep weights that the uninterrupted fit does not validate."""
    step, kept = itertools.count(), list[tuple[int, int]]()
    stop = Functions(
        stop=lambda: "enough" if next(step) == 31 else "",
        checkpoint=lambda state: kept.append((state.progress.step, state.progress.validated_step)),
    )
    pushforward.fit(table, callbacks=[stop], **KEYS)
    assert kept[-1] == (31, 30)


@needs_signals
def test_a_handler_of_the_caller_has_the_signal_after_the_fit(table: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        terminate = At(30, lambda: os.kill(os.getpid(), signal.SIGTERM))
        pushforward.fit(table, out=tmp_path / "run", callbacks=[terminate], **KEYS)
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert RunFolder.open(tmp_path / "run").status == "stopped"


@needs_signals
@pytest.mark.slow
def test_a_process_that_is_terminated_ends_after_the_checkpoint(table: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal, pushforward
from pushforward.train import Callback
class Terminate(Callback):
    def should_stop(self, state):
        if state.progress.step == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return ""
pushforward.fit({str(table)!r}, out="run", callbacks=[Terminate()], **{KEYS!r})
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    assert RunFolder.open(tmp_path / "run").status == "stopped"


def test_a_callback_that_still_asks_to_stop_leaves_the_evaluation_alone(table: Path, tmp_path: Path) -> None:
    stop = Functions(stop=lambda: "enough")
    keys: dict[str, Any] = KEYS | {"evaluate": True}
    done = pushforward.fit(table, out=tmp_path / "run", callbacks=[stop], **keys)
    assert done.results["stop_reason"] == "enough"
    assert (tmp_path / "run" / "samples" / "samples.csv").exists()
    assert {path.name for path in (tmp_path / "run" / "pictures").glob("*.png")} >= {"corner.png", "latent.png"}


@pytest.mark.parametrize("out", [None, "run"])
def test_model_selection_asks_the_callbacks(
    out: str | None, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a run folder as without: the first candidate is stopped, and only its results decide."""
    monkeypatch.setattr(selection, "LEAST_STEPS", 1)
    asked, messages = itertools.count(), list[str]()
    stop = Functions(stop=lambda: "enough" if next(asked) >= 2 else "", message=messages.append)
    keys = KEYS | {"flow": "auto", "steps": 300, "components": 3, "members": 1, "stacking": False}
    del keys["layers"]
    density = pushforward.fit(table, out=None if out is None else tmp_path / out, callbacks=[stop], **keys)
    assert messages[0].startswith("model: comparing ")
    assert "," not in messages[1].rpartition(": ")[2], "one candidate"
    assert np.isfinite(density.log_prob(bent(9))).all()
    assert next(asked) < 10
    if out is not None:
        assert density.results["stop_reason"] == "enough"
        assert resume(tmp_path / out, quiet=True).results["steps"] == 300


def test_silent_is_silent(
    table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushforward.fit(table, out=tmp_path / "run", **KEYS | {"flow": "auto", "layers": None})
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.warns(UserWarning, match="WANDB_MODE=sometimes: expected one of"):
        pushforward.fit(table, out=tmp_path / "second", wandb="auto", **KEYS)
    assert capfd.readouterr() == ("", "")
    assert "warning: WANDB_MODE=sometimes" in (tmp_path / "second" / "log.txt").read_text()
