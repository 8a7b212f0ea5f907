"""A data set of a run is scored and evaluated by its name."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from pushforward.cli import main


@pytest.fixture(scope="module")
def of_iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run fitted to a set by its name, conditioned on one column."""
    tiny = ("train.steps=3", "flow=maf", "flow.layers=1", "flow.hidden=8", "train.evaluate=false", "wandb=off")
    run = tmp_path_factory.mktemp("iris") / "run"
    invoke("fit", "iris", "data.given=petal width (cm)", *tiny, "--out", str(run), "--json")
    return run


def invoke(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="pushforward")
    assert done.exit_code == code, done.output
    return done


def test_a_set_is_scored_by_its_name(of_iris: Path, tmp_path: Path) -> None:
    invoke("score", str(of_iris), "iris", "--out", str(tmp_path / "scores.csv"))
    test = parquet.read_table(of_iris / "test_scores.parquet").to_pydict()
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    assert len(scores) == 150
    np.testing.assert_allclose(scores[test["row"]], test["log_prob"], atol=1e-5)
    toy = invoke("score", str(of_iris), "moons", code=3)
    assert "moons: a toy is sampled, it has no rows of its own; give a file" in toy.stderr


@pytest.mark.slow
def test_a_set_is_evaluated_on_by_its_name(of_iris: Path) -> None:
    assert "samples (120 against 150 rows of iris)" in invoke("evaluate", str(of_iris), "iris").stdout
