"""Fits to rows from end to end, in process: numbers, files of the run folder, failures, resuming."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

from pushforward.common.errors import ConfigError, DataError
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import nll
from pushforward.evaluate.plots import training
from pushforward.experiment.evaluation import evaluate_run
from pushforward.experiment.result import Fit
from pushforward.experiment.run import fit, plan, resume
from pushforward.flows import Gaussian, ModelFileError, build, save
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import MetricsFile, read_metrics
from pushforward.train.callbacks import Watch
from pushforward.train.device import choose_device
from pushforward.train.divergence import DivergedError
from pushforward.train.problems.rows import RowsProblem
from pushforward.train.trainer import Trainer

TINY = ("data.rows=600", "flow=maf", "flow.layers=1", "flow.hidden=16", "train.evaluate=false", "wandb=off")
LEARNS = ("data.rows=3000", "flow=nsf-ar", "flow.layers=1", "flow.hidden=16", "flow.bins=8", "train.batch_size=256")


def tiny(source: str | Path, out: Path, *overrides: str, **options: Any) -> Fit:
    return fit(
        load_config(str(source), overrides=(*TINY, "train.steps=20", *overrides), **options), out=out, quiet=True
    )


def planned(config: Config) -> RowsProblem:
    problem = plan(config)
    assert isinstance(problem, RowsProblem)
    return problem


def table(path: Path, columns: dict[str, np.ndarray[Any, Any]], fmt: str = "%.17g") -> Path:
    np.savetxt(path, np.stack(list(columns.values()), 1), fmt=fmt, delimiter=",", header=",".join(columns), comments="")
    return path


def normals(n: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, width))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """A flow that is significantly better than a Gaussian on the moons."""
    out = tmp_path_factory.mktemp("fit") / "run"
    config = load_config("moons", overrides=(*TINY, *LEARNS, "train.steps=150"))
    done = fit(config, out=out, quiet=True)
    assert done.results["flow"] == "nsf-ar"
    return done


def test_results_are_complete_and_written(fitted: Fit) -> None:
    results = fitted.results
    assert results["run"] == str(fitted.run.path)
    assert (results["dataset"], results["features"], results["rows"]) == ("moons", 2, 3000)
    assert (results["steps"], results["stop_reason"]) == (150, "budget")
    assert results["parameters"] == sum(p.numel() for p in fitted.density.model.parameters())
    assert 0 < results["test_nll_se"] < 0.2
    assert results["kl_to_truth"] > -3 * results["kl_to_truth_se"]
    assert json.loads(fitted.run.results.read_text()) == results
    assert fitted.evaluation is None


def test_the_validation_nll_is_the_same_everywhere(fitted: Fit) -> None:
    """In the loop (float32, standardised), in the results and from the saved density."""
    rows = [row for row in read_metrics(fitted.run.metrics) if row["kind"] == "validation"]
    prepared = planned(load_config(files=[fitted.run.config])).prepared
    loaded = FittedDensity.load(fitted.run.model)
    again = nll(loaded.model, prepared.validation.rows).nll
    assert again == pytest.approx(fitted.results["val_nll"], rel=1e-12)
    assert min(row["val/nll"] for row in rows) == pytest.approx(again, abs=1e-4)
    assert nll(loaded.model, prepared.test.rows).nll == pytest.approx(fitted.results["test_nll"], rel=1e-12)


def test_the_standardised_nll_differs_by_the_log_scales(fitted: Fit) -> None:
    prepared = planned(load_config(files=[fitted.run.config])).prepared
    shift = float(np.log(prepared.train.rows.std(axis=0)).sum())
    assert fitted.results["test_nll"] - fitted.results["test_nll_standardized"] == pytest.approx(shift, abs=1e-9)


def test_metrics_add_up_in_data_units(fitted: Fit) -> None:
    rows = read_metrics(fitted.run.metrics)
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == [25, 50, 75, 100, 125, 150]
    for row in train:
        assert row["train/nll"] == pytest.approx(row["train/base"] + row["train/log_det"], rel=1e-12)
    assert train[-1]["train/nll"] == pytest.approx(fitted.results["train_nll"], abs=0.2)
    assert rows[-1]["kind"] == "summary"
    assert rows[-1]["test/nll"] == fitted.results["test_nll"]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_the_first_validation_is_the_gaussian(fitted: Fit) -> None:
    prepared = planned(load_config(files=[fitted.run.config])).prepared
    x, y = prepared.train.rows, prepared.validation.rows
    gaussian = torch.distributions.MultivariateNormal(
        torch.tensor(x.mean(0)), torch.tensor(np.cov(x.T, ddof=0)), validate_args=False
    )
    expected = -float(gaussian.log_prob(torch.tensor(y)).mean())
    assert read_metrics(fitted.run.metrics)[0]["val/nll"] == pytest.approx(expected, abs=2e-3)


def test_files_of_a_run(fitted: Fit) -> None:
    names = {str(path.relative_to(fitted.run.path)) for path in fitted.run.path.rglob("*") if path.is_file()}
    assert names == {
        ".lock",
        "checkpoints/last.pt",
        "config.yaml",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "model/config.json",
        "model/model.safetensors",
        "report.html",
        "results.json",
        "schema.json",
        "state.json",
        "test_scores.parquet",
    }
    state = json.loads(fitted.run.state.read_text())
    assert (state["status"], state["dataset"], state["flow"], state["steps"]) == ("finished", "moons", "nsf-ar", 150)


def test_the_recorded_configuration_gives_the_same_fit(fitted: Fit, tmp_path: Path) -> None:
    config = load_config(files=[fitted.run.config])
    assert config.flow.name == "nsf-ar"
    assert {key for key, value in config.flow.model_dump().items() if value == "auto"} == {"univariate", "components"}
    again = fit(config, out=tmp_path / "again", quiet=True)
    for key in ("train_nll", "val_nll", "test_nll", "kl_to_truth"):
        assert again.results[key] == fitted.results[key]


def test_the_seed_decides_all_numbers(tmp_path: Path) -> None:
    first = tiny("circles", tmp_path / "a", "flow.dropout=0.1")
    torch.manual_seed(123)  # the random state of the process does not matter
    torch.randn(7)
    again = tiny("circles", tmp_path / "b", "flow.dropout=0.1")
    other = tiny("circles", tmp_path / "c", "flow.dropout=0.1", "seed=1")
    without = [{k: v for k, v in f.results.items() if k not in ("run", "seconds")} for f in (first, again, other)]
    assert without[0] == without[1]
    assert without[0]["val_nll"] != without[2]["val_nll"]


@pytest.mark.parametrize(("offset", "scale"), [(1.7e9, 1000.0), (-3.0, 1e-6), (0.0, 1e12)])
def test_the_nll_follows_the_units_of_the_data(offset: float, scale: float, tmp_path: Path) -> None:
    """Shifting and scaling the table changes the NLL by the logarithm of the scale only."""
    x = np.round(normals(400, 2), 6)
    base = tiny(table(tmp_path / "x.csv", dict(zip("ab", x.T, strict=True))), tmp_path / "r1", "data.dequantize=off")
    moved = tiny(
        table(tmp_path / "y.csv", dict(zip("ab", (x * scale + offset).T, strict=True))),
        tmp_path / "r2",
        "data.dequantize=off",
    )
    for key in ("train_nll", "val_nll", "test_nll"):
        assert moved.results[key] == pytest.approx(base.results[key] + 2 * math.log(scale), abs=1e-3)
    assert moved.results["test_nll_standardized"] == pytest.approx(base.results["test_nll_standardized"], abs=1e-3)


def test_the_gaussian_is_kept_for_gaussian_data(tmp_path: Path) -> None:
    x = normals(2000, 3) @ np.array([[1.0, 0.5, 0.2], [0, 1, 0.3], [0, 0, 1]])
    done = tiny(table(tmp_path / "g.csv", dict(zip("abc", x.T, strict=True))), tmp_path / "run")
    assert done.results["flow"] == "gaussian"
    assert done.results["parameters"] == sum(p.numel() for p in Gaussian(3, covariance="full").parameters())
    assert "the Gaussian is kept" in done.run.log.read_text()
    assert json.loads(done.run.state.read_text())["flow"] == "gaussian"


def test_whole_numbers_are_dequantized(tmp_path: Path) -> None:
    """The density of counts is that of bins of width one, and does not grow without bound."""
    counts = np.random.default_rng(0).binomial(20, 0.5, size=(500, 2)).astype(float)
    path = table(tmp_path / "counts.csv", {"a": counts[:, 0], "b": counts[:, 1]}, fmt="%d")
    done = tiny(path, tmp_path / "run")
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e * 5.0)
    assert done.results["train_nll"] == pytest.approx(entropy, abs=0.15)
    prepared = planned(load_config(str(path))).prepared
    assert prepared.bin_widths.tolist() == [1, 1]
    rows = prepared.training_rows(torch.device("cpu"))
    recorded = prepared.standardize.inverse(rows.x.double())[0]
    assert (recorded - recorded.round()).abs().max() < 1e-5  # the loop adds noise to whole numbers
    assert rows.bin_widths is not None
    assert (rows.bin_widths.numpy() * prepared.train.rows.std(axis=0)).tolist() == pytest.approx([1, 1], rel=1e-6)
    off = tiny(path, tmp_path / "off", "data.dequantize=off")
    assert json.loads(off.run.schema.read_text())["bin_widths"] == [0, 0]
    assert "their likelihoods are overstated" in off.run.log.read_text()


def test_one_column(tmp_path: Path) -> None:
    done = tiny(table(tmp_path / "one.csv", {"a": normals(200, 1)[:, 0]}), tmp_path / "run")
    assert done.results["features"] == 1
    assert math.isfinite(done.results["test_nll"])
    assert done.density.draw(5).shape == (5, 1)


@pytest.mark.parametrize("name", ["realnvp", "maf", "iaf", "nsf-c", "nsf-ar", "gaussian"])
def test_every_flow(name: str, tmp_path: Path) -> None:
    sizes = () if name == "gaussian" else ("flow.layers=1", "flow.hidden=16")
    keys = (f"flow={name}", *sizes, "data.rows=600", "train.steps=3", "train.evaluate=false", "wandb=off")
    done = fit(load_config("gaussian", overrides=keys), out=tmp_path / "run", quiet=True)
    assert math.isfinite(done.results["test_nll"])
    loaded = FittedDensity.load(done.run.model)
    x = loaded.draw(20, seed=1)
    assert np.isfinite(loaded.log_prob(x)).all()
    assert np.array_equal(x, done.density.draw(20, seed=1))


def test_a_conditional_fit(tmp_path: Path) -> None:
    c = normals(1500, 1)[:, 0]
    columns = {"c": c, "y": 3 * c + 0.2 * normals(1500, 1, seed=1)[:, 0]}
    path = table(tmp_path / "xy.csv", columns)
    done = tiny(path, tmp_path / "run", "data.given=c", "train.steps=200", "train.learning_rate=0.02")
    truth = 0.5 * math.log(2 * math.pi * math.e * 0.04)
    assert done.results["features"] == 1
    assert done.results["test_nll"] == pytest.approx(truth, abs=0.4)
    for given in (-1.0, 1.0):
        drawn = done.density.draw(500, np.full((500, 1), given))
        assert drawn.mean() == pytest.approx(3 * given, abs=0.3)


def test_no_test_rows(tmp_path: Path) -> None:
    done = tiny("moons", tmp_path / "run", "data.test_fraction=0", "train.evaluate=true")
    assert math.isnan(done.results["test_nll"])
    assert json.loads(done.run.results.read_text())["test_nll"] is None
    assert done.lines()[0].endswith("there are no test rows")
    assert done.run.status == "finished"
    with pytest.raises(DataError, match="has no test rows"):
        evaluate_run(done.run)


def test_evaluation_and_pictures_of_a_tiny_table(tmp_path: Path) -> None:
    """Twelve rows leave one test row: the evaluation has what one row allows."""
    path = table(tmp_path / "twelve.csv", dict(zip("abc", normals(12, 3).T, strict=True)))
    done = tiny(path, tmp_path / "run", "train.evaluate=true")
    assert done.run.status == "finished"
    assert done.evaluation is not None
    assert {"corner.png", "training.png"} <= {path.name for path in done.run.pictures.iterdir()}
    assert (done.run.samples / "samples.csv").read_text().startswith("a,b,c\n")
    assert json.loads((done.run.path / "evaluation.json").read_text())["rows"] == {
        "train": 10,
        "validation": 1,
        "test": 1,
    }
    alone = tiny(path, tmp_path / "alone")
    assert alone.lines()[0] == f"test NLL {alone.results['test_nll']:.4f} nats", "one row has no standard error"


def test_a_divergence_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise DivergedError("the loss is not finite at step 25")

    monkeypatch.setattr(Trainer, "run", diverge)
    with pytest.raises(DivergedError):
        tiny("moons", tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "diverged"
    assert read_metrics(run.metrics)[-1]["kind"] == "alert"


def test_a_failure_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    finished = tiny("moons", tmp_path / "finished")
    monkeypatch.setattr(Trainer, "run", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        tiny("moons", tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").status == "failed"
    with pytest.raises(RuntimeError, match="out of luck"):
        resume(finished.run.path, ("train.steps=40",), quiet=True)
    assert finished.run.status == "failed"


def test_bad_data_leave_no_run(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", {"a": np.ones(20), "b": np.arange(20.0)})
    with pytest.raises(DataError):
        tiny(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_of_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "tpu0", ""):
        with pytest.raises(ConfigError, match=r"^device: expected "):
            choose_device(name)


def from_step(steps: int, action: Callable[[], None]) -> Callable[..., None]:
    """A replacement of ``MetricsFile.log`` that does something from a step on."""
    log = MetricsFile.log

    def logged(self: MetricsFile, metrics: Any, step: int, **rest: Any) -> None:
        if step >= steps:
            action()
        log(self, metrics, step, **rest)

    return logged


def test_checkpoints_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the folder of checkpoints becomes a file during the fit, there is one warning, and the model is written."""
    run = RunFolder(tmp_path / "run")

    def replace() -> None:
        if run.checkpoints.is_dir():
            run.checkpoints.rename(tmp_path / "gone")
            run.checkpoints.write_text("")

    monkeypatch.setattr(MetricsFile, "log", from_step(5, replace))
    done = tiny("moons", run.path, "train.checkpoint_seconds=1e-6")
    assert done.run.status == "finished"
    assert done.results["steps"] == 20
    warned = [line for line in run.log.read_text().splitlines() if "warning" in line]
    assert len(warned) == 1
    assert warned[0].endswith("last.pt: cannot write: not a directory; the fit goes on")
    FittedDensity.load(run.model)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full, which behaves like a full disk")
def test_metrics_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full for the metrics during the fit, there is one warning, and the model is written."""
    written = MetricsFile.log

    def full(self: MetricsFile, metrics: Any, step: int, **rest: Any) -> None:
        if step == 10:
            path = os.path.realpath(tmp_path / "run" / "metrics.jsonl")
            links = Path("/proc/self/fd").iterdir()
            opened = next(int(link.name) for link in links if os.path.realpath(link) == path)
            descriptor = os.open("/dev/full", os.O_WRONLY)
            os.dup2(descriptor, opened)
            os.close(descriptor)
        written(self, metrics, step, **rest)

    monkeypatch.setattr(MetricsFile, "log", full)
    done = tiny("moons", tmp_path / "run")
    assert done.run.status == "finished"
    assert done.results["steps"] == 20
    assert [row["step"] for row in read_metrics(done.run.metrics)][-1] < 10
    warned = [line for line in done.run.log.read_text().splitlines() if "warning" in line]
    assert len(warned) <= 2  # /dev/full raises another error for syncing
    text = "no space left on device; make room: the fit goes on, and writes what is missing at its end"
    assert warned[0].endswith(f"{done.run.path}: {text}")


def test_a_picture_that_fails_does_not_fail_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no ink\nat all")

    monkeypatch.setattr(training, "training_curves", fail)
    done = tiny(table(tmp_path / "x.csv", {"a": normals(60, 1)[:, 0]}), tmp_path / "run", "train.evaluate=true")
    assert done.run.status == "finished"
    assert re.search(r"warning: no picture 'training': no ink at all$", done.run.log.read_text(), re.MULTILINE)
    assert {path.name for path in done.run.pictures.iterdir()} == {
        "corner.png",
        "latent.png",
        "quantiles.png",
        "pit.png",
    }


def test_a_flow_without_columns_is_not_a_fitted_density(tmp_path: Path) -> None:
    save(build("gaussian", 2), tmp_path)
    with pytest.raises(ModelFileError, match="expected a model with a schema and bin widths; got a model without them"):
        FittedDensity.load(tmp_path)


def test_resume_with_a_larger_budget(tmp_path: Path) -> None:
    first = tiny("moons", tmp_path / "run")
    more = resume(tmp_path / "run", ("train.steps=60",), quiet=True)
    assert (first.results["steps"], more.results["steps"]) == (20, 60)
    steps = [(row["kind"], row["step"]) for row in read_metrics(more.run.metrics) if row["kind"] != "summary"]
    assert len(steps) == len(set(steps))
    assert [step for _, step in steps] == sorted(step for _, step in steps)
    assert max(step for _, step in steps) == 60
    assert load_config(files=[more.run.config]).train.steps == 60
    assert more.results["val_nll"] <= first.results["val_nll"] + 1e-9
    assert more.run.status == "finished"
    # Without a larger budget: the same numbers, no further step.
    same = resume(tmp_path / "run", quiet=True)
    assert same.results["steps"] == 60
    assert same.results["test_nll"] == more.results["test_nll"]


def test_resume_with_other_data(tmp_path: Path) -> None:
    x = normals(100, 2)
    path = table(tmp_path / "x.csv", {"a": x[:, 0], "b": x[:, 1]})
    done = tiny(path, tmp_path / "run")
    before = (done.run.state.read_text(), done.run.metrics.read_bytes())
    table(path, {"a": x[:, 0], "b": x[:, 1] + 1})
    for call in (lambda: resume(tmp_path / "run", quiet=True), lambda: evaluate_run(done.run)):
        with pytest.raises(DataError, match=r"x\.csv: not the data that .*run was fitted to: its SHA-256 is "):
            call()
    path.unlink()
    with pytest.raises(DataError, match=r"x\.csv: no such file"):
        resume(tmp_path / "run", quiet=True)
    assert (done.run.state.read_text(), done.run.metrics.read_bytes()) == before
    done.run.claim()  # the failed attempts have released it
    done.run.release()


def test_the_initial_gaussian_for_whole_numbers_that_determine_each_other(tmp_path: Path) -> None:
    # Recorded values with c = a + b have a singular covariance; dequantized values do not.
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 20, 1500), generator.integers(0, 20, 1500)
    lines = ["a,b,c", *(f"{x},{y},{x + y}" for x, y in zip(a, b, strict=True))]
    (tmp_path / "sum.csv").write_text("\n".join(lines))
    fitted = tiny(tmp_path / "sum.csv", tmp_path / "run", "train.steps=1", "data.rows=auto")
    start = next(row["val/nll"] for row in read_metrics(fitted.run.metrics) if "val/nll" in row)
    prepared = planned(load_config(files=[fitted.run.config])).prepared
    train, validation = prepared.train.rows, prepared.validation.rows
    gaussian = torch.distributions.MultivariateNormal(
        torch.tensor(train.mean(0)), torch.tensor(np.cov(train.T, ddof=0))
    )
    assert start == pytest.approx(-float(gaussian.log_prob(torch.tensor(validation)).mean()), abs=0.3)


def test_rows_of_a_table_are_not_compared_with_the_distribution_of_a_toy(tmp_path: Path) -> None:
    fitted = tiny("moons", tmp_path / "run", "train.steps=5", "data.rows=2000")
    rows = np.random.default_rng(0).normal(size=(50, 2))
    (tmp_path / "other.csv").write_text("x1,x2\n" + "\n".join(f"{x!r},{y!r}" for x, y in rows.tolist()))
    assert evaluate_run(fitted.run, str(tmp_path / "other.csv")).to_dict()["kl_to_truth"] is None
    assert evaluate_run(fitted.run).to_dict()["kl_to_truth"] == pytest.approx(fitted.results["kl_to_truth"])


def test_a_run_is_resumed_from_another_folder_and_with_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(400, 2))
    (tmp_path / "data.csv").write_text("a,b\n" + "\n".join(f"{x!r},{y!r}" for x, y in rows.tolist()))
    monkeypatch.chdir(tmp_path)
    fitted = tiny("data.csv", tmp_path / "run", "train.steps=10", "data.rows=auto")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = resume(fitted.run.path, ("train.steps=20", "train.patience=auto"), quiet=True)
    assert again.results["steps"] > 10
    assert load_config(files=[again.run.config]).train.patience != "auto"


def test_a_resumed_fit_that_finds_nothing_better_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """Also a stacked model of dequantized rows, whose parts are fitted to rows with noise."""
    rows = np.random.default_rng(3).normal(size=(200, 2)).round(1)
    path = table(tmp_path / "x.csv", {"a": rows[:, 0], "b": rows[:, 1] ** 2})
    keys = ("flow=nsf-ar", "flow.stacking=true", "train.steps=60", "train.patience=1")
    fitted = tiny(path, tmp_path / "run", *keys)
    assert "stacked" in fitted.results["flow"]

    def weights() -> bytes:
        return (fitted.run.model / "model.safetensors").read_bytes()

    before = weights()
    again = resume(fitted.run.path, ("train.steps=70", "train.learning_rate=10"), quiet=True)  # far too large
    assert again.results["steps"] == 70
    progress = [row for row in read_metrics(fitted.run.metrics) if row["kind"] == "validation"]
    assert progress[-1]["best/val_nll"] == min(row["val/nll"] for row in progress if row["step"] <= 60)
    assert weights() == before
    assert again.results["test_nll"] == fitted.results["test_nll"]


def test_sizes_that_cannot_be_built_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^flow: .*expected bins of 2 to 500; got 501$"):
        fit(load_config("moons", overrides=["flow=nsf-ar", "flow.bins=501", "data.rows=500"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_watch_callback_gets_every_validation_and_can_end_the_fit(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    def watch(fraction: float, nll: float) -> str:
        seen.append((fraction, nll))
        return "pruned" if len(seen) == 3 else ""

    config = load_config("moons", overrides=["train.steps=400", "data.rows=2000", "train.evaluate=false", "wandb=off"])
    done = fit(config, out=tmp_path / "run", quiet=True, callbacks=[Watch(watch)])
    assert done.results["stop_reason"] == "pruned"
    assert len(seen) == 3
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)
    assert seen[-1][0] < 0.2
    rows = [row for row in read_metrics(done.run.metrics) if row["kind"] == "validation"]
    assert [row["val/nll"] for row in rows] == [nll for _, nll in seen]


def test_the_seed_of_the_data_can_differ_from_that_of_the_fit() -> None:
    keys = ("data.rows=500", "flow=gaussian")
    first, again, other = (
        planned(load_config("moons", overrides=(*keys, *more))).prepared.test.rows
        for more in (("seed=1", "data.seed=7"), ("seed=2", "data.seed=7"), ("seed=2",))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_evaluation_lists_the_worst_rows_and_stores_all_scores(tmp_path: Path) -> None:
    values = normals(400, 2)
    values[17] = [9.0, -9.0]
    source = table(tmp_path / "x.csv", {"a": values[:, 0], "b": values[:, 1]})
    done = tiny(source, tmp_path / "run", "data.test_fraction=0.5")
    # Evaluating a run adds missing files.
    fingerprint, written = done.results["test_rows_sha256"], parquet.read_table(done.run.test_scores)
    done.run.test_scores.unlink()
    done.run.write_json("results.json", {**done.results, "test_rows_sha256": None})
    evaluate_run(done.run)
    assert json.loads(done.run.results.read_text())["test_rows_sha256"] == fingerprint
    evaluated = json.loads((done.run.path / "evaluation.json").read_text())
    scores = parquet.read_table(done.run.test_scores)
    rows, log_probs = scores["row"].to_numpy(), scores["log_prob"].to_numpy()
    assert len(rows) == 200
    assert -log_probs.mean() == pytest.approx(done.results["test_nll"])
    worst, best = evaluated["extreme_rows"]["worst"][0], evaluated["extreme_rows"]["best"][0]
    assert worst["row"] == rows[log_probs.argmin()]
    assert (best["row"], best["log_prob"]) == (rows[log_probs.argmax()], log_probs.max())
    assert list(worst["values"].values()) == pytest.approx(values[worst["row"]].tolist())
    assert sum(evaluated["calibration"]["pit"]["counts"][0]) == 200
    assert {baseline["name"] for baseline in evaluated["baselines"]} == {"gaussian", "gaussian-mixture", "kde"}
    np.testing.assert_array_equal(written["row"].to_numpy(), rows)
    np.testing.assert_allclose(written["log_prob"].to_numpy(), log_probs, atol=1e-4)


def test_the_fingerprint_of_rows_depends_on_names_values_and_order() -> None:
    rows = normals(5, 2)
    found = {
        rows_fingerprint(("a", "b"), rows),
        rows_fingerprint(("a", "c"), rows),
        rows_fingerprint(("a", "b"), rows[::-1]),
        rows_fingerprint(("a", "b"), rows + 1e-15),
    }
    assert len(found) == 4
    assert rows_fingerprint(("a", "b"), np.asfortranarray(rows)) in found
