"""The W&B workspace for fits: its charts, printing it without an account, saving it on the server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.config.read import load_config
from pushforward.experiment.run import fit
from tests.fixtures.wandb_server import WandbServer

pytest.importorskip("wandb_workspaces")


def dashboard(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["wandb", "dashboard", *arguments], prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The workspace, printed without account and network."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(home), "NETRC": str(home / "none"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "pushforward", "wandb", "dashboard", "--dry-run"]
    command += ["--entity", "e", "--project", "p", "--tag", "moons"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert list(home.iterdir()) == []
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["entity"], found["project"]) == ("e", "p")
    return found


def panels(workspace: dict[str, Any], section: str) -> list[dict[str, Any]]:
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return next(found["panels"] for found in sections if found["name"] == section)


def test_charts_show_the_metrics_of_fits(printed: dict[str, Any]) -> None:
    outcome = [panel["config"].get("metrics") for panel in panels(printed, "Outcome")]
    assert outcome[:3] == [["best/val_nll"], ["test/nll"], ["test/nll_se"]]
    assert panels(printed, "Outcome")[-1]["viewType"] == "Run Comparer"
    baselines = ["baseline/gaussian", "baseline/gaussian-mixture", "baseline/kde"]
    curves = [(panel["config"]["xAxis"], panel["config"]["metrics"]) for panel in panels(printed, "Likelihood")]
    assert curves == [
        ("global_step", ["val/nll", *baselines]),
        ("seconds", ["val/nll", *baselines]),
        ("global_step", ["train/nll"]),
        ("seconds", ["train/nll"]),
    ]
    training = [panel["config"] for panel in panels(printed, "Training")]
    named = [metric for chart in training for metric in chart["metrics"]]
    assert named == ["train/base", "train/log_det", "train/grad_norm", "train/learning_rate", "perf/rows_per_s"]
    layers = [chart["metricRegex"] for chart in training if chart.get("useMetricRegex")]
    assert layers == ["^log_det/.*", "^grad_norm/.*"]
    pictures = [panel["config"]["mediaKeys"] for panel in panels(printed, "Pictures")]
    drawn = ["training", "density", "corner", "latent", "quantiles", "pit", "weights"]
    assert {("progress/samples",), *((f"pictures/{name}",) for name in drawn)} <= set(map(tuple, pictures))
    losses = [panel["config"]["metrics"] for panel in panels(printed, "Losses of other objectives")]
    assert losses == [["val/loss"], ["train/loss"], ["train/kl_weight"]]
    assert "tables/worst_rows" in json.dumps(panels(printed, "Worst rows"))


FITS = {
    "target": ("target:banana", "flow=maf", "flow.layers=1"),
    "rows": ("iris", "data.response=petal width (cm)", "flow=maf", "flow.layers=1"),
    "autoencoder": ("digits", "train.objective=elbo"),
}


@pytest.mark.parametrize("kind", FITS)
def test_each_kind_of_fit_records_what_its_charts_and_pictures_show(
    kind: str, printed: dict[str, Any], tmp_path: Path
) -> None:
    keys = ("flow.hidden=8", "train.steps=5", "wandb=off")
    done = fit(load_config(FITS[kind][0], overrides=(*FITS[kind][1:], *keys)), out=tmp_path / "run", quiet=True)
    recorded = {key for line in done.run.metrics.read_text().splitlines() for key in json.loads(line)}
    drawn = {f"pictures/{path.stem}" for path in (tmp_path / "run" / "pictures").glob("*.png")}
    shown = {key for panel in panels(printed, "Pictures") for key in panel["config"]["mediaKeys"]}
    assert drawn <= shown
    if kind == "autoencoder":
        return
    for panel in panels(printed, f"Fits of kind {kind}"):
        toys = {"kl_to_truth"} if kind == "rows" else set()
        assert set(panel["config"]["metrics"]) <= recorded | toys, panel["config"]["metrics"]


def test_configuration_keys_are_flat_and_exist(printed: dict[str, Any]) -> None:
    text = json.dumps(printed)
    assert "config:flow.value." not in text
    parallel = panels(printed, "Many fits")[0]["config"]["columns"]
    accessors = [column["accessor"] for column in parallel]
    assert accessors[-1] == "summary:best/val_nll"
    known = load_config("moons").flat()
    for accessor in accessors[:-1]:
        key = accessor.removeprefix("config:").removesuffix(".value")
        assert accessor == f"config:{key}.value"
        assert key in known
    run_set = printed["spec"]["section"]["runSets"][0]
    columns = run_set["runFeed"]["columnOrder"]
    assert columns[0] == "run:displayName"
    assert {column[7:-6] for column in columns if column.startswith("config:")} <= set(known)
    assert run_set["filters"]["filters"][0]["value"] == ["moons"]
    grouped = [panel["config"]["groupBy"] for panel in panels(printed, "Many fits") if "groupBy" in panel["config"]]
    assert grouped == ["flow.name.value"]


@pytest.mark.usefixtures("wandb_user")
def test_the_workspace_is_saved_on_the_server(wandb_server: WandbServer) -> None:
    facts = json.loads(dashboard("--project", "density", "--name", "all fits", "--json").stdout)
    (view,) = wandb_server.views
    url = facts["url"]
    assert url.startswith(f"{wandb_server.url}/tester/density?nw=")
    assert view["name"] == f"nw-{url.rpartition('=')[2]}-v"
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("tester", "density", "all fits")
    assert '"accessor":"config:flow.layers.value"' in view["spec"]


@pytest.mark.usefixtures("wandb_user")
def test_without_key_or_network_the_error_is_one_line(
    wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb_server.misbehave("refuse")
    done = dashboard("--entity", "e", "--timeout", "1", code=1)
    assert done.stderr.startswith(f"pushforward wandb dashboard: the W&B server {wandb_server.url} cannot be reached")
    monkeypatch.setenv("WANDB_API_KEY", "")
    done = dashboard("--entity", "e", code=2)
    line = "pushforward wandb dashboard: W&B has no API key: run `wandb login`, or set WANDB_API_KEY\n"
    assert (done.stdout, done.stderr) == ("", line)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    for arguments in ((), ("--dry-run",)):
        done = dashboard(*arguments, code=2)
        assert done.stderr == (
            "pushforward wandb dashboard: a dashboard needs wandb-workspaces: pip install 'pushforward[workspaces]'\n"
        )


def test_a_mistyped_command_gets_a_suggestion() -> None:
    done = CliRunner().invoke(main, ["wandb", "dashbord"], prog_name="pushforward")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "Error: no command 'dashbord'; did you mean 'dashboard'?"
    assert Path("dashbord").exists() is False


def test_the_charts_have_the_baselines_of_a_fit() -> None:
    from pushforward.evaluate import fit_baselines
    from pushforward.tracking.wandb.workspace import BASELINE_NAMES

    rows = np.random.default_rng(0).standard_normal((60, 1))
    assert tuple(baseline.name for baseline in fit_baselines(rows, rows, rows, seed=0)) == BASELINE_NAMES
