"""``sample --given FILE``, and means weighted by a column of the file."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.config.read import load_config
from pushforward.evaluate import nll_from
from pushforward.experiment.run import fit

KEYS = ("flow=maf", "flow.layers=1", "flow.hidden=8", "wandb=off", "train.evaluate=false")


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="pushforward", input=text)


def rows_of(result: Result) -> pd.DataFrame:
    assert result.exit_code == 0, result.output
    return pd.read_csv(io.StringIO(result.stdout))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    return pd.DataFrame({"y": 3 * x + rng.normal(size=300), "x": x, "z": rng.normal(size=300)})


@pytest.fixture(scope="module")
def folder(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional run, and one with weights."""
    made = tmp_path_factory.mktemp("runs")
    table.to_csv(made / "t.csv", index=False)
    table.assign(w=np.arange(300) % 3).to_csv(made / "weighted.csv", index=False)
    fit(
        load_config(
            str(made / "t.csv"), overrides=(*KEYS, "data.response=y", "train.steps=200", "train.learning_rate=0.01")
        ),
        out=made / "given",
        quiet=True,
    )
    fit(
        load_config(str(made / "weighted.csv"), overrides=(*KEYS, "data.weight=w", "train.steps=30")),
        out=made / "weights",
        quiet=True,
    )
    return made


def test_samples_for_each_row_of_a_file(folder: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    given = table[["z", "x"]].iloc[:5]
    given.assign(note=1).to_csv(tmp_path / "in.csv", index=False)
    drawn = rows_of(run("sample", folder / "given", "-n", 4, "--given", tmp_path / "in.csv", "--seed", 3))
    assert list(drawn.columns) == ["y", "x", "z"]
    for name in ("x", "z"):
        assert np.array_equal(drawn[name], np.repeat(given[name].to_numpy(), 4))
    assert len(set(drawn["y"])) == 20
    piped = run("sample", folder / "given", "-n", 4, "--given", "-", "--seed", 3, text=given.to_csv(index=False))
    assert rows_of(piped).equals(drawn)
    one = tmp_path / "one.csv"
    given.iloc[:1].to_csv(one, index=False)
    from_file = rows_of(run("sample", folder / "given", "-n", 9, "--given", one))
    values = [word for name in ("x", "z") for word in ("--given", f"{name}={float(given[name].iloc[0])!r}")]
    assert rows_of(run("sample", folder / "given", "-n", 9, *values)).equals(from_file)


def test_a_file_of_many_rows_is_sampled_in_parts(
    folder: Path, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row keeps its own context across the parts."""
    monkeypatch.setattr("pushforward.evaluate.sampling.sample_batches.__kwdefaults__", {"batch_size": 64})
    table[["x", "z"]].to_csv(tmp_path / "in.csv", index=False)
    drawn = rows_of(run("sample", folder / "given", "-n", 3, "--given", tmp_path / "in.csv"))
    assert np.array_equal(drawn["x"], np.repeat(table["x"].to_numpy(), 3))
    assert np.corrcoef(drawn["x"], drawn["y"])[0, 1] > 0.5


def test_a_file_without_a_context_column_is_refused(folder: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    table[["x"]].to_csv(tmp_path / "in.csv", index=False)
    done = run("sample", folder / "given", "-n", 3, "--given", tmp_path / "in.csv")
    assert done.exit_code == 3
    assert "in.csv: lacks the columns z" in done.stderr
    refused = run("sample", folder / "given", "-n", 3, "--given", tmp_path / "in.csv", "--out", tmp_path / "in.csv")
    assert "is the file that is read" in refused.stderr


def test_means_of_scores_are_weighted(folder: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    def scored(name: str) -> tuple[dict[str, Any], str, np.ndarray[Any, Any]]:
        done = run("score", folder / "weights", folder / name, "--out", tmp_path / "s.csv", "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), done.stderr, pd.read_csv(tmp_path / "s.csv")["log_prob"].to_numpy()

    weighted, said, scores = scored("weighted.csv")
    expected = nll_from(scores, np.arange(300) % 3)
    assert (weighted["nll"], weighted["nll_se"]) == pytest.approx((expected.nll, expected.se))
    assert weighted["weight"] == "w"
    assert "weighted.csv: weights are 'w' (data.weight)" in said
    plain, said, same = scored("t.csv")
    assert np.array_equal(same, scores)
    assert plain["nll"] == pytest.approx(-scores.mean())
    assert "weight" not in plain
    assert "t.csv: has no column 'w'; its rows count equally (data.weight)" in said


def test_means_of_evaluations_are_weighted(folder: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    frame = table.iloc[:100].assign(w=np.arange(100) % 2)
    frame.to_csv(tmp_path / "other.csv", index=False)
    frame.drop(columns="w").to_csv(tmp_path / "plain.csv", index=False)

    def test_nll(name: str) -> float:
        done = run("evaluate", folder / "weights", tmp_path / name, "--json")
        assert done.exit_code == 0, done.output
        return float(json.loads(done.stdout)["test_nll"])

    done = run("score", folder / "weights", tmp_path / "other.csv", "--json")
    scores = np.array(json.loads(done.stdout)["log_prob"])
    assert test_nll("other.csv") == pytest.approx(-scores[1::2].mean())
    assert test_nll("plain.csv") == pytest.approx(-scores.mean())


def test_negative_weights_are_refused(folder: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    table.assign(w=-1).to_csv(tmp_path / "other.csv", index=False)
    done = run("score", folder / "weights", tmp_path / "other.csv")
    assert done.exit_code == 3
    assert "other.csv: column 'w' has -1; expected weights of at least 0" in done.stderr


def test_context_of_uneven_values_is_not_rounded_and_not_called_unrecorded(tmp_path: Path) -> None:
    """Only what is modelled has bins; a few ages that lie on no grid are all recorded."""
    rng = np.random.default_rng(0)
    age = rng.choice([1.003, 3.017, 7.131, 14.207, 28.91, 56.333, 90.12, 100.7, 120.03, 180.49, 270.11, 365.0], 400)
    dose = rng.integers(0, 40, 400) / 10
    rows = pd.DataFrame({"age": age, "dose": dose, "y": np.log(age) + rng.normal(size=400)})
    rows.to_csv(tmp_path / "t.csv", index=False)
    config = load_config(str(tmp_path / "t.csv"), overrides=(*KEYS, "data.response=y", "train.steps=5"))
    done = fit(config, out=tmp_path / "run", quiet=True)
    assert not [note for note in json.loads(done.run.schema.read_text())["notes"] if "bin width" in note]
    scored = run("score", tmp_path / "run", tmp_path / "t.csv")
    assert "outside the recorded values" not in scored.stderr
    drawn = run("sample", tmp_path / "run", "-n", 3, "--given", "age=45.25", "--given", "dose=0.333")
    assert rows_of(drawn)[["age", "dose"]].to_numpy().tolist() == [[45.25, 0.333]] * 3
    assert "set to its ends" not in drawn.stderr
    spread = run("score", tmp_path / "run", "-", text="age,dose,y\n400,1,2\n")
    assert "1 of 1 rows have a context outside the recorded values (age of 1.003 to 365)" in spread.stderr
