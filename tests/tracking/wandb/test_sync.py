"""Uploading offline records: the real client and its `wandb sync`, against the stand-in server."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.runs.folder import RunFolder
from pushforward.tracking.wandb import check as wandb_check, sync as wandb_sync
from pushforward.tracking.wandb.record import read_record
from tests.fixtures.wandb_server import Run, WandbServer

PICTURE = (  # a PNG of one pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)

RECORD = """
import os, sys
from pathlib import Path
out, mode, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.environ["WANDB_DATA_DIR"] = str(out / "wandb" / "data")
import wandb
settings = wandb.Settings(silent=True, console="off", finish_timeout=2)
run = wandb.init(mode=mode, project="density", id="abc", resume="allow", dir=str(out), config={"flow.name": "maf"},
                 tags=["moons"], name="night-1", group="night", notes="dark", job_type="trial", settings=settings)
run.define_metric("*", step_metric="global_step")
for step in range(first, last):
    run.log({"train/nll": 2 - step / 100, "global_step": step})
if len(sys.argv) > 5:
    print("recorded", flush=True)
    if sys.stdin.readline() == "kill\\n":
        os._exit(9)
else:
    (out / "a.png").write_bytes(bytes.fromhex(os.environ["PICTURE"]))
    run.log({"pictures/density": wandb.Image(str(out / "a.png")), "global_step": last})
    run.log({"tables/worst_rows": wandb.Table(columns=["row", "nll"], data=[[1, 2.5]]), "global_step": last})
    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    for path in sorted((out / "model").iterdir()):
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=["best"])
    run.alert("title", "text")
run.summary["best/val_nll"] = 1.25
run.finish()
"""


def record(out: Path, server: WandbServer, mode: str, first: int, last: int) -> None:
    """Record some steps in a run folder with the client."""
    if not (out / "config.yaml").exists():
        RunFolder(out).model.mkdir(parents=True)
        (out / "model" / "model.safetensors").write_bytes(b"weights" * 100)
        (out / "model" / "model.json").write_text("{}")
        (out / "config.yaml").write_text("flow: maf\n")
        (out / "state.json").write_text('{"status": "finished"}')
    command = [sys.executable, "-c", RECORD, str(out), mode, str(first), str(last)]
    subprocess.run(command, env=server.environment | {"PICTURE": PICTURE}, check=True, timeout=60)


@pytest.fixture(scope="session")
def moved(made_once: Callable[..., Path]) -> Path:
    """A run folder with two offline records that was moved after recording."""

    def fill(folder: Path) -> None:
        server = WandbServer(folder / "home")
        record(folder / "then" / "run", server, "offline", 0, 10)
        record(folder / "then" / "run", server, "offline", 10, 15)
        (folder / "then").rename(folder / "now")

    return made_once("moved", fill) / "now" / "run"


@pytest.fixture
def run(moved: Path, tmp_path: Path) -> Path:
    """A copy of the moved run."""
    return Path(shutil.copytree(moved, tmp_path / "elsewhere" / "run", symlinks=True))


Sync = Callable[..., Result]


@pytest.fixture
def sync(wandb_user: None, monkeypatch: pytest.MonkeyPatch) -> Sync:
    """Run ``pushforward wandb sync`` as a user of the stand-in server, with variables, and check the exit code."""
    monkeypatch.setattr(wandb_check, "SETTLE_SECONDS", 0.0)

    def call(*arguments: str | Path, code: int = 0, **variables: str) -> Result:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = CliRunner().invoke(main, ["wandb", "sync", *map(str, arguments)], prog_name="pushforward")
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        assert "Traceback" not in done.output
        return done

    return call


def one_line(done: Result) -> str:
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("upload", "uploaded before"))]
    assert done.stdout == ""
    assert len(lines) == 1, lines
    return lines[0].removeprefix("pushforward wandb sync: ")


def markers(run: Path) -> list[str]:
    return [path.parent.name[:11] for path in (run / "wandb").glob("*run-2*/*.synced")]


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_moved_run_is_uploaded_completely_and_only_once(run: Path, wandb_server: WandbServer, sync: Sync) -> None:
    before = contents(run)
    facts: dict[str, Any] = json.loads(sync(run, "--json").stdout)
    remote = wandb_server.run("abc")
    assert (remote.entity, remote.project, remote.state, remote.exit_code) == ("tester", "density", "finished", 0)
    assert [row["train/nll"] for row in remote.history if "train/nll" in row] == [2 - step / 100 for step in range(15)]
    assert remote.summary["best/val_nll"] == 1.25
    assert remote.config == {"flow.name": "maf"}
    assert remote.alerts == [("title", "text")] * 2
    model = remote.artifact("model-abc")
    assert model.files == {"model.safetensors": b"weights" * 100, "model.json": b"{}"}
    assert (model.state, set(model.aliases)) == ("COMMITTED", {"best", "latest"})
    table = next(artifact for artifact in remote.artifacts if artifact.type == "run_table")
    (body,) = table.files.values()
    assert json.loads(body)["data"] == [[1, 2.5]]
    pictures = [body for name, body in remote.files.items() if name.startswith("media/images/pictures/density")]
    assert set(pictures) == {bytes.fromhex(PICTURE)}
    assert (facts["rows"], facts["state"], len(facts["uploaded"]), facts["already"]) == (19, "finished", 2, [])
    assert facts["url"] == f"{wandb_server.url}/tester/density/runs/abc"
    assert {(a["name"], a["state"], a["files"]) for a in facts["artifacts"]} == {
        ("model-abc", "COMMITTED", 2),
        (table.name, "COMMITTED", 1),
    }
    assert {name: body for name, body in contents(run).items() if name in before} == before
    assert markers(run) == ["offline-run", "offline-run"]

    wandb_server.operations.clear()
    again = sync(run, "--entity", "tester")
    assert "UpsertBucket" not in wandb_server.operations
    assert "Run" in wandb_server.operations, "it was checked again"
    assert again.stderr.startswith("uploaded before: offline-run-")
    assert again.stdout.splitlines()[0] == f"uploaded before and checked: {facts['url']}"
    model.files.popitem()
    lost = one_line(sync(run, "--entity", "tester", code=1))
    assert lost.endswith("of the artifact model-abc; nothing local is lost, upload it again with --force")


@pytest.mark.slow
def test_force_replaces_rows(run: Path, wandb_server: WandbServer, sync: Sync) -> None:
    sync(run)
    (row, *_) = wandb_server.run("abc").rows.values()
    row["train/nll"] = 0
    facts = json.loads(sync(run, "--force", "--json").stdout)
    assert (len(facts["uploaded"]), facts["rows"]) == (2, 19)
    assert wandb_server.run("abc").history[0]["train/nll"] == 2


@pytest.mark.slow
def test_a_fit_recorded_offline_is_uploaded(tmp_path: Path, wandb_server: WandbServer, sync: Sync) -> None:
    command = [
        sys.executable,
        "-m",
        "pushforward",
        "fit",
        "moons",
        "--out",
        str(tmp_path / "then"),
        "--wandb",
        "offline",
    ]
    command += ["train.steps=20", "flow=maf", "flow.layers=1", "flow.hidden=8"]
    subprocess.run(command, env=wandb_server.environment, cwd=tmp_path, check=True, timeout=120, capture_output=True)
    (tmp_path / "then").rename(tmp_path / "now")
    facts = json.loads(sync(tmp_path / "now", "--json").stdout)
    (remote,) = wandb_server.runs.values()
    recorded = read_record(next((tmp_path / "now").glob("wandb/offline-run-*")))
    assert facts["rows"] == len(recorded.history) == len(remote.history) > 0
    assert (remote.project, remote.state, remote.name) == ("pushforward", "finished", "then")
    assert remote.config["flow.name"] == "maf"
    assert {artifact.name for artifact in remote.artifacts} == {artifact.name for artifact in recorded.artifacts}
    for artifact in remote.artifacts:
        if artifact.type == "model":
            model = {path.name: path.read_bytes() for path in (tmp_path / "now" / "model").iterdir()}
            assert artifact.files == model


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_missing_file_is_an_error_before_the_upload(
    damage: str, run: Path, wandb_server: WandbServer, sync: Sync
) -> None:
    if damage == "gone":
        (run / "model" / "model.safetensors").unlink()
    else:
        (run / "model" / "model.safetensors").write_bytes(b"WEIGHTS" * 100)
    line = one_line(sync(run, code=1))
    assert line.startswith(f"{run}: model.safetensors of the artifact model-abc missing or changed since it was rec")
    assert "/then/run/model/model.safetensors)" in line
    assert wandb_server.operations == []
    assert markers(run) == []


def test_a_missing_image_is_an_error(run: Path, sync: Sync) -> None:
    for path in run.glob("wandb/*/files/media/images/pictures/*"):
        path.unlink()
    assert ".png missing or changed since it was recorded (" in one_line(sync(run, code=1))


def test_a_file_that_the_server_loses_is_an_error(run: Path, wandb_server: WandbServer, sync: Sync) -> None:
    wandb_server.lose = {"model.safetensors"}
    line = one_line(sync(run, "--entity", "team", code=1))
    lacks = "the W&B server lacks model.safetensors of the artifact model-abc"
    assert line == f"{run}: {lacks}; nothing local is lost, upload it again"
    assert markers(run) == [], "the client's markers would prevent another upload"
    assert {run.entity for run in wandb_server.runs.values()} == {"team"}
    assert {artifact.entity for artifact in wandb_server.artifacts} == {"team"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "W&B has no API key: run `wandb login`, or set WANDB_API_KEY"),
        ("f" * 40, "W&B does not take the API key (Failed to verify credentials"),
    ],
)
def test_a_wrong_key_is_one_line(key: str, message: str, run: Path, sync: Sync) -> None:
    assert one_line(sync(run, code=2, WANDB_API_KEY=key)).startswith(message)
    assert markers(run) == []


@pytest.mark.parametrize(
    "how", ["refuse", pytest.param("silent", marks=pytest.mark.slow), pytest.param("error", marks=pytest.mark.slow)]
)
def test_without_network_the_command_ends_soon(how: Any, run: Path, wandb_server: WandbServer, sync: Sync) -> None:
    before = contents(run)
    wandb_server.misbehave(how)
    start = time.monotonic()
    line = one_line(sync(run, "--timeout", "1", code=1))
    assert time.monotonic() - start < 30
    assert line.startswith(f"the W&B server {wandb_server.url} cannot be reached (")
    assert contents(run) == before


@pytest.mark.slow
def test_an_interrupted_upload_can_be_repeated(
    run: Path, wandb_server: WandbServer, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sync, "UPLOAD_SECONDS", 5.0)
    wandb_server.misbehave("silent", after_rows=1)
    line = one_line(sync(run, "--entity", "tester", code=1))
    assert line == "the upload was stopped after 5 s: check the network; nothing local is lost"
    assert 0 < len(wandb_server.run("abc").history) < 19
    wandb_server.behave()
    monkeypatch.setattr(wandb_sync, "UPLOAD_SECONDS", 60.0)
    sync(run, "--entity", "tester")
    assert len(wandb_server.run("abc").history) == 19
    assert markers(run) == ["offline-run", "offline-run"]


def test_incomplete_damaged_and_empty_records(run: Path, wandb_server: WandbServer, sync: Sync) -> None:
    first, second = sorted(run.glob("wandb/offline-run-*/run-abc.wandb"))
    data = bytearray(first.read_bytes())
    data[300] ^= 1
    first.write_bytes(data)
    assert one_line(sync(run, code=1)).startswith(f"{first}: damaged at byte ")
    first.write_bytes(first.read_bytes()[:7])
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 4])
    rows = len(read_record(second).history)
    facts = json.loads(sync(run, "--json", "--entity", "tester").stdout)
    assert facts["rows"] == rows > 0
    assert [row["global_step"] for row in wandb_server.run("abc").history] == list(range(10, 10 + rows))


def test_a_running_fit_is_not_uploaded(run: Path, sync: Sync) -> None:
    code = "import sys, time; from pathlib import Path; from pushforward.runs.folder import RunFolder\n"
    code += "RunFolder(Path(sys.argv[1])).claim(); print('claimed', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as fit:
        assert fit.stdout is not None
        fit.stdout.readline()
        line = one_line(sync(run, code=1))
        assert fit.stdin is not None
        fit.stdin.close()
    assert line == f"{run}: in use by another process; upload it when its fit has ended"


def test_a_run_without_records_is_an_error(run: Path, sync: Sync) -> None:
    shutil.rmtree(run / "wandb")
    assert one_line(sync(run, code=1)) == (
        f"{run}: expected W&B records in {run}/wandb; got none (was it fitted with wandb=off?)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", "lose the network"])
def test_an_interrupted_online_run_is_completed(
    end: str, tmp_path: Path, wandb_server: WandbServer, sync: Sync
) -> None:
    out = tmp_path / "run"
    record(out, wandb_server, "online", 0, 5)
    assert json.loads(sync(out, "--json", "--entity", "tester").stdout)["uploaded"] == [], "the server has everything"
    command = [sys.executable, "-c", RECORD, str(out), "online", "5", "300", "stop"]
    environment = wandb_server.environment
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as fit:
        assert fit.stdout is not None
        assert fit.stdout.readline() == "recorded\n"
        if end != "kill":
            wandb_server.misbehave("refuse")
        fit.communicate("kill\n" if end == "kill" else "\n", timeout=60)
    wandb_server.behave()
    written = sum(len(read_record(path).history) for path in out.glob("wandb/run-*/*.wandb"))
    facts = json.loads(sync(out, "--json", "--entity", "tester").stdout)
    assert facts["rows"] == written == len(wandb_server.run("abc").history)
    if end != "kill":
        assert written == 302
        assert facts["state"] == "finished"


def all_but_artifacts(run: Run) -> dict[str, Any]:
    """Everything about a run except its artifacts, which must not change when its model is added."""
    about = ("displayName", "groupName", "jobType", "tags", "notes", "host")
    summary = {key: value for key, value in run.summary.items() if key != "_step"}  # records have no _step
    return {
        **{name: run.fields.get(name) for name in about},
        **{"config": dict(run.config), "summary": summary, "rows": run.history, "alerts": list(run.alerts)},
        **{"state": run.state, "exit_code": run.exit_code, "events": list(run.events)},
        **{name: run.files.get(name) for name in ("wandb-metadata.json", "requirements.txt")},
    }


def without_model(out: Path, server: WandbServer) -> None:
    """Make the run folder of an online run whose model was not recorded."""
    RunFolder(out).model.mkdir(parents=True)
    (out / "model" / "model.safetensors").write_bytes(b"weights" * 100)
    (out / "model" / "config.json").write_text("{}")
    (out / "config.yaml").write_text("flow: maf\n")
    (out / "results.json").write_text('{"run": "run", "val_nll": 1.25, "test_nll": null}')
    command = [sys.executable, "-c", RECORD, str(out), "online", "0", "5", "stop"]
    subprocess.run(command, env=server.environment, check=True, timeout=60, input=b"\n", stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_model_that_no_record_contains_is_added(tmp_path: Path, wandb_server: WandbServer, sync: Sync) -> None:
    out = tmp_path / "run"
    without_model(out, wandb_server)
    remote = wandb_server.run("abc")
    before = all_but_artifacts(remote)
    assert (before["displayName"], before["tags"], before["summary"]["best/val_nll"]) == ("night-1", ["moons"], 1.25)
    ignored = {"WANDB_TAGS": "other", "WANDB_RUN_GROUP": "other", "WANDB_NOTES": "other", "WANDB_NAME": "other"}
    done = sync(out, **ignored)
    assert done.stderr.splitlines()[1:] == ["uploading the model, which no record of the run contains"]
    assert done.stdout.splitlines()[-1] == f"the model was added from {out}/model: no record of the run contained it"
    assert all_but_artifacts(remote) == before
    (model,) = remote.artifacts
    assert (model.name, model.type, model.state) == ("model-abc", "model", "COMMITTED")
    assert set(model.aliases) == {"best", "latest"}
    assert model.files == {"model.safetensors": b"weights" * 100, "config.json": b"{}"}
    assert model.metadata == {"run": "run", "val_nll": 1.25, "test_nll": None}
    assert markers(out) == ["offline-run"]
    wandb_server.operations.clear()
    again = json.loads(sync(out, "--json").stdout)
    assert (again["uploaded"], again["notes"], again["rows"]) == ([], [], 5)
    assert "UpsertBucket" not in wandb_server.operations


@pytest.mark.slow
def test_a_model_whose_upload_fails_is_uploaded_by_the_next_command(
    tmp_path: Path, wandb_server: WandbServer, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    without_model(out, wandb_server)
    remote = wandb_server.run("abc")
    before = all_but_artifacts(remote)
    monkeypatch.setattr(wandb_sync, "UPLOAD_SECONDS", 0.1)
    assert one_line(sync(out, code=1)).startswith("the upload was stopped after 0 s")
    monkeypatch.setattr(wandb_sync, "UPLOAD_SECONDS", 60.0)
    assert len(json.loads(sync(out, "--json").stdout)["uploaded"]) == 1
    assert len(list(out.glob("wandb/offline-run-*"))) == 1, "it is not recorded again"
    assert all_but_artifacts(remote) == before
    assert set(remote.artifact("model-abc").files) == {"model.safetensors", "config.json"}
    assert len(json.loads(sync(out, "--json", "--force").stdout)["uploaded"]) == 2
    assert all_but_artifacts(remote)["summary"] == before["summary"]


@pytest.mark.parametrize("missing", ["results.json", pytest.param("model/config.json", marks=pytest.mark.slow)])
def test_no_model_is_added_for_an_unfinished_fit(
    missing: str, tmp_path: Path, wandb_server: WandbServer, sync: Sync
) -> None:
    out = tmp_path / "run"
    without_model(out, wandb_server)
    (out / missing).unlink()
    facts = json.loads(sync(out, "--json").stdout)
    assert (facts["uploaded"], facts["artifacts"], len(facts["notes"])) == ([], [], 1)
    assert facts["notes"][0].startswith("no model: ")


@pytest.mark.slow
def test_a_fit_that_lost_its_network_is_completed(tmp_path: Path, wandb_server: WandbServer, sync: Sync) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pushforward", "fit", "moons", "--out", str(out), "--wandb", "online"]
    command += ["flow=maf", "flow.layers=1", "flow.hidden=8", "data.rows=500", "train.batch_size=32"]
    command += ["train.steps=1200", "train.log_every=100", "train.evaluate=false"]
    command += ["wandb.group=night", "wandb.tags=a,b"]
    environment = wandb_server.environment | {"WANDB_FINISH_TIMEOUT": "2", "WANDB_INIT_TIMEOUT": "20"}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as fit:
        limit = time.monotonic() + 60
        while not wandb_server.runs:
            assert fit.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        wandb_server.misbehave("refuse")
        _, errors = fit.communicate(timeout=120)
    assert fit.returncode == 0, errors
    assert "pushforward wandb sync" in errors
    (remote,) = wandb_server.runs.values()
    assert remote.artifacts == []
    wandb_server.behave()
    facts = json.loads(sync(out, "--json").stdout)
    assert facts["notes"] == [f"the model was added from {out}/model: no record of the run contained it"]
    assert [Path(name).name.partition("-run-")[0] for name in facts["uploaded"]][-1] == "offline"
    online = read_record(next(out.glob("wandb/run-*/*.wandb")))
    assert len(remote.history) == len(online.history) == facts["rows"] > 10
    assert {"train/nll", "val/nll"} <= {key for row in remote.history for key in row}
    results = json.loads((out / "results.json").read_text())
    for name, ours in (("best/val_nll", "val_nll"), ("test/nll", "test_nll"), ("stop_reason", "stop_reason")):
        assert remote.summary[name] == results[ours]
    assert remote.summary["_runtime"] == online.summary["_runtime"]
    assert remote.config == {key: value for key, value in online.config.items() if key != "_wandb"}
    assert (remote.name, remote.group, set(remote.tags)) == ("run", "night", {"maf", "moons", "a", "b"})
    assert (remote.state, remote.exit_code) == ("finished", 0)
    model = remote.artifact(f"model-{remote.id}")
    assert model.files == {path.name: path.read_bytes() for path in (out / "model").iterdir()}
    assert model.metadata == results
    wandb_server.operations.clear()
    again = json.loads(sync(out, "--json").stdout)
    assert (again["uploaded"], again["rows"]) == ([], facts["rows"])
    assert "UpsertBucket" not in wandb_server.operations


def test_digests_are_those_of_the_files(run: Path) -> None:
    record = read_record(next(run.glob("wandb/offline-run-*")))
    model = next(artifact for artifact in record.artifacts if artifact.type == "model")
    for file in model.files:
        content = (run / "model" / file.path).read_bytes()
        assert file.digest == base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        assert file.size == len(content)
        assert file.local.parts[-4:] == ("then", "run", "model", file.path)
