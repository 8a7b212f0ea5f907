"""Commands on runs of every kind: a headline for each, and advice that can work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import pushforward
from pushforward.cli import main
from pushforward.config.read import load_config
from pushforward.experiment.run import fit
from pushforward.gradients.study import study

KEYS = ("flow.hidden=8", "train.steps=5", "train.evaluate=false", "wandb=off")
FITS = {
    "rows": ("moons", "data.rows=300", "flow=maf", "flow.layers=1"),
    "no-test": ("moons", "data.rows=300", "flow=maf", "flow.layers=1", "data.test_fraction=0"),
    "given": ("iris", "data.given=petal width (cm)", "flow=maf", "flow.layers=1"),
    "network": ("iris", "data.response=petal width (cm)", "flow=bayesian-network"),
    "target": ("target:banana", "flow=maf", "flow.layers=1"),
    "autoencoder": ("digits", "train.objective=elbo"),
}


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [*map(str, arguments)], prog_name="pushforward")
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, (data, *keys) in FITS.items():
        fit(load_config(data, overrides=(*keys, *KEYS)), out=folder / name, quiet=True)
    config = load_config("banana", overrides=["flow=maf", "flow.layers=1", "flow.hidden=8", "wandb=off"])
    study(config, steps=2, samples=16, replicates=3, checkpoints=2, out=folder / "gradients")
    rows = np.random.default_rng(0).normal(size=(200, 2))
    small: dict[str, Any] = {"flow": "maf", "layers": 1, "hidden": 8, "steps": 5, "evaluate": False}
    pushforward.fit(rows, out=folder / "memory", progress=False, **small)
    return folder


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("rows", "test NLL "),
        ("no-test", "validation NLL "),
        ("given", "test NLL "),
        ("network", "test NLL "),
        ("target", "log Z "),
        ("autoencoder", "test NLL at most "),
        ("gradients", "reverse KL "),
        ("memory", "test NLL "),
    ],
)
def test_the_list_of_runs_has_a_headline_for_each_kind(name: str, headline: str, runs: Path) -> None:
    (line,) = (line for line in run("runs", runs).stdout.splitlines() if line.startswith(f"{name} "))
    assert headline in line
    assert line.partition(headline)[2].split()[0].replace("-", "").replace(".", "").isdecimal()


@pytest.mark.parametrize("name", [*FITS, "gradients", "memory"])
def test_a_report_has_the_sections_of_its_problem(name: str, runs: Path) -> None:
    run("report", runs / name)
    page = (runs / name / "report.html").read_text(encoding="utf-8")
    assert "Left out: a file of this section is damaged" not in page
    shown = {section for section in ("likelihood", "target", "gradients") if f'id="{section}"' in page}
    assert shown == {name if name in ("target", "gradients") else "likelihood"}


def test_a_study_has_no_model_and_says_so(runs: Path) -> None:
    run_ = runs / "gradients"
    for arguments in (("evaluate", run_), ("sample", run_, "-n", "2"), ("score", run_, "iris")):
        refused = run(*arguments, code=1).stderr
        assert f"{run_}: has no model: it is a study; `pushforward report {run_}` shows it" in refused
    assert "is a study, which cannot go on" in run("fit", "--resume", run_, code=2).stderr
    assert "is a study of gradients; it has no test rows" in run("compare", run_, runs / "rows", code=2).stderr


def test_advice_on_a_fit_of_rows_in_memory_can_be_followed(runs: Path, tmp_path: Path) -> None:
    memory, rows = runs / "memory", tmp_path / "rows.csv"
    rows.write_text("x1,x2\n0.5,0.25\n-1,0.5\n")
    for arguments in (("evaluate", memory), ("evaluate", memory, rows)):
        advice = run(*arguments, code=3).stderr.strip()
        assert advice.endswith(
            f"it cannot be evaluated again; the likelihood of other rows: pushforward score {memory} FILE"
        )
    scored = run("score", memory, rows, "--out", tmp_path / "scores.csv", "--json")
    assert json.loads(scored.stdout)["rows"] == 2
    for more in ((), (f"data.source={rows}",), (rows, "train.steps=9")):
        assert "its fit cannot go on; fit again in Python" in run("fit", "--resume", memory, *more, code=3).stderr
    run("report", memory)
    page = (memory / "report.html").read_text(encoding="utf-8")
    assert "pushforward sample memory" in page
    assert "pushforward score memory" in page
    for impossible in ("pushforward evaluate", "pushforward fit", "--resume"):
        assert impossible not in page.partition("<main>")[2]
    assert "pushforward fit -c rows/config.yaml" in (runs / "rows" / "report.html").read_text(encoding="utf-8")
