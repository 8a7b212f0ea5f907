"""Flows, objectives, problems, data sets, trackers and more from outside of the package, on the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pushforward.datasets import register_dataset

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
    assert "Mean of samples" in report
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


def test_a_flow_of_a_plugin_that_fails_is_named(tmp_path: Path) -> None:
    text = "from pushforward.flows import register_flow\n@register_flow('bad-flow')\ndef layer(build, index):\n    "
    keys = ["fit", "iris", "flow=bad-flow", "train.steps=2"]
    for body, words in (
        ("return 5", "its function fails: TypeError: 'int' object is not iterable"),
        ("return [5]", "its function: expected a list of bijections; got int"),
        ("raise KeyError('mine')", "its function fails: KeyError: 'mine'"),
    ):
        (tmp_path / "bad.py").write_text(text + body + "\n")
        stderr = run("--plugin", "./bad.py", *keys, cwd=tmp_path, code=2).stderr
        assert stderr.splitlines() == [f"python -m pushforward fit: flow: bad-flow: {words}"]


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
    listed = run("--plugin", PLUGIN, "datasets", cwd=tmp_path).stdout
    assert re.search(r"^test-rows .* plugin .*Three hundred rows of two columns$", listed, re.MULTILINE)
    assert "did you mean 'test-rows'" in run("--plugin", PLUGIN, "fit", "test-row", cwd=tmp_path, code=3).stderr
    evaluated = run("--plugin", PLUGIN, "evaluate", "run", "test-rows", cwd=tmp_path).stdout
    assert evaluated.startswith("on the 300 rows of test-rows\n")
    with pytest.raises(ValueError, match=r"^register: the data set 'moons' exists already; take another name$"):
        register_dataset("moons")(lambda: [[0.0]])


@pytest.mark.parametrize("command", [["--help"], ["--version"]])
def test_help_loads_no_plugin(command: list[str], tmp_path: Path) -> None:
    run("--plugin", "missing", *command, cwd=tmp_path)


def lines(run: Path) -> list[list[Any]]:
    """What the tracker of the plugin wrote."""
    return [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]


def test_a_tracker_of_a_plugin_records_a_fit(tmp_path: Path) -> None:
    keys = ["flow=maf", "flow.hidden=8", "train.steps=20", "train.patience=1", "train.evaluate=false"]
    fit: list[str | Path] = ["--plugin", PLUGIN, "fit", "iris", *keys, "track=test_tracker"]
    assert "track:\n- test-tracker\n" in run(*fit, "--print-config", cwd=tmp_path).stdout
    run(*fit, "--out", "run", cwd=tmp_path)
    calls = lines(tmp_path / "run")
    assert calls[0] == ["open", "run", "maf", 20, "maf", "iris"]
    assert calls[-1] == ["finish", 0]
    assert ["model", True, 20] in calls
    assert any(call[0] == "summary" and "test/nll" in call[1] for call in calls)
    recorded = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [[one["kind"], one["step"]] for one in recorded if one["kind"] in ("train", "validation")]
    assert [call[1:3] for call in calls if call[0] == "log"] == steps
    # A resumed fit keeps its trackers, or takes others; one that fails is turned off with one line.
    unknown = run("fit", "--resume", "run", "train.steps=30", cwd=tmp_path, code=2).stderr
    assert unknown.endswith(
        "fit: track: unknown tracker 'test-tracker'; known: wandb; one of a plugin needs --plugin MODULE\n"
    )
    track = "track=test-broken-tracker,test-missing-tracker,test-tracker"
    done = run("--plugin", PLUGIN, "fit", "--resume", "run", "train.steps=30", track, cwd=tmp_path)
    off = "it is off for the rest of this fit, metrics.jsonl goes on"
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: tracker")] == [
        f"warning: tracker test-missing-tracker: ModuleNotFoundError: no module named 'elsewhere'; {off}",
        f"warning: tracker test-broken-tracker: ConnectionError: no server; {off}",
    ]
    more = lines(tmp_path / "run")[len(calls) :]  # both trackers write to this file
    opened = ["open", "run", "maf", 30, "maf", "iris"]
    assert [*more[:3], more[-1]] == [opened, opened, ["finish", 1], ["finish", 0]]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_tracker_of_a_plugin_is_finished_after_a_signal(tmp_path: Path) -> None:
    keys = ["flow=maf", "flow.hidden=8", "train.seconds=60", "track=test-tracker", "train.evaluate=false", "wandb=off"]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pushforward",
        "--plugin",
        PLUGIN,
        "fit",
        "moons",
        *keys,
        "--out",
        "run",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "run" / "lines.jsonl").is_file() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert lines(tmp_path / "run")[-1] == ["finish", 130]


@pytest.mark.slow
def test_a_method_of_a_plugin_in_a_benchmark(tmp_path: Path) -> None:
    common = ["--folds", "0", "--wandb", "off", "--out", "out", "--steps", "5"]
    benchmark: list[str | Path] = ["--plugin", PLUGIN, "benchmark", "test-rows", *common]
    done = run(*benchmark, "--methods", "test-broken-method,test_method,gaussian", "--json", cwd=tmp_path)
    assert "test-rows, split 0, test-broken-method: failed: ArithmeticError: no luck\n" in done.stderr
    table = json.loads(done.stdout)
    assert [(one["method"], one["kind"]) for one in table["methods"]] == [
        ("gaussian", "baseline"),
        ("test-broken-method", "plugin"),
        ("test-method", "plugin"),
    ]
    entries = {one["method"]: one for one in table["entries"]}
    assert list(entries["test-broken-method"]["failures"]) == ["ArithmeticError: no luck"]
    ours, gaussian = entries["test-method"], entries["gaussian"]
    assert (ours["finished"], ours["parameters"], ours["steps"]) == (1, 5, 2)
    assert ours["score"] == pytest.approx(gaussian["score"])  # the same density, from the same rows in the same units
    jobs = [json.loads(line) for line in (tmp_path / "out" / "jobs.jsonl").read_text().splitlines()]
    assert len({job["fingerprint"] for job in jobs if job["status"] == "finished"}) == 1
    assert all(f"PUSHFORWARD_PLUGINS={PLUGIN}" in job["command"] for job in jobs)
    for name in ("table.txt", "table.html"):
        assert "test-method" in (tmp_path / "out" / name).read_text()
    near = run(*benchmark, "--methods", "test-metod", cwd=tmp_path, code=2).stderr
    assert "unknown method 'test-metod'; did you mean 'test-method'? known: gaussian, " in near


@pytest.mark.slow
def test_results_of_a_plugin_stay_in_the_table_of_a_benchmark_without_it(tmp_path: Path) -> None:
    common = ["benchmark", "iris", "--folds", "0", "--wandb", "off", "--out", "out", "--steps", "5", "--json"]
    run("--plugin", PLUGIN, *common, "--methods", "test-method", cwd=tmp_path)
    table = json.loads(run(*common, "--methods", "gaussian", cwd=tmp_path).stdout)
    assert [one["method"] for one in table["methods"]] == ["gaussian", "test-method"]


def test_the_help_of_fit_says_what_the_flows_are(tmp_path: Path) -> None:
    shown = " ".join(run("--plugin", PLUGIN, "fit", "--help", cwd=tmp_path).stdout.split())
    assert "gaussian no layers: the base alone bayesian-network no layers" in shown
    assert "test-flow Couplings with the map of the plugin Keys: data.rows" in shown


@pytest.mark.slow
def test_the_examples_of_the_page_about_parts_of_ones_own_work(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert max(len(block.splitlines()) for block in blocks) <= 32
    (tmp_path / "my_parts.py").write_text("\n".join(blocks))
    plugin, few = ("--plugin", "my_parts.py"), ("flow=maf", "flow.hidden=8", "train.steps=20", "train.evaluate=false")
    keys = ("train.objective=trimmed-mle", "track=validation-csv")
    run(*plugin, "fit", "spiral", *few, *keys, "--out", "spiral", cwd=tmp_path)
    recorded = (tmp_path / "spiral" / "validation.csv").read_text().splitlines()
    assert [line.count(",") for line in recorded] == [2] * len(recorded) != []
    done = run(*plugin, "fit", "increments:iris", *few, "--out", "increments", cwd=tmp_path)
    assert "mean size" in done.stdout
    results = json.loads((tmp_path / "increments" / "results.json").read_text())
    assert (results["problem"], results["rows"]) == ("increments", 149)
    assert "Mean size" in (tmp_path / "increments" / "report.html").read_text()
    common = ["--folds", "0", "--steps", "5", "--wandb", "off", "--json"]
    table = run(*plugin, "benchmark", "spiral", *common, "--methods", "bayesian-mixture,gaussian", cwd=tmp_path).stdout
    scores = {entry["method"]: entry["score"] for entry in json.loads(table)["entries"]}
    assert scores["bayesian-mixture"] > scores["gaussian"]
