"""The study of gradient estimators: its statistics, the exact variances of Gaussians, and the command."""

import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from pushforward.cli import main
from pushforward.evaluate.plots.gradients import gradient_study
from pushforward.flows import Flow, Gaussian, build
from pushforward.gradients import study as study_module
from pushforward.gradients.measurement import (
    ALL,
    MEASURED_ESTIMATORS,
    gaussian_variances,
    gradient_statistics,
    location_and_scale,
    measure,
    parameter_groups,
)
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import read_metrics
from tests.fixtures.wandb_server import WandbServer

GAUSSIAN = ("gaussian", "target.features=1", "flow=gaussian", "--wandb", "off")


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["gradients", *(str(a) for a in arguments)], prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


def standard_gaussian(x: Tensor) -> Tensor:
    """Unnormalised log-density of the standard Gaussian."""
    return -0.5 * x.square().sum(-1)


def gaussian(location: float, scale: float, base: str = "diagonal") -> Flow:
    flow = build("gaussian", 1, base=base).double()
    assert isinstance(flow.base, Gaussian)
    with torch.no_grad():
        flow.base.location.fill_(location)
        flow.base.log_scale.fill_(math.log(scale))
    return flow


def test_a_signal_stops_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exit code of the signal; the list of runs says that it was stopped."""
    monkeypatch.setattr(study_module, "measure", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    invoke(*GAUSSIAN, "--steps", "0", "--out", tmp_path / "run", code=143)
    assert RunFolder(tmp_path / "run").status == "stopped"


@pytest.mark.parametrize("variable", ["WANDB_DISABLED=true", "WANDB_MODE=disabled"])
def test_a_variable_turns_wandb_off(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*variable.split("="))
    run = tmp_path / "run"
    said = invoke(*GAUSSIAN[:-1], "auto", "--steps", "0", "--replicates", "3", "--out", run).stderr
    assert said.count(f"W&B is off: {variable}") == 1
    assert not (run / "wandb").exists()
    done = CliRunner().invoke(main, ["wandb", "sync", str(run)], prog_name="pushforward")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pushforward wandb sync: {variable}: W&B is off")


@pytest.mark.parametrize("scale", [0.5, math.sqrt(0.5), 1.3])
def test_measured_variances_agree_with_the_exact_ones(scale: float) -> None:
    """Below, at and above the scale where path and path-wise gradient have the same variance."""
    samples = 32
    exact = gaussian_variances(0.0, scale, samples)
    found = measure(gaussian(0.0, scale), standard_gaussian, samples=samples, replicates=300, seed=3)
    for name, result in found.estimators.items():
        for group, variance in zip(("base.location", "base.log_scale"), exact[name], strict=True):
            row = result.groups[group]
            assert abs(row.variance - variance) < 4 * row.variance_se, (name, group)
            assert 0.4 * math.sqrt(2 / 300) < row.variance_se / row.variance < 0.3
        mean = result.groups["base.log_scale"]
        assert abs(mean.norm - abs(scale**2 - 1)) < 4 * mean.norm_se
        assert result.groups["base.location"].norm < 4 * result.groups["base.location"].norm_se
    path, path_wise = (found.estimators[name].groups[ALL].variance for name in ("path", "path-wise"))
    # With the same random numbers the ratio is exact, and the same for both parameters.
    assert path / path_wise == pytest.approx((scale**2 - 1) ** 2 / scale**4, rel=1e-6)
    kl = scale**2 / 2 - math.log(scale) - 0.5 - 0.5 * math.log(2 * math.pi)
    assert abs(found.loss - kl) < 4 * found.loss_se


def test_the_path_gradient_has_no_variance_at_the_optimum() -> None:
    found = measure(gaussian(0.0, 1.0), standard_gaussian, samples=8, replicates=50)
    for name in ("path", "path-two-pass"):
        assert found.estimators[name].groups[ALL].variance < 1e-25
        assert found.estimators[name].groups[ALL].norm < 1e-12
    assert found.estimators["path-wise"].groups[ALL].variance > 0.1


@pytest.mark.parametrize(("location", "scale"), [(0.0, 0.5), (0.8, 0.6), (-1.5, 1.4)])
def test_exact_variances_agree_with_quadrature(location: float, scale: float) -> None:
    """The gradients of one sample are explicit; Gauss-Hermite quadrature gives their variances exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    eps, share = nodes, weights / weights.sum()
    x = location + scale * eps
    f = -0.5 * eps**2 - math.log(scale) - 0.5 * math.log(2 * math.pi) + 0.5 * x**2
    score = x - eps / scale  # gradient of log q - log p by the sample
    scores = (eps / scale, eps**2 - 1)  # gradients of log q by location and log-scale
    one_sample = {
        "path-wise": (x, x * scale * eps - 1),
        "path": (score, score * scale * eps),
        "score-function-bare": (f * scores[0], f * scores[1]),
    }
    for samples in (1, 5):
        variances = gaussian_variances(location, scale, samples)
        for name, gradients in one_sample.items():
            for gradient, variance in zip(gradients, variances[name], strict=True):
                exact = (share @ gradient**2 - (share @ gradient) ** 2) / samples
                assert variance == pytest.approx(exact, rel=1e-9), name
    # Two samples, on a grid of pairs: each is the baseline of the other.
    pairs = np.outer(share, share)
    for k, variance in enumerate(gaussian_variances(location, scale, 2)["score-function"]):
        s = scores[k]
        gradient = 0.5 * (f[:, None] - f) * (s[:, None] - s)
        exact = (pairs * gradient**2).sum() - (pairs * gradient).sum() ** 2
        assert variance == pytest.approx(exact, rel=1e-9)
    assert "score-function" not in gaussian_variances(location, scale, 1)


def test_statistics_agree_with_leave_one_out_by_brute_force() -> None:
    g = torch.randn(12, 5, dtype=torch.float64) + torch.tensor([1.0, 0.5, 0.0, 0.0, -0.3]).double()

    def plain(rows: np.ndarray[Any, Any]) -> tuple[float, float, float]:
        variance = rows.var(0, ddof=1).sum()
        square = (rows.mean(0) ** 2).sum() - variance / len(rows)
        return square, variance, square / variance

    rows = g.numpy()
    square, variance, ratio = plain(rows)
    without = np.array([plain(np.delete(rows, i, 0)) for i in range(12)])
    square_se, variance_se, ratio_se = np.sqrt(11 / 12 * ((without - without.mean(0)) ** 2).sum(0))
    found = gradient_statistics(g)
    assert found.variance == pytest.approx(variance)
    assert found.variance_se == pytest.approx(variance_se)
    assert found.norm == pytest.approx(math.sqrt(square))
    assert found.norm_se == pytest.approx(math.sqrt(square + square_se) - math.sqrt(square))
    assert found.snr == pytest.approx(math.sqrt(ratio))
    assert found.snr_se == pytest.approx(math.sqrt(ratio + ratio_se) - math.sqrt(ratio))


def test_standard_errors_agree_with_the_spread_of_repeated_studies() -> None:
    """Among many studies of twenty replicates, the standard deviation of a number is its reported standard error."""
    location = torch.tensor([0.7, 0.0, 0.2]).double()
    studies = [gradient_statistics(location + torch.randn(20, 3).double()) for _ in range(1_500)]
    for key in ("norm", "variance", "snr"):
        spread = np.std([getattr(s, key) for s in studies])
        assert np.mean([getattr(s, f"{key}_se") for s in studies]) == pytest.approx(spread, rel=0.15), key
    squares = [s.norm**2 for s in studies]
    assert np.mean(squares) == pytest.approx(0.53, abs=4 * float(np.std(squares)) / math.sqrt(1_500))


def test_gradients_that_are_not_finite_or_have_no_variance_give_nan() -> None:
    g = torch.randn(5, 2)
    g[1, 0] = math.nan
    assert all(math.isnan(value) for value in gradient_statistics(g))
    constant = gradient_statistics(torch.ones(5, 2))
    assert constant.variance == 0
    assert constant.norm == pytest.approx(math.sqrt(2))
    assert math.isnan(constant.snr)


def test_groups_are_layers_and_measuring_changes_nothing() -> None:
    """Variances of layers add up; one pass and two agree; flow and global random state stay as they were."""
    flow = build("realnvp", 3, layers=2, hidden=8).double().train()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    flow.log_prob(torch.randn(64, 3).double())
    next(flow.base.parameters()).requires_grad_(False)
    before, random = copy.deepcopy(flow.state_dict()), torch.get_rng_state()
    found = measure(flow, standard_gaussian, samples=16, replicates=40)
    assert flow.training
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in flow.parameters())
    assert list(found.estimators) == list(MEASURED_ESTIMATORS)
    layers = ["00-act-norm", "01-coupling", "02-act-norm", "03-coupling", "base"]
    for result in found.estimators.values():
        assert list(result.groups) == [ALL, *layers]
        parts = sum(result.groups[name].variance for name in layers)
        assert result.groups[ALL].variance == pytest.approx(parts)
        assert len(result.milliseconds) == 40
        low, high = result.quartiles_milliseconds
        assert 0 < low <= result.median_milliseconds <= high
    one, two = (found.estimators[name].groups[ALL] for name in ("path", "path-two-pass"))
    assert one.variance == pytest.approx(two.variance, rel=1e-6)
    assert one.norm == pytest.approx(two.norm, rel=1e-6)
    norms = [result.groups[ALL] for result in found.estimators.values()]
    best = min(norms, key=lambda row: row.norm_se)
    assert all(abs(row.norm - best.norm) < 4 * math.hypot(row.norm_se, best.norm_se) for row in norms)
    assert [p.numel() for p in parameter_groups(flow)["base"]] == [3]  # the scales, without the frozen locations


def test_the_same_seed_gives_the_same_measurement() -> None:
    first, again, other = (
        measure(gaussian(0.3, 0.7), standard_gaussian, samples=4, replicates=10, seed=seed).estimators["path"].groups
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_location_and_scale_are_found_for_trainable_gaussians_only() -> None:
    found = location_and_scale(gaussian(0.3, 0.7, base="full"))
    assert found is not None
    assert list(found) == pytest.approx([0.3, 0.7])
    assert location_and_scale(build("gaussian", 2)) is None
    assert location_and_scale(build("maf", 1, layers=1, hidden=4)) is None
    assert location_and_scale(build("gaussian", 1, base="laplace")) is None
    frozen = gaussian(0.0, 1.0)
    next(frozen.base.parameters()).requires_grad_(False)
    assert location_and_scale(frozen) is None


def test_wrong_arguments_are_refused() -> None:
    flow = gaussian(0.0, 1.0)
    with pytest.raises(ValueError, match="at least 3 replicates; got 2"):
        measure(flow, standard_gaussian, replicates=2)
    with pytest.raises(ValueError, match="got pathwise"):
        measure(flow, standard_gaussian, estimators=["pathwise"])
    with pytest.raises(ValueError, match="at least 2 samples; got 1"):
        measure(flow, standard_gaussian, samples=1)
    with pytest.raises(ValueError, match="no trainable parameters"):
        measure(flow.requires_grad_(False), standard_gaussian)


def test_the_command_shows_exact_variances_beside_measured_ones(tmp_path: Path) -> None:
    """As docs/gradients.md says, at the start and after training."""
    out = tmp_path / "study"
    options = ("--scale", "0.5", "--steps", "30", "--checkpoints", "2", "--samples", "32", "--replicates", "100")
    done = invoke(*GAUSSIAN, *options, "--out", out)
    assert "path-two-pass" in done.stdout
    assert "32 x variance" in done.stdout
    results = json.loads((out / "gradients.json").read_text())
    assert [row["step"] for row in results["checkpoints"]] == [0, 30]
    assert results["checkpoints"][0]["scale"] == pytest.approx(0.5)
    assert 0.5 < results["checkpoints"][-1]["scale"] < 0.7
    for row in results["checkpoints"]:
        scale, location = row["scale"], row["location"]
        exact = (scale**2 + location**2 - 1) / 2 - math.log(scale)
        assert abs(row["reverse_kl"] - exact) < 4 * row["loss_se"]
        for name, found in row["estimators"].items():
            assert list(found["groups"]) == [ALL, "base.location", "base.log_scale"]
            for group in found["groups"].values():
                assert abs(group["variance"] - group["variance_known"]) < 5 * group["variance_se"], name
    path, path_wise = (results["checkpoints"][0]["estimators"][n]["groups"][ALL] for n in ("path", "path-wise"))
    assert path["variance"] > 8 * path_wise["variance"]  # nine times, so far from the optimum
    logged = [row for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "gradients"]
    assert [row["step"] for row in logged] == [0, 30]
    assert logged[0]["gradients/path/base.location/variance"] == pytest.approx(
        results["checkpoints"][0]["estimators"]["path"]["groups"]["base.location"]["variance"]
    )
    assert (out / "gradients.png").stat().st_size > 10_000
    assert json.loads((out / "state.json").read_text())["status"] == "finished"


def test_the_number_of_checkpoints_does_not_change_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A density of the user's own on a box; --json prints what gradients.json holds."""
    (tmp_path / "density_in_a_box.py").write_text("def log_density(x):\n    return -x.abs().sum(-1)\n")
    monkeypatch.chdir(tmp_path)
    target = ("density_in_a_box:log_density", "target.features=2", "target.bounds=-2,2")
    flow = ("flow=realnvp", "flow.layers=2", "flow.hidden=8", "train.batch_size=16", "train.gradient=path-wise")
    results = {}
    for checkpoints in ("2", "3"):
        options = ("--replicates", "5", "--steps", "8", "--checkpoints", checkpoints, "--json", "--out", checkpoints)
        results[checkpoints] = json.loads(invoke(*target, *flow, *options).stdout)
        assert results[checkpoints] == json.loads((tmp_path / checkpoints / "gradients.json").read_text())
    assert results["2"]["trained_by"] == "path-wise"
    ends = [results[key]["checkpoints"][-1] for key in ("2", "3")]
    assert ends[0]["loss"] == ends[1]["loss"]
    assert ends[0]["reverse_kl"] is None  # the constant is not known
    for found in ends[0]["estimators"].values():
        assert all(math.isfinite(row["variance"]) for row in found["groups"].values())
        assert "variance_known" not in found["groups"][ALL]


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_user")
def test_weights_and_biases_gets_every_estimator_and_the_picture(wandb_server: WandbServer, tmp_path: Path) -> None:
    """Each estimator and group is a panel with a value at each checkpoint."""
    out = tmp_path / "study"
    options = ("--steps", "10", "--checkpoints", "2", "--replicates", "5", "--samples", "4", "--out", out)
    invoke(*GAUSSIAN[:-1], "online", *options)
    run = wandb_server.run((out / "wandb" / "id").read_text().strip())
    assert (run.state, run.exit_code) == ("finished", 0)
    for name in MEASURED_ESTIMATORS:
        for group in (ALL, "base.location", "base.log_scale"):
            rows = [row for row in run.history if f"gradients/{name}/{group}/variance" in row]
            assert [row["global_step"] for row in rows] == [0, 10]
    shown = next(row["gradients/picture"] for row in run.history if "gradients/picture" in row)
    assert run.files[shown["path"]] == (out / "gradients.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("gausian",), 3, "did you mean 'gaussian'"),
        (("no_such_module:f", "target.features=2"), 3, "no module 'no_such_module'"),
        (("funnel", "target.features=1"), 3, "funnel"),
        (("banana", "flow=nsf"), 2, "unknown flow 'nsf'"),
        (("banana", "flow.layer=2"), 2, "did you mean 'flow.layers'"),
        (("banana", "train.objective=iwae"), 2, "train.objective"),
        (("banana", "train.seconds=3"), 2, "train.seconds"),
        (("banana", "train.alpha=1"), 2, "train.alpha: has no effect with train.objective=reverse-kl; it has one with"),
        (("banana", "train.patience=0.5"), 2, "train.patience: has no effect on a study of gradients"),
        (("banana", "train.steps=3", "--steps", "4"), 2, "--steps"),
        (("banana", "--samples", "1"), 2, "--samples"),
        ((), 2, "TARGET is missing"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    done = invoke(*arguments, "--out", tmp_path / "study", code=code)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 or code == 2
    assert not (tmp_path / "study").exists()


def test_the_picture_is_drawn_with_missing_numbers(tmp_path: Path) -> None:
    """A gradient that is not finite is null in the file and a gap in the picture."""
    done = invoke(
        *GAUSSIAN, "--steps", "0", "--replicates", "5", "--samples", "4", "--json", "--out", tmp_path / "study"
    )
    results = json.loads(done.stdout)
    for row in results["checkpoints"][0]["estimators"]["path"]["groups"].values():
        row |= dict.fromkeys(row)
    gradient_study(results, tmp_path / "gap.png")
    assert (tmp_path / "gap.png").stat().st_size > 10_000
