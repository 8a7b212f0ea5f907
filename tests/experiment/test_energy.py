"""Fits that minimise the sliced energy distance."""

from pathlib import Path

import pytest

from pushforward.config.read import load_config
from pushforward.experiment.run import fit
from pushforward.tracking.jsonl import read_metrics


@pytest.mark.parametrize("objective", ["energy", "mle+energy"])
def test_fits_learn(objective: str, tmp_path: Path) -> None:
    keys = [
        "data.rows=1500",
        "flow=nsf-c",
        "flow.layers=2",
        "flow.hidden=16",
        "train.steps=80",
        "train.batch_size=128",
    ]
    keys += [f"train.objective={objective}", "train.evaluate=false", "wandb=off"]
    done = fit(load_config("moons", overrides=keys), out=tmp_path / "run", quiet=True)
    rows = [row for row in read_metrics(done.run.metrics) if row["kind"] == "validation"]
    assert rows[-1]["best/val_loss"] < rows[0]["val/loss"]
    assert min(row["val/energy"] for row in rows) < 0.5 * rows[0]["val/energy"]
    assert done.results["flow"] == "nsf-c"  # the likelihood does not select the Gaussian
    trained = [row for row in read_metrics(done.run.metrics) if row["kind"] == "train"]
    assert {"train/loss", "train/energy"} <= set(trained[0])
    assert ("train/nll" in trained[0]) == (objective == "mle+energy")
