"""Fits of tables in which held-out rows repeat training rows."""

from pathlib import Path

import numpy as np
import pytest

from pushforward.config.read import load_config
from pushforward.datasets import load
from pushforward.experiment.run import fit
from pushforward.train.data import prepare
from pushforward.train.defaults import data_options
from tests.fixtures.tables import table_with_copies


def test_the_likelihood_of_new_rows_is_reported_separately(tmp_path: Path) -> None:
    keys = ("train.steps=5", "flow=gaussian", "train.evaluate=false")
    done = fit(
        load_config(str(table_with_copies(tmp_path, 300)), overrides=keys, wandb="off"),
        out=tmp_path / "run",
        quiet=True,
    )
    config = load_config(files=[done.run.config])
    again = prepare(load(tmp_path / "d.csv"), data_options(config.model_dump()))
    assert again.repeats is not None
    new = ~again.repeats.test
    nll = -done.density.log_prob(again.test.rows[new])
    assert done.results["test_rows_new"] == new.sum() < 100
    assert done.results["test_nll_new"] == pytest.approx(nll.mean())
    assert done.results["test_nll_new_se"] == pytest.approx(nll.std(ddof=1) / np.sqrt(new.sum()))
    assert f"nats on the {new.sum()} test rows that are not copies" in "\n".join(done.lines())
    plain = fit(
        load_config(str(table_with_copies(tmp_path, 0)), overrides=keys, wandb="off"),
        out=tmp_path / "plain",
        quiet=True,
    )
    assert "test_nll_new" not in plain.results
