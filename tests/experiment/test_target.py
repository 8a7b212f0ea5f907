"""Fits to targets, end to end: output of the command, files of the run folder, errors of bad targets."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pyarrow import parquet

from pushforward.cli import main
from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.datasets.targets.load import load_target
from pushforward.evaluate.density import FittedDensity
from pushforward.experiment.result import Fit
from pushforward.experiment.run import fit, resume
from pushforward.flows import build
from pushforward.reports.run import run_page
from pushforward.runs.folder import RunFolder
from pushforward.runs.record import read_run
from pushforward.tracking.jsonl import read_metrics
from pushforward.train.objectives.gradient_estimators import ESTIMATORS
from pushforward.train.objectives.target import TargetObjective
from pushforward.train.options import ObjectiveOptions

SMALL = ("flow=nsf-ar", "flow.layers=1", "flow.hidden=16", "train.batch_size=128", "wandb=off")
QUICK = "train.evaluate=false"


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


def small(source: str, out: Path, *overrides: str) -> Fit:
    return fit(load_config(source, overrides=(*SMALL, QUICK, "train.steps=30", *overrides)), out=out, quiet=True)


@pytest.fixture(scope="module")
def double_well(made_once: Callable[..., Path]) -> Fit:
    """A fit that has found both wells."""

    def fill(folder: Path) -> None:
        keys = (*SMALL, "flow.layers=2", "flow.hidden=32", "train.steps=600", "train.batch_size=256")
        fit(load_config("target:double-well", overrides=keys), out=folder / "run", quiet=True)

    run = RunFolder.open(made_once("double-well", fill) / "run")
    return Fit(run, FittedDensity.load(run.model), json.loads(run.results.read_text()), None)


def test_both_wells_and_the_normalising_constant(double_well: Fit) -> None:
    results = double_well.results
    assert abs(results["log_z"] - 10.293480) < 0.05
    assert abs(results["log_z"] - 10.293480) < 5 * results["log_z_se"]
    assert results["elbo"] < results["log_z"]
    assert results["reverse_ess"] > 0.7
    assert results["forward_ess"] > 0.5  # it is small if a well is missing
    assert results["pareto_k"] < 0.7
    kl = results["test_nll"] - results["entropy"]
    assert results["kl_to_truth"] == pytest.approx(kl, abs=6 * (results["test_nll_se"] + results["kl_to_truth_se"]))


def test_the_density_is_normalised_and_the_run_reads_back(double_well: Fit) -> None:
    density = FittedDensity.load(double_well.run.model)
    ends, n = (-5.0, 5.0), 400
    axis = np.linspace(*ends, n)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert np.exp(density.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=0.02)
    rows = read_metrics(double_well.run.metrics)
    validations = [row for row in rows if row["kind"] == "validation"]
    assert {"val/loss", "val/elbo", "val/log_z", "val/reverse_ess", "val/forward_ess", "best/val_loss"} <= set(
        validations[-1]
    )
    assert min(row["val/loss"] for row in validations) == validations[-1]["best/val_loss"]
    assert {path.name for path in double_well.run.pictures.glob("*.png")} == {"density.png", "weights.png"}
    page = run_page(read_run(double_well.run))
    for text in ("Forward ESS", "log Z", "KL divergence", "Weights"):
        assert text in page
    assert "Calibration" not in page
    assert "pushforward evaluate run" in page


def test_a_fit_is_evaluated_again(double_well: Fit, tmp_path: Path) -> None:
    """With the numbers of the fit; samples of the target from elsewhere take the place of its exact ones."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(double_well.run.path, run.path)
    for path in (*run.pictures.glob("*.png"), run.samples / "samples.csv", run.test_scores):
        path.unlink()
    found = json.loads(invoke("evaluate", run.path, "--json").stdout)
    del found["run"]
    assert {key: double_well.results[key] for key in found} == found
    assert {"log_z", "log_z_se", "elbo", "reverse_ess", "forward_ess", "kl_to_truth", "test_nll"} <= set(found)
    assert {path.name for path in run.pictures.glob("*.png")} == {"density.png", "weights.png"}
    before, after = (parquet.read_table(each.test_scores).to_pydict() for each in (double_well.run, run))
    assert after == before
    rows = double_well.density.draw(500, seed=5)  # as if a Markov chain had drawn them
    np.savetxt(tmp_path / "chain.csv", rows, delimiter=",", header="x1,x2", comments="")
    other = json.loads(invoke("evaluate", run.path, tmp_path / "chain.csv", "--json").stdout)
    assert other["test_nll"] == pytest.approx(-double_well.density.log_prob(rows).mean())
    assert (other["log_z"], other["reverse_ess"]) == (found["log_z"], found["reverse_ess"])
    assert json.loads(run.results.read_text())["test_nll"] == double_well.results["test_nll"]
    np.savetxt(tmp_path / "wide.csv", np.ones((9, 3)), delimiter=",", header="x1,x3,x4", comments="")
    invoke("evaluate", run.path, tmp_path / "wide.csv", code=3)


def test_samples_and_scores_of_the_run(double_well: Fit, tmp_path: Path) -> None:
    invoke("sample", double_well.run.path, "-n", "50", "--out", tmp_path / "new.csv")
    invoke("score", double_well.run.path, tmp_path / "new.csv", "--out", tmp_path / "scores.csv")
    rows = np.loadtxt(tmp_path / "new.csv", delimiter=",", skiprows=1)
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    assert rows.shape == (50, 2)
    assert np.allclose(double_well.density.log_prob(rows), scores)


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("u2", ("train.objective=reverse-kl", "train.gradient=path-wise")),
        ("banana", ("train.objective=reverse-kl", "train.gradient=score-function")),
        ("funnel", ("train.objective=alpha", "target.features=3", "flow=realnvp")),
        ("gaussian-mixture", ("train.objective=forward-kl", "target.features=3", "flow=nsf-c")),
        ("gaussian", ("train.objective=forward-kl", "target.features=2", "train.gradient=path-wise", "flow=iaf")),
        ("many-well", ("train.objective=iwae", "target.features=4", "flow=maf")),
    ],
)
def test_every_objective_learns(source: str, keys: tuple[str, ...], tmp_path: Path) -> None:
    done = small(f"target:{source}", tmp_path / "run", *keys)
    rows = [row for row in read_metrics(done.run.metrics) if row["kind"] == "validation"]
    assert rows[-1]["best/val_loss"] < rows[0]["val/loss"]
    assert all(math.isfinite(done.results[key]) for key in ("log_z", "elbo", "reverse_ess", "test_nll"))
    assert done.results["objective"] == keys[0].partition("=")[2]


def test_fits_are_compared_on_the_same_exact_samples(double_well: Fit, tmp_path: Path) -> None:
    other = small("target:double-well", tmp_path / "other", "seed=1")
    done = json.loads(
        invoke("compare", double_well.run.path, other.run.path, "--json", "--out", tmp_path / "c.html").stdout
    )
    nll = [run["test_nll"] for run in done["runs"]]
    assert sorted(nll) == pytest.approx(sorted(fit.results["test_nll"] for fit in (double_well, other)))


def test_json_of_the_command(tmp_path: Path) -> None:
    done = invoke(
        "fit", "target:u1", *SMALL, QUICK, "train.steps=5", "--json", "--out", tmp_path / "run"
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    assert {"log_z", "log_z_se", "reverse_ess", "forward_ess", "log_z_known", "elbo", "steps", "features"} <= set(found)
    assert (found["dataset"], found["rows"], found["val_nll"]) == ("target:u1", None, None)
    listed = json.loads(invoke("runs", tmp_path, "--json").stdout)["runs"]
    assert [run["dataset"] for run in listed] == ["target:u1"]


def test_a_resumed_fit_continues(tmp_path: Path) -> None:
    first = small("target:u1", tmp_path / "parts", "train.steps=12", "train.checkpoint_seconds=1e-6")
    # A larger budget continues from the checkpoint of the last step.
    longer = resume(tmp_path / "parts", ("train.steps=20",), quiet=True)
    assert (first.results["steps"], longer.results["steps"]) == (12, 20)
    with pytest.raises(ConfigError, match=r"^target\.spread: a resumed fit keeps auto; got 3\.0; start a new fit"):
        resume(tmp_path / "parts", ("target.spread=3",), quiet=True)


MODULE = """
import torch
def good(x): return -0.5 * (x - 1).square().sum(-1)
def nan(x): return torch.where(x[:, 0] > 0, torch.nan, -x.square().sum(-1))
def wrong_shape(x): return -x.square()
def detached(x): return -0.5 * x.detach().square().sum(-1)
def flat(x): return torch.zeros(len(x))
def grows(x): return x.square().sum(-1)
def raises(x): raise RuntimeError("no such table")
def far_below(x): return -1e6 - 0.5 * (x - 1).square().sum(-1)
def half(x): return torch.where(x[:, 0] > 0, -0.5 * x.square().sum(-1), -torch.inf)
MATRIX = torch.eye(2)
def single(x): return -0.5 * ((x @ MATRIX) ** 2).sum(-1)
def elsewhere(x): return (-0.5 * x.square().sum(-1)).to("meta")
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"nan.*\[[-\d., e]+\]"),
        ("wrong_shape", r"expected log-densities of shape \(512,\).*got \(512, 2\)"),
        ("detached", "gradient is zero|no gradient|not differentiable"),
        ("grows", r"\[[-\d., e+]+\]"),
        ("raises", "no such table"),
        ("elsewhere", "log-densities on cpu, where the points are; got meta"),
        ("good:sub", "MODULE:FUNCTION|has no"),
        ("absent", "has no 'absent'"),
    ],
)
def test_bad_targets(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets_for_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    done = invoke("fit", f"target:targets_for_a_test:{name}", "target.features=2", *SMALL, "train.steps=5", code=3)
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert "Traceback" not in done.output
    assert not (tmp_path / "runs").exists()  # no run was started


def test_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets_for_a_fit.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    done = invoke(
        "fit", "target:targets_for_a_fit:good", "target.features=2", *SMALL, "train.steps=150", "--json", "--out", "run"
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["log_z"] == pytest.approx(math.log(2 * math.pi), abs=0.02)
    assert found["forward_ess"] is None
    assert (tmp_path / "run/pictures/density.png").exists()
    invoke("fit", "target:targets_for_a_fit:good", *SMALL, code=3)


@pytest.mark.parametrize(
    ("name", "log_z", "keys"),
    [
        ("far_below", math.log(2 * math.pi) - 1e6, ("train.steps=150",)),  # a large constant does not matter
        ("single", math.log(2 * math.pi), ("train.steps=100",)),  # float32 only
        ("detached", math.log(2 * math.pi), ("train.steps=100", "train.gradient=score-function")),
    ],
)
def test_unusual_functions(
    name: str, log_z: float, keys: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more_targets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    arguments = (f"target:more_targets:{name}", "target.features=2", *SMALL, QUICK, *keys)
    found = json.loads(invoke("fit", *arguments, "--json", "--out", "run").stdout)
    assert found["log_z"] == pytest.approx(log_z, abs=0.1)
    assert found["reverse_ess"] > 0.8


def test_a_density_that_is_zero_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples without density give a finite loss, so that weights better than the initial ones are kept."""
    (tmp_path / "half_target.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    arguments = ("target:half_target:half", "target.features=2", *SMALL, QUICK, "train.steps=60")
    invoke("fit", *arguments, "--out", "run")
    rows = [row for row in read_metrics(tmp_path / "run/metrics.jsonl") if row["kind"] == "validation"]
    assert all(math.isfinite(row["val/loss"]) for row in rows)
    assert rows[-1]["best/val_loss"] < rows[0]["val/loss"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (
            ("target:u1", "train.objective=mle"),
            "is for rows; a target is fitted by one of reverse-kl, alpha, forward-kl, iwae",
            2,
        ),
        (("moons", "train.objective=reverse-kl"), "needs a target", 2),
        (("target:many-wel",), "did you mean 'many-well'", 3),
        (("target:many-well", "target.features=3"), "even", 3),
        (
            ("target:u1", "train.objective=elbo"),
            "is for rows; a target is fitted by one of reverse-kl, alpha, forward-kl, iwae",
            2,
        ),
        (
            ("target:u1", "train.objective=alpha", "train.alpha=1", "train.gradient=path-wise"),
            "no path-wise gradient",
            2,
        ),
        (("target:u1", "train.objective=forward-kl", "train.gradient=score-function"), "no score-function", 2),
        (("target:u1", "train.batch_size=1", "train.gradient=score-function"), "at least 2", 2),
        (("target:u1", "train.gradient=pathwise"), "expected auto, path, path-wise or score-function", 2),
    ],
)
def test_invalid_configurations_are_refused(
    arguments: tuple[str, ...], message: str, code: int, tmp_path: Path
) -> None:
    done = invoke("fit", *arguments, "wandb=off", "--out", tmp_path / "run", code=code)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_dry_run_of_a_target() -> None:
    facts = json.loads(invoke("fit", "target:double-well", "--dry-run", "--json").stdout)
    assert (facts["features"], facts["dataset"]) == (2, "target:double-well")
    assert facts["config"]["train"]["objective"] == "reverse-kl"


def test_validation_is_deterministic_and_leaves_the_random_state() -> None:
    target = load_target("target:gaussian-mixture", 3)
    flow = build("nsf-c", 3, layers=1, hidden=8).eval()
    for name in ("reverse-kl", "alpha", "forward-kl", "iwae"):
        objective = TargetObjective(
            target, ObjectiveOptions(name=name), 64, validation_samples=200, device=torch.device("cpu"), seed=1
        )  # fmt: skip
        before = torch.get_rng_state()
        first, second = objective.validate(flow), objective.validate(flow)
        assert first == second
        assert torch.equal(before, torch.get_rng_state())


def test_annealing_ends_at_the_target() -> None:
    target = load_target("target:double-well")
    options = ObjectiveOptions(name="reverse-kl", annealing=0.5)
    objective = TargetObjective(target, options, 64, validation_samples=50, device=torch.device("cpu"), seed=0)
    powers = [power for spent in (0.0, 0.25, 0.5, 1.0) if isinstance(power := objective.draw(spent), float)]
    assert powers == sorted(powers)
    assert powers[0] < 0.05 < powers[1] < powers[2] == 1.0
    x = torch.randn(5, 2)
    assert torch.equal(objective.log_target(1.0, x), target.log_prob(x))
    options = ObjectiveOptions(name="reverse-kl", annealing=0)
    at_once = TargetObjective(target, options, 64, validation_samples=50, device=torch.device("cpu"), seed=0)
    assert at_once.draw(0.0) == 1.0


def test_all_estimators_are_values_of_train_gradient() -> None:
    known = {"auto", *ESTIMATORS} - {"score-function-bare"}
    for name in known:
        load_config("target:u1", overrides=[f"train.gradient={name}"])


def test_a_late_nan_names_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_target.py").write_text(
        "import torch\ncalls = 0\n"
        "def density(x):\n"
        "    global calls\n    calls += 1\n"
        "    return (torch.nan if calls > 20 else -0.5) * x.square().sum(-1)\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = (
        "target:late_target:density",
        "target.features=2",
        *SMALL,
        QUICK,
        "train.steps=200",
        "train.log_every=100",
    )
    done = invoke("fit", *arguments, "--out", "run", code=3)
    assert re.search(
        r"late_target:density: the log-density is nan at \[.*\], a sample of the flow in training", done.stderr
    )
    assert json.loads((tmp_path / "run/state.json").read_text())["status"] == "failed"


def test_a_dry_run_checks_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets_for_dry_run.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    invoke("fit", "target:targets_for_dry_run:nan", "target.features=2", "--dry-run", code=3)
    invoke("fit", "target:targets_for_dry_run:good", "target.features=2", "--dry-run")
