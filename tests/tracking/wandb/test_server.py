"""The stand-in server with the real client: what it stores, and its failures."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pushforward.tracking.wandb.record import read_record
from tests.fixtures.graphql_answers import answer
from tests.fixtures.paths import ROOT
from tests.fixtures.wandb_server import KEY, WandbServer

ONLINE = """
import sys
import numpy as np
import wandb
settings = wandb.Settings(silent=True, console="off", finish_timeout=float(sys.argv[2]), init_timeout=5)
run = wandb.init(project="density", id="abc", name="a fit", group="g", job_type="fit", tags=["moons"], notes="n",
                 resume="allow", config={"flow.layers": 5}, settings=settings)
run.define_metric("*", step_metric="global_step")
for step in range(int(sys.argv[1]), int(sys.argv[1]) + 3):
    run.log({"train/nll": 2 - step, "global_step": step})
if sys.argv[3:] == ["wait"]:
    print("logged", flush=True)
    sys.stdin.readline()
else:
    run.log({"picture": wandb.Image(np.zeros((4, 4, 3), np.uint8)), "table": wandb.Table(["a"], [[1]])})
    with open("model.bin", "wb") as file:
        file.write(b"weights" + sys.argv[1].encode())
    model = wandb.Artifact("model-abc", type="model", metadata={"nll": 1})
    model.add_file("model.bin")
    model.add_reference("https://example.org/data.csv", checksum=False)
    run.log_artifact(model, aliases=["best"]).wait()
    run.alert("title", "text")
    run.summary["best/val_nll"] = 1.5
run.finish()
"""


def start(server: WandbServer, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ONLINE, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=server.environment, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def client(server: WandbServer, folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=server.environment, cwd=folder, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


API = """
import json, wandb
api = wandb.Api(timeout=20)
run = api.run(f"{api.default_entity}/density/abc")
model = api.artifact("tester/density/model-abc:best")
print(json.dumps({
    "state": run.state, "last": run.lastHistoryStep, "config": run.config, "tags": run.tags,
    "best": run.summary["best/val_nll"], "files": [file.name for file in run.files()],
    "logged": sorted(artifact.name for artifact in run.logged_artifacts()),
    "model": {file.name: file.size for file in model.files()}, "references": [
        entry.ref for entry in model.manifest.entries.values() if entry.ref],
    "versions": [found.version for found in api.artifacts("model", "tester/density/model-abc")],
}))
"""


def test_a_run_is_stored_and_resumed(tmp_path: Path, wandb_server: WandbServer) -> None:
    client(wandb_server, tmp_path, "-c", ONLINE, "0", "30")
    run = wandb_server.run("abc")
    assert (run.state, run.exit_code, run.name, run.group, run.tags) == ("finished", 0, "a fit", "g", ["moons"])
    assert (run.entity, run.project, run.fields["jobType"], run.fields["notes"]) == ("tester", "density", "fit", "n")
    assert [row.get("train/nll") for row in run.history] == [2, 1, 0, None]
    assert run.config == {"flow.layers": 5}
    assert run.summary["best/val_nll"] == 1.5
    assert run.alerts == [("title", "text")]
    assert run.history[3]["picture"]["path"] in run.files
    first = run.artifact("model-abc")
    assert (first.state, set(first.aliases), first.files) == (
        "COMMITTED",
        {"best", "latest"},
        {"model.bin": b"weights0"},
    )
    assert list(first.references.values()) == ["https://example.org/data.csv"]

    client(wandb_server, tmp_path, "-c", ONLINE, "3", "30")
    assert [row.get("train/nll") for row in run.history] == [2, 1, 0, None, -1, -2, -3, None]
    assert [row["_step"] for row in run.history] == list(range(8))
    shown: dict[str, Any] = json.loads(client(wandb_server, tmp_path, "-c", API).splitlines()[0])
    assert set(shown.pop("files")) == set(run.files)
    logged = shown.pop("logged")
    assert [name for name in logged if name.startswith("model")] == ["model-abc:v0", "model-abc:v1"]
    assert shown == {
        "state": "finished",
        "last": 7,
        "config": {"flow.layers": 5},
        "tags": ["moons"],
        "best": 1.5,
        "model": {"model.bin": 8},
        "references": ["https://example.org/data.csv"],
        "versions": ["v1", "v0"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", ["silent", "refuse", "error"])
def test_a_failure_during_a_run_keeps_the_local_record(how: Any, tmp_path: Path, wandb_server: WandbServer) -> None:
    with start(wandb_server, tmp_path, "0", "1", "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
        wandb_server.misbehave(how)
        begin = time.monotonic()
        process.communicate("\n", timeout=60)
    assert time.monotonic() - begin < 30
    assert wandb_server.run("abc").state == "running"
    (log,) = tmp_path.glob("wandb/run-*/run-abc.wandb")
    assert len(read_record(log).history) == 3
    wandb_server.behave()
    client(wandb_server, tmp_path, "-m", "wandb", "sync", "--include-online", str(log.parent))
    assert len(wandb_server.run("abc").history) == 3
    assert wandb_server.run("abc").state == "finished"


@pytest.mark.slow
def test_a_failure_can_start_after_some_rows(tmp_path: Path, wandb_server: WandbServer) -> None:
    wandb_server.misbehave("refuse", after_rows=3)
    with start(wandb_server, tmp_path, "0", "1") as process:
        process.communicate(timeout=60)
    assert len(wandb_server.run("abc").history) >= 3
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(wandb_server.url, timeout=5)


@pytest.mark.slow
def test_an_agent_runs_the_trials_of_a_sweep(tmp_path: Path, wandb_server: WandbServer) -> None:
    (tmp_path / "train.py").write_text(
        "import sys, wandb\nrun = wandb.init(settings=wandb.Settings(silent=True, console='off'))\n"
        "run.config.update({'arguments': sys.argv[1:]})\nrun.log({'x': 1})\nrun.finish()\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        "program: train.py\nmethod: bayes\nmetric: {name: best/val_nll, goal: minimize}\n"
        "parameters:\n  flow.layers: {values: [1, 2]}\n"
        "command: ['${env}', '" + sys.executable + "', '${program}', '${args_no_hyphens}']\n"
    )
    wandb_server.sweep_configurations = [{"flow.layers": 1}, {"flow.layers": 2}]
    output = client(wandb_server, tmp_path, "-m", "wandb", "sweep", "--project", "density", "sweep.yaml")
    assert "wandb agent tester/density/sweep1" in output
    client(wandb_server, tmp_path, "-m", "wandb", "agent", "tester/density/sweep1")
    runs = wandb_server.runs.values()
    assert [run.state for run in runs] == ["finished"] * 2
    assert [run.config["flow.layers"] for run in runs] == [1, 2]
    assert [run.config["arguments"] for run in runs] == [["flow.layers=1"], ["flow.layers=2"]]
    assert [run.fields["sweep"] for run in runs] == ["sweep1"] * 2


def ask(server: WandbServer, query: str, path: str = "/graphql") -> Any:
    request = urllib.request.Request(server.url + path, json.dumps({"query": query}).encode())
    request.add_header("Authorization", "Basic YXBpOjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc=")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_unknown_requests_are_recorded(tmp_path: Path) -> None:
    with WandbServer(tmp_path) as server:
        assert ask(server, "query Known { viewer { entity } }") == {"data": {"viewer": {"entity": "tester"}}}
        assert server.unknown == []
        ask(server, "mutation Grow { growRun(id: 1) { id } }")
        ask(server, "query Deep { viewer { entity shoeSize } }")
        assert ask(server, "", "/new/place") == 404
        assert ask(server, "query Broken { viewer { ") == 500
    assert server.unknown[:3] == ["Grow: growRun", "Deep: viewer.shoeSize", "POST /new/place"]
    assert server.unknown[3].startswith("POST /graphql: ValueError: not GraphQL")
    assert len(KEY) == 40


def test_the_fixture_fails_a_test_with_unknown_requests(tmp_path: Path) -> None:
    test = tmp_path / "test_more.py"
    test.write_text("def test_more(wandb_server):\n    wandb_server.unknown.append('Grow: growRun')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert "the stand-in server does not know: ['Grow: growRun']" in done.stdout
    assert "1 passed, 1 error" in done.stdout


def test_graphql_documents_are_answered() -> None:
    unknown: list[str] = []
    root = {
        "run": lambda name, flag=False: {"__typename": "Run", "name": name, "flag": flag, "tags": [{"a": 1, "b": 2}]},
        "none": None,
    }
    document = """
    query Q($n: String!, $yes: Boolean = true, $list: [Int!]! = [1, 2]) {  # a comment
      one: run(name: $n, flag: true) { ...F  tags { b @include(if: $yes) } missing }
      run(name: "x\\"y") { name flag @skip(if: $yes) ... on Other { name } ... on Run { tags { a } } }
      none { anything }
    }
    fragment F on Run { __typename flag tags { a } }
    """
    assert answer(document, {"n": "r"}, root, unknown.append) == {
        "one": {"__typename": "Run", "flag": True, "tags": [{"a": 1, "b": 2}], "missing": None},
        "run": {"name": 'x"y', "tags": [{"a": 1}]},
        "none": None,
    }
    assert unknown == ["Q: run.missing"]
