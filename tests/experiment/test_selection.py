"""Fits with model selection (``flow=auto``), mixtures of flows and stacking, also interrupted and resumed."""

import functools
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.config.read import load_config
from pushforward.evaluate.density import FittedDensity
from pushforward.experiment.result import Fit
from pushforward.experiment.run import fit, plan, resume
from pushforward.flows import (
    AutoregressiveMixture,
    KernelDensity,
    Mixture,
    members_of,
)
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import read_metrics
from pushforward.train import fitting, selection
from pushforward.train.architecture import describe, describe_in_words, uses_key
from pushforward.train.callbacks import Watch
from pushforward.train.defaults import candidates, is_open, resolve
from pushforward.train.divergence import DivergedError
from pushforward.train.options import FlowOptions
from pushforward.train.problems.rows import RowsProblem
from pushforward.train.trainer import Trainer
from tests.fixtures.callbacks import Functions
from tests.fixtures.tables import bent, write_csv

QUIET = ("wandb=off", "train.evaluate=false")


LAYERS = ("flow.hidden=8", "flow.blocks=1")
SMALL = (*LAYERS, "flow.components=3")


ABOUT: dict[str, Any] = {"features": 3, "is_toy": False}


def asked(*overrides: str) -> dict[str, Any]:
    return load_config("some.csv", overrides=overrides).model_dump()


def flow_of(run: RunFolder) -> FlowOptions:
    """The flow of the configuration that a run has recorded."""
    return resolve(load_config(files=[run.config]).model_dump(), rows=240, **ABOUT).flow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_csv(tmp_path_factory.mktemp("data") / "bent.csv", bent(300)))


def fitted(source: str, out: Path, *overrides: str, sizes: tuple[str, ...] = SMALL, **options: Any) -> Fit:
    return fit(load_config(source, overrides=(*QUIET, *sizes, *overrides)), out=out, quiet=True, **options)


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a selection possible in a second."""
    monkeypatch.setattr(selection, "LEAST_STEPS", 1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first optimizer of a process imports for a second


@pytest.mark.usefixtures("_short")
def test_model_selection(source: str, tmp_path: Path) -> None:
    keys = ("train.seconds=2.5", "flow.members=2", "flow.dropout=0")
    done = fitted(source, tmp_path / "run", *keys)
    found = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert set(found) == {"flow", "step_seconds", "seconds", "candidates"}
    compared = found["candidates"]
    names = {describe(c.flow) for c in candidates(asked(*keys), 1, rows=240, features=3)}
    assert {candidate["flow"] for candidate in compared} == names
    scores = [candidate["val_nll"] for candidate in compared]
    assert scores == sorted(scores)
    assert all(candidate["steps"] > 0 for candidate in compared)
    assert found["flow"] == compared[0]["flow"]
    assert 0.0 < found["step_seconds"] < found["seconds"]
    # The fit continues from the best candidate: steps and time go on, and the best NLL is at least as good.
    rows = [row for row in read_metrics(done.run.metrics) if row["kind"] in ("train", "validation")]
    assert all(row["step"] > compared[0]["steps"] for row in rows)
    # On a busy machine the selection may take all the time.
    assert (done.results["steps"] > compared[0]["steps"]) is bool(rows)
    assert done.results["seconds"] >= max(2.5, found["seconds"])
    assert done.results["stop_reason"] == "budget"
    assert done.results["flow"].startswith(found["flow"])
    offset = done.results["test_nll"] - done.results["test_nll_standardized"]
    assert all(row["best/val_nll"] <= scores[0] + offset + 1e-4 for row in rows if row["kind"] == "validation")
    # The recorded configuration is the selected one, so that a fit from it needs no selection.
    config, flow = load_config(files=[done.run.config]), flow_of(done.run)
    assert describe(flow) == found["flow"]
    left = {key for key, value in config.flow.model_dump().items() if value == "auto" and uses_key(flow, key)}
    assert left <= {"univariate"}, "the only key whose auto does not depend on the data"
    assert not is_open(config.model_dump(), is_toy=False)
    log = done.run.log.read_text()
    assert f"model: {describe_in_words(flow)}; validation NLL so far, in standardised units: " in log
    assert all(name in log for name in names)
    # The run can be resumed.
    again = resume(done.run.path, ("train.seconds=2.6",), quiet=True)
    assert again.results["steps"] >= done.results["steps"]
    assert again.results["parameters"] == done.results["parameters"]


@pytest.mark.usefixtures("_short")
def test_a_selection_survives_a_later_failure(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint follows the selection, from which a fit that failed afterwards is resumed."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "Trainer", fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            fitted(source, tmp_path / "run", "train.seconds=1", "flow.members=1")
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "failed"
    found = json.loads((run.path / "selection.json").read_text())
    steps = found["candidates"][0]["steps"]
    done = resume(run.path, (f"train.steps={steps}",), quiet=True)
    assert done.results["steps"] == steps
    assert done.results["seconds"] >= found["seconds"] - 1e-3  # it is rounded


def test_a_dry_run_says_that_the_fit_selects_the_model(source: str) -> None:
    for keys, flow, is_selected in (
        (("train.seconds=9",), describe(resolve(asked(), rows=240, **ABOUT).flow), True),
        (("flow=made-mog", "flow.members=2"), "made-mog x 2", False),
    ):
        arguments = ["fit", source, "--dry-run", *QUIET, *SMALL, *keys]
        done = CliRunner().invoke(main, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["flow"] == flow
        assert ("flow=auto: the fit chooses" in CliRunner().invoke(main, arguments).stderr) == is_selected


def selected(source: str, *overrides: str) -> tuple[selection.Selection, list[str]]:
    """The result of model selection, and the lines for the user."""
    problem = plan(load_config(source, overrides=(*QUIET, *SMALL, *overrides)))
    assert problem.is_open
    lines: list[str] = []
    problem.start(torch.device("cpu"), [Functions(message=lines.append)])
    assert problem.selection is not None
    assert not problem.is_open
    return problem.selection, lines


def test_without_time_nothing_is_compared(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "LEAST_STEPS", 10**9)
    outcome, lines = selected(source, "train.seconds=30")
    assert outcome.results == ()
    assert outcome.to_dict()["candidates"] == []
    assert outcome.state.progress.step == 0
    assert replace(outcome.options.flow, members=1) == candidates(asked(*SMALL), 1, rows=240, features=3)[0].flow
    (line,) = lines
    members = outcome.options.flow.members
    assert re.fullmatch(
        rf"model: an average of {members} flows \(nsf-ar with a made-mog base\); no time to compare it with others "
        r"\([\d.]+ ms a step of one flow\)",
        line,
    )
    assert len(members_of(outcome.state.flow)) == outcome.options.flow.members
    assert outcome.state.flow.training


def test_a_budget_in_steps_selects_too(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the seed alone: all candidates together take a share of the steps, and the fit all of them."""
    monkeypatch.setattr(selection, "LEAST_STEPS", 4)
    keys = ("train.steps=100", "flow.members=1", "train.patience=1", "train.log_every=1")
    done, again = (fitted(source, tmp_path / name, *keys) for name in ("run", "again"))
    found = json.loads((done.run.path / "selection.json").read_text())
    assert [candidate["steps"] for candidate in found["candidates"]] == [4, 4]
    assert found["step_seconds"] is None
    assert describe(flow_of(done.run)) == found["flow"] == found["candidates"][0]["flow"]
    assert (done.results["steps"], done.results["stop_reason"]) == (100, "budget")
    rows = [row["step"] for row in read_metrics(done.run.metrics) if row["kind"] == "train"]
    assert rows == list(range(9, 101))
    first, second = (
        {key: value for key, value in fit.results.items() if key not in ("run", "seconds")} for fit in (done, again)
    )
    assert first == second
    outcome, lines = selected(source, "train.steps=99", "flow.members=1")
    assert outcome.results == ()
    assert outcome.state.progress.step == 0
    assert lines == [f"model: {describe_in_words(outcome.options.flow)}"]


@pytest.mark.usefixtures("_short")
def test_a_given_base_leaves_a_single_candidate(source: str) -> None:
    outcome, lines = selected(source, "train.seconds=30", "flow.base=diagonal", "flow.members=1")
    assert lines == [f"model: {describe_in_words(outcome.options.flow)}"]
    base = members_of(outcome.state.flow)[0].base
    assert isinstance(base, AutoregressiveMixture)
    assert base.frame.covariance == "diagonal"


@pytest.mark.usefixtures("_short")
def test_a_candidate_that_diverges_is_left_out(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is, the other one is selected."""
    run_really = Trainer.run
    for bad in (0, 1):
        calls = itertools.count()

        def run(*arguments: Any, calls: Any = calls, bad: int = bad) -> Any:
            if next(calls) == bad:
                raise DivergedError("the loss is not finite")
            return run_really(*arguments)

        monkeypatch.setattr(Trainer, "run", run)
        outcome, lines = selected(source, "train.seconds=4", "flow.members=1")
        kinds = [describe(c.flow) for c in candidates(asked("flow.members=1"), 1, rows=240, features=3)]
        assert describe(outcome.options.flow) == kinds[1 - bad]
        assert [result.flow for result in outcome.results] == [kinds[1 - bad]]
        assert f"{kinds[bad]} diverged: the loss is not finite" in lines


@pytest.mark.usefixtures("_short")
def test_all_candidates_diverge(source: str, tmp_path: Path) -> None:
    keys = (*QUIET, *SMALL, "flow.members=1", "train.seconds=4", "train.learning_rate=1e30", "train.log_every=1")
    invoke = functools.partial(CliRunner().invoke, main, prog_name="pushforward")
    done = invoke(["fit", source, "--out", str(tmp_path / "run"), *keys])
    assert done.exit_code == 4, done.output
    assert "Traceback" not in done.output
    assert done.stderr.splitlines()[-1].startswith("pushforward fit: the loss is not finite at step")
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "diverged"
    again = invoke(["fit", "--resume", str(run.path)])  # it starts over
    assert again.exit_code == 4, again.output
    assert again.stderr.splitlines()[-1].startswith("pushforward fit: the loss is not finite at step")
    assert run.status == "diverged"
    fitted_again = resume(run.path, ("train.seconds=0.5", "train.learning_rate=1e-3"), quiet=True)
    assert (fitted_again.run.status, fitted_again.results["stop_reason"]) == ("finished", "budget")
    assert json.loads((run.path / "selection.json").read_text())["flow"] == describe(flow_of(run))


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_during_model_selection(number: signal.Signals, code: int, source: str, tmp_path: Path) -> None:
    """The fit ends at once with the best candidate so far; resumed, it goes on with the selection."""
    keys = (*QUIET, *SMALL, "flow.members=1", "train.seconds=300")
    process = subprocess.Popen(
        [sys.executable, "-m", "pushforward", "fit", source, "--out", "run", "--json", *keys],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log, limit = tmp_path / "run" / "log.txt", time.monotonic() + 60
        while not (log.exists() and "comparing" in log.read_text()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(0.3)  # into the first candidate
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    results = json.loads(out)
    assert results["stop_reason"] == number.name.lower()
    assert results["seconds"] < 60
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "stopped"
    assert len(json.loads((run.path / "selection.json").read_text())["candidates"]) == 1
    density = FittedDensity.load(run.model)
    assert np.isfinite(density.log_prob(density.draw(20))).all()
    assert "continue with: pushforward fit --resume run" in errors
    assert is_open(load_config(files=[run.config]).model_dump(), is_toy=False)
    decided = json.loads((run.checkpoints / "selection" / "decided.json").read_text())
    assert len(decided["compared"]) >= 2
    again = resume(run.path, ("train.seconds=5",), quiet=True)
    found = json.loads((run.path / "selection.json").read_text())
    assert {candidate["flow"] for candidate in found["candidates"]} == set(decided["compared"])
    assert found["seconds"] >= decided["seconds"]
    assert found["step_seconds"] == pytest.approx(decided["step_seconds"])
    assert again.results["stop_reason"] in ("budget", "patience")
    assert again.results["seconds"] > found["seconds"]
    assert not is_open(load_config(files=[run.config]).model_dump(), is_toy=False)


def test_a_mixture_of_flows_end_to_end(source: str, tmp_path: Path) -> None:
    """Interrupted and resumed it equals the uninterrupted fit; every member learns and has its own metrics."""
    keys = (
        "flow=nsf-ar",
        "flow.layers=1",
        "flow.members=3",
        "flow.bins=4",
        "train.steps=60",
        "train.log_every=20",
        "train.patience=1",
        "train.learning_rate=0.02",
        "train.warmup=0",
        "flow.dropout=0",
        "flow.hidden=16",
    )
    whole = fitted(source, tmp_path / "whole", *keys, sizes=LAYERS)
    assert whole.results["flow"] == "nsf-ar x 3"
    validations = itertools.count()
    watch = Watch(lambda *_: "enough" if next(validations) == 15 else "")
    cut = fitted(source, tmp_path / "run", *keys, sizes=LAYERS, callbacks=[watch])
    assert cut.results["stop_reason"] == "enough"
    assert cut.results["steps"] < 60
    done = resume(cut.run.path, (), quiet=True)
    assert (done.results["steps"], done.results["flow"]) == (60, "nsf-ar x 3")
    for key in ("train_nll", "val_nll", "test_nll", "parameters"):
        assert done.results[key] == pytest.approx(whole.results[key], rel=1e-6), key
    rows = [row for row in read_metrics(done.run.metrics) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [20, 40, 60]
    for row in rows:
        assert {key for key in row if key.startswith("grad_norm/")} == {f"grad_norm/member-0{m}" for m in range(3)}
        assert all(row[f"grad_norm/member-0{m}"] > 0 for m in range(3))
        assert row["train/nll"] == pytest.approx(row["train/base"] + row["train/log_det"], rel=1e-9)
    first = next(row for row in read_metrics(done.run.metrics) if row["kind"] == "validation")
    # The members share only the standardisation.
    assert [key for key in first if key.startswith("log_det/")] == ["log_det/standardize"]
    # All members start as the same Gaussian, and improve.
    assert rows[-1]["train/nll"] < first["val/nll"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moons", "train.objective=energy", "flow.members=2"), "flow.members: energy fits a single flow; got 2"),
        (("moons", "train.objective=mle+energy", "flow.members=2"), "flow.members: mle+energy fits a single flow; got"),
        (("target:banana", "flow.members=2"), "flow.members: a target is fitted by a single flow; got 2"),
        (("target:banana", "flow.stacking=true"), "flow.stacking: a target has no rows that could weight"),
        (("moons", "train.objective=energy", "flow.stacking=true"), "flow.stacking: weights by likelihood, which"),
        (("moons", "flow.members=0"), "flow.members: expected a whole number above 0"),
        (("moons", "flow.stacking=perhaps"), "flow.stacking: expected true or false"),
        (("moons", "flow=made-mog", "flow.base=student-t"), "expected base full or diagonal for made-mog"),
        (("moons", "flow.components=0"), "flow.components: expected a whole number above 0"),
        (
            ("moons", "flow.conditioner=transformr"),
            "flow.conditioner: unknown network 'transformr'; did you mean 'transformer'?",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["fit", *arguments, *QUIET, "train.steps=2", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2, done.output
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["energy", "mle+energy"])
def test_a_mixture_minimises_objectives_of_samples(objective: str, tmp_path: Path) -> None:
    keys = ("data.rows=400", "flow=made-mog", f"train.objective={objective}", "train.steps=3", "train.batch_size=32")
    done = fitted("moons", tmp_path / "run", *keys)
    assert math.isfinite(done.results["test_nll"])
    (row,) = [row for row in read_metrics(done.run.metrics) if row["kind"] == "validation"][-1:]
    assert math.isfinite(row["val/loss"])


def test_a_stacked_fit_end_to_end(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model of the run is the stack; it is loaded, scored, evaluated and resumed like any other."""
    done = fitted(source, tmp_path / "run", "train.steps=40", "flow.members=2")
    kind = describe(flow_of(done.run))
    assert done.results["flow"] == f"{kind}, stacked"
    assert json.loads(done.run.state.read_text())["flow"] == done.results["flow"]
    assert done.note.startswith("stacked   by validation likelihood: flow ")
    assert done.note in done.run.log.read_text()
    assert done.lines().count(done.note) == 1
    assert done.note not in capsys.readouterr().err, "it is part of the result, and would be shown twice"
    found = json.loads((done.run.path / "selection.json").read_text())
    assert found == {"flow": kind, "step_seconds": None, "seconds": 0.0, "candidates": []}
    loaded = FittedDensity.load(done.run.model)
    assert isinstance(loaded.model, Mixture)
    bases = [type(member.base) for member in loaded.model.members]
    assert KernelDensity in bases
    assert sum(loaded.model.weights) == pytest.approx(1.0)
    kernel = loaded.model.weights[bases.index(KernelDensity)]
    assert f"kernel density {kernel:.2f}" in done.note
    problem = plan(load_config(files=[done.run.config]))
    assert isinstance(problem, RowsProblem)
    assert -loaded.log_prob(problem.prepared.test.rows).mean() == pytest.approx(done.results["test_nll"], rel=1e-6)
    rows = sum(m.base.points.numel() for m in loaded.model.members if isinstance(m.base, KernelDensity))
    assert done.results["parameters"] == sum(p.numel() for p in loaded.model.parameters()) + rows
    again = resume(done.run.path, ("train.steps=45",), quiet=True)
    assert again.results["steps"] == 45
    assert again.results["flow"] == done.results["flow"]
    off = fitted(source, tmp_path / "off", "train.steps=40", "flow.members=2", "flow.stacking=false")
    assert "stacked" not in off.results["flow"]
    assert done.results["val_nll"] < off.results["val_nll"] + math.log(3)


def test_the_report_of_a_stack(source: str, tmp_path: Path) -> None:
    done = fitted(source, tmp_path / "run", "train.steps=10", "flow.members=2", "train.evaluate=true")
    assert done.evaluation is not None
    assert done.evaluation.numbers["log_det"]["error"] < 1e-9
    assert done.evaluation.numbers["round_trip"]["points"] < 1e-9
    assert done.run.report.exists()
    assert {"corner.png", "latent.png", "pit.png", "training.png"} <= {
        path.name for path in done.run.pictures.iterdir()
    }
    assert "no evaluation" not in done.run.log.read_text()
    # The report says that the two curves are those of different densities.
    assert "the mean over the 2 flows, and of the validation rows under their average" in done.run.report.read_text()


def test_stacking_of_a_named_flow(source: str, tmp_path: Path) -> None:
    keys = ("flow=maf", "flow.layers=1", "flow.stacking=true", "train.steps=10")
    done = fitted(source, tmp_path / "run", *keys, sizes=LAYERS)
    assert done.results["flow"].startswith("maf, stacked") or "kernel density" in done.results["flow"]
    assert isinstance(done.density.model, Mixture)


@pytest.mark.usefixtures("_short")
def test_auto_with_a_context(tmp_path: Path) -> None:
    """A conditional flow is selected like any other, but not stacked, because a kernel density has no context."""
    x = np.random.default_rng(0).standard_normal((900, 2))
    x[:, 1] = 3.0 * x[:, 0] + 0.2 * x[:, 1]
    source = str(write_csv(tmp_path / "xy.csv", x, "cy"))
    keys = ("data.given=c", "flow.members=2", "flow.dropout=0", "flow.hidden=16")
    done = fitted(source, tmp_path / "run", *keys, "train.steps=150", "train.learning_rate=0.02")
    model = done.density.model
    assert isinstance(model, Mixture)
    assert (len(model.members), model.context) == (2, 1)
    assert done.results["flow"] == describe(flow_of(done.run))
    assert "stacked" not in done.run.log.read_text()
    assert done.results["test_nll"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.04), abs=0.5)
    for given in (-1.0, 1.0):
        drawn = done.density.draw(500, np.full((500, 1), given))
        assert drawn.mean() == pytest.approx(3 * given, abs=0.3)
    loaded = FittedDensity.load(done.run.model)
    np.testing.assert_allclose(
        loaded.log_prob(x[:9, 1:], x[:9, :1]), done.density.log_prob(x[:9, 1:], x[:9, :1]), rtol=1e-9
    )
    outcome, lines = selected(source, *keys, "train.seconds=1")
    assert len(outcome.results) >= 2
    assert outcome.state.flow.context == 1
    assert lines[0].startswith("model: comparing ")


def test_keys_without_effect_are_refused(source: str, tmp_path: Path) -> None:
    keys = ["flow=made-mog", "flow.bins=16", "flow.hidden=8", "train.steps=2", *QUIET]
    message = (
        "flow.bins: has no effect with flow=made-mog; it has one with flow=nsf-c or nsf-ar or flow.elementwise=true"
    )
    for more in ((), ("--dry-run",)):
        refused = CliRunner().invoke(main, ["fit", source, "--out", str(tmp_path / "run"), *keys, *more])
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
        assert not (tmp_path / "run").exists()
    allowed = fit(load_config(source, overrides=keys), out=tmp_path / "run", quiet=True, strict=False)
    assert load_config(files=[allowed.run.config]).flow.bins == 16
    keys = ["flow=nsf-ar", "flow.stacking=true", "data.given=[a]"]
    line = CliRunner().invoke(main, ["fit", source, *keys, "--dry-run"], prog_name="pushforward")
    assert line.exit_code == 2
    assert "flow.stacking: averages densities of rows; with data.given they are conditional" in line.stderr
