"""Run folders: creating, opening, listing and selecting them, and killed processes."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.common.errors import MAKE_ROOM, RunError
from pushforward.config.read import load_config
from pushforward.runs.folder import RunFolder
from pushforward.runs.listing import list_runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def make(root: Path, name: str, **facts: object) -> RunFolder:
    run = RunFolder.create(root / name)
    run.write_config(load_config("moons"))
    run.set_status("running", dataset="moons", flow="maf", **facts)
    return run


def test_a_run_is_named_after_label_and_time(root: Path) -> None:
    first = RunFolder.create(None, "my data.csv-maf", root)
    second = RunFolder.create(None, "my data.csv-maf", root)
    assert first.path != second.path
    assert first.name.startswith("my-data.csv-maf-2")
    assert first.checkpoints.is_dir()
    assert first.model.is_dir()
    assert first.status == "running"


def test_out_is_the_run_folder_and_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert RunFolder.create(out).path == out
    with pytest.raises(RunError) as caught:
        RunFolder.create(out)
    assert str(caught.value) == (f"{out}: expected a new or empty folder; it is not empty (runs are never overwritten)")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert RunFolder.create(empty).path == empty


def test_out_at_or_below_a_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "run"):
        with pytest.raises(RunError) as caught:
            RunFolder.create(out)
        assert str(caught.value) == f"{out}: expected a new or empty folder; got a file"
    assert file.read_text() == "mine"


def test_out_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root may write everywhere except in /proc
        out, reason = Path("/proc/pushforward-run"), "no such file or directory"
    else:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        out, reason = locked / "run", "permission denied"
    with pytest.raises(RunError) as caught:
        RunFolder.create(out)
    assert str(caught.value) == f"{out}: cannot make the run folder: {reason}"


def test_json_files_are_replaced_atomically(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(root, "a")
    value = {"nll": math.nan, "more": [math.inf, np.float32(0.5), np.arange(2)], "path": Path("x"), 3: (1, None, True)}
    run.write_json("results.json", {"old": 1})
    with open(run.results) as reader:
        run.write_json("results.json", value)
        assert json.load(reader) == {"old": 1}, "a reader that opened the old file reads all of it"
    expected = {"nll": None, "more": [None, 0.5, [0, 1]], "path": "x", "3": [1, None, True]}
    assert json.loads(run.results.read_text()) == expected

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError) as caught:
        run.write_json("results.json", {"nll": 1})
    assert str(caught.value) == f"{run.results}: cannot write: no space left on device; {MAKE_ROOM}"
    assert json.loads(run.results.read_text()) == expected
    assert not [path for path in run.path.iterdir() if path.name.startswith(".results")]


def test_a_run_that_cannot_be_started_leaves_no_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is free for the next attempt."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"state\.json: cannot write: no space left on device"):
            RunFolder.create(root / "a")
    assert not (root / "a").exists()
    RunFolder.create(root / "a").release()


def test_incomplete_files_of_killed_processes_are_removed_when_a_run_is_claimed(root: Path) -> None:
    run = make(root, "a")
    left = [run.checkpoints / ".last.pt.4711.partial", run.path / ".results.json.0a1b2c3d.partial"]
    for path in left:
        path.write_text("half")
    kept = run.checkpoints / "last.pt"
    kept.write_text("whole")
    run.claim()  # this process has done so already
    assert all(path.exists() for path in left)
    run.release()
    run.claim()
    assert not any(path.exists() for path in left)
    assert kept.exists()
    run.release()


def test_environment_has_versions_and_no_names(root: Path) -> None:
    run = make(root, "a")
    run.write_environment(seed=3, device="cpu")
    facts = json.loads(run.environment.read_text())
    assert (facts["seed"], facts["device"]) == (3, "cpu")
    assert {"python", "pushforward", "torch", "numpy", "wandb"} <= set(facts["versions"])
    assert all(facts["versions"][name] for name in ("python", "pushforward", "torch"))
    assert os.uname().nodename not in json.dumps({key: facts[key] for key in facts if key != "argv"})


def test_a_run_is_opened_by_path_or_name(root: Path) -> None:
    run = make(root, "power-maf")
    assert RunFolder.open(run.path).path == run.path
    assert RunFolder.open(Path("power-maf"), root=root).path == run.path
    assert load_config(None, [RunFolder.open(run.path).config]) == load_config("moons")


def test_opening_another_folder_lists_runs(root: Path, tmp_path: Path) -> None:
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


def test_runs_are_listed_with_their_status(root: Path) -> None:
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


@pytest.fixture
def many(root: Path) -> Path:
    """Several runs, and the trials of a sweep with a link to the best one."""
    for number, (flow, layers, nll) in enumerate([("maf", 5, 1.5), ("nsf-ar", 5, 1.25), ("nsf-c", 3, None)]):
        run = RunFolder.create(root / flow)
        rate = [f"train.learning_rate={nll}"] if nll else []
        run.write_config(load_config("moons", overrides=[f"flow={flow}", f"flow.layers={layers}", *rate]))
        run.set_status("finished" if nll else "failed", dataset="moons", flow=flow, started=f"2026-01-0{number + 1}")
        if nll is not None:
            run.write_json("results.json", {"test_nll": nll, "steps": 100 * layers, "kl_to_truth": nll / 100})
    for trial in ("0000", "0001"):
        run = RunFolder.create(root / "sweep-1" / "trials" / trial)
        run.write_config(load_config("power.csv", overrides=["flow=iaf", "flow.layers=2"]))
        run.set_status("finished", dataset="power", flow="iaf", started=f"2026-02-{trial}", steps=7)
    (root / "sweep-1" / "best").symlink_to(Path("trials") / "0001")
    return root


def listed(root: Path, *arguments: str) -> list[str]:
    done = CliRunner().invoke(main, ["runs", str(root), "--json", *arguments], prog_name="pushforward")
    assert done.exit_code == 0, done.output
    return [run["name"] for run in json.loads(done.stdout)["runs"]]


ALL = ["maf", "nsf-ar", "nsf-c", "sweep-1/trials/0000", "sweep-1/trials/0001"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ALL),
        ("--limit 2", ALL[:2]),
        ("--reverse --limit 1", [ALL[-1]]),
        ("--dataset moons", ALL[:3]),
        ("--flow nsf-*", ["nsf-ar", "nsf-c"]),
        ("--flow maf --flow iaf", [ALL[0], *ALL[3:]]),
        ("--status failed", ["nsf-c"]),
        ("--where flow.layers=5", ["maf", "nsf-ar"]),
        ("--where flow.layers!=5", ALL[2:]),
        ("--where flow.layers>=3 --where flow.layers<5", ["nsf-c"]),
        ("--where train.learning_rate>1.3", ["maf"]),
        ("--where train.learning_rate=auto --dataset moons", ["nsf-c"]),
        ("--where flow.name=nsf-*", ["nsf-ar", "nsf-c"]),
        ("--where test_nll<1.3", ["nsf-ar"]),
        ("--where kl_to_truth<=0.0125", ["nsf-ar"]),
        ("--where status=finished --where dataset=power", ALL[3:]),
        ("--where data.source=power.csv", ALL[3:]),
        ("--sort test_nll", ["nsf-ar", "maf", *ALL[2:]]),
        ("--sort test_nll --reverse", ["maf", "nsf-ar", *ALL[2:]]),
        ("--sort flow.layers --dataset moons", ["nsf-c", "maf", "nsf-ar"]),
        ("--sort flow --reverse --limit 2", ["nsf-c", "nsf-ar"]),
        ("--sort kl_to_truth --limit 1", ["nsf-ar"]),
    ],
)
def test_runs_are_filtered_and_sorted(arguments: str, expected: list[str], many: Path) -> None:
    assert listed(many, *arguments.split()) == expected


def test_a_link_to_a_listed_run_is_not_another_run(many: Path) -> None:
    assert listed(many / "sweep-1") == ["trials/0000", "trials/0001"], "the link to the best trial is not listed"
    (many / "sweep-1" / "trials").rename(many / "elsewhere")
    (many / "sweep-1" / "best").unlink()
    (many / "sweep-1" / "linked").symlink_to(many / "elsewhere" / "0000")
    assert listed(many / "sweep-1") == ["linked"]


def test_json_has_all_values_and_the_table_the_requested_ones(many: Path) -> None:
    arguments = ["runs", str(many), "--flow", "nsf-ar"]
    (run,) = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)["runs"]
    assert run["path"] == str(many / "nsf-ar")
    assert run["kl_to_truth"] == 0.0125
    assert run["config"]["flow.layers"] == "5"
    assert run["config"]["data.source"] == "moons"
    table = CliRunner().invoke(main, [*arguments, "--where", "flow.layers=5", "--sort", "kl_to_truth"]).stdout
    head, row = table.splitlines()
    assert head.split()[-2:] == ["kl_to_truth", "flow.layers"]
    assert row.split()[-2:] == ["0.0125", "5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--sort", "tst_nll"],
            "--sort: unknown field 'tst_nll'; did you mean 'test_nll'? known: name, status, dataset",
        ),
        (["--where", "flow.lyers=5"], "--where: unknown field 'flow.lyers'; did you mean 'flow.layers'? known: name"),
        (["--where", "flow.layers"], "--where: expected KEY=VALUE, or KEY and one of != < <= > >=; got 'flow.layers'"),
        (["--where", "steps<many"], "--where: expected a number after steps<; got 'many'"),
    ],
)
def test_wrong_conditions_are_one_line(arguments: list[str], message: str, many: Path) -> None:
    done = CliRunner().invoke(main, ["runs", str(many), *arguments], prog_name="pushforward")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"pushforward runs: {message}")
    assert done.stderr.count("\n") == 1


def test_a_folder_without_runs_or_that_is_a_run_is_one_line(many: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path, got in (
        (tmp_path / "none", "nothing"),
        (file, "a file"),
        (
            many / "nsf-ar",
            f"a run (pushforward report {many / 'nsf-ar'} shows it, pushforward runs {many} lists ",
        ),
    ):
        done = CliRunner().invoke(main, ["runs", str(path)], prog_name="pushforward")
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"pushforward runs: {path}: expected a folder with runs; got {got}")


def test_runs_are_listed_below_the_folder_runs_by_default(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(many.parent)
    found = json.loads(CliRunner().invoke(main, ["runs", "--json"]).stdout)["runs"]
    assert [run["name"] for run in found] == listed(many)
    monkeypatch.chdir(many)
    done = CliRunner().invoke(main, ["runs"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no runs below runs\n")


def test_no_match_is_a_message(many: Path) -> None:
    done = CliRunner().invoke(main, ["runs", str(many), "--dataset", "none"])
    assert (done.stdout, done.stderr) == ("", f"no runs below {many} match\n")


def test_an_unknown_status_is_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match=r"expected running, finished, stopped, failed, diverged; got 'done'"):
        make(root, "a").set_status("done")  # type: ignore[arg-type]


def test_a_killed_run_is_recognised_and_can_be_claimed(root: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pushforward.runs.folder import RunFolder\n"
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


def test_a_folder_of_a_process_that_was_killed_at_once_is_used_again(tmp_path: Path) -> None:
    """Killed between the folder and its configuration, a run left a folder that nothing could use."""
    out = tmp_path / "run"
    RunFolder.create(out).release()
    again = RunFolder.create(out)
    assert again.status == "running"
    with pytest.raises(RunError, match="not empty"):
        RunFolder.create(out)  # its process lives
    again.release()
    (out / "model" / "config.json").write_text("{}")
    with pytest.raises(RunError, match="not empty"):
        RunFolder.create(out)
