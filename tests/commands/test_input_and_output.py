"""Where rows come from and go to: stdin, pipes and redirections, and outputs that would replace an input."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.datasets import load
from pushforward.runs.folder import RunFolder
from tests.fixtures.tables import write_file

ROWS = np.round(np.random.default_rng(0).normal(size=(60, 2)), 4)
CSV = "a,b\n" + "".join(f"{a},{b}\n" for a, b in ROWS.tolist())
OTHERS = "a,b\n0.5,0.25\n-1,0.5\n2,0\n"
TINY = ("flow=nsf-ar", "flow.layers=1", "flow.hidden=8", "train.steps=5", "train.evaluate=false", "wandb=off")


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], input=stdin, prog_name="pushforward")


def shell(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash where ``pushforward`` is this one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    text = f'pushforward() {{ "{Path(sys.executable).with_name("pushforward")}" "$@"; }}\n{line}'
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``t.csv`` and a run fitted to it from stdin, ``piped``, and as a file, ``run``."""
    folder = tmp_path_factory.mktemp("fitted")
    write_file(folder / "t.csv", CSV)
    assert invoke("fit", folder / "t.csv", "--out", folder / "run", *TINY).exit_code == 0
    done = invoke("fit", "-", "--out", folder / "piped", *TINY, stdin=CSV)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def here(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with copies of these, and with ``others.csv``."""
    shutil.copytree(fitted / "piped", tmp_path / "piped")
    shutil.copytree(fitted / "run", tmp_path / "run")
    write_file(tmp_path / "t.csv", CSV)
    config = (tmp_path / "run" / "config.yaml").read_text().replace(str(fitted), str(tmp_path))
    write_file(tmp_path / "run" / "config.yaml", config)
    write_file(tmp_path / "others.csv", OTHERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_fit_from_stdin_is_that_of_the_file(here: Path) -> None:
    recorded = yaml.safe_load(Path("piped/config.yaml").read_text())["data"]
    assert (recorded if isinstance(recorded, str) else recorded["source"]) == "-"
    schema = json.loads(Path("piped/schema.json").read_text())
    assert (schema["dataset"], schema["source"], schema["sha256"]) == ("stdin", "-", load("t.csv").sha256)
    of_file = json.loads(Path("run/results.json").read_text())
    assert json.loads(Path("piped/results.json").read_text())["test_nll"] == of_file["test_nll"]
    assert invoke("report", "piped").exit_code == 0
    assert "standard input" in Path("piped/report.html").read_text()


def test_the_folder_of_a_fit_from_stdin_is_called_so(here: Path) -> None:
    assert invoke("fit", "-", *TINY, stdin=CSV).exit_code == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("stdin-nsf-ar-")


def test_rows_from_stdin_were_not_kept(here: Path) -> None:
    what = "piped: was fitted to rows from stdin, which were not kept; save the same rows in a file and give it: "
    for arguments, command in (
        (["fit", "--resume", "piped", "train.steps=9"], "fit --resume piped data.source=FILE"),
        (["evaluate", "piped"], "evaluate piped FILE"),
        (["evaluate", "piped", "-"], "evaluate piped FILE"),
    ):
        done = invoke(*arguments, stdin=CSV)
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr == f"pushforward {arguments[0]}: {what}pushforward {command}\n"
    # These commands work.
    assert invoke("fit", "--resume", "piped", "data.source=t.csv", "train.steps=9").exit_code == 0
    assert invoke("evaluate", "piped", "t.csv").exit_code == 0


def test_score_and_evaluate_read_stdin(here: Path) -> None:
    expected = invoke("score", "run", "others.csv").stdout
    assert len(expected.splitlines()) == 4
    for source in ("-", "/dev/stdin"):
        assert invoke("score", "run", source, stdin=OTHERS).stdout == expected
    piped, named = (
        json.loads(invoke("evaluate", "run", source, "--json", stdin=OTHERS).stdout) for source in ("-", "others.csv")
    )
    assert (piped.pop("evaluated"), named.pop("evaluated")) == ("stdin", "others.csv")
    for timed in ("seconds", "baselines"):
        del piped[timed], named[timed]
    assert piped == named


def test_no_rows_on_stdin(here: Path) -> None:
    done = invoke("score", "run", "-", stdin="")
    assert (done.exit_code, done.stderr) == (3, "pushforward score: -: no data on stdin\n")


def test_process_substitution_and_redirection(here: Path) -> None:
    done = shell("pushforward score run <(gzip -c others.csv); pushforward fit - --dry-run --json < t.csv")
    assert done.returncode == 0, done.stderr
    *scores, planned = done.stdout.splitlines()
    assert scores == invoke("score", "run", "others.csv").stdout.splitlines()
    # A file that stdin is redirected from is the source: it can be read again.
    assert json.loads(planned)["config"]["data"]["source"] == str(here / "t.csv")
    assert json.loads(planned)["dataset"] == "t"


def test_a_terminal_is_not_waited_for(here: Path) -> None:
    main_end, terminal = pty.openpty()
    try:
        process = subprocess.run(
            [Path(sys.executable).with_name("pushforward"), "score", "run", "-"],
            stdin=terminal, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        os.close(main_end)
        os.close(terminal)
    line = "pushforward score: -: expected rows on stdin, which is a terminal; pipe them in, or give a file\n"
    assert (process.returncode, process.stderr) == (2, line)


def test_a_sweep_and_a_benchmark_keep_a_copy_of_stdin(here: Path) -> None:
    done = invoke("sweep", "-", "--print-space", *TINY, stdin=CSV)
    assert done.exit_code == 0, done.output
    (copy,) = Path("runs/data").iterdir()
    assert copy.read_text() == CSV
    assert copy.name.startswith("stdin-")
    assert f"-: saved as {copy}\n" in done.stderr
    assert f"value: {copy.resolve()}" in done.stdout
    done = invoke("benchmark", "-", "--list", "--methods", "gaussian", "--json", stdin=CSV)
    assert done.exit_code == 0, done.output
    assert [path.name for path in Path("runs/data").iterdir()] == [copy.name]
    write_file(
        here / "s.yaml", "method: grid\nparameters: {data.source: {value: '-'}, flow.layers: {values: [1, 2]}}\n"
    )
    done = invoke("sweep", "-c", "s.yaml", stdin=CSV)
    assert done.exit_code == 2
    assert "data.source: every trial reads it, and - only once; give it as DATA" in done.stderr


def assert_refused(done: Result, what: str) -> None:
    assert (done.exit_code, done.stdout) == (2, "")
    command = done.stderr.split(":")[0]
    assert done.stderr == f"{command}: --out: {what}; write to another file\n"


@pytest.mark.parametrize("spelling", ["others.csv", "./run/../others.csv", "absolute", "link.csv", "hard.csv"])
def test_scores_never_replace_their_rows(spelling: str, here: Path) -> None:
    os.symlink("others.csv", "link.csv")
    os.link("others.csv", "hard.csv")
    out = here / "others.csv" if spelling == "absolute" else spelling
    assert_refused(invoke("score", "run", "others.csv", "--out", out), f"{Path(out)} is the file that is read")
    assert Path("others.csv").read_text() == OTHERS
    assert invoke("score", "run", "others.csv", "--out", "new.csv").exit_code == 0
    assert invoke("score", "run", "others.csv", "--out", "new.csv").exit_code == 0  # earlier scores are replaced


def test_the_data_and_the_files_of_a_run_are_never_replaced(here: Path) -> None:
    before = {
        path: path.read_bytes() for path in (*RunFolder(Path("run")).path.rglob("*"), Path("t.csv")) if path.is_file()
    }
    os.link("run/model/config.json", "hard.csv")
    os.symlink("run/schema.json", "schema.csv")
    for out, what in (
        ("t.csv", "t.csv is the file that run was fitted to"),
        ("hard.csv", "hard.csv is a file of the run run"),
        ("schema.csv", "schema.csv is a file of the run run"),
    ):
        assert_refused(invoke("score", "run", "others.csv", "--out", out), what)
        assert_refused(invoke("sample", "run", "-n", 3, "--out", out), what)
    assert invoke("sample", "run", "-n", 3, "--out", "run/test_scores.parquet").exit_code == 2
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):  # samples are for writing to
        Path("run/samples").mkdir(exist_ok=True)
        assert invoke("sample", "run", "-n", 3, "--out", "run/samples/new.csv").exit_code == 0
    for command in (
        ["fit", "t.csv", *TINY],
        ["benchmark", "t.csv", "--methods", "gaussian"],
        ["sweep", "t.csv", *TINY],
    ):
        assert invoke(*command, "--out", "t.csv").exit_code in (1, 2)
    for command in (["report", "run"], ["compare", "run"]):
        assert invoke(*command, "--out", "t.csv").exit_code == 2
    assert {path: path.read_bytes() for path in before} == before


def test_stdin_and_stdout_may_be_the_same_file_too(here: Path) -> None:
    done = shell(
        "pushforward score run others.csv >> others.csv; pushforward score run - --out others.csv < others.csv"
    )
    assert done.stderr == (
        "pushforward score: --out: stdout is the file that is read; write to another file\n"
        "pushforward score: --out: others.csv is the file that is read; write to another file\n"
    )
    assert Path("others.csv").read_text() == OTHERS
