"""The command ``pushforward benchmark``: real fits in real processes, resumed, stopped, and in Weights & Biases."""

import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pushforward
from pushforward.benchmark.entries import BEST
from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Budget, fit_command
from pushforward.benchmark.published import PUBLISHED
from pushforward.benchmark.run import benchmark_plan
from pushforward.benchmark.suites import SUITES, suite_of
from pushforward.cli import main
from pushforward.common.errors import RunError
from pushforward.config.read import load_config
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import read_row_scores
from tests.fixtures.benchmark import TINY, assert_well_formed, invoke, posix, recorded_jobs, write_table_with_text
from tests.fixtures.wandb_server import WandbServer


@pytest.fixture(scope="module")
def done(data: Path, made_once: Callable[..., Path]) -> tuple[Path, dict[str, Any]]:
    """A benchmark by the command: two baselines, a peer and a fit on one split."""

    def fill(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            methods = f"gaussian,kde,nflows:maf:matched,{TINY}"
            options = ("--folds", "0", "--steps", "20", "--wandb", "off", "--json", "--out", folder / "out")
            result = invoke(data, "--methods", methods, *options)
        assert result.stdout.count("\n") == 1
        (folder / "stdout.json").write_text(result.stdout)

    made = made_once("benchmark", fill)
    return made / "out", json.loads((made / "stdout.json").read_text())


def without_path(found: dict[str, Any]) -> dict[str, Any]:
    """What the command printed, without the path of its folder."""
    return {key: value for key, value in found.items() if key != "out"}


def test_every_job_is_run_and_recorded(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    jobs = {job["method"]: job for job in recorded_jobs(folder)}
    assert list(jobs) == ["gaussian", "kde", "nflows:maf:matched", TINY]
    assert {job["status"] for job in jobs.values()} == {"finished"}
    assert {job["fingerprint"] for job in jobs.values()} == {jobs["kde"]["fingerprint"]}
    assert [job["steps"] for job in jobs.values()][2:] == [20, 20]
    # Every method standardises with the same numbers, so that the scores are in the same units.
    scales = [job["log_scale"] for job in jobs.values()]
    assert scales == pytest.approx([scales[0]] * 4, rel=1e-9)
    assert scales[0] > 2  # log 21 + log 3, about
    entries = {entry["method"]: entry for entry in found["entries"]}
    for method, job in jobs.items():
        rows, log_probs = read_row_scores(folder / job["scores"])
        assert len(rows) == 20
        assert entries[method]["score"] == pytest.approx(log_probs.mean() + scales[0])
        assert entries[method]["se_rows"] == pytest.approx(log_probs.std(ddof=1) / math.sqrt(20))
        assert entries[method]["se_runs"] is None
    ranked = sorted(entries.values(), key=lambda entry: -entry["score"])
    assert [entry["rank"] for entry in ranked] == [1, 2, 3, 4]
    assert ranked[0]["mark"] == BEST
    best, last = (read_row_scores(folder / jobs[ranked[place]["method"]]["scores"])[1] for place in (0, -1))
    assert ranked[-1]["behind_best"] == pytest.approx((best - last).mean())
    assert ranked[-1]["behind_se_rows"] == pytest.approx((best - last).std(ddof=1) / math.sqrt(20))
    assert len(found["differences"]) == 6
    for gap in found["differences"]:
        first, second = (entries[gap[which]]["score"] for which in ("first", "second"))
        assert gap["better_by"] == pytest.approx(first - second)


def test_a_fit_is_an_ordinary_run_folder(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    job = recorded_jobs(folder)[-1]
    run = RunFolder.open((folder / job["scores"]).parent)
    assert run.status == "finished"
    results = json.loads(run.results.read_text())
    assert -results["test_nll"] == pytest.approx(job["log_prob"])
    assert -results["test_nll_standardized"] == pytest.approx(job["log_prob"] + job["log_scale"])
    # The recorded command is the one that ran.
    words = shlex.split(job["command"])
    assert words[:3] == ["env", "OMP_NUM_THREADS=1", "pushforward"]
    argv = json.loads(run.environment.read_text())["argv"]
    assert [word for word in argv if word != "--json"] == words[2:]
    assert {"train.evaluate=false", "data.seed=0", "data.dequantize=auto"} <= set(words)


def test_the_table_is_written_as_json_text_and_page(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    assert json.loads((folder / "table.json").read_text()) == without_path(found)
    text = (folder / "table.txt").read_text(encoding="utf-8")
    parts = (
        "standardised on the training part",
        "± one standard error over the test rows",
        "200 x 2",
        "20 steps a fit",
    )
    assert all(part in text for part in parts)
    assert all(f"\n{method['label'][:16]}" in text for method in found["methods"])
    page = (folder / "table.html").read_text(encoding="utf-8")
    assert_well_formed(page)
    for entry in found["entries"]:
        assert f"{entry['score']:.2f}".replace("-", "\u2212") in page


def test_the_same_command_resumes(done: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    """No job runs twice; another method runs alone, and the table has all methods."""
    made, found = done
    folder = tmp_path / "out"
    shutil.copytree(made, folder)
    before = (folder / "jobs.jsonl").read_bytes()
    common = (data, "--steps", "20", "--wandb", "off", "--out", folder)
    again = invoke(*common, "--folds", "0", "--methods", f"gaussian,kde,nflows:maf:matched,{TINY}", "--json")
    assert without_path(json.loads(again.stdout)) == without_path(found)
    assert (folder / "jobs.jsonl").read_bytes() == before
    more = json.loads(invoke(*common, "--folds", "0", "--methods", "gaussian-mixture", "--json").stdout)
    methods = ["gaussian", "gaussian-mixture", "kde", "nflows:maf:matched", TINY]
    assert [method["method"] for method in more["methods"]] == methods
    assert len(recorded_jobs(folder)) == 5
    # The table says if its jobs are of several versions of the program.
    assert more["notes"] == []
    version = recorded_jobs(folder)[0]["version"]
    assert version.startswith(pushforward.__version__)
    changed = before.decode().replace(json.dumps(version), '"0.0.9"', 1)
    (folder / "jobs.jsonl").write_text(changed, encoding="utf-8")
    invoke(*common, "--folds", "0", "--methods", "gaussian")
    assert f"runs of 2 versions of the program: 0.0.9, {version}" in (folder / "table.txt").read_text()


def test_other_conditions_are_refused(done: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    folder, _ = done
    before = sorted(path.name for path in folder.iterdir())
    line = invoke(data, "--steps", "30", "--out", folder, "--wandb", "off", code=2).stderr
    assert line == (
        f"pushforward benchmark: {folder}: holds a benchmark under other conditions: --steps 20, not 30; "
        "name another --out\n"
    )
    line = invoke(data, "--seconds", "5", "--protocol", "tenths", "--out", folder, code=2).stderr
    assert (
        "--protocol none, not tenths; --seconds none, not 5; --steps 20, not none; threads of a fit none, not 1" in line
    )
    assert "iris" in invoke("iris", "--steps", "20", "--out", folder, "--list").stdout
    assert sorted(path.name for path in folder.iterdir()) == before
    (tmp_path / "file").write_text("")
    assert "got a file" in invoke("iris", "--out", tmp_path / "file", code=2).stderr
    line = invoke("iris", "--out", tmp_path, code=2).stderr
    assert "it holds no benchmark; name another one with --out" in line
    assert line.count("\n") == 1
    with Occupied(folder):
        assert "in use by another process" in invoke(data, "--steps", "20", "--out", folder, code=1).stderr


class Occupied:
    """Another process that works in a folder."""

    def __init__(self, folder: Path) -> None:
        script = "import sys; from pathlib import Path; from pushforward.runs.folder import RunFolder as R; "
        script += "r = R(Path(sys.argv[1])); r.claim(); print('claimed', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", script, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "claimed\n"

    def __exit__(self, *error: object) -> None:
        self.process.communicate("")


@pytest.mark.slow
def test_a_file_that_changes_is_reported_and_its_jobs_run_again(tmp_path: Path) -> None:
    path, out = write_table_with_text(tmp_path / "own.csv"), tmp_path / "out"
    common = (path, "--drop", "kind", "--folds", "0", "--steps", "1", "--wandb", "off", "--out", out)
    invoke(*common, "--methods", "gaussian,kde")
    before = recorded_jobs(out)
    assert {len(job["sha256"]) for job in before} == {64}
    path.write_text(path.read_text().replace("red,0", "red,1", 1))
    done = invoke(*common, "--methods", "kde")
    line = "own: the data have changed since 2 runs were made; they are set aside, and run again on request"
    assert line in done.stderr
    assert "own: the data have changed since 1 run was made; it is set aside" in (out / "table.txt").read_text()
    assert "Gaussian" not in (out / "table.txt").read_text()
    again = recorded_jobs(out)
    assert [job["method"] for job in again] == ["gaussian", "kde", "kde"]
    assert again[2]["sha256"] != again[1]["sha256"]


def test_options_choose_the_columns(tmp_path: Path) -> None:
    path, out = write_table_with_text(tmp_path / "own.csv"), tmp_path / "out"
    line = invoke(path, "--methods", "gaussian", "--out", out, code=3).stderr
    assert line == (
        "pushforward benchmark: own.csv: column 'kind' holds text ('red' in row 1)\n"
        "leave columns out with --drop kind\n"
    )
    line = invoke(path, "--drop", "kid", "--methods", "gaussian", "--out", out, code=3).stderr
    assert "own.csv: --drop names 'kid'; did you mean 'kind'?" in line
    assert "expected power" in invoke(path, "--list", "--columns", "expected power", code=3).stderr
    assert not out.exists()
    planned = json.loads(invoke(path, "--drop", "kind", "--list", "--json").stdout)
    assert planned["jobs"] == 25
    plan = benchmark_plan([str(path)], columns="x,y", drop='["a, b", c]', folds="0", methods=["gaussian"]).plan
    assert plan.suite.drop == ("a, b", "c")
    keys = plan.jobs[0].data_overrides(plan.suite)
    assert keys == ["data.dequantize=auto", "data.columns=x,y", 'data.drop=["a, b", "c"]', "data.seed=0"]
    assert load_config(str(path), overrides=keys).data.drop == plan.suite.drop
    # A folder has one choice of columns.
    with BenchmarkFolder.open(out, plan.suite, plan.budget):
        pass
    with pytest.raises(RunError, match=r"--columns x,y, not none; --drop .*, not none"):
        BenchmarkFolder.open(out, suite_of([str(path)]), plan.budget)


def test_set_in_a_file_name_is_unique_for_each_data_set(tmp_path: Path) -> None:
    """The plan and the fit use the same file; two data sets with the same name are refused."""
    paths = [tmp_path / folder / "c.csv" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        write_table_with_text(path)
    (tmp_path / "c.yaml").write_text("flow: maf")
    method = f"{tmp_path}/{{set}}.yaml"
    line = invoke(*paths, "--drop", "kind", "--methods", method, "--out", tmp_path / "out", code=2).stderr
    assert f"--methods: {{set}} would be c for {paths[0]} and for {paths[1]}; rename one of them" in line
    plan = benchmark_plan([str(paths[0])], methods=[method], folds="0").plan
    assert str(tmp_path / "c.yaml") in fit_command(plan.jobs[0], plan.suite, plan.budget, tmp_path)


@pytest.mark.slow
def test_failures_are_reported_and_retried_on_request(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("x\n" + "\n".join(f"{i * i % 97 + i / 100:.2f}" for i in range(120)))
    out, why = tmp_path / "out", "nflows:nsf-c: a coupling needs 2 columns or more"
    common = (tmp_path / "one.csv", "--folds", "0", "--steps", "5", "--wandb", "off", "--out", out)
    alone = invoke(*common, "--methods", "nflows:nsf-c", code=1)
    assert f"no job has finished: {why}" in alone.stderr
    assert f"1 run (one: nflows nsf-c): {why}" in " ".join((out / "table.txt").read_text().split())
    assert "failed" in (out / "table.html").read_text()
    invoke(*common, "--methods", "nflows:nsf-c,gaussian")
    assert [job["status"] for job in recorded_jobs(out)] == ["failed", "finished"]
    invoke(*common, "--methods", "nflows:nsf-c", "--retry")
    assert [job["method"] for job in recorded_jobs(out)] == ["nflows:nsf-c", "gaussian", "nflows:nsf-c"]
    entries = {entry["method"]: entry for entry in json.loads((out / "table.json").read_text())["entries"]}
    assert entries["nflows:nsf-c"]["failures"] == [why]
    assert entries["nflows:nsf-c"]["score"] is None


@posix
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_kills_the_running_jobs_and_leaves_a_table(
    data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    method = f"{TINY} train.steps=100000"
    command = [sys.executable, "-m", "pushforward", "benchmark", str(data), "--folds", "0", "--steps", "20"]
    command += ["--methods", method, "--wandb", "off", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = list[Path]()
    try:
        limit = time.monotonic() + 60
        while not (runs and (runs[0] / "metrics.jsonl").exists()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            runs = list(out.glob("runs/*flow-maf*"))
            time.sleep(0.02)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code, stderr
    assert "1 job is left; the same command continues" in stderr
    assert not (out / "jobs.jsonl").exists()
    assert "flow=maf" in stdout
    assert json.loads((out / "table.json").read_text())["jobs_left"] == 1
    assert not runs[0].exists()
    # The lock of the folder is released.
    BenchmarkFolder.open(out, suite_of([str(data)]), Budget(None, 20, 1)).close()


def test_missing_data_sets_are_reported(tmp_path: Path) -> None:
    line = invoke("rnade", "--methods", "gaussian", "--out", tmp_path / "a", code=3).stderr.splitlines()[-1]
    assert line.startswith("pushforward benchmark: rnade: none of its data sets is available (red-wine, white-wine, ")
    assert line.endswith("get it with: pushforward datasets download red-wine")
    request = benchmark_plan(["half"])
    assert {task.source for task in request.plan.tasks} == {"wine"}
    assert len(request.missing) == 4
    assert request.missing["housing"] == "not downloaded; get it with: pushforward datasets download housing"


@pytest.mark.slow
def test_the_available_data_sets_of_a_suite_are_run(tmp_path: Path) -> None:
    """The score is an NLL on halves, beside published rows."""
    options = ("--methods", "gaussian", "--folds", "0", "--steps", "1", "--wandb", "off", "--out", tmp_path)
    assert "housing: not downloaded; get it with:" in invoke("half", *options).stdout
    found = json.loads((tmp_path / "table.json").read_text())
    assert [one["set"] for one in found["sets"]] == ["wine"]
    assert len(found["missing"]) == 4
    assert found["entries"][0]["score"] > 0
    assert (found["score"], found["better"]) == ("nll", "lower")
    assert {row["method"] for row in found["published"]} == {row.method for row in PUBLISHED["half"]}
    assert found["sets"][0]["rows"] == {"train": 71, "validation": 18, "test": 89}


def test_a_missing_package_leaves_its_method_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    request = benchmark_plan(["iris"], methods=["gaussian,zuko:nsf"])
    assert [method.spec for method in request.plan.methods] == ["gaussian"]
    assert request.notes == ("zuko nsf is left out: zuko is not installed, pip install zuko",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a suite (literature, rnade, half, tables, embedded), or data sets and files"),
        (("rnde",), "unknown suite or data set 'rnde'; did you mean 'rnade'?"),
        (("iriss",), "did you mean 'iris'?"),
        (("nowhere.csv",), "nowhere.csv: no such file"),
        (("target:banana",), "target:banana: is a density and has no rows"),
        (("rnade", "iris"), "rnade: expected one suite, or data sets and files"),
        (("rnade", "--sets", "red-wien"), "'red-wien' is not of the suite rnade; did you mean 'red-wine'?"),
        (("rnade", "--folds", "0-10"), "--folds: rnade has folds 0 to 9; got 10"),
        (("literature", "--folds", "1"), "--folds: literature has fixed parts, which are fold 0; got 1"),
        (("rnade", "--folds", "one"), "--folds: expected numbers and ranges, as in 0-9 or 0,2,5; got 'one'"),
        (("rnade", "--folds", "3-1"), "--folds: expected numbers and ranges"),
        (("rnade", "--protocol", "half"), "--protocol: the suite rnade has its own"),
        (("iris", "--protocol", "rnde"), "unknown protocol 'rnde'; did you mean 'rnade'?"),
        (("iris", "--methods", "gausian"), "unknown method 'gausian'; did you mean 'gaussian'?"),
        (("iris", "--methods", "nflows:naf"), "unknown flow 'naf' of nflows; did you mean 'maf'?"),
        (("iris", "--methods", "nflows:maf:same"), "expected nothing or ':matched' after it; got ':same'"),
        (("iris", "--methods", "nflows:maf flow.hiden=3"), "'flow.hiden' is no key of nflows:maf; did you mean"),
        (("iris", "--methods", "nflows:maf flow.hidden=0"), "flow.hidden: expected a whole number above 0; got '0'"),
        (("iris", "--methods", "flow=naf"), "unknown flow 'naf'; did you mean 'maf'?"),
        (("iris", "--methods", "flow=maf data.seed=3"), "data.seed is set by the benchmark"),
        (("iris", "--methods", "kde flow.hidden=3"), "kde takes no keys"),
        (("iris", "--methods", ","), "--methods: expected gaussian, gaussian-mixture, kde"),
        (("rnade", "--drop", "alcohol"), "--drop: the suite rnade has its columns; it is for data sets and files"),
        (("iris", "--drop", "[a"), "data.drop: expected a list of names"),
        (("iris", "--device", "foo"), "device: expected auto, cpu, cuda, cuda:N or mps; got 'foo'"),
        (("iris", "--device", "foo", "--list"), "device: expected auto, cpu, cuda, cuda:N or mps; got 'foo'"),
        (("iris", "--device", "cuda:99"), "device: expected "),
        (("iris", "--seconds", "0"), "Invalid value for '--seconds'"),
        (("iris", "--seconds", "5", "--steps", "5"), "--steps: replaces --seconds"),
        (("iris", "--hours", "1", "--total-seconds", "5"), "--hours: has the same meaning as --total-seconds"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = invoke(*arguments, "--out", tmp_path / "out", code=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert "Usage" in done.stderr or done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_list_does_not_import_torch() -> None:
    script = "import sys; from pushforward.cli import main; main(['benchmark', '--list'], standalone_mode=False); "
    script += (
        "main(['benchmark', 'embedded', '--list', '--json'], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert all(f"\n{name}: " in f"\n{found.stdout}" for name in SUITES)
    planned = json.loads(found.stdout.splitlines()[-1])
    assert (planned["jobs"], planned["fits"], planned["seconds_of_fits"]) == (80, 20, 1200)


@pytest.mark.slow
def test_weights_and_biases_gets_the_table(
    data: Path, tmp_path: Path, wandb_server: WandbServer, wandb_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run with the table, first offline, then uploaded."""
    from pushforward.tracking.wandb import check as wandb_check
    from pushforward.tracking.wandb.record import read_record

    out = tmp_path / "out"
    common = (data, "--folds", "0-1", "--steps", "5", "--methods", "gaussian,kde", "--out", out)
    invoke(*common, "--wandb", "offline")
    (segment,) = (out / "wandb").glob("offline-run-*")
    record = read_record(segment)
    assert (record.job_type, record.exit_code) == ("benchmark", 0)
    assert set(record.tags) == {"benchmark", "files"}
    found = json.loads((out / "table.json").read_text())
    for entry in found["entries"]:
        assert record.summary[f"score/ring/{entry['method']}"] == pytest.approx(entry["score"])
    jobs = [row for row in record.history if "jobs/ended" in row]
    assert [row["jobs/ended"] for row in jobs] == [1, 2, 3, 4]
    assert any(key.startswith("tables/benchmark") for row in record.history for key in row)
    monkeypatch.setattr(wandb_check, "SETTLE_SECONDS", 0.0)
    done = CliRunner().invoke(main, ["wandb", "sync", str(out)], prog_name="pushforward")
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert "uploaded and checked" in done.stdout
    (run,) = wandb_server.runs.values()
    assert any(key.startswith("score/ring/") for key in run.summary)
