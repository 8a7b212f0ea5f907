"""The data of a run that were moved, replaced or removed: the same content is accepted, wherever it is."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.common.errors import ConfigError, DataError
from pushforward.config.read import load_config
from pushforward.experiment.evaluation import evaluate_run
from pushforward.experiment.run import fit, resume
from pushforward.runs.folder import RunFolder

SMALL = ("flow=maf", "flow.layers=1", "flow.hidden=8", "train.patience=1", "train.evaluate=false", "wandb=off")


def table(path: Path, seed: int = 0) -> Path:
    rows = np.random.default_rng(seed).normal(size=(200, 2)).round(3)
    path.write_text("a,b\n" + "".join(f"{x},{y}\n" for x, y in rows.tolist()))
    return path


def short(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}..."


def recorded(run: RunFolder) -> tuple[str, str]:
    return load_config(files=[run.config]).data.source, json.loads(run.schema.read_text())["source"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return table(tmp_path / "data.csv")


@pytest.fixture
def run(path: Path, tmp_path: Path) -> RunFolder:
    return fit(load_config(str(path), overrides=(*SMALL, "train.steps=10")), out=tmp_path / "run", quiet=True).run


def evaluated(run: RunFolder, data: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """The NLL of the evaluated rows with their number, and the lines for the user."""
    said: list[str] = []
    done = evaluate_run(run, None if data is None else str(data), notify=said.append)
    return done.to_dict()["test"], said


def test_a_fit_is_resumed_with_the_same_content_at_another_place(
    run: RunFolder, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    moved = path.rename(tmp_path / "new" / "renamed.csv")
    monkeypatch.chdir(tmp_path / "new")
    arguments = ["fit", "renamed.csv", "--resume", str(run.path), "train.steps=20", "--json"]
    results = json.loads(CliRunner().invoke(main, arguments).stdout)
    assert results["steps"] == 20
    assert recorded(run) == (str(moved), str(moved))
    # It is the same data set for lists of runs, whatever its file is called.
    assert results["dataset"] == json.loads(run.state.read_text())["dataset"] == "data"
    assert f"{moved}: has the content that {run.path} was fitted to, SHA-256 {short(moved)}" in run.log.read_text()
    monkeypatch.chdir(tmp_path)
    assert resume(run.path, ("train.steps=30",), quiet=True).results["steps"] == 30
    assert run.log.read_text().count("has the content that") == 1


def test_other_content_is_refused_with_both_checksums_and_what_to_do(run: RunFolder, path: Path) -> None:
    other = table(path.with_name("other.csv"), seed=1)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    again = f"pushforward fit --resume {run.path} data.source=FILE"
    message = (
        f"{other}: not the data that {run.path} was fitted to: its SHA-256 is {short(other)}, that of the run is "
        f"{short(path)}; give the file with that content: {again}; or start a new fit"
    )
    with pytest.raises(DataError) as error:
        resume(run.path, (f"data.source={other}",), quiet=True)
    assert str(error.value) == message
    with pytest.raises(ConfigError, match=r"^data\.drop: a resumed fit keeps none; got a; start a new fit"):
        resume(run.path, (f"data.source={path}", "data.drop=a"), quiet=True)
    with pytest.raises(DataError, match=r"iris: not the data .*: its SHA-256 is unknown, .*; start a new fit"):
        resume(run.path, ("data.source=iris",), quiet=True)
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_the_rows_of_a_toy_cannot_be_replaced(tmp_path: Path) -> None:
    config = load_config("moons", overrides=(*SMALL, "train.steps=5", "data.rows=300"))
    run = fit(config, out=tmp_path / "run", quiet=True).run
    for other in ("circles", str(table(tmp_path / "data.csv"))):
        with pytest.raises(ConfigError, match=r"^data\.source: a resumed fit keeps moons; got "):
            resume(run.path, (f"data.source={other}",), quiet=True)


def test_a_file_that_is_gone_is_an_error_that_says_how_to_go_on(run: RunFolder, path: Path) -> None:
    expected = json.loads(run.results.read_text())["test_nll"]
    moved = path.rename(path.with_name("moved.csv"))
    gone = f"{path}: no such file; {run.path} was fitted to it; if it is elsewhere now: pushforward"
    with pytest.raises(DataError) as error:
        resume(run.path, ("train.steps=20",), quiet=True)
    assert str(error.value) == f"{gone} fit --resume {run.path} data.source=FILE"
    other = table(path.with_name("other.csv"), seed=1)
    for data in (None, other):  # the baselines are fitted to its training rows
        with pytest.raises(DataError) as error:
            evaluated(run, data)
        assert str(error.value) == f"{gone} evaluate {run.path} FILE"
    assert recorded(run)[0] == str(path)
    # The file of a run stands for its test rows, never for all its rows, most of which it was fitted to.
    test, said = evaluated(run, moved)
    assert test["nll"] == pytest.approx(expected)
    assert said[0] == f"{moved}: is the file that {run.path} was fitted to; its test rows are evaluated"
    assert said[1].startswith(f"{moved}: has the content that {run.path} was fitted to")
    assert recorded(run) == (str(moved), str(moved))
    test, said = evaluated(run, other)
    assert test["rows"] == 200
    assert not any("fitted" in line for line in said)


def test_a_run_without_test_rows_finds_its_training_rows_in_a_moved_file(path: Path, tmp_path: Path) -> None:
    config = load_config(str(path), overrides=(*SMALL, "train.steps=10", "data.test_fraction=0"))
    run = fit(config, out=tmp_path / "run", quiet=True).run
    moved = path.rename(path.with_name("moved.csv"))
    test, _ = evaluated(run, moved)
    assert test["rows"] == 200
    assert recorded(run) == (str(moved), str(moved))


def test_a_fit_of_an_autoencoder_is_resumed_with_a_moved_file(tmp_path: Path) -> None:
    path = table(tmp_path / "data.csv")
    keys = ("train.objective=elbo", "flow.hidden=8", "train.steps=5", "train.evaluate=false", "wandb=off")
    run = fit(load_config(str(path), overrides=keys), out=tmp_path / "run", quiet=True).run
    moved = path.rename(tmp_path / "moved.csv")
    with pytest.raises(DataError, match=r"data\.csv: no such file; .*data\.source=FILE"):
        resume(run.path, ("train.steps=10",), quiet=True)
    resume(run.path, ("train.steps=10", f"data.source={moved}"), quiet=True)
    assert recorded(run)[0] == str(moved)
    assert f"{moved}: has the content that" in run.log.read_text()
