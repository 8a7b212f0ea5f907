"""Model selection (``flow=auto``), ensembles and stacking, alone and in fits, also interrupted ones."""

import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import optimize, special

from pushforward.cli import main
from pushforward.config.read import load_config
from pushforward.config.schema import Config, FlowConfig
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import log_prob
from pushforward.experiment.result import Fit
from pushforward.experiment.rows import fit, plan, resume
from pushforward.flows import (
    AutoregressiveMixture,
    Flow,
    Gaussian,
    KernelDensity,
    Mixture,
    Model,
    build,
    build_mixture,
    members_of,
    save,
)
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import read_metrics
from pushforward.train import selection, stacking, trainer
from pushforward.train.architecture import build_model, describe, idle_keys
from pushforward.train.data import Prepared
from pushforward.train.defaults import candidates, is_open, members_for, resolve
from pushforward.train.objectives.likelihood import Likelihood, RowTensors
from pushforward.train.stacking import FLOW, GAUSSIAN, KERNEL, stack, stacking_weights
from pushforward.train.trainer import DivergedError

QUIET = ("wandb=off", "train.evaluate=false")
SMALL = ("flow.hidden=8", "flow.blocks=1", "flow.components=3")
ABOUT: dict[str, Any] = {"features": 3, "is_toy": False}


def config_of(*overrides: str) -> Config:
    return load_config("some.csv", overrides=overrides)


def write_table(path: Path, values: np.ndarray[Any, Any], names: str = "abc") -> Path:
    np.savetxt(path, values, delimiter=",", fmt="%.17g", header=",".join(names), comments="")
    return path


def bent(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Three columns, of which the last follows the square of the first."""
    x = np.random.default_rng(seed).standard_normal((n, 3))
    x[:, 2] = x[:, 0] ** 2 + 0.1 * x[:, 2]
    return x


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_table(tmp_path_factory.mktemp("data") / "bent.csv", bent(300)))


def fitted(source: str, out: Path, *overrides: str, **options: Any) -> Fit:
    return fit(load_config(source, overrides=(*QUIET, *SMALL, *overrides)), out=out, quiet=True, **options)


# The meaning of auto


@pytest.mark.parametrize("rows", [100, 3_000, 50_000])
def test_auto_has_mixtures_on_tables(rows: int) -> None:
    flow = resolve(config_of(), rows=rows, **ABOUT).flow
    assert "made-mog" in (flow.name, flow.base)
    assert "auto" not in flow.model_dump().values()
    assert flow.stacking is (rows < 6_000)
    assert isinstance(flow.members, int)
    assert (flow.members > 1) is (rows < 6_000)
    model = build_model(flow, 3, 2, seed=0)
    assert isinstance(model, Mixture) is (flow.members > 1)
    assert all(isinstance(member.base, AutoregressiveMixture) for member in members_of(model))
    # Width and dropout are those of a single mixture network.
    assert flow.hidden in (128, 256)
    assert (flow.dropout == 0.0) is (rows == 50_000)


@pytest.mark.parametrize(
    "keys",
    [
        ("flow=nsf-ar",),
        ("flow=made-mog",),
        ("flow.layers=2",),
        ("flow.bins=4",),
        ("flow.tails=learned",),
        ("flow.elementwise=true",),
        ("flow.base=student-t",),
        ("train.objective=energy",),
        ("train.objective=mle+energy",),
    ],
)
def test_a_chosen_flow_is_a_single_one(keys: tuple[str, ...]) -> None:
    config = config_of(*keys)
    flow = resolve(config, rows=300, **ABOUT).flow
    assert flow.name == ("made-mog" if keys == ("flow=made-mog",) else "nsf-ar")
    assert flow.base != "made-mog"
    assert (flow.members, flow.stacking) == (1, False)
    assert not is_open(config, is_toy=False)


def test_toys_have_a_single_flow() -> None:
    flow = resolve(config_of(), rows=20_000, features=2, is_toy=True).flow
    assert (flow.name, flow.members, flow.stacking) == ("nsf-ar", 1, False)
    assert not is_open(config_of(), is_toy=True)


def test_given_keys_are_kept() -> None:
    keys = ("flow.members=3", "flow.stacking=false", "flow.hidden=17", "flow.dropout=0.05", "flow.components=7")
    config = config_of(*keys)
    for resolved in (resolve(config, rows=300, **ABOUT), *candidates(config, 8, rows=300, features=3)):
        flow = resolved.flow
        assert (flow.members, flow.stacking, flow.hidden, flow.dropout, flow.components) == (3, False, 17, 0.05, 7)
    named = resolve(config_of("flow=nsf-ar", "flow.members=4", "flow.stacking=true"), rows=300, **ABOUT).flow
    assert (named.name, named.members, named.stacking) == ("nsf-ar", 4, True)
    for seconds in (None, 7.0):
        config = config_of(*(() if seconds is None else (f"train.seconds={seconds}",)))
        assert all(c.train.seconds == (seconds or 15.1125) for c in candidates(config, 2, rows=300, features=3))


def test_only_budgets_in_seconds_select_a_model() -> None:
    assert is_open(config_of(), is_toy=False)
    assert is_open(config_of("train.seconds=9", "flow.base=full", "flow.members=2", "flow.hidden=64"), is_toy=False)
    assert not is_open(config_of("train.steps=100"), is_toy=False)
    assert not is_open(config_of("train.steps=100", "train.seconds=9"), is_toy=False)


@pytest.mark.parametrize(
    ("rows", "features", "decay"),
    [
        (78, 16, 1.0),
        (1_294, 61, 0.9),
        (1_300, 11, 0.2),
        (4_700, 14, 0.1),
        (36_584, 9, 0.1),
        (400_000, 8, 0.01),
        (4_000, 400, 1.0),
    ],
)
def test_weight_decay_follows_rows_and_columns(rows: int, features: int, decay: float) -> None:
    for keys in ((), ("flow=nsf-ar",), ("flow=made-mog",)):
        assert resolve(config_of(*keys), rows=rows, features=features, is_toy=False).train.weight_decay == decay
    assert resolve(config_of(), rows=rows, features=features, is_toy=True).train.weight_decay == 0.0
    given = resolve(config_of("train.weight_decay=0.5"), rows=rows, features=features, is_toy=False)
    assert given.train.weight_decay == 0.5
    vae = resolve(config_of("train.objective=elbo"), rows=rows, features=features, is_toy=False)
    assert vae.train.weight_decay in (1e-2, 1e-3, 0.0)


def test_the_number_of_members_follows_the_time() -> None:
    for rows in (100, 3_000, 10_000, 1_000_000):
        counts = [members_for(rows, step, 60.0) for step in (1e-6, 1e-3, 0.01, 0.1, 10.0)]
        assert counts == sorted(counts, reverse=True)
        assert (counts[0], counts[-1]) == (16, 1)
        # Ten times the time gives ten times the members, at least 1 and at most 16.
        least = 1 if counts[2] == 1 else 10 * counts[2]
        assert members_for(rows, 0.01, 600.0) in (16, *range(least, 10 * counts[2] + 10))
    # One more member for every 800 steps, for a table of 3,000 rows.
    assert [members_for(3_000, 0.01, seconds) for seconds in (7.9, 16.1, 24.1, 127.9, 500.0)] == [1, 2, 3, 15, 16]
    assert members_for(100, 0.01, 60.0) >= members_for(10_000, 0.01, 60.0) >= members_for(1_000_000, 0.01, 60.0)


@pytest.mark.parametrize(("rows", "features"), [(300, 3), (3_000, 3), (50_000, 3), (3_000, 60)])
def test_candidates_are_different_and_resolved(rows: int, features: int) -> None:
    found = candidates(config_of(), 4, rows=rows, features=features)
    kinds = [(c.flow.name, c.flow.base, c.flow.conditioner) for c in found]
    assert len(set(kinds)) == len(kinds) >= 2
    assert ("transformer" in {c.flow.conditioner for c in found}) is (features == 60)
    for config in found:
        assert "auto" not in config.flow.model_dump().values()
        assert config.flow.stacking is (rows < 6_000)
        assert not is_open(config, is_toy=False)
    assert found[0].flow.members == 4
    # A budget in steps gets the first candidate.
    first = resolve(config_of(f"flow.members={found[0].flow.members}"), rows=rows, features=features, is_toy=False).flow
    assert first == found[0].flow


def test_descriptions_of_flows() -> None:
    assert describe(FlowConfig(name="maf")) == "maf"
    assert describe(FlowConfig(name="maf", members=1)) == "maf"
    assert describe(FlowConfig(name="made-mog", members=8)) == "made-mog x 8"
    assert describe(FlowConfig(name="nsf-ar", base="made-mog", members=2)) == "nsf-ar + made-mog x 2"


def test_the_seed_decides_all_members() -> None:
    config = FlowConfig(name="maf", members=2, layers=1, hidden=4, stacking=True).model_dump()
    keys = {key: value for key, value in config.items() if value != "auto"}
    flow = FlowConfig.model_validate({**resolve(config_of(), rows=9, **ABOUT).flow.model_dump(), **keys})
    flows = [build_model(flow, 3, seed=seed).state_dict() for seed in (5, 5, 6)]
    names = [name for name in flows[0] if name.endswith("weight")]
    assert all(torch.equal(flows[0][name], flows[1][name]) for name in names)
    assert not all(torch.equal(flows[0][name], flows[2][name]) for name in names)


# Model selection


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
    names = {describe(c.flow) for c in candidates(config_of(*keys), 1, rows=240, features=3)}
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
    config = load_config(files=[done.run.config])
    assert describe(config.flow) == found["flow"]
    assert "auto" not in config.flow.model_dump().values()
    assert not is_open(config, is_toy=False)
    log = done.run.log.read_text()
    assert f"selected  {found['flow']};" in log
    assert all(name in log for name in names)
    # The run can be resumed.
    again = resume(done.run.path, ("train.seconds=2.6",), quiet=True)
    assert again.results["steps"] >= done.results["steps"]
    assert again.results["parameters"] == done.results["parameters"]


@pytest.mark.usefixtures("_short")
def test_a_selection_survives_a_later_failure(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint follows the selection, from which a fit that failed afterwards is resumed."""
    from pushforward.experiment import session

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patched:
        patched.setattr(session, "minimize", fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            fitted(source, tmp_path / "run", "train.seconds=1", "flow.members=1")
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "failed"
    found = json.loads((run.path / "selection.json").read_text())
    done = resume(run.path, ("train.seconds=1e-3",), quiet=True)
    assert done.results["steps"] == found["candidates"][0]["steps"]
    assert done.results["seconds"] >= found["seconds"] - 1e-3  # it is rounded


def test_a_dry_run_says_that_the_fit_selects_the_model(source: str) -> None:
    for keys, flow, is_selected in (
        (("train.seconds=9",), describe(resolve(config_of(), rows=240, **ABOUT).flow), True),
        (("flow=made-mog", "flow.members=2"), "made-mog x 2", False),
    ):
        arguments = ["fit", source, "--dry-run", *QUIET, *SMALL, *keys]
        done = CliRunner().invoke(main, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["flow"] == flow
        assert ("flow=auto: the fit chooses" in CliRunner().invoke(main, arguments).stderr) == is_selected


def selected(source: str, *overrides: str) -> tuple[selection.Selection, list[str]]:
    """The result of model selection, and the lines for the user."""
    planned = plan(load_config(source, overrides=(*QUIET, *SMALL, *overrides)))
    assert planned.undecided is not None
    lines: list[str] = []
    outcome = selection.select_model(
        planned.prepared, planned.undecided, torch.device("cpu"), stop=lambda: "", notify=lines.append
    )
    return outcome, lines


def test_without_time_nothing_is_compared(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "LEAST_STEPS", 10**9)
    outcome, lines = selected(source, "train.seconds=30")
    assert outcome.results == ()
    assert outcome.to_dict()["candidates"] == []
    assert outcome.state.progress.step == 0
    assert outcome.config.flow.model_copy(update={"members": 1}) == (
        candidates(load_config(source, overrides=SMALL), 1, rows=240, features=3)[0].flow
    )
    (line,) = lines
    assert line.startswith(f"flow      {describe(outcome.config.flow)}: no time to compare kinds (")
    assert len(members_of(outcome.state.flow)) == outcome.config.flow.members
    assert outcome.state.flow.training


@pytest.mark.usefixtures("_short")
def test_a_given_base_leaves_a_single_candidate(source: str) -> None:
    outcome, lines = selected(source, "train.seconds=30", "flow.base=diagonal", "flow.members=1")
    assert lines == [f"flow      {describe(outcome.config.flow)}"]
    base = members_of(outcome.state.flow)[0].base
    assert isinstance(base, AutoregressiveMixture)
    assert base.frame.covariance == "diagonal"


@pytest.mark.usefixtures("_short")
def test_a_candidate_that_diverges_is_left_out(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is, the other one is selected."""
    minimize_really = trainer.minimize
    for bad in (0, 1):
        calls = itertools.count()

        def minimize(*arguments: Any, calls: Any = calls, bad: int = bad, **options: Any) -> Any:
            if next(calls) == bad:
                raise DivergedError("the loss is not finite")
            return minimize_really(*arguments, **options)

        monkeypatch.setattr(selection, "minimize", minimize)
        outcome, lines = selected(source, "train.seconds=1", "flow.members=1")
        kinds = [describe(c.flow) for c in candidates(config_of("flow.members=1"), 1, rows=240, features=3)]
        assert describe(outcome.config.flow) == kinds[1 - bad]
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
    line = f"pushforward fit: {run.checkpoints / 'last.pt'}: no checkpoint to resume from\n"
    again = invoke(["fit", "--resume", str(run.path)])
    assert (again.exit_code, again.stderr) == (1, line)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_during_model_selection(number: signal.Signals, code: int, source: str, tmp_path: Path) -> None:
    """The fit ends at once with the best candidate so far, and can be resumed."""
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
        while not (log.exists() and "selection" in log.read_text()):
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
    assert np.isfinite(density.log_prob(density.sample(20))).all()
    assert "continue with: pushforward fit --resume run" in errors
    again = resume(run.path, ("train.seconds=1e-3",), quiet=True)
    assert again.results["steps"] == results["steps"]


# Ensembles


def test_an_ensemble_end_to_end(source: str, tmp_path: Path) -> None:
    """Interrupted and resumed it equals the uninterrupted fit; every member learns and has its own metrics."""
    sizes = ("flow=nsf-ar", "flow.layers=1", "flow.members=3", "flow.bins=4", "train.steps=60", "train.log_every=20")
    keys = (
        *sizes,
        "train.patience=1",
        "train.learning_rate=0.02",
        "train.warmup=0",
        "flow.dropout=0",
        "flow.hidden=16",
    )
    whole = fitted(source, tmp_path / "whole", *keys)
    assert whole.results["flow"] == "nsf-ar x 3"
    validations = itertools.count()
    cut = fitted(source, tmp_path / "run", *keys, watch=lambda *_: "enough" if next(validations) == 15 else "")
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


def test_the_loss_of_an_ensemble_is_that_of_its_members() -> None:
    """The mean is logged; the gradient is scaled to the norm of one member's."""
    x = torch.randn(64, 3)
    ensemble = Mixture([build("maf", 3, layers=1, hidden=4) for _ in range(4)])
    ensemble.log_prob(x)  # sets ActNorm
    with torch.no_grad():
        for m, member in enumerate(ensemble.members):
            next(member.base.parameters()).add_(0.3 * m)
    likelihood = Likelihood(RowTensors(x), RowTensors(x), 64)
    loss, numbers = likelihood.loss(ensemble, (x, None))
    loss.backward()
    each = [-member.log_prob(x).mean() for member in ensemble.members]
    assert float(numbers.sum()) == pytest.approx(float(torch.stack(each).detach().mean()), rel=1e-5)
    for member, alone in zip(ensemble.members, each, strict=True):
        exact = torch.autograd.grad(alone, list(member.parameters()), allow_unused=True)
        for parameter, gradient in zip(member.parameters(), exact, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None and parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, gradient / 2.0, rtol=1e-4, atol=1e-6)
    found = likelihood.validate(ensemble)
    assert found.loss == pytest.approx(-float(ensemble.eval().log_prob(x).detach().mean()), rel=1e-5)


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
        (("moons", "flow.conditioner=transformr"), "flow.conditioner: expected residual, transformer"),
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


# Stacking


def held_out(n: int, k: int, seed: int) -> np.ndarray[Any, Any]:
    """Log-densities of rows under parts, each of which is the best one for some rows."""
    rng = np.random.default_rng(seed)
    return rng.normal(-2.0, 1.0, (n, 1)) + rng.normal(0.0, 1.5, (n, k))


@pytest.mark.parametrize(("n", "k"), [(1, 2), (12, 2), (40, 3), (300, 3)])
def test_stacking_weights_are_optimal(n: int, k: int) -> None:
    """Expectation maximisation against a general optimiser of the same likelihood with a prior of one row."""
    for seed in range(3):
        scores = held_out(n, k, seed)

        def loss(free: np.ndarray[Any, Any], scores: np.ndarray[Any, Any] = scores) -> float:
            log_weights = special.log_softmax(np.append(free, 0.0))
            return -float(special.logsumexp(scores + log_weights, axis=1).sum() + log_weights.mean())

        best = min(optimize.minimize(loss, start * np.ones(k - 1), tol=1e-12).fun for start in (-1.0, 0.0, 1.0))
        weights = stacking_weights(scores)
        assert weights.sum() == pytest.approx(1.0)
        assert bool((weights > 0).all())
        assert loss(np.log(weights[:-1] / weights[-1])) == pytest.approx(best, abs=1e-5)


def test_weights_of_parts_that_explain_no_row() -> None:
    scores = np.array([[-1.0, -50.0, -np.inf]] * 100)
    weights = stacking_weights(scores)
    np.testing.assert_allclose(weights, [(100 + 1 / 3) / 101, 1 / 303, 1 / 303], rtol=1e-9)


def test_a_row_impossible_under_all_parts_is_left_out() -> None:
    scores = held_out(40, 3, 0)
    weights = stacking_weights(np.concatenate([scores[:20], np.full((2, 3), -np.inf), scores[20:]]))
    np.testing.assert_array_equal(weights, stacking_weights(scores))
    np.testing.assert_allclose(stacking_weights(np.full((1, 3), -np.inf)), np.full(3, 1 / 3))


@pytest.fixture(scope="module")
def small(source: str) -> Prepared:
    return plan(load_config(source, overrides=("train.steps=1",))).prepared


def gaussian_at(mean: float, log_scale: float = 0.0) -> Flow:
    flow = build("gaussian", 3)
    with torch.no_grad():
        for name, parameter in flow.base.named_parameters():
            parameter.fill_(mean if name == "location" else log_scale)
    return flow


def test_a_stack_is_the_average_of_its_parts(small: Prepared) -> None:
    flow = gaussian_at(0.0)
    model, weights = stack(small, flow)
    assert isinstance(model, Mixture)
    assert list(weights) == [part for part in (FLOW, GAUSSIAN, KERNEL) if part in weights]
    assert KERNEL in weights  # the data are a curve, not a Gaussian
    assert sum(weights.values()) == pytest.approx(1.0)
    assert model.weights == pytest.approx(list(weights.values()))
    x = small.validation_rows(torch.device("cpu")).x
    best = -math.inf
    for part, weight in zip(model.members, weights.values(), strict=True):
        alone = log_prob(part, x).double()
        assert bool((log_prob(model, x).double() >= alone + math.log(weight) - 1e-4).all())
        best = max(best, float(alone.mean()))
    assert float(log_prob(model, x).double().mean()) > best - 0.05
    kinds = [type(part.base) for part in model.members if part is not flow]
    assert kinds == [kind for part, kind in ((GAUSSIAN, Gaussian), (KERNEL, KernelDensity)) if part in weights]


def test_members_of_an_ensemble_share_the_weight_of_the_flow(small: Prepared) -> None:
    parts = Mixture([gaussian_at(0.0), gaussian_at(0.1)], [0.25, 0.75])
    model, weights = stack(small, parts)
    assert isinstance(model, Mixture)
    assert model.members[:2] == parts.members
    assert model.weights[:2] == pytest.approx([0.25 * weights[FLOW], 0.75 * weights[FLOW]])
    x = torch.randn(9, 3)
    each: list[Model] = [parts, *model.members[2:]]
    joint = [math.log(w) + log_prob(part, x) for w, part in zip(weights.values(), each, strict=True)]
    torch.testing.assert_close(log_prob(model, x), torch.stack(joint).logsumexp(0), rtol=1e-4, atol=1e-4)


def gaussian_table(tmp_path: Path, rows: int) -> Prepared:
    source = write_table(tmp_path / "plain.csv", np.random.default_rng(0).standard_normal((rows, 3)))
    return plan(load_config(str(source), overrides=("train.steps=1", "data.validation_fraction=0.5"))).prepared


def test_a_single_remaining_part_is_returned_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = gaussian_table(tmp_path, 400)
    hopeless, good = gaussian_at(30.0), gaussian_at(0.0)
    monkeypatch.setattr(stacking, "LEAST_WEIGHT", 0.4)
    model, weights = stack(prepared, hopeless)
    assert list(weights) in ([GAUSSIAN], [KERNEL])
    assert list(weights.values()) == [1.0]
    assert isinstance(model, Flow)
    assert model is not hopeless
    monkeypatch.setattr(stacking, "gaussian_flow", lambda rows: gaussian_at(30.0))
    model, weights = stack(prepared, good)
    assert (model, weights) == (good, {FLOW: 1.0})
    ensemble = Mixture([good, gaussian_at(0.01)])
    assert stack(prepared, ensemble) == (ensemble, {FLOW: 1.0})


def test_a_stacked_fit_end_to_end(source: str, tmp_path: Path) -> None:
    """The model of the run is the stack; it is loaded, scored, evaluated and resumed like any other."""
    done = fitted(source, tmp_path / "run", "train.steps=40", "flow.members=2")
    kind = describe(load_config(files=[done.run.config]).flow)
    assert done.results["flow"] == f"{kind}, stacked"
    assert json.loads(done.run.state.read_text())["flow"] == done.results["flow"]
    assert done.note.startswith("stacked   by validation likelihood: flow ")
    assert done.note in done.run.log.read_text()
    assert not (done.run.path / "selection.json").exists()  # a budget in steps
    loaded = FittedDensity.load(done.run.model)
    assert isinstance(loaded.flow, Mixture)
    bases = [type(member.base) for member in loaded.flow.members]
    assert KernelDensity in bases
    assert sum(loaded.flow.weights) == pytest.approx(1.0)
    kernel = loaded.flow.weights[bases.index(KernelDensity)]
    assert f"kernel density {kernel:.2f}" in done.note
    prepared = plan(load_config(files=[done.run.config])).prepared
    assert -loaded.log_prob(prepared.test.rows).mean() == pytest.approx(done.results["test_nll"], rel=1e-6)
    rows = sum(m.base.points.numel() for m in loaded.flow.members if isinstance(m.base, KernelDensity))
    assert done.results["parameters"] == sum(p.numel() for p in loaded.flow.parameters()) + rows
    again = resume(done.run.path, ("train.steps=45",), quiet=True)
    assert again.results["steps"] == 45
    assert again.results["flow"] == done.results["flow"]
    off = fitted(source, tmp_path / "off", "train.steps=40", "flow.members=2", "flow.stacking=false")
    assert "stacked" not in off.results["flow"]
    assert done.results["val_nll"] < off.results["val_nll"] + math.log(3)


def test_the_report_of_a_stack(source: str, tmp_path: Path) -> None:
    done = fitted(source, tmp_path / "run", "train.steps=10", "flow.members=2", "train.evaluate=true")
    assert done.report is not None
    assert done.report.log_det.error < 1e-9
    assert done.report.round_trip.points < 1e-9
    assert done.run.report.exists()
    assert {"corner.png", "latent.png", "pit.png", "training.png"} <= {
        path.name for path in done.run.pictures.iterdir()
    }
    assert "no evaluation" not in done.run.log.read_text()
    # The report says that the two curves are those of different densities.
    assert "the mean over the 2 flows, and of the validation rows under their average" in done.run.report.read_text()


def test_stacking_of_a_named_flow(source: str, tmp_path: Path) -> None:
    done = fitted(source, tmp_path / "run", "flow=maf", "flow.layers=1", "flow.stacking=true", "train.steps=10")
    assert done.results["flow"].startswith("maf, stacked") or "kernel density" in done.results["flow"]
    assert isinstance(done.density.flow, Mixture)


# Context


@pytest.mark.usefixtures("_short")
def test_auto_with_a_context(tmp_path: Path) -> None:
    """A conditional flow is selected like any other, but not stacked, because a kernel density has no context."""
    x = np.random.default_rng(0).standard_normal((900, 2))
    x[:, 1] = 3.0 * x[:, 0] + 0.2 * x[:, 1]
    source = str(write_table(tmp_path / "xy.csv", x, "cy"))
    keys = ("data.context=c", "flow.members=2", "flow.dropout=0", "flow.hidden=16")
    done = fitted(source, tmp_path / "run", *keys, "train.steps=150", "train.learning_rate=0.02")
    model = done.density.flow
    assert isinstance(model, Mixture)
    assert (len(model.members), model.context) == (2, 1)
    assert done.results["flow"] == describe(load_config(files=[done.run.config]).flow)
    assert "stacked" not in done.run.log.read_text()
    assert done.results["test_nll"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.04), abs=0.5)
    for given in (-1.0, 1.0):
        drawn = done.density.sample(500, np.full((500, 1), given))
        assert drawn.mean() == pytest.approx(3 * given, abs=0.3)
    loaded = FittedDensity.load(done.run.model)
    np.testing.assert_allclose(
        loaded.log_prob(x[:9, 1:], x[:9, :1]), done.density.log_prob(x[:9, 1:], x[:9, :1]), rtol=1e-9
    )
    outcome, lines = selected(source, *keys, "train.seconds=1")
    assert len(outcome.results) >= 2
    assert outcome.state.flow.context == 1
    assert lines[0].startswith("selection ")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        *itertools.product(["realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "gaussian"], ["diagonal", "made-mog"]),
        ("made-mog", "diagonal"),
    ],
)
def test_idle_keys_are_those_that_change_nothing(name: str, base: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"layers": 2, "hidden": 8, "blocks": 1, "bins": 4, "bound": 3.0, "tails": "linear"}
    common |= {"linear": "between", "dropout": 0.0, "conditioner": "residual", "components": 3}
    other = {"layers": 3, "hidden": 12, "blocks": 2, "bins": 5, "bound": 4.0, "tails": "learned", "linear": "around"}
    other |= {"dropout": 0.5, "conditioner": "transformer", "components": 4}

    def made(**changed: Any) -> str:
        torch.manual_seed(0)
        save(build(name, 3, base=base, **(common | changed)), tmp_path)
        return (tmp_path / "config.json").read_text()  # with the checksum of the weights

    idle = {key for key in common if made(**{key: other[key]}) == made()}
    section = FlowConfig.model_validate({"name": name, "base": base} | common)
    assert set(idle_keys(section)) == idle


@pytest.mark.parametrize("base", ["diagonal", "full", "low-rank", "student-t", "laplace", "mixture", "made-mog"])
@pytest.mark.parametrize("name", ["gaussian", "maf"])
def test_members_are_idle_if_they_are_equal(name: str, base: str) -> None:
    ensemble = build_mixture(name, 3, members=2, base=base, layers=1, hidden=8, components=3)
    # The order of the columns does not change a Gaussian.
    first, second = (torch.nn.utils.parameters_to_vector(member.parameters()) for member in ensemble.members)
    section = FlowConfig.model_validate({"name": name, "base": base, "members": 2})
    assert ("members" in idle_keys(section)) == torch.equal(first, second)
    assert not idle_keys(section.model_copy(update={"members": 1}))


def test_idle_keys_are_reported(source: str, tmp_path: Path) -> None:
    config = load_config(source, overrides=["flow=made-mog", "flow.bins=16", "flow.hidden=8", "train.steps=2", *QUIET])
    assert plan(config).notes == ("flow.bins: has no effect on flow=made-mog",)
    run = fit(config, out=tmp_path / "run", quiet=True).run
    assert "flow.bins: has no effect on flow=made-mog" in (run.path / "log.txt").read_text()
    keys = ["flow=nsf-ar", "flow.stacking=true", "data.context=[a]"]
    line = CliRunner().invoke(main, ["fit", source, *keys, "--dry-run"], prog_name="pushforward")
    assert line.exit_code == 2
    assert "flow.stacking: averages densities of rows, and data.context asks for conditional ones" in line.stderr
