"""Fits of autoencoders, end to end: output of the command, files and uses of the run folder."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from pushforward.cli import main
from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.evaluate.density import FittedDensity
from pushforward.experiment.result import Fit
from pushforward.experiment.run import fit, plan, resume
from pushforward.flows import Flow
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import read_metrics
from pushforward.train.data import load_data
from pushforward.train.objectives.bound import EvidenceBound
from pushforward.train.options import DataOptions
from pushforward.train.problems import autoencoder

SMALL = ("flow.hidden=32", "flow.blocks=1", "flow.dropout=0", "vae.latent=4", "train.batch_size=128", "wandb=off")


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


@pytest.fixture(scope="module")
def digits(made_once: Callable[..., Path]) -> Fit:
    """An autoencoder trained on the digits."""

    def fill(folder: Path) -> None:
        config = load_config("digits", overrides=(*SMALL, "train.objective=elbo", "train.steps=150"))
        lines = fit(config, out=folder / "run", quiet=True).numbers
        (folder / "lines.json").write_text(json.dumps(lines))

    folder = made_once("digits-autoencoder", fill)
    run, lines = RunFolder.open(folder / "run"), json.loads((folder / "lines.json").read_text())
    return Fit(run, FittedDensity.load(run.model), json.loads(run.results.read_text()), None, tuple(lines))


def test_results_and_record(digits: Fit) -> None:
    results = digits.results
    assert (results["flow"], results["decoder"], results["prior"], results["latent"]) == (
        "vae",
        "logistic",
        "realnvp",
        4,
    )
    rows = [row for row in read_metrics(digits.run.metrics) if row["kind"] == "validation"]
    assert rows[-1]["best/val_loss"] < 0.8 * rows[0]["val/loss"]
    # 512 samples a row give a tighter bound than the 64 of validation.
    assert results["val_nll"] < rows[-1]["best/val_loss"] + 0.1
    assert {path.name for path in digits.run.pictures.glob("*.png")} == {
        "latent-plane.png",
        "reconstructions.png",
        "samples.png",
    }
    assert "at most" in "\n".join(digits.lines())
    assert (results["validation_rows_scored"], results["test_rows_scored"]) == (180, 180)
    assert results["test_nll_standardized"] is None
    # Dashboards use the same names for all kinds of fits.
    (summary,) = [row for row in read_metrics(digits.run.metrics) if row["kind"] == "summary"]
    assert summary["test/nll"] == results["test_nll"]
    assert summary["test/nll_se"] == results["test_nll_se"]
    assert summary["best/val_nll"] == results["val_nll"]
    assert "dataset" not in summary


def test_samples_and_scores(digits: Fit, tmp_path: Path) -> None:
    invoke("sample", digits.run.path, "-n", "40", "--out", tmp_path / "new.csv")
    rows = np.loadtxt(tmp_path / "new.csv", delimiter=",", skiprows=1)
    assert rows.shape == (40, 61)
    assert set(np.unique(rows)) <= set(range(17))  # whole numbers, as in the table
    invoke("score", digits.run.path, tmp_path / "new.csv", "--out", tmp_path / "scores.csv")
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    assert np.allclose(FittedDensity.load(digits.run.model).log_prob(rows), scores)
    assert np.isfinite(scores).all()
    invoke("report", digits.run.path)


def test_a_resumed_fit_continues(tmp_path: Path) -> None:
    keys = (*SMALL, "train.objective=iwae", "train.importance_samples=4", "train.evaluate=false")
    fit(load_config("iris", overrides=(*keys, "train.steps=20")), out=tmp_path / "run", quiet=True)
    longer = resume(tmp_path / "run", ("train.steps=30",), quiet=True)
    assert (longer.results["steps"], longer.results["decoder"]) == (30, "gaussian")
    with pytest.raises(ConfigError, match=r"^vae\.latent: a resumed fit keeps 4; got 3; start a new fit"):
        resume(tmp_path / "run", ("vae.latent=3",), quiet=True)


def test_a_resumed_fit_removes_the_pictures_of_the_previous_model(tmp_path: Path) -> None:
    keys = (*SMALL, "train.objective=elbo")
    run = fit(load_config("iris", overrides=(*keys, "train.steps=5")), out=tmp_path / "run", quiet=True).run
    assert (run.pictures / "corner.png").exists()
    assert (run.samples / "samples.csv").exists()
    resume(run.path, ("train.steps=10", "train.evaluate=false"), quiet=True)
    assert not list(run.pictures.glob("*.png"))
    assert not (run.samples / "samples.csv").exists()


def test_another_gradient_of_a_resumed_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    keys = (*SMALL, "train.objective=elbo", "train.evaluate=false")
    run = fit(load_config("iris", overrides=(*keys, "train.steps=5")), out=tmp_path / "run", quiet=True).run
    before = run.config.read_bytes()
    with pytest.raises(ConfigError, match=r"^train\.gradient: a resumed fit keeps"):
        resume(run.path, ("train.gradient=score-function", "train.steps=10"), quiet=True)
    assert run.config.read_bytes() == before
    assert run.status == "finished"


def test_the_failure_of_a_resumed_fit_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = (*SMALL, "train.objective=elbo", "train.evaluate=false")
    run = fit(load_config("iris", overrides=(*keys, "train.steps=5")), out=tmp_path / "run", quiet=True).run

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(EvidenceBound, "make", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        resume(run.path, ("train.steps=10",), quiet=True)
    assert run.status == "failed"
    state = json.loads(run.state.read_text())
    assert (state["dataset"], state["flow"]) == ("iris", "vae")


def test_some_of_many_rows_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "MOST_TEST_ROWS", 11)
    monkeypatch.setattr(autoencoder, "ROWS_AT_A_TIME", 4)
    keys = (*SMALL, "train.objective=elbo", "train.steps=5", "train.evaluate=false")
    done = fit(load_config("iris", overrides=keys), out=tmp_path / "run", quiet=True)
    scores = parquet.read_table(done.run.test_scores).to_pydict()
    assert done.results["test_rows_scored"] == len(scores["row"]) == 11
    assert done.results["test_nll"] == pytest.approx(-np.mean(scores["log_prob"]))
    rows = load_data(DataOptions(source="iris")).rows[np.array(scores["row"])]
    np.testing.assert_allclose(done.density.log_prob(rows), scores["log_prob"])
    assert done.results["test_rows_sha256"] == rows_fingerprint(done.density.schema.names, rows)
    assert "11 test rows" in done.run.report.read_text()


def test_a_signal_ends_the_scoring_after_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "ROWS_AT_A_TIME", 4)
    problem = plan(load_config("iris", overrides=(*SMALL, "train.objective=elbo")))
    assert isinstance(problem, autoencoder.AutoencoderProblem)
    dataset = problem.prepared.dataset
    density = FittedDensity(cast(Flow, problem.build()), dataset.schema, [0.0] * 4)
    rows = dataset.rows[problem.prepared.splits.test]
    calls: list[int] = []

    def stop() -> str:
        calls.append(1)
        return "sigterm" if len(calls) == 2 else ""

    kept, scores = autoencoder.score_rows(density, rows, 12, stop)
    assert (len(kept), len(scores), len(calls)) == (8, 8, 2)
    assert kept[0] == 0
    assert kept[-1] >= len(rows) - 3  # every piece is spread over all rows
    np.testing.assert_allclose(density.log_prob(rows[kept]), scores)


def test_autoencoders_are_evaluated_again(digits: Fit, tmp_path: Path) -> None:
    """On the own test rows with the numbers of the fit, and on other rows with those of the rows."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(digits.run.path, run.path)
    for path in (*run.pictures.glob("*.png"), run.samples / "samples.csv", run.test_scores):
        path.unlink()
    found = json.loads(invoke("evaluate", run.path, "--json").stdout)
    kept = ("val_nll", "test_nll", "test_nll_se", "test_rows_scored", "test_rows_sha256", "decoder", "latent")
    assert {key: found[key] for key in kept} == {key: digits.results[key] for key in kept}
    assert {path.name for path in run.pictures.glob("*.png")} == {
        "latent-plane.png",
        "reconstructions.png",
        "samples.png",
    }
    before, after = (parquet.read_table(each.test_scores).to_pydict() for each in (digits.run, run))
    assert after == before
    rows = FittedDensity.load(run.model).draw(20, seed=1)
    np.savetxt(
        tmp_path / "new.csv", rows, fmt="%d", delimiter=",", header=",".join(digits.density.schema.names), comments=""
    )
    done = invoke("evaluate", run.path, tmp_path / "new.csv", "--json")
    found = json.loads(done.stdout)
    assert found["test_rows_scored"] == 20
    assert found["test_nll"] == pytest.approx(-digits.density.log_prob(rows).mean())
    assert json.loads(run.results.read_text())["test_nll"] == digits.results["test_nll"], "the run keeps its own"


def test_the_decoder_follows_from_the_columns(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2, (300, 5))
    np.savetxt(tmp_path / "bits.csv", rows, fmt="%d", delimiter=",", header="a,b,c,d,e", comments="")
    keys = (*SMALL, "train.objective=elbo", "train.steps=5", "train.evaluate=false", "--json")
    found = json.loads(invoke("fit", tmp_path / "bits.csv", *keys, "--out", tmp_path / "bits").stdout)
    assert found["decoder"] == "bernoulli"
    found = json.loads(
        invoke("fit", tmp_path / "bits.csv", *keys, "vae.decoder=categorical", "--out", tmp_path / "categories").stdout
    )
    assert found["decoder"] == "categorical"
    # Five fair coins have an entropy of 5 log 2 nats, and no bound is below it.
    assert found["test_nll"] > 5 * np.log(2) - 0.5


@pytest.mark.parametrize(
    ("keys", "message", "code"),
    [
        (("iris", "vae.decoder=categorical"), r"vae.decoder=categorical is for whole numbers", 3),
        (("digits", "vae.decoder=bernoulli"), r"is for 0 and 1.*take vae.decoder=logistic", 3),
        (("iris", "data.given=petal length (cm)"), r"not conditioned on columns", 2),
        (("iris", "train.gradient=score-function"), r"expected auto, path or path-wise", 2),
        (("iris", "vae.prior=flow"), r"vae.prior: expected gaussian, realnvp", 2),
    ],
)
def test_invalid_configurations_are_refused(keys: tuple[str, ...], message: str, code: int, tmp_path: Path) -> None:
    for more in ((), ("--dry-run",)):
        done = invoke("fit", *keys, "train.objective=elbo", "wandb=off", "--out", tmp_path / "run", *more, code=code)
        assert re.search(message, done.stderr), done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("data", "decay"), [("iris", 1e-2), ("digits", 1e-3)])
def test_the_weight_decay_is_that_of_autoencoders(data: str, decay: float) -> None:
    keys = (*SMALL, "train.objective=elbo")
    assert plan(load_config(data, overrides=keys)).options.train.weight_decay == decay
    given = plan(load_config(data, overrides=(*keys, "train.weight_decay=0.5")))
    assert given.options.train.weight_decay == 0.5
