"""The commands score and sample on a run whose model is a mixture."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.config.read import load_config
from pushforward.experiment.run import fit


def test_score_and_sample_commands_on_a_run_with_a_mixture(tmp_path: Path) -> None:
    keys = ("flow=made-mog", "flow.members=3", "flow.hidden=8", "flow.blocks=1", "flow.components=3")
    config = load_config(
        "moons", overrides=(*keys, "data.rows=500", "train.steps=30", "train.evaluate=false", "wandb=off")
    )
    done = fit(config, out=tmp_path / "run", quiet=True)
    assert done.results["flow"] == "made-mog x 3"
    rows = done.density.draw(40, seed=3)
    names = done.density.schema.names
    np.savetxt(tmp_path / "rows.csv", rows, fmt="%.17g", delimiter=",", header=",".join(names), comments="")
    runner, run = CliRunner(), str(tmp_path / "run")
    scored = runner.invoke(main, ["score", run, str(tmp_path / "rows.csv"), "--out", str(tmp_path / "scores.csv")])
    assert scored.exit_code == 0, scored.output
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    np.testing.assert_allclose(scores, done.density.log_prob(rows), rtol=1e-6)
    drawn = runner.invoke(main, ["sample", run, "-n", "25", "--seed", "1", "--out", str(tmp_path / "new.csv")])
    assert drawn.exit_code == 0, drawn.output
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 26
