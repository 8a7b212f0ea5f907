"""Real fits recorded in Weights & Biases by the real client: offline records and online runs."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pushforward.tracking.jsonl import read_metrics
from pushforward.tracking.wandb.record import WandbRecord, read_record
from tests.fixtures.wandb_server import WandbServer

TINY = ("flow=nsf-ar", "flow.layers=1", "flow.hidden=8", "train.steps=150", "train.log_every=25", "data.rows=600")


def fit(
    environment: Mapping[str, str], folder: Path, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pushforward", "fit", *arguments],
        env=dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def warnings_in(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "W&B" in line and not line.startswith("W&B   ")]


def records_of(run: Path) -> list[WandbRecord]:
    return [
        read_record(path) for path in sorted((run / "wandb").glob("*run-*")) if path.is_dir() and not path.is_symlink()
    ]


def check_content(record: WandbRecord, run: Path, history: list[dict[str, Any]], summary: Mapping[str, Any]) -> None:
    """Check everything that a dashboard shows, and that it agrees with metrics.jsonl and results.json."""
    rows = read_metrics(run / "metrics.jsonl")
    for kind, key in (("train", "train/nll"), ("validation", "val/nll"), ("validation", "best/val_nll")):
        expected = [(row["step"], row[key]) for row in rows if row["kind"] == kind]
        assert [(row["global_step"], row[key]) for row in history if key in row] == expected, key
        assert len(expected) > 4
    train = next(row for row in history if "train/nll" in row)
    assert train["train/nll"] == pytest.approx(train["train/base"] + train["train/log_det"])
    assert {"train/learning_rate", "perf/rows_per_s", "train/epoch", "seconds", "grad_norm/base"} <= set(train)
    validation = next(row for row in history if "val/nll" in row)
    assert {"log_det/standardize", "log_det/00-masked-autoregressive", "val/nll_se"} <= set(validation)
    results = json.loads((run / "results.json").read_text())
    for name, ours in (("best/val_nll", "val_nll"), ("test/nll", "test_nll"), ("test/nll_se", "test_nll_se")):
        assert summary[name] == pytest.approx(results[ours])
    assert summary["kl_to_truth"] == pytest.approx(results["kl_to_truth"])
    lines = [row for row in history if "baseline/gaussian" in row]
    assert [row["global_step"] for row in lines] == [0, 150]
    assert lines[0]["baseline/kde"] == lines[1]["baseline/kde"]
    shown = {key.partition("/path")[0] for row in history for key in row if key.startswith("pictures/")}
    pictures = {f"pictures/{name}" for name in ("density", "latent", "quantiles", "pit", "training")}
    assert {key for key in shown if key.count("/") == 1} == pictures
    assert any(key.startswith("tables/worst_rows") for row in history for key in row)


def test_an_offline_record_is_complete(tmp_path: Path, alone: dict[str, str]) -> None:
    done = fit(alone, tmp_path, "moons", *TINY, "--out", "run", "wandb.group=night", "wandb.tags=a,b")
    assert warnings_in(done) == []
    run = tmp_path / "run"
    (record,) = records_of(run)
    assert (record.group, record.job_type, record.exit_code) == ("night", "fit", 0)
    assert set(record.tags) == {"nsf-ar", "moons", "a", "b"}
    assert (record.config["flow.hidden"], record.config["train.steps"]) == (8, 150)
    assert (record.config["dataset"], record.config["features"], record.config["rows"]) == ("moons", 2, 600)
    assert record.metrics["*"].step_metric == "global_step"
    check_content(record, run, record.history, record.summary)
    artifacts = {artifact.type: artifact for artifact in record.artifacts}
    model = artifacts["model"]
    assert (model.name, model.aliases) == (f"model-{record.id}", ("best", "latest"))
    assert {file.path for file in model.files} == {"config.json", "model.safetensors"}
    for artifact in record.artifacts:
        for file in artifact.files:
            assert file.local.resolve().is_relative_to(run), "artifacts are in the run folder, not in the home folder"
            assert file.local.stat().st_size == file.size
    assert {file.local for file in model.files} == set((run / "model").iterdir())
    assert not [path for path in Path(alone["HOME"]).rglob("*") if "staging" in path.parts]


@pytest.mark.slow
def test_an_online_run_is_complete_and_can_be_resumed(tmp_path: Path, wandb_server: WandbServer) -> None:
    environment = wandb_server.environment
    done = fit(environment, tmp_path, "moons", *TINY, "--out", "run", "--wandb", "online")
    assert warnings_in(done) == []
    run_folder = tmp_path / "run"
    name = (run_folder / "wandb" / "id").read_text().strip()
    run = wandb_server.run(name)
    assert (run.state, run.exit_code, run.group) == ("finished", 0, None)
    assert run.config["flow.layers"] == 1
    check_content(WandbRecord(tmp_path), run_folder, run.history, run.summary)
    model = run.artifact(f"model-{name}")
    assert model.state == "COMMITTED"
    assert "best" in model.aliases
    for path, content in model.files.items():
        assert hashlib.md5(content).digest() == hashlib.md5((run_folder / "model" / path).read_bytes()).digest()
    assert set(model.files) == {"config.json", "model.safetensors"}
    rows = len(run.history)
    fit(environment, tmp_path, "--resume", "run", "train.steps=200", "train.evaluate=false")
    assert list(wandb_server.runs) == [name], "the same run continues"
    assert len(run.history) > rows
    assert max(row["global_step"] for row in run.history) == 200


@pytest.mark.slow
def test_divergence_sends_an_alert(tmp_path: Path, wandb_server: WandbServer) -> None:
    keys = ("flow=realnvp", "train.learning_rate=1e30", "train.gradient_clip=1e30", "train.steps=400", "data.rows=600")
    done = fit(wandb_server.environment, tmp_path, "moons", *keys, "--out", "run", "--wandb", "online", code=4)
    assert "not finite" in done.stderr
    (run,) = wandb_server.runs.values()
    assert run.exit_code == 4
    ((title, text),) = run.alerts
    assert title == "fit diverged"
    assert text.startswith("run: the loss is not finite")


@pytest.mark.slow
def test_the_option_precedes_the_variable_and_the_variable_precedes_the_key(
    tmp_path: Path, wandb_server: WandbServer
) -> None:
    short = ("moons", "flow=gaussian", "train.steps=5", "data.rows=300", "train.evaluate=false")
    online = wandb_server.environment
    fit(online | {"WANDB_MODE": "offline"}, tmp_path, *short, "--out", "variable")
    assert wandb_server.runs == {}
    assert len(records_of(tmp_path / "variable")) == 1
    fit(online | {"WANDB_MODE": "online"}, tmp_path, *short, "--out", "flag", "--wandb", "off")
    assert not (tmp_path / "flag" / "wandb").exists()
    fit(online, tmp_path, *short, "--out", "key")
    assert len(wandb_server.runs) == 1


def stopped_by(number: int, environment: Mapping[str, str], folder: Path, mode: str) -> Path:
    """Send a signal to a fit after some steps; return its run folder."""
    keys = (*TINY, "train.steps=1e6", "train.log_every=5")
    command = [sys.executable, "-m", "pushforward", "fit", "moons", *keys, "--wandb", mode]
    process = subprocess.Popen(
        [*command, "--out", "run"], env=dict(environment), cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    run = folder / "run"
    limit = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_bytes().splitlines()) > 40):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == (143 if number == signal.SIGTERM else -number), errors
    return run


@pytest.mark.parametrize("mode", ["offline", pytest.param("online", marks=pytest.mark.slow)])
def test_sigterm_loses_nothing_in_either_record(mode: str, tmp_path: Path, wandb_server: WandbServer) -> None:
    run = stopped_by(signal.SIGTERM, wandb_server.environment, tmp_path, mode)
    rows = read_metrics(run / "metrics.jsonl")
    if mode == "offline":
        (record,) = records_of(run)
        history, exit_code, summary = record.history, record.exit_code, record.summary
    else:
        (served,) = wandb_server.runs.values()
        history, exit_code, summary = served.history, served.exit_code, served.summary
    assert exit_code == 143
    for key in ("train/nll", "val/nll"):
        expected = [(row["step"], row[key]) for row in rows if key in row]
        assert [(row["global_step"], row[key]) for row in history if key in row] == expected
    assert rows[-1]["kind"] == "summary"
    assert summary["best/val_nll"] == rows[-1]["best/val_nll"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["wine", "moons"])
def test_images_of_samples_during_the_fit(data: str, tmp_path: Path, alone: dict[str, str]) -> None:
    """Without the limit on their time, which makes images rare in a short fit."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom pushforward.config import load_config\n"
        "from pushforward.experiment import callbacks, fit\n"
        "callbacks.PICTURE_PACE = 0.0\n"
        "keys = ['flow=nsf-ar', 'flow.layers=1', 'flow.hidden=8', 'train.seconds=4', 'train.patience=1', "
        "'train.evaluate=false', 'wandb=offline']\n"
        "fit(load_config(sys.argv[1], overrides=keys), out=Path('run'), quiet=True)\n"
    )
    command = [sys.executable, "-c", program, data]
    done = subprocess.run(command, env=alone, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (record,) = records_of(tmp_path / "run")
    shown = [row for row in record.history if any(key.startswith("progress/samples") for key in row)]
    assert 1 <= len(shown) <= 8
    pictures = sorted((tmp_path / "run" / "pictures" / "progress").glob("step-*.png"))
    assert [int(path.stem.removeprefix("step-")) for path in pictures] == [row["global_step"] for row in shown]
    with Image.open(pictures[-1]) as image:
        assert min(image.size) > 200
