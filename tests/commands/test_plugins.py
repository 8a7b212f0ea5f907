"""Flows, maps, bases, networks, objectives and problems from outside of the package, on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent / "fixtures" / "plugin.py"


def run(*arguments: str | Path, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pushforward", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"WANDB_MODE": "disabled"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_parts_of_a_plugin_are_fitted_saved_sampled_and_reported(tmp_path: Path) -> None:
    keys = ["flow=test-flow", "flow.base=test-wide", "flow.conditioner=test-linear", "train.objective=test-mle"]
    # Conditional, because there a Gaussian does not take the place of a flow that is no better.
    fit = ["fit", "moons", *keys, "data.given=x2", "train.steps=60", "data.rows=600", "--out", "run"]
    run("--plugin", PLUGIN, *fit, cwd=tmp_path)
    model = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert all(f'"{part}"' in json.dumps(model) for part in ("test-bend", "test-linear"))
    assert "test-flow" in (tmp_path / "run" / "report.html").read_text()
    sample = ["sample", "run", "-n", "3", "--given", "x2=0.5"]
    drawn = run("--plugin", PLUGIN, *sample, cwd=tmp_path).stdout
    assert len(drawn.splitlines()) == 4
    run("--plugin", PLUGIN, "evaluate", "run", cwd=tmp_path)
    missing = run(*sample, cwd=tmp_path, code=1)
    assert "test-" in missing.stderr
    assert "--plugin" in missing.stderr


def test_a_map_and_a_network_of_a_plugin_in_every_kind_of_layer(tmp_path: Path) -> None:
    for flow in ("realnvp", "nsf-ar"):
        keys = [f"flow={flow}", "flow.univariate=test-bend", "flow.conditioner=test-linear", "train.steps=20"]
        run("--plugin", PLUGIN, "fit", "iris", *keys, "train.evaluate=false", "--out", flow, cwd=tmp_path)
        assert "test-bend" in (tmp_path / flow / "config.yaml").read_text()


def test_a_kind_of_problem_of_a_plugin(tmp_path: Path) -> None:
    done = run(
        "--plugin",
        PLUGIN,
        "fit",
        "test:moments",
        "train.learning_rate=0.05",
        "train.steps=300",
        "--out",
        "run",
        cwd=tmp_path,
    )
    assert "mean of samples" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["problem"] == "test-problem"
    assert abs(results["mean"] - 3.0) < 0.2
    report = (tmp_path / "run" / "report.html").read_text()
    assert "mean of samples" in report
    assert (tmp_path / "run" / "pictures" / "histogram.png").is_file()
    listed = json.loads(run("runs", ".", "--json", cwd=tmp_path).stdout)["runs"]
    assert [one["dataset"] for one in listed] == ["moments"]


def test_the_environment_names_plugins_and_wrong_ones_are_one_line(tmp_path: Path) -> None:
    keys = ["fit", "iris", "flow=test-flow", "--dry-run"]
    run(*keys, cwd=tmp_path, PUSHFORWARD_PLUGINS=str(PLUGIN))
    unknown = run(*keys, cwd=tmp_path, code=2)
    assert "unknown flow 'test-flow'" in unknown.stderr
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for plugin, words in (
        ("broken", "ZeroDivisionError"),
        ("missing", "no module named 'missing'"),
        ("x.py", "no such"),
    ):
        stderr = run("--plugin", plugin, *keys, cwd=tmp_path, code=2).stderr
        assert words in stderr
        assert len(stderr.splitlines()) == 1


def test_an_entry_point_is_loaded(tmp_path: Path) -> None:
    package = tmp_path / "site"
    (package / "their-1.0.dist-info").mkdir(parents=True)
    (package / "their-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: their\nVersion: 1.0\n")
    (package / "their-1.0.dist-info" / "entry_points.txt").write_text("[pushforward.plugins]\nmine = their_maps\n")
    (package / "their_maps.py").write_text(PLUGIN.read_text())
    done = run("fit", "iris", "flow=test-flow", "--dry-run", cwd=tmp_path, PYTHONPATH=str(package))
    assert "test-flow" in done.stdout
    (package / "their_maps.py").write_text("raise RuntimeError('broken')\n")
    done = run("fit", "iris", "flow=maf", "--dry-run", cwd=tmp_path, PYTHONPATH=str(package))
    assert "plugin mine (their_maps) cannot be loaded: broken" in done.stderr


def test_a_data_set_of_a_plugin(tmp_path: Path) -> None:
    fit = ["fit", "test-rows", "flow=maf", "flow.hidden=8", "train.steps=20", "--out", "run"]
    run("--plugin", PLUGIN, *fit, "train.evaluate=false", cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"] == 300
    run("--plugin", PLUGIN, "fit", "--resume", "run", "train.steps=30", cwd=tmp_path)
    assert "unknown dataset 'test-rows'" in run("fit", "test-rows", cwd=tmp_path, code=3).stderr


@pytest.mark.parametrize("command", [["--help"], ["--version"]])
def test_help_loads_no_plugin(command: list[str], tmp_path: Path) -> None:
    run("--plugin", "missing", *command, cwd=tmp_path)
