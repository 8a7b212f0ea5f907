"""Run folders: made, refused, opened, listed, and what happens when the process dies."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pushforward.train.overrides import load_config
from pushforward.train.runs import RunError, RunFolder, list_runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def make(root: Path, name: str, **facts: object) -> RunFolder:
    run = RunFolder.create(root / name)
    run.write_config(load_config("moons"))
    run.set_status("running", dataset="moons", flow="maf", **facts)
    return run


def test_named_after_label_and_time(root: Path) -> None:
    first = RunFolder.create(None, "my data.csv-maf", root)
    second = RunFolder.create(None, "my data.csv-maf", root)
    assert first.path != second.path
    assert first.name.startswith("my-data.csv-maf-2")
    assert first.checkpoints.is_dir()
    assert first.model.is_dir()
    assert first.status == "running"


def test_out_is_exactly_that_folder_and_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert RunFolder.create(out).path == out
    with pytest.raises(RunError) as caught:
        RunFolder.create(out)
    assert str(caught.value) == (f"{out}: expected a new or empty folder; it is not empty (runs are never overwritten)")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert RunFolder.create(empty).path == empty


def test_out_that_is_a_file_or_below_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "run"):
        with pytest.raises(RunError) as caught:
            RunFolder.create(out)
        assert str(caught.value) == f"{out}: expected a new or empty folder; got a file"
    assert file.read_text() == "mine"


def test_out_that_can_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # permissions do not bind root; the kernel's own folder does
        out, reason = Path("/proc/pushforward-run"), "no such file or directory"
    else:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        out, reason = locked / "run", "permission denied"
    with pytest.raises(RunError) as caught:
        RunFolder.create(out)
    assert str(caught.value) == f"{out}: cannot make the run folder: {reason}"


def test_json_is_whole_or_old(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(root, "a")
    value = {"nll": math.nan, "more": [math.inf, np.float32(0.5), np.arange(2)], "path": Path("x"), 3: (1, None, True)}
    run.write_json("results.json", {"old": 1})
    with open(run.results) as reader:
        run.write_json("results.json", value)
        assert json.load(reader) == {"old": 1}, "who reads meanwhile gets the old file, whole"
    expected = {"nll": None, "more": [None, 0.5, [0, 1]], "path": "x", "3": [1, None, True]}
    assert json.loads(run.results.read_text()) == expected

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError) as caught:
        run.write_json("results.json", {"nll": 1})
    assert str(caught.value) == f"{run.results}: cannot write: no space left on device"
    assert json.loads(run.results.read_text()) == expected
    assert not [path for path in run.path.iterdir() if path.name.startswith(".results")]


def test_environment_says_enough_and_not_who(root: Path) -> None:
    run = make(root, "a")
    run.write_environment(seed=3, device="cpu")
    facts = json.loads(run.environment.read_text())
    assert (facts["seed"], facts["device"]) == (3, "cpu")
    assert {"python", "pushforward", "torch", "numpy", "wandb"} <= set(facts["versions"])
    assert all(facts["versions"][name] for name in ("python", "pushforward", "torch"))
    assert os.uname().nodename not in json.dumps({key: facts[key] for key in facts if key != "argv"})


def test_open_by_path_or_name(root: Path) -> None:
    run = make(root, "power-maf")
    assert RunFolder.open(run.path).path == run.path
    assert RunFolder.open(Path("power-maf"), root=root).path == run.path
    assert load_config(None, [RunFolder.open(run.path).config]) == load_config("moons")


def test_open_what_is_no_run(root: Path, tmp_path: Path) -> None:
    wrong = root / "power-mfa"
    with pytest.raises(RunError) as caught:
        RunFolder.open(wrong, root=root)
    assert str(caught.value) == f"{wrong} is not a run folder (no config.yaml); no runs here"
    for name in ("moons-iaf", "power-maf"):
        make(root, name)
    with pytest.raises(RunError) as caught:
        RunFolder.open(wrong, root=root)
    runs_here = f"{root / 'power-maf'}, {root / 'moons-iaf'}"
    assert str(caught.value) == f"{wrong} is not a run folder (no config.yaml); runs here: {runs_here}"
    with pytest.raises(RunError, match=r"no config.yaml\); runs here: .*power-maf"):
        RunFolder.open(tmp_path / "elsewhere" / "power-mfa", root=root)


def test_list_runs(root: Path) -> None:
    assert list_runs(root) == []
    make(root, "one").set_status("finished", steps=10, val_nll=1.5)
    two = make(root, "two")
    two.write_json("results.json", {"steps": 20, "val_nll": 1.25, "test_nll": 1.3, "extra": "ignored"})
    two.set_status("diverged")
    broken = make(root, "broken")
    broken.state.write_text('{"status": "runn')
    listed = make(root, "list")
    listed.state.write_text("[1]")
    (root / "notes").mkdir()
    (root / "file").write_text("")
    runs = {run.name: run for run in list_runs(root)}
    assert set(runs) == {"one", "two", "broken", "list"}
    assert runs["broken"].status == runs["list"].status == "unreadable"
    one = runs["one"]
    assert (one.status, one.dataset, one.flow, one.steps, one.val_nll, one.test_nll) == (
        "finished",
        "moons",
        "maf",
        10,
        1.5,
        None,
    )
    assert one.started
    assert (runs["two"].status, runs["two"].steps, runs["two"].test_nll) == ("diverged", 20, 1.3)


def test_unknown_status(root: Path) -> None:
    with pytest.raises(ValueError, match=r"expected running, finished, stopped, failed, diverged; got 'done'"):
        make(root, "a").set_status("done")  # type: ignore[arg-type]


def test_killed_run_is_seen_and_can_be_claimed(root: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pushforward.train.runs import RunFolder\n"
        "run = RunFolder.create(Path(sys.argv[1]))\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root / "a")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        run = RunFolder(root / "a")
        assert run.status == "running"
        with pytest.raises(RunError) as caught:
            run.claim()
        assert str(caught.value) == f"{run.path}: in use by another process"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert run.status == "killed"
    run.claim()
    assert run.status == "running"
    run.release()
    assert run.status == "killed"
