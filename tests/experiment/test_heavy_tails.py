"""A Student-t base has a higher likelihood than a Gaussian one on heavy-tailed columns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pushforward.config.read import load_config
from pushforward.evaluate.likelihood import paired_difference
from pushforward.experiment.run import fit, plan
from pushforward.train.problems.rows import RowsProblem


def heavy_table(path: Path, rows: int, columns: int = 3) -> Path:
    """Correlated columns of Student-t noise with two degrees of freedom."""
    rng = np.random.default_rng(0)
    mixing = np.eye(columns) + 0.5 * np.tri(columns, k=-1)
    table = rng.standard_t(2.0, (rows, columns)) @ mixing.T
    np.savetxt(path, table, delimiter=",", header=",".join("abcdef"[:columns]), comments="")
    return path


# Single outliers dominate the mean, so many rows are held out.
SPLIT = ("data.validation_fraction=0.3", "data.test_fraction=0.4")


def gain_of_student_t(tmp_path: Path, *overrides: str) -> tuple[float, float]:
    """Gain in test log-likelihood of a Student-t over a Gaussian base, in nats, and its standard error."""
    source = str(heavy_table(tmp_path / "heavy.csv", 30_000))
    scores = []
    for base in ("student-t", "full"):
        options = load_config(
            source,
            overrides=(f"flow.base={base}", "wandb=off", "train.evaluate=false", *SPLIT, *overrides),
        )
        done = fit(options, out=tmp_path / base, quiet=True)
        problem = plan(options)
        assert isinstance(problem, RowsProblem)
        scores.append(torch.from_numpy(done.density.log_prob(problem.prepared.test.rows)))
    return paired_difference(*scores)


def test_a_student_t_base_is_better_on_heavy_tails(tmp_path: Path) -> None:
    gain, se = gain_of_student_t(
        tmp_path, "flow=nsf-ar", "flow.layers=1", "flow.hidden=16", "flow.blocks=1", "train.steps=100"
    )
    assert gain > 2 * se


@pytest.mark.slow
def test_a_student_t_base_is_better_on_heavy_tails_for_larger_flows(tmp_path: Path) -> None:
    gain, se = gain_of_student_t(tmp_path, "flow.layers=2", "flow.hidden=32", "train.steps=1000")
    assert gain > 2 * se
