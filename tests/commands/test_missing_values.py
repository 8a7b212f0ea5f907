"""Tables with missing values, and values never recorded: fits, scores and samples say what became of the rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from pushforward.cli import main

TINY = ("train.steps=3", "flow=maf", "flow.layers=1", "flow.hidden=8", "train.evaluate=false", "wandb=off")
ROWS = 300
HOLES = (0, 5, 6, 100, 299)
CODED = (7, 150)


def invoke(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pushforward")
    assert done.exit_code == code, done.output
    return done


def write_table(path: Path, *, holes: tuple[int, ...] = (), coded: tuple[int, ...] = (), city: object = None) -> Path:
    """Write a table of two features and a code of a city from 0 to 3, with holes and -999 for missing cells."""
    random = np.random.default_rng(0)
    lines = ["a,city,b"]
    for row in range(ROWS):
        a, b, given = random.normal(), random.normal(), int(random.integers(0, 4))
        first = "" if row in holes else "-999" if row in coded else f"{a:.6f}"
        lines.append(f"{first},{given if city is None or row else city},{b:.6f}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data") / "t.csv", holes=HOLES, coded=CODED)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit without the rows that have missing values, conditioned on the city."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("data.missing=drop", "data.missing_values=-999", "data.given=city", "data.test_fraction=0.5")
    done = invoke("fit", data, *options, *TINY, "--out", folder)
    assert "t.csv: 7 of 300 rows have missing values and are left out (data.missing=drop)" in done.stderr
    return folder


def test_scores_of_the_fit_are_those_of_rows_of_the_file(run: Path, tmp_path: Path) -> None:
    whole = write_table(tmp_path / "whole.csv")
    invoke("score", run, whole, "--out", tmp_path / "s.csv")
    scores = np.loadtxt(tmp_path / "s.csv", skiprows=1)
    test = parquet.read_table(run / "test_scores.parquet").to_pydict()
    assert not set(test["row"]) & {*HOLES, *CODED}
    np.testing.assert_allclose(scores[test["row"]], test["log_prob"], atol=1e-5)


def test_a_run_is_evaluated_on_the_rows_of_its_fit(run: Path) -> None:
    before = json.loads((run / "results.json").read_text())
    invoke("evaluate", run)
    after = json.loads((run / "results.json").read_text())
    assert after["test_rows_sha256"] == before["test_rows_sha256"]
    worst = json.loads((run / "evaluation.json").read_text())["extreme_rows"]["worst"][0]
    table = [line.split(",") for line in (write_table(run / "whole.csv").read_text().splitlines()[1:])]
    assert [worst["values"][name] for name in ("a", "b", "city")] == pytest.approx(
        [float(table[worst["row"]][k]) for k in (0, 2, 1)]
    )


def test_another_table_is_evaluated_without_its_missing_rows(run: Path, tmp_path: Path) -> None:
    other = write_table(tmp_path / "other.csv", holes=(3, 4), coded=(5,))
    done = invoke("evaluate", run, other)
    assert "other.csv: 3 of 300 rows have missing values and are left out (data.missing=drop)" in done.stderr
    assert "on the 297 rows of other.csv" in done.stdout
    empty = write_table(tmp_path / "empty.csv", holes=tuple(range(ROWS)))
    assert "column 'a' has no values at all" in invoke("evaluate", run, empty, code=3).stderr


def test_scores_are_refused_for_rows_with_missing_values(run: Path, tmp_path: Path) -> None:
    """One line a row: leaving rows out would shift the scores."""
    other = write_table(tmp_path / "other.csv", holes=(3, 4), coded=(5,))
    done = invoke("score", run, other, "--out", tmp_path / "s.csv", code=3)
    assert done.stderr.splitlines() == [
        "pushforward score: other.csv: column 'a' has 3 missing values (1 %, first in row 4)",
        "the model needs a number in each cell: fill these cells, or remove their rows",
    ]
    assert not (tmp_path / "s.csv").exists()


def test_a_resumed_fit_uses_the_same_rows(run: Path) -> None:
    before = json.loads((run / "schema.json").read_text())
    assert sum(before["rows"].values()) == ROWS - len(HOLES) - len(CODED)
    invoke("fit", "--resume", run, "train.steps=5")
    assert json.loads((run / "schema.json").read_text()) == before


@pytest.mark.parametrize(
    ("value", "warning"),
    [
        ("0", ""),
        ("3", ""),
        (
            "99",
            "--given: city=99 is not among the recorded values, 0 to 3 in steps of 1; the samples are an extrapolation",
        ),
        ("-1", "--given: city=-1 is not among the recorded values"),
        ("1.5", "--given: city=1.5 is not among the recorded values"),
    ],
)
def test_samples_given_a_value_that_was_not_recorded(value: str, warning: str, run: Path, tmp_path: Path) -> None:
    done = invoke("sample", run, "-n", 5, "--given", f"city={value}", "--out", tmp_path / "s.csv")
    assert ("--given" in done.stderr) == bool(warning)
    assert warning in done.stderr


def test_rows_whose_context_was_not_recorded_are_counted(run: Path, tmp_path: Path) -> None:
    other = write_table(tmp_path / "other.csv", city=99)
    note = (
        "other.csv: 1 of 300 rows have a context outside the recorded values (city of 0 to 3 in steps of 1); "
        "their densities are an extrapolation"
    )
    for command in ("score", "evaluate"):
        assert note in invoke(command, run, other).stderr.splitlines()
    assert "extrapolation" not in invoke("score", run, write_table(tmp_path / "whole.csv")).stderr
