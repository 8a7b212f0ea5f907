"""Benchmarks: real fits in real processes, stopped and gone on with; statistics against formulas; published numbers."""

import html.parser
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import pushforward
from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Budget, Cell, Column, Plan, Result as CellResult, fit_command, read_scores
from pushforward.benchmark.methods import parse_methods
from pushforward.benchmark.page import benchmark_page
from pushforward.benchmark.peers import FEW_ROWS, VALIDATIONS, build_peer, peer_config, train_peer
from pushforward.benchmark.published import COLUMNS, ERROR_BARS, PUBLISHED
from pushforward.benchmark.run import benchmark_plan, default_folder, write_table_files
from pushforward.benchmark.scheduler import JobScheduler, _grouped
from pushforward.benchmark.scores import RowScores, difference, estimate
from pushforward.benchmark.sources import as_options
from pushforward.benchmark.suites import SUITES, Suite, chosen_folds, labels, suite_of
from pushforward.benchmark.table import BEST, WITHIN, BenchmarkTable, build_table
from pushforward.benchmark.table_data import long_table, table_dict
from pushforward.benchmark.text import table_lines
from pushforward.cli import main
from pushforward.common.errors import ConfigError, RunError
from pushforward.config.read import load_config
from pushforward.config.schema import Config
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import write_row_scores
from pushforward.train.defaults import resolve
from pushforward.train.objectives.likelihood import Rows
from tests.fixtures.browser import GLUED, LOOKS, PROBE, visit
from tests.fixtures.wandb_server import WandbServer

Array = np.ndarray[Any, np.dtype[Any]]
TINY = "flow=maf flow.layers=1 flow.hidden=8 train.patience=1"
posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX")


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    told = ["benchmark", *(str(argument) for argument in arguments)]
    done = CliRunner().invoke(main, told, prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    assert "Traceback" not in done.output
    return done


def cells_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user has downloaded must not decide what is missing."""
    monkeypatch.setenv("PUSHFORWARD_DATA", str(tmp_path_factory.getbasetemp() / "no-data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "ring.csv"
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 200)
    points = np.stack([30 * np.cos(angle), 4 * np.sin(angle)], axis=1) + rng.normal(0, 0.3, (200, 2))
    np.savetxt(path, points, delimiter=",", header="x,y", comments="")
    return path


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A benchmark of the command: two baselines, a peer and a fit of ours on one split."""
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        methods = f"gaussian,kde,nflows:maf:matched,{TINY}"
        options = ("--folds", "0", "--steps", "20", "--wandb", "off", "--json", "--out", folder)
        result = invoke(data, "--methods", methods, *options)
    assert result.stdout.count("\n") == 1
    return folder, json.loads(result.stdout)


# The command, with real fits


def test_every_cell_is_run_and_told(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    cells = {cell["method"]: cell for cell in cells_of(folder)}
    assert list(cells) == ["gaussian", "kde", "nflows:maf:matched", TINY]
    assert {cell["status"] for cell in cells.values()} == {"finished"}
    assert {cell["fingerprint"] for cell in cells.values()} == {cells["kde"]["fingerprint"]}
    assert [cell["steps"] for cell in cells.values()][2:] == [20, 20]
    # Every method standardises with the same numbers, so that the scores are in the same units.
    scales = [cell["log_scale"] for cell in cells.values()]
    assert scales == pytest.approx([scales[0]] * 4, rel=1e-9)
    assert scales[0] > 2  # log 21 + log 3, about
    entries = {entry["method"]: entry for entry in found["entries"]}
    for method, cell in cells.items():
        rows, log_probs = read_scores(folder / cell["scores"])
        assert len(rows) == 20
        assert entries[method]["score"] == pytest.approx(log_probs.mean() + scales[0])
        assert entries[method]["se_points"] == pytest.approx(log_probs.std(ddof=1) / math.sqrt(20))
        assert entries[method]["se_runs"] is None
    ranked = sorted(entries.values(), key=lambda entry: -entry["score"])
    assert [entry["rank"] for entry in ranked] == [1, 2, 3, 4]
    assert ranked[0]["mark"] == BEST
    best, last = (read_scores(folder / cells[ranked[place]["method"]]["scores"])[1] for place in (0, -1))
    assert ranked[-1]["behind_best"] == pytest.approx((best - last).mean())
    assert ranked[-1]["behind_se_points"] == pytest.approx((best - last).std(ddof=1) / math.sqrt(20))
    assert len(found["differences"]) == 6
    for gap in found["differences"]:
        first, second = (entries[gap[which]]["score"] for which in ("first", "second"))
        assert gap["better_by"] == pytest.approx(first - second)


def test_a_fit_is_a_run_that_can_be_looked_at(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    cell = cells_of(folder)[-1]
    run = RunFolder.open((folder / cell["scores"]).parent)
    assert run.status == "finished"
    results = json.loads(run.results.read_text())
    assert -results["test_nll"] == pytest.approx(cell["log_prob"])
    assert -results["test_nll_standardized"] == pytest.approx(cell["log_prob"] + cell["log_scale"])
    # The command of the record is what was run.
    words = shlex.split(cell["command"])
    assert words[:3] == ["env", "OMP_NUM_THREADS=1", "pushforward"]
    argv = json.loads(run.environment.read_text())["argv"]
    assert [word for word in argv if word != "--json"] == words[2:]
    assert {"train.evaluate=false", "data.seed=0", "data.dequantize=auto"} <= set(words)


def test_the_table_is_written_in_every_form(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    assert json.loads((folder / "table.json").read_text()) == {k: v for k, v in found.items() if k != "out"}
    text = (folder / "table.txt").read_text(encoding="utf-8")
    said = ("standardised on the training part", "± one standard error over the test rows", "200 x 2", "20 steps a fit")
    assert all(part in text for part in said)
    assert all(f"\n{method['label'][:16]}" in text for method in found["methods"])
    page = (folder / "table.html").read_text(encoding="utf-8")
    assert_well_formed(page)
    for entry in found["entries"]:
        assert f"{entry['score']:.2f}".replace("-", "\u2212") in page


def test_the_same_command_goes_on(done: tuple[Path, dict[str, Any]], data: Path) -> None:
    """Nothing is run twice; a method more is run alone, and the table has all of them."""
    folder, found = done
    before = (folder / "cells.jsonl").read_bytes()
    common = (data, "--steps", "20", "--wandb", "off", "--out", folder)
    again = invoke(*common, "--folds", "0", "--methods", f"gaussian,kde,nflows:maf:matched,{TINY}", "--json")
    assert json.loads(again.stdout) == found
    assert (folder / "cells.jsonl").read_bytes() == before
    more = json.loads(invoke(*common, "--folds", "0", "--methods", "gmm", "--json").stdout)
    assert [method["method"] for method in more["methods"]] == ["gaussian", "gmm", "kde", "nflows:maf:matched", TINY]
    assert len(cells_of(folder)) == 5
    # A table does not hide that other versions have made some of its cells.
    assert more["notes"] == []
    version = cells_of(folder)[0]["version"]
    assert version.startswith(pushforward.__version__)
    changed = before.decode().replace(json.dumps(version), '"0.0.9"', 1)
    (folder / "cells.jsonl").write_text(changed, encoding="utf-8")
    invoke(*common, "--folds", "0", "--methods", "gaussian")
    assert f"runs of 2 versions of the program: 0.0.9, {version}" in (folder / "table.txt").read_text()
    # What is in the folder stays as it was.
    (folder / "cells.jsonl").write_bytes(before)


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


def test_cells_of_other_data_do_not_mix(tmp_path: Path) -> None:
    """What is of another file is set aside and run again, and is there again where the file is what it was."""
    plan = benchmark_plan(["iris"], folds="0-1", methods=["gaussian,kde"]).plan
    first, second, *_ = plan.cells

    def of(cell: Cell, sha256: str, rows: str = "", status: Any = "finished") -> CellResult:
        return CellResult(*cell, status=status, fingerprint=rows, sha256=sha256)

    with BenchmarkFolder.open(tmp_path / "a", plan.suite, plan.budget) as folder:
        for result in (of(first, "old"), of(second, "old", status="failed")):
            folder.add(result)
        folder.keep_one_data({"iris": "new"})
        assert (folder.results, folder.set_aside) == ({}, {"iris": 2})
        assert JobScheduler(plan, folder).cells_left == 4  # also what had failed
        folder.add(of(first, "new"))
        folder.keep_one_data({"iris": "new"})
        assert (list(folder.results), folder.set_aside) == ([first], {"iris": 1})
        folder.keep_one_data({"iris": "old"})
        assert ({r.sha256 for r in folder.results.values()}, folder.set_aside) == ({"old"}, {})
    # Of data that this command does not read the last cell decides.
    with BenchmarkFolder.open(tmp_path / "a", plan.suite, plan.budget) as folder:
        assert [r.sha256 for r in folder.results.values()] == ["new"]
    # Cells from before checksums were recorded, and sets without a file, are known by their test rows.
    with BenchmarkFolder.open(tmp_path / "b", plan.suite, plan.budget) as folder:
        for result in (of(first, "", "rows"), of(plan.cells[2], "", "fold 1"), of(second, "new", "other rows")):
            folder.add(result)
        folder.keep_one_data({"iris": "new"})
        assert set(folder.results) == {second, plan.cells[2]}
        assert folder.set_aside == {"iris": 1}


def text_column(path: Path, shift: float = 0.0) -> Path:
    points = np.random.default_rng(0).normal(size=(60, 2)) + shift
    path.write_text("kind,x,y\n" + "".join(f"red,{x:.5f},{y:.5f}\n" for x, y in points))
    return path


@pytest.mark.slow
def test_a_file_that_changes_is_told_and_run_again(tmp_path: Path) -> None:
    path, out = text_column(tmp_path / "own.csv"), tmp_path / "out"
    common = (path, "--drop", "kind", "--folds", "0", "--steps", "1", "--wandb", "off", "--out", out)
    invoke(*common, "--methods", "gaussian,kde")
    before = cells_of(out)
    assert {len(cell["sha256"]) for cell in before} == {64}
    path.write_text(path.read_text().replace("red,0", "red,1", 1))
    done = invoke(*common, "--methods", "kde")
    line = "own: the data have changed since 2 runs were made; they are set aside, and run again when asked for"
    assert line in done.stderr
    assert "own: the data have changed since 1 run was made; it is set aside" in (out / "table.txt").read_text()
    assert "Gaussian" not in (out / "table.txt").read_text()
    again = cells_of(out)
    assert [cell["method"] for cell in again] == ["gaussian", "kde", "kde"]
    assert again[2]["sha256"] != again[1]["sha256"]


def test_columns_are_chosen_by_options(tmp_path: Path) -> None:
    path, out = text_column(tmp_path / "own.csv"), tmp_path / "out"
    line = invoke(path, "--methods", "gaussian", "--out", out, code=3).stderr
    assert (
        line == "pushforward benchmark: own.csv: column 'kind' holds text ('red' in row 1); drop it with --drop kind\n"
    )
    line = invoke(path, "--drop", "kid", "--methods", "gaussian", "--out", out, code=3).stderr
    assert "own.csv: --drop names 'kid'; did you mean 'kind'?" in line
    assert "expected power" in invoke(path, "--list", "--columns", "expected power", code=3).stderr
    assert not out.exists()
    planned = json.loads(invoke(path, "--drop", "kind", "--list", "--json").stdout)
    assert planned["cells"] == 25
    plan = benchmark_plan([str(path)], columns="x,y", drop='["a, b", c]', folds="0", methods=["gaussian"]).plan
    assert plan.suite.drop == ("a, b", "c")
    keys = plan.cells[0].data_overrides(plan.suite)
    assert keys == ["data.dequantize=auto", "data.columns=x,y", 'data.drop=["a, b", "c"]', "data.seed=0"]
    assert load_config(str(path), overrides=keys).data.drop == plan.suite.drop
    # A folder is of one choice of columns.
    with BenchmarkFolder.open(out, plan.suite, plan.budget):
        pass
    with pytest.raises(RunError, match=r"--columns x,y, not none; --drop .*, not none"):
        BenchmarkFolder.open(out, suite_of([str(path)]), plan.budget)


def test_messages_of_a_fit_name_the_options() -> None:
    suite = suite_of(["iris"], drop=["id"])
    said = "column 'a' is constant (1.0): it has no density; leave it out with 'data.drop=a b'"
    assert as_options(said, suite).endswith("leave it out with --drop 'id,a b'")
    said = "it has no density there; leave it out with data.drop=a,b, or try another --seed"
    assert as_options(said, suite).endswith("leave it out with --drop id,a,b, or try other --folds")
    assert as_options(said, SUITES["rnade"]) == said


def test_set_stands_for_one_data_set(tmp_path: Path) -> None:
    """The plan and the fit take the same file for ``{set}``, and two data sets of one name are told."""
    paths = [tmp_path / folder / "c.csv" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        text_column(path)
    (tmp_path / "c.yaml").write_text("flow: maf")
    method = f"{tmp_path}/{{set}}.yaml"
    line = invoke(*paths, "--drop", "kind", "--methods", method, "--out", tmp_path / "out", code=2).stderr
    assert f"--methods: {{set}} would be c for {paths[0]} and for {paths[1]}; rename one of them" in line
    plan = benchmark_plan([str(paths[0])], methods=[method], folds="0").plan
    assert str(tmp_path / "c.yaml") in fit_command(plan.cells[0], plan.suite, plan.budget, tmp_path)


def test_the_rows_are_those_of_the_protocol(data: Path) -> None:
    """Halves divide by data.fold, splits without a protocol by data.seed, and fixed parts by nothing."""
    protocol = benchmark_plan([str(data)], protocol="half", folds="0-2", methods=["gaussian"])
    assert protocol.plan.cells[2].data_overrides(protocol.plan.suite) == [
        *("data.dequantize=off", "data.protocol=half", "data.fold=2"),
    ]
    plain = benchmark_plan(["iris"], folds="3", methods=["gaussian"])
    assert plain.plan.cells[0].data_overrides(plain.plan.suite) == ["data.dequantize=auto", "data.seed=3"]
    fixed = Cell("power", "off", 0, 1, "auto")
    assert fixed.data_overrides(SUITES["literature"]) == ["data.dequantize=off"]
    # With its values spread a data set is another column, and another folder.
    both = benchmark_plan(["iris"], dequantize="both", folds="0", methods=["gaussian"]).plan
    assert [cell.dequantize for cell in both.cells] == ["off", "auto"]
    assert len({cell.folder for cell in both.cells}) == 2


@pytest.mark.slow
def test_failures_are_told_and_tried_again_when_asked(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("x\n" + "\n".join(f"{i * i % 97 + i / 100:.2f}" for i in range(120)))
    out, why = tmp_path / "out", "nflows:nsf-c: a coupling needs 2 columns or more"
    common = (tmp_path / "one.csv", "--folds", "0", "--steps", "5", "--wandb", "off", "--out", out)
    alone = invoke(*common, "--methods", "nflows:nsf-c", code=1)
    assert f"no cell has finished: {why}" in alone.stderr
    assert f"1 run (one: nflows nsf-c): {why}" in " ".join((out / "table.txt").read_text().split())
    assert "failed" in (out / "table.html").read_text()
    invoke(*common, "--methods", "nflows:nsf-c,gaussian")
    assert [cell["status"] for cell in cells_of(out)] == ["failed", "finished"]
    invoke(*common, "--methods", "nflows:nsf-c", "--retry")
    assert [cell["method"] for cell in cells_of(out)] == ["nflows:nsf-c", "gaussian", "nflows:nsf-c"]
    entries = {entry["method"]: entry for entry in json.loads((out / "table.json").read_text())["entries"]}
    assert entries["nflows:nsf-c"]["failures"] == [why]
    assert entries["nflows:nsf-c"]["score"] is None


def test_what_has_failed_is_run_again_only_when_asked(tmp_path: Path) -> None:
    plan = benchmark_plan(["iris"], folds="0-2", methods=["gaussian,auto"]).plan
    with BenchmarkFolder.open(tmp_path, plan.suite, plan.budget) as folder:
        folder.add(CellResult(*plan.cells[0], status="finished"))
        folder.add(CellResult(*plan.cells[1], status="failed"))
        assert JobScheduler(plan, folder).cells_left == 4
        again = JobScheduler(plan, folder, is_retry=True)
        assert again.cells_left == 5
        # What an earlier attempt left stays.
        first = folder.free_run(plan.cells[1])
        first.mkdir()
        assert folder.free_run(plan.cells[1]).name == f"{first.name}-2"


@posix
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_kills_what_runs_and_leaves_a_table(
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
    assert "1 cell is left, and the same command goes on" in stderr
    assert not (out / "cells.jsonl").exists()
    assert "flow=maf" in stdout
    assert json.loads((out / "table.json").read_text())["cells_left"] == 1
    assert not runs[0].exists()
    # The lock of the folder has been let go of.
    BenchmarkFolder.open(out, suite_of([str(data)]), Budget(None, 20, 1)).close()


@posix
def test_a_killed_benchmark_takes_its_fits_along(tmp_path: Path) -> None:
    script = "import time, os; print(os.getpid(), flush=True); time.sleep(60)"
    (tmp_path / "sleeper.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pushforward.benchmark.child", "sleeper"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    assert child.stdin is not None
    assert int(child.stdout.readline()) == child.pid
    child.stdin.close()  # what the system does when the benchmark is killed
    assert child.wait(20) == -signal.SIGKILL
    child.stdout.close()


def test_nothing_is_begun_that_would_not_fit(data: Path, tmp_path: Path) -> None:
    """The time for everything ends it before a cell that takes longer, and what came of others says how long."""
    suite, budget = suite_of([str(data)]), Budget(60.0, None, 1)
    source = suite.sets[0]
    plan = Plan(suite, (Column(source, "auto"),), (0, 1), (0,), parse_methods(["auto"]), budget)
    told = list[str]()
    with BenchmarkFolder.open(tmp_path / "out", suite, budget) as folder:
        session = JobScheduler(plan, folder, seconds=70, tell=told.append)
        session.run()
        assert (session.stopped, session.cells_left) == ("the time for everything is over", 2)
        folder.add(CellResult(source, "auto", 0, 0, "auto", "finished", wall_seconds=30.0))
        assert JobScheduler(plan, folder, seconds=70)._expected(_grouped(plan.cells[1:])[0]) == 30.0
    assert told == []
    line = invoke(data, "--seconds", "60", "--total-seconds", "1", "--wandb", "off", "--out", tmp_path / "b").stderr
    assert "the time for everything is over; 25 cells are left, and the same command goes on" in line


def test_cells_come_fold_by_fold(data: Path) -> None:
    plan = benchmark_plan([str(data), "iris"], folds="0-1", seeds=2, methods=["gaussian,auto,kde"]).plan
    order = [(cell.fold, cell.seed, cell.source, cell.method) for cell in plan.cells]
    assert [place[:2] for place in order] == [(f, s) for f in (0, 1) for s in (0, 1) for _ in range(6)]
    assert [place[3] for place in order[:3]] == ["gaussian", "auto", "kde"]
    jobs = _grouped(plan.cells)
    assert [[cell.method for cell in job.cells] for job in jobs[:2]] == [["gaussian", "kde"], ["auto"]]
    assert sum(len(job.cells) for job in jobs) == len(plan.cells)


def test_a_torn_line_is_dropped_and_a_broken_one_told(tmp_path: Path) -> None:
    suite, budget = suite_of(["iris"]), Budget(None, 5, 1)
    result = CellResult("iris", "auto", 0, 0, "gaussian", "finished", log_prob=-1.0)
    with BenchmarkFolder.open(tmp_path, suite, budget) as folder:
        folder.add(result)
    whole = (tmp_path / "cells.jsonl").read_bytes()
    (tmp_path / "cells.jsonl").write_bytes(whole + whole[:30])
    with BenchmarkFolder.open(tmp_path, suite, budget) as folder:
        assert list(folder.results.values()) == [result]
        folder.add(result)
    assert (tmp_path / "cells.jsonl").read_bytes() == 2 * whole
    (tmp_path / "cells.jsonl").write_bytes(b"[]\n" + whole)
    with pytest.raises(RunError, match="line 1: expected a cell"):
        BenchmarkFolder.open(tmp_path, suite, budget)
    (tmp_path / "benchmark.json").write_text("[]")
    with pytest.raises(RunError, match="it is damaged"):
        BenchmarkFolder.open(tmp_path, suite, budget)


def test_missing_data_sets_are_told(tmp_path: Path) -> None:
    line = invoke("rnade", "--methods", "gaussian", "--out", tmp_path / "a", code=3).stderr.splitlines()[-1]
    assert line.startswith("pushforward benchmark: rnade: none of its data sets is here (red-wine, white-wine, ")
    assert line.endswith("get it with: pushforward datasets download red-wine")
    request = benchmark_plan(["half"])
    assert {column.source for column in request.plan.columns} == {"wine"}
    assert len(request.missing) == 4
    assert request.missing["housing"] == "not downloaded; get it with: pushforward datasets download housing"


@pytest.mark.slow
def test_what_is_there_of_a_suite_is_run(tmp_path: Path) -> None:
    """As the literature counts: an NLL, halves, and published rows beside it."""
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
    ("arguments", "said"),
    [
        ((), "expected a suite (literature, rnade, half, tables, embedded), or data sets and files"),
        (("rnde",), "unknown suite or data set 'rnde'; did you mean 'rnade'?"),
        (("iriss",), "did you mean 'iris'?"),
        (("nowhere.csv",), "nowhere.csv: no such file"),
        (("target:banana",), "target:banana: is a density and has no rows"),
        (("rnade", "iris"), "rnade: a suite stands alone"),
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
        (("iris", "--methods", "flow=maf data.seed=3"), "data.seed is decided by the benchmark"),
        (("iris", "--methods", "kde flow.hidden=3"), "kde takes no keys"),
        (("iris", "--methods", ","), "--methods: expected gaussian, gmm, kde"),
        (("rnade", "--drop", "alcohol"), "--drop: the suite rnade has its columns; it is for data sets and files"),
        (("iris", "--drop", "[a"), "data.drop: expected a list of names"),
        (("iris", "--device", "foo"), "device: expected auto, cpu, cuda, cuda:N or mps; got 'foo'"),
        (("iris", "--device", "foo", "--list"), "device: expected auto, cpu, cuda, cuda:N or mps; got 'foo'"),
        (("iris", "--device", "cuda:99"), "device: expected "),
        (("iris", "--seconds", "0"), "Invalid value for '--seconds'"),
        (("iris", "--seconds", "5", "--steps", "5"), "--steps: takes the place of --seconds"),
        (("iris", "--hours", "1", "--total-seconds", "5"), "--hours: says the same as --total-seconds"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = invoke(*arguments, "--out", tmp_path / "out", code=2)
    assert said in done.stderr
    assert done.stdout == ""
    assert "Usage" in done.stderr or done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_listing_needs_no_torch() -> None:
    script = "import sys; from pushforward.cli import main; main(['benchmark', '--list'], standalone_mode=False); "
    script += (
        "main(['benchmark', 'embedded', '--list', '--json'], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert all(f"\n{name}: " in f"\n{found.stdout}" for name in SUITES)
    planned = json.loads(found.stdout.splitlines()[-1])
    assert (planned["cells"], planned["fits"], planned["seconds_of_fits"]) == (80, 20, 1200)


# Suites and published numbers


def test_published_numbers_are_whole() -> None:
    """Every number has a source, says how it came here and what its error bar is, and is of a set of its suite."""
    assert set(PUBLISHED) == set(COLUMNS) == {"literature", "rnade", "half"}
    for name, rows in PUBLISHED.items():
        assert set(COLUMNS[name]) == set(SUITES[name].sets)
        assert len({row.label for row in rows}) == len(rows)
        for row in rows:
            assert row.source
            assert row.evidence in ("source", "memory")
            assert row.error_bar in ERROR_BARS
            assert row.figures
            assert set(row.figures) <= set(SUITES[name].sets)
            errors = [figure.error for figure in row.figures.values()]
            assert all((error is None) == (row.error_bar == "none") for error in errors), row.label
            assert not any(figure.is_doubted for figure in row.figures.values()) or row.note
    counts = {name: sum(len(row.figures) for row in rows) for name, rows in PUBLISHED.items()}
    assert counts == {"literature": 257, "rnade": 25, "half": 50}


@pytest.mark.parametrize(
    ("suite", "method", "name", "value", "error", "bar", "evidence"),
    [
        ("literature", "RQ-NSF (AR)", "power", 0.66, 0.01, "points-2se", "source"),
        ("literature", "RQ-NSF (AR), in SSTM", "hepmass", -14.268, 0.262, "seeds", "source"),
        ("literature", "NAF-DDSF(5)", "miniboone", -8.86, 0.15, "runs", "source"),
        ("literature", "TAN", "bsds300", 159.80, 0.07, "unknown", "source"),
        ("literature", "TraDE", "gas", 13.27, 0.01, "unknown", "source"),
        ("literature", "Gaussian", "bsds300", 96.67, 0.25, "points-2se", "memory"),
        ("literature", "DiffFlow (ODE)", "power", 1.04, None, "none", "source"),
        ("rnade", "RNADE-MoG", "red-wine", -9.36, None, "none", "memory"),
        ("rnade", "FVBN", "parkinsons-telemonitoring", -0.71, None, "none", "memory"),
        ("half", "QB-Vine", "ionosphere", -16.08, 2.1, "runs-2se", "memory"),
        ("half", "ARd-BP", "wine", 13.22, 0.04, "runs-2se", "memory"),
    ],
)
def test_published_values(
    suite: str, method: str, name: str, value: float, error: float | None, bar: str, evidence: str
) -> None:
    row = next(row for row in PUBLISHED[suite] if row.method == method)
    assert (row.figures[name].value, row.figures[name].error) == (value, error)
    assert (row.error_bar, row.evidence) == (bar, evidence)
    assert row.se(name) == (error / 2 if error is not None and bar.endswith("2se") else None)


def test_suites_agree_with_the_protocols() -> None:
    from pushforward.datasets.tables.protocols import PROTOCOLS

    for suite in SUITES.values():
        if suite.protocol != "none":
            folds = PROTOCOLS[suite.protocol].folds
            assert suite.most_folds == folds
            assert folds is None or max(suite.folds) < folds
        load_config("iris", overrides=Cell("iris", "off", suite.folds[-1], 0, "auto").data_overrides(suite))
        assert [method.spec for method in parse_methods(suite.methods)] == list(suite.methods)
    assert chosen_folds(SUITES["rnade"], "0-2, 5,1") == (0, 1, 2, 5)


def test_names_of_data_sets() -> None:
    assert labels(["iris", "/a/b/c.csv.gz", "/a/d/c.parquet"]) == {
        "iris": "iris", "/a/b/c.csv.gz": "b/c", "/a/d/c.parquet": "d/c",
    }  # fmt: skip
    cells = [Cell(source, "off", 0, 0, "auto") for source in ("/a/b/c.csv", "/a/d/c.csv", "c.csv")]
    assert len({cell.folder for cell in cells}) == 3
    assert default_folder(SUITES["rnade"]) == Path("runs/benchmark-rnade")


# Statistics


def of(values: "Sequence[float] | Array", rows: "Sequence[int] | Array | None" = None) -> RowScores:
    return RowScores(np.asarray(range(len(values)) if rows is None else rows), np.asarray(values, dtype=float))


def test_standard_errors_of_one_run_and_of_folds() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)
    one = estimate({(0, 0): of(values)})
    assert one.mean == pytest.approx(values.mean())
    assert one.se_points == pytest.approx(values.std(ddof=1) / 10)
    assert (one.runs, math.isnan(one.se_runs)) == (1, True)
    folds = {(k, 0): of(values[20 * k : 20 * k + 20], range(20 * k, 20 * k + 20)) for k in range(5)}
    ten = estimate(folds)
    assert ten.se_points == pytest.approx(one.se_points)
    means = values.reshape(5, 20).mean(axis=1)
    assert ten.se_runs == pytest.approx(means.std(ddof=1) / math.sqrt(5))
    assert ten.runs == 5
    assert ten.mean == pytest.approx(values.mean())


def test_a_row_that_is_scored_twice_is_one_row() -> None:
    """Seeds score the same rows: they do not make the error over rows smaller, while independent rows would."""
    values = np.random.default_rng(0).normal(size=400)
    one, seeds = estimate({(0, 0): of(values)}), estimate({(0, s): of(values) for s in range(4)})
    assert seeds.se_points == pytest.approx(one.se_points)
    assert (seeds.se_runs, seeds.runs) == (0, 4)
    shifted = estimate({(0, s): of(values + s) for s in range(4)})
    assert shifted.se_runs == pytest.approx(np.std(range(4), ddof=1) / 2)
    assert shifted.se_points == pytest.approx(one.se_points)
    # Seeds of several folds count by their mean.
    both = estimate({(f, s): of(values[f::2] + s, range(f, 400, 2)) for f in range(2) for s in range(3)})
    assert both.runs == 2
    assert both.se_runs == pytest.approx(np.std([values[0::2].mean(), values[1::2].mean()], ddof=1) / math.sqrt(2))


def test_the_error_over_rows_covers_halves_that_overlap() -> None:
    """Against simulation: means over five random halves scatter as the estimate says."""
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        values = rng.normal(size=80)
        halves = {(k, 0): rng.permutation(80)[:40] for k in range(5)}
        found = estimate({run: of(values[rows], rows) for run, rows in halves.items()})
        means.append(found.mean)
        errors.append(found.se_points)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_the_error_over_halves_is_corrected() -> None:
    """Against simulation: of fixed scores the corrected variance is right, and s / sqrt(J) far too small."""
    rng = np.random.default_rng(2)
    means, plain, corrected = [], [], []
    for _ in range(600):
        values = rng.normal(size=100)
        halves = {(k, 0): rng.permutation(100)[:50] for k in range(5)}
        scores = {run: of(values[rows], rows) for run, rows in halves.items()}
        found = estimate({run: part._replace(overlap=1.0) for run, part in scores.items()})
        means.append(found.mean)
        corrected.append(found.se_runs**2)
        plain.append(estimate(scores).se_runs ** 2)
    assert np.mean(corrected) == pytest.approx(np.var(means), rel=0.1)
    assert np.mean(plain) == pytest.approx(np.var(means) / 6, rel=0.15)
    # Seeds are averaged before, and those of a single division are plain.
    values = rng.normal(size=40)
    seeds = {(f, s): of(values[20 * f : 20 * f + 20] + s)._replace(overlap=0.25) for f in range(2) for s in range(3)}
    folds = np.std([values[:20].mean(), values[20:].mean()], ddof=1)
    assert estimate(seeds).se_runs == pytest.approx(folds * math.sqrt(1 / 2 + 0.25))
    gap = difference(seeds, {run: part._replace(values=0 * part.values) for run, part in seeds.items()})
    assert gap is not None
    assert gap.se_runs == pytest.approx(folds * math.sqrt(1 / 2 + 0.25))
    one = {run: part for run, part in seeds.items() if run[0] == 0}
    assert estimate(one).se_runs == pytest.approx(1 / math.sqrt(3))


def test_which_divisions_overlap(tmp_path: Path) -> None:
    """Halves and random splits do, folds of a cross-validation and rows that are drawn anew do not."""
    base = np.random.default_rng(0).normal(size=20)
    rows = {"train": 30, "validation": 10, "test": 20}
    own = suite_of(["iris"])
    for suite, source, is_drawn, factor, said in (
        (SUITES["half"], "wine", False, 1 / 2 + 20 / 40, "over halves, which overlap: corrected, Nadeau and Bengio"),
        (own, "iris", False, 1 / 2 + 20 / 40, "over splits, which overlap: corrected, Nadeau and Bengio 2003"),
        (SUITES["tables"], "protein", False, 1 / 2 + 20 / 40, "over splits, which overlap"),
        (SUITES["rnade"], "red-wine", False, 1 / 2, "over folds; "),
        (own, "moons", True, 1 / 2, "over splits; "),
    ):
        with BenchmarkFolder.open(tmp_path / f"{suite.name}-{source}", suite, Budget(60.0, None, 1)) as folder:
            for fold in range(2):
                cell = Cell(source, "off", fold, 0, "kde")
                run = folder.free_run(cell)
                run.mkdir()
                write_row_scores(RunFolder(run), np.arange(20), base + fold)
                name = f"runs/{run.name}/test_scores.parquet"
                folder.add(CellResult(*cell, "finished", scores=name, rows=rows, is_drawn=is_drawn))
            table = build_table(folder, suite)
        (entry,) = table.entries.values()
        assert entry.score is not None
        assert entry.score.se_runs == pytest.approx(np.std([0, 1], ddof=1) * math.sqrt(factor)), source
        assert said in " ".join(table_lines(table)), source
        assert said.removesuffix("; ") in table_dict(table)["standard_errors"]["se_runs"]


def test_paired_differences() -> None:
    rng = np.random.default_rng(0)
    base, noise = 10 * rng.normal(size=200), 0.1 * rng.normal(size=200)
    gap = difference({(0, 0): of(base + 1 + noise), (1, 0): of(base)}, {(0, 0): of(base)})
    assert gap is not None
    assert gap.mean == pytest.approx(1 + noise.mean())
    assert gap.se_points == pytest.approx(noise.std(ddof=1) / math.sqrt(200))
    other = of(base)._replace(fingerprint="other rows")
    assert difference({(0, 0): of(base)}, {(0, 0): other}) is None
    assert difference({(0, 0): of(base)}, {(1, 0): of(base)}) is None


def test_scores_that_are_not_finite() -> None:
    found = estimate({(0, 0): of([1.0, -math.inf]), (1, 0): of([1.0, 2.0])})
    assert found.mean == -math.inf
    assert math.isnan(found.se_points)
    assert math.isnan(found.se)


# The table, of scores made here


def made_table(
    folder: Path,
    suite: Suite,
    scores: Mapping[tuple[str, str, int], "Array | None"],
    write: bool = True,
    *,
    features: Mapping[str, int] | None = None,
    missing: Mapping[str, str] | None = None,
) -> BenchmarkTable:
    """A table of scores by data set, method and fold; None is a failure. Data sets have 11 columns if not told."""
    with BenchmarkFolder.open(folder, suite, Budget(60.0, None, 2)) as made:
        for (source, method, fold), values in scores.items():
            cell = Cell(source, suite.dequantize, fold, 0, method)
            if values is None:
                made.add(CellResult(*cell, status="failed", reason="out of memory"))
                continue
            run = made.free_run(cell)
            run.mkdir()
            rows = np.arange(len(values)) + 1000 * fold
            write_row_scores(RunFolder(run), rows, np.asarray(values, dtype=float))
            name = f"runs/{run.name}/test_scores.parquet"
            columns = (features or {}).get(source, 11)
            facts: dict[str, Any] = {"features": columns, "rows": {"test": len(values)}, "fingerprint": str(fold)}
            facts |= {"steps": 100, "seconds": 60.0, "wall_seconds": 65.0, "parameters": 1000, "command": "fit"}
            made.add(
                CellResult(*cell, "finished", log_prob=float(np.mean(values)), log_scale=1.0, scores=name, **facts)
            )
        table = build_table(made, suite, missing=missing)
        if write:
            write_table_files(made, table)
    return table


def marks(table: BenchmarkTable, source: str = "red-wine") -> dict[str, tuple[str, float | None]]:
    return {
        spec: (entry.mark, entry.rank) for (column, spec), entry in table.entries.items() if column.source == source
    }


def test_the_best_and_those_within_a_standard_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = 5 * rng.normal(size=50)
    near = base - 0.1 + rng.normal(size=50)  # its paired error is 0.14, that of the scores 0.7
    far = base - 0.5 + 0.1 * rng.normal(size=50)
    table = made_table(tmp_path / "a", SUITES["rnade"], {
        ("red-wine", "auto", 0): base, ("red-wine", "gmm", 0): near, ("red-wine", "kde", 0): far,
    })  # fmt: skip
    assert (near - base).mean() < 0
    assert marks(table) == {"gmm": (WITHIN, 2), "kde": ("", 3), "auto": (BEST, 1)}
    assert table.entries[table.columns[0], "auto"].score is not None
    # An NLL is the lower the better, and so is the best.
    nll = made_table(tmp_path / "b", SUITES["half"], {("wine", "auto", 0): base, ("wine", "kde", 0): far})
    assert marks(nll, "wine") == {"kde": ("", 2), "auto": (BEST, 1)}
    entry = next(one for one in table_dict(nll)["entries"] if one["method"] == "auto")
    assert entry["score"] == pytest.approx(-(base.mean() + 1))


def test_methods_are_compared_on_the_folds_they_share(tmp_path: Path) -> None:
    """An easy fold that only one of them has had gives it no rank; one with too few folds is not compared."""
    rng = np.random.default_rng(0)
    scores: dict[tuple[str, str, int], Any] = {}
    for fold in range(4):
        hard = rng.normal(size=20) - 10 * fold
        scores["red-wine", "auto", fold] = hard + 1
        scores["red-wine", "gmm", fold] = hard + (5 if fold == 3 else 0)
        if fold < 3:
            scores["red-wine", "nflows:maf", fold] = hard + 0.5
    scores["red-wine", "kde", 0] = rng.normal(size=20) + 50
    scores |= {("red-wine", "kde", fold): None for fold in (1, 2, 3)}
    table = made_table(tmp_path / "a", SUITES["rnade"], scores)
    assert marks(table) == {"gmm": ("", 3), "kde": ("", None), "nflows:maf": ("", 2), "auto": (BEST, 1)}
    entries = {spec: entry for (_, spec), entry in table.entries.items()}
    assert (entries["nflows:maf"].finished, entries["nflows:maf"].planned) == (3, 4)
    assert entries["nflows:maf"].behind is not None
    assert entries["nflows:maf"].behind.mean == pytest.approx(0.5)
    assert entries["gmm"].behind is not None
    assert entries["gmm"].behind.mean == pytest.approx(1.0)  # of the folds that decide who is best
    assert entries["kde"].failures == ("out of memory",)
    text = "\n".join(table_lines(table))
    assert "failed: 3 runs (red-wine: Kernel density): out of memory" in text
    assert " 3/4" in text
    assert "1/4" in text


def test_pairs_and_rows_that_are_drawn_anew(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=30)
    scores: dict[tuple[str, str, int], Any] = {("red-wine", m, f): base + f for m in ("auto", "kde") for f in range(2)}
    scores["red-wine", "auto", 0] = base + 1
    table = made_table(tmp_path / "a", SUITES["rnade"], scores)
    (column,), (kde, auto) = table.columns, table.methods
    there, back = table.paired(column, auto, kde), table.paired(column, kde, auto)
    assert there is not None
    assert back is not None
    assert there.mean == pytest.approx(0.5)
    assert back.mean == pytest.approx(-0.5)
    # Row 0 of another draw is another row, so that twice as many rows are known, and the error is smaller.
    errors = []
    for is_drawn in (False, True):
        with BenchmarkFolder.open(tmp_path / str(is_drawn), SUITES["embedded"], Budget(60.0, None, 1)) as folder:
            for fold in range(2):
                cell = Cell("iris", "off", fold, 0, "kde")
                run = folder.free_run(cell)
                run.mkdir()
                write_row_scores(RunFolder(run), np.arange(30), base)
                name = f"runs/{run.name}/test_scores.parquet"
                folder.add(CellResult(*cell, "finished", log_prob=0.0, scores=name, is_drawn=is_drawn))
            score = next(iter(build_table(folder, SUITES["embedded"]).entries.values())).score
            assert score is not None
            errors.append(score.se_points)
    assert errors[0] == pytest.approx(base.std(ddof=1) / math.sqrt(30))
    assert errors[1] == pytest.approx(np.tile(base, 2).std(ddof=1) / math.sqrt(60))


def test_mean_ranks_count_where_all_are_compared(tmp_path: Path) -> None:
    """A method that has no score where it would be worst gets no better rank for it."""
    base = np.random.default_rng(0).normal(size=30)
    scores: dict[tuple[str, str, int], Any] = {}
    for source in ("red-wine", "white-wine", "housing"):
        scores |= {(source, "auto", 0): base + 1, (source, "kde", 0): base, (source, "gmm", 0): base - 1}
    scores["housing", "auto", 0] = None
    table = made_table(tmp_path, SUITES["rnade"], scores)
    ranks = {method.spec: table.mean_rank(method) for method in table.methods}
    assert ranks == {"auto": (1, 2), "kde": (2, 2), "gmm": (3, 2)}


def test_text_and_page_of_a_full_table(tmp_path: Path) -> None:
    """Sixty rows of five data sets: no line is too long, and every number is on the page."""
    rng = np.random.default_rng(0)
    suite = SUITES["literature"]
    scores: dict[tuple[str, str, int], Any] = {
        (source, method, 0): rng.normal(size=200) * 10 + 3 * place - 20
        for place, method in enumerate(suite.methods)
        for source in suite.sets
    }
    scores["gas", "kde", 0] = None
    right = {source: COLUMNS["literature"][source] for source in ("power", "gas", "hepmass", "miniboone")}
    table = made_table(tmp_path / "a", suite, scores, features=right)
    for width in (80, 120):
        lines = table_lines(table, width)
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        for said in ("measured here:", "published:", "TraDE 2020 [d]", "0.650  ±.003", "1.04†", "≈-26.7", "157.80‡"):
            assert said in text
        for said in ("[m] written down", "† doubtful", "≈ known roughly", "‡ of other columns than here"):
            assert said in text
    assert "2 standard errors over the test points of a single run" in text
    assert "bsds300: 11 columns here, 63 in the published table: the numbers are not of the same problem" in text
    page = (tmp_path / "a" / "table.html").read_text(encoding="utf-8")
    assert_well_formed(page)
    for row in PUBLISHED["literature"]:
        assert row.label in page
    assert "written down from memory" in page
    for said in ("†: doubtful", "≈: known roughly", "‡: of other columns than here"):
        assert said in page
    columns, rows = long_table(table)
    assert len(rows) == 25 + sum(len(row.figures) for row in PUBLISHED["literature"])
    assert all(len(row) == len(columns) for row in rows)
    assert all(row[columns.index("source")] and row[columns.index("error_bar")] for row in rows)


def text_of(page: str) -> str:
    """What is read of a page, without its markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.partition("<main>")[2].partition("</main>")[0])).split())


def test_the_page_says_what_is_on_it(tmp_path: Path) -> None:
    """Nothing is explained that is not there, and a question mark ends a sentence."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=50)
    made_table(tmp_path / "one", SUITES["embedded"], {("iris", "auto", 0): base, ("iris", "kde", 0): base - 1})
    one = text_of((tmp_path / "one" / "table.html").read_text(encoding="utf-8"))
    for said in ("few rows? Mean", "\u00b1 is one standard error over the test rows.", "on 1 data set",
                 "60 s on 2 threads a fit; 1 run of each method on a data set.", "clear lead"):  # fmt: skip
        assert said in one
    for said in (
        "?.",
        "ublished",
        "The first",
        "the larger of the two",
        "version of nflows",
        "steps of a fit",
        "cells",
    ):
        assert said not in one
    two = {(source, method, fold): base + rng.normal(size=50) for source in ("red-wine", "housing")
           for method in ("auto", "nflows:nsf-ar") for fold in range(3)}  # fmt: skip
    missing = {"housing": "not downloaded", "ionosphere": "not downloaded"}
    made_table(tmp_path / "two", SUITES["rnade"], two, missing=missing)
    page = text_of((tmp_path / "two" / "table.html").read_text(encoding="utf-8"))
    for said in ("The first \u00b1 is one standard error over the test rows, the second over folds",
                 "lead within two standard errors", "m: written down from memory", "version of nflows",
                 "ionosphere: not downloaded."):  # fmt: skip
        assert said in page
    assert "housing: not downloaded" not in page  # what was measured is not missed


def test_published_numbers_of_another_problem_are_marked_and_not_drawn(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=50)
    scores = {(s, m, 0): base - (m == "kde") for s in ("wine", "parkinsons") for m in ("auto", "kde")}
    table = made_table(tmp_path / "a", SUITES["half"], scores, features={"wine": 13, "parkinsons": 16})
    page = (tmp_path / "a" / "table.html").read_text(encoding="utf-8")
    wine, parkinsons = (page.partition(f'aria-label="Scores on {name}"')[2].partition("</svg>")[0]
                        for name in ("wine", "parkinsons"))  # fmt: skip
    assert wine.count("<circle") == 2
    assert parkinsons.count("<circle") == 2 + 8
    assert "QB-Vine [m]" not in wine
    assert "QB-Vine [m]" in parkinsons
    assert "are of 14 columns, another problem, and are not drawn" in page
    assert text_of(page).count("\u2021") == 10 + 1  # every number of wine, and the legend
    text = "\n".join(table_lines(table))
    assert "13.76\u2021" in text
    assert re.search(r"4\.93 ", text)
    assert {row["set"] for row in table_dict(table)["published"]} == {"wine", "parkinsons"}


def test_numbers_of_a_column_have_the_same_decimals(tmp_path: Path) -> None:
    """Small and large errors below each other: two decimals for all, on the page as in the text."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    scores = {("red-wine", m, f): noise * scale + f * shift for m, scale, shift in
              (("auto", 1.0, 0.1), ("kde", 30.0, 3.0), ("gmm", 9.0, 0.01)) for f in range(3)}  # fmt: skip
    made_table(tmp_path / "a", SUITES["rnade"], scores)
    page = text_of((tmp_path / "a" / "table.html").read_text(encoding="utf-8"))
    behind = page.partition("red-wine: paired differences")[2].partition("What it took")[0]
    numbers = re.findall(r"\d+\.(\d+)", behind)
    assert len(numbers) >= 20
    assert {len(number) for number in numbers} == {2}


def test_every_run_says_what_came_of_it(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=50)
    with BenchmarkFolder.open(tmp_path / "a", SUITES["embedded"], Budget(60.0, None, 2)) as made:
        told: list[tuple[str, dict[str, Any]]] = [
            ("auto", {"flow": "nsf-ar + made-mog x 3, stacked", "stop_reason": "patience"}),
            ("gaussian", {"detail": "full covariance", "flow": "gaussian"}),
        ]
        for fold, (method, facts) in enumerate(told):
            cell = Cell("iris", "off", fold, 0, method)
            run = made.free_run(cell)
            run.mkdir()
            write_row_scores(RunFolder(run), np.arange(50), base)
            name = f"runs/{run.name}/test_scores.parquet"
            made.add(CellResult(*cell, "finished", log_prob=0.0, scores=name, command="same", **facts))
        write_table_files(made, build_table(made, SUITES["embedded"]))
    page = (tmp_path / "a" / "table.html").read_text(encoding="utf-8")
    text = text_of(page)
    assert "nsf-ar + made-mog \u00d7 3, stacked; validation no longer improved" in text
    assert "full covariance" in text
    assert "pushforward fit" in text.partition("what came of it")[2]  # as everywhere on the page
    assert page.count("<code>same</code>") == 1


def test_notes_on_data_are_told_once(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=30)
    made = made_table(
        tmp_path / "a",
        SUITES["rnade"],
        {("red-wine", method, fold): base for method in ("auto", "kde") for fold in range(3)},
    )

    def noted(result: CellResult, *more: str) -> CellResult:
        notes = [f"red-wine: rnade, fold {result.fold}: ten folds", "red-wine: rnade left out quality (6 values)"]
        notes.append(f"red-wine: {3 + result.fold // 2} of 160 test rows also stand among the training rows")
        return replace(result, notes=(*notes, *(f"column 'c{k}' is odd" for k in range(3)), *more))

    table = replace(made, results=[noted(result) for result in made.results])
    text = " ".join(" ".join(table_lines(table)).split())
    told = "red-wine: 3 of 160 test rows also stand among the training rows (fold 0; other numbers in others)"
    for said in (told, "red-wine: rnade left out quality (6 values)", "red-wine: 3 notes on columns, in table.json"):
        assert text.count(said) == 1
        assert said.partition(": ")[2][4:] in benchmark_page(table)
    assert "fold 1: ten folds" not in text
    (one,) = table_dict(table)["sets"]
    assert len(one["notes"]) == 5
    assert one["is_published"] is True
    assert not any("notes" in cell for cell in table_dict(table)["cells"])
    # Rows that are not the published ones: by a note, or by their number.
    other = "red-wine: 200 rows of 1,599: not the published set"
    rows = {"train": 160, "validation": 20, "test": 20}
    for results, why in (
        ([noted(r, other) for r in made.results], "200 rows of 1,599: not the published set"),
        ([replace(r, rows=rows) for r in made.results], "200 rows here, 1,599 in the published set"),
    ):
        table = replace(made, results=results)
        text = " ".join(" ".join(table_lines(table)).split())
        assert text.count(f"red-wine: {why}: the numbers are not of the same problem") == 1
        assert text.count(why) == 1
        assert "‡ of other rows than here: not the same problem" in text
        page = benchmark_page(table)
        assert why in page
        assert "published numbers are of other rows, another problem, and are not drawn" in page
        assert table_dict(table)["sets"][0]["is_published"] is False


def test_many_data_sets_stand_below_each_other(tmp_path: Path) -> None:
    """Ten data sets with two standard errors each do not fit side by side; every one has its number all the same."""
    rng = np.random.default_rng(0)
    sources = [f"/data/a-table-with-quite-a-long-name-{place}.csv" for place in range(10)]
    suite = replace(SUITES["embedded"], sets=tuple(sources), dequantize="off")
    scores: dict[tuple[str, str, int], Any] = {
        (source, method, fold): rng.normal(size=20) * 10 - 100 * (place + 1)
        for place, source in enumerate(sources)
        for method in ("kde", "auto", "flow=nsf-ar flow.layers=12 flow.hidden=256 flow.bins=16")
        for fold in range(2)
    }
    table = made_table(tmp_path / "a", suite, scores)
    lines = table_lines(table)
    assert max(map(len, lines)) <= 120
    body = "\n".join(lines).partition("behind the best")[0]
    for (column, _), entry in table.entries.items():
        assert entry.score is not None
        assert f"{entry.score.mean:.2f}" in body
        assert column.source.partition("name-")[2].removesuffix(".csv") in body
    assert body.count("rows x columns") == body.count("flow=nsf-ar") > 1


class _Tags(html.parser.HTMLParser):
    """Complains of tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


def assert_well_formed(page: str) -> None:
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert "http" not in page.partition("<main>")[2].partition("</main>")[0]


# Peers


def peer_of(spec: str, rows: int, features: int, *more: str) -> tuple[Any, Config]:
    (method,) = parse_methods([spec])
    config = peer_config(method.config("iris", "", more), method, rows=rows, features=features)
    return build_peer(method, features, config.flow), config


PEER_SPECS = ["nflows:nsf-ar", "nflows:nsf-c", "nflows:maf", "zuko:nsf", "zuko:maf"]


def needs(spec: str) -> None:
    library = spec.partition(":")[0]
    pytest.importorskip(library, reason=f"{library} is not installed (pip install 'pushforward[bench]')")


@pytest.mark.parametrize("spec", PEER_SPECS)
def test_peers_are_densities(spec: str) -> None:
    """They integrate to one, also after their weights have moved."""
    needs(spec)
    torch.manual_seed(0)
    peer, _ = peer_of(f"{spec} flow.layers=2 flow.hidden=16", 200, 2, "train.steps=1")
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reach = 20.0 if spec.endswith("maf") else 9.0
    side = torch.linspace(-reach, reach, 400)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        mass = peer.eval().log_prob(grid).double().exp().sum() * (2 * reach / 399) ** 2
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_peers_keep_the_best_weights() -> None:
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    train, validation = (torch.randn(n, 3, generator=rng) for n in (40, 40))
    peer, config = peer_of(
        "nflows:maf flow.layers=3 flow.hidden=32 flow.dropout=0 train.learning_rate=1e-2", 40, 3, "train.steps=150"
    )
    training = train_peer(peer, Rows(train), Rows(validation), config.train)
    scores = [score for _, _, score in training.curve]
    assert (training.steps, training.stop_reason, len(scores)) == (150, "steps", VALIDATIONS + 1)
    assert training.validation_nll == min(scores) < scores[-1]  # it overfits, and goes back
    with torch.no_grad():
        kept = -float(peer.eval().log_prob(validation).double().mean())
    assert kept == pytest.approx(training.validation_nll, abs=1e-4)
    steps = [step for _, step, _ in training.curve]
    assert steps == [min(n for n in range(151) if n / 150 >= (k / VALIDATIONS) ** 2) for k in range(VALIDATIONS + 1)]


def test_peers_stop_by_the_clock_and_when_they_diverge() -> None:
    from pushforward.train.trainer import DivergedError

    rows = torch.randn(64, 2)
    peer, config = peer_of("nflows:maf flow.layers=1 flow.hidden=8", 64, 2, "train.seconds=0.2")
    training = train_peer(peer, Rows(rows), Rows(rows), config.train)
    assert training.stop_reason == "seconds"
    assert 0.2 <= training.seconds < 2
    broken = rows.clone()
    broken[0] = math.nan
    peer, config = peer_of("nflows:maf flow.layers=1 flow.hidden=8", 64, 2, "train.steps=5")
    training = train_peer(peer, Rows(broken), Rows(rows), config.train)
    assert (training.stop_reason, training.steps) == ("diverged", 1)
    assert math.isfinite(training.validation_nll)
    peer, config = peer_of("nflows:maf flow.layers=1 flow.hidden=8", 64, 2, "train.steps=5")
    with pytest.raises(DivergedError, match="was not finite at step 1"):
        train_peer(peer, Rows(broken), Rows(broken), config.train)


def test_sizes_of_peers() -> None:
    """As in the literature unless matched; dropout where rows are few; what the user says comes first."""

    def sizes(spec: str, rows: int) -> tuple[Any, ...]:
        (method,) = parse_methods([spec])
        config = peer_config(method.config("iris", "", ["train.seconds=9"]), method, rows=rows, features=5)
        flow, train = config.flow, config.train
        return flow.layers, flow.hidden, flow.blocks, flow.bound, flow.dropout, train.learning_rate, train.batch_size

    assert sizes("nflows:nsf-ar", FEW_ROWS) == (5, 128, 2, 5.0, 0.0, 1e-3, 512)
    assert sizes("nflows:nsf-ar", FEW_ROWS - 1) == (5, 128, 2, 5.0, 0.2, 1e-3, 512)
    assert sizes("nflows:nsf-ar", 100)[-1] == 100
    keys = "flow.hidden=32 flow.dropout=0.1 train.learning_rate=5e-4 train.batch_size=64"
    assert sizes(f"nflows:nsf-ar {keys}", 100) == (5, 32, 2, 5.0, 0.1, 5e-4, 64)
    for rows in (100, 1000, 10_000):
        ours = resolve(load_config("iris", overrides=["flow=nsf-ar"]), rows=rows, features=5, is_toy=False).flow
        wanted = (ours.layers, ours.hidden, ours.blocks, ours.bound, ours.dropout)
        assert sizes("nflows:nsf-ar:matched", rows)[:5] == wanted


def test_zuko_has_no_other_bound() -> None:
    needs("zuko:nsf")
    with pytest.raises(ConfigError, match="its splines end at 5"):
        peer_of("zuko:nsf flow.bound=3", 100, 2, "train.steps=1")


# Slow: the page in a browser, and Weights & Biases


# Where the numbers of each data set end, in the table of scores.
ENDS = """() => {
  const rows = [...document.querySelectorAll("#scores tbody tr")].slice(1), range = document.createRange();
  const end = node => { range.selectNodeContents(node); return range.getBoundingClientRect().right; };
  const columns = [1, 2, 3, 4, 5].map(k => rows.map(row => row.cells[k].querySelector("span")).filter(Boolean));
  return columns.map(cells => cells.map(cell => end(cell.firstChild)));
}"""


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """Nothing is wider than a telephone or asked for, in the light and in the dark."""
    rng = np.random.default_rng(0)
    long = "flow=nsf-ar flow.layers=12 flow.hidden=256 flow.bins=16 train.learning_rate=0.0005"
    scores: dict[tuple[str, str, int], Any] = {
        (source, method, fold): rng.normal(size=50) * 10 - 5
        for source in SUITES["rnade"].sets
        for method in ("gaussian", "kde", "auto", long)
        for fold in range(3)
    }
    scores["housing", "kde", 2] = None
    made_table(tmp_path / "a", SUITES["rnade"], scores)
    path = tmp_path / "a" / "table.html"
    for width, scheme in LOOKS:
        page, said, asked = visit(browser, path, width, scheme)
        for _ in range(2):
            found = page.evaluate(PROBE)
            assert found["width"] <= width, (width, scheme)
            assert found["beyond"] == [], (width, scheme)
            assert found["small"] >= 11, (width, scheme)
            assert page.evaluate(GLUED) == [], (width, scheme)
            columns = page.evaluate(ENDS)
            assert len(columns) == 5
            for ends in columns:  # with errors of any length behind them, and with none
                assert len(ends) >= 4 + 5 - 1
                assert max(ends) - min(ends) < 1.0, (width, scheme)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert said == []
        assert asked == [path.as_uri()]
        page.context.close()


@pytest.mark.slow
def test_weights_and_biases_has_the_table(
    data: Path, tmp_path: Path, wandb_server: WandbServer, wandb_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline first, as one run with its table; then uploaded like a run."""
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
    cells = [row for row in record.history if "cells/ended" in row]
    assert [row["cells/ended"] for row in cells] == [1, 2, 3, 4]
    assert any(key.startswith("tables/benchmark") for row in record.history for key in row)
    monkeypatch.setattr(wandb_check, "SETTLE_SECONDS", 0.0)
    done = CliRunner().invoke(main, ["wandb", "sync", str(out)], prog_name="pushforward")
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert "uploaded and checked" in done.stdout
    (run,) = wandb_server.runs.values()
    assert any(key.startswith("score/ring/") for key in run.summary)
