"""The commands: what they print and write, and that their outputs agree."""

import gzip
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

from pushforward import __version__
from pushforward.cli import main
from pushforward.datasets import split
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.likelihood import BATCH_SIZE
from pushforward.runs.listing import list_runs
from pushforward.tracking.jsonl import read_metrics

TINY = ("train.steps=20", "flow=maf", "flow.layers=1", "flow.hidden=8", "train.evaluate=false", "wandb=off")
REQUIRED = {
    "run",
    "dataset",
    "flow",
    "features",
    "rows",
    "parameters",
    "steps",
    "seconds",
    "stop_reason",
    "train_nll",
    "val_nll",
    "test_nll",
    "test_nll_se",
    "test_nll_standardized",
}
ROWS = 400


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pushforward")
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done


def one_object(done: Result) -> dict[str, Any]:
    """Return the only JSON object on stdout; NaN and Infinity are not JSON."""
    assert done.stdout.count("\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    found: dict[str, Any] = json.loads(done.stdout, parse_constant=refuse)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with counts, prices with two decimals, float64 and float32 numbers, and a run fitted to it."""
    folder = tmp_path_factory.mktemp("cli")
    generator = np.random.default_rng(0)
    z = generator.standard_normal((ROWS, 4))
    columns = {
        "count": pa.array(np.rint(10 + 3 * z[:, 0]).astype(np.int64)),
        "price, net": pa.array(np.round(50 + 5 * z[:, 1], 2)),
        "plain": pa.array(z[:, 2] + 0.5 * z[:, 0]),
        "single": pa.array(z[:, 3].astype(np.float32)),
    }
    csv.write_csv(pa.table(columns), folder / "table.csv")
    parquet.write_table(pa.table(columns), folder / "table.parquet")
    done = invoke("fit", folder / "table.parquet", "--out", folder / "run", "--json", *TINY)
    (folder / "fit.json").write_text(done.stdout)
    return folder


def test_fit_prints_one_object(folder: Path) -> None:
    results = json.loads((folder / "fit.json").read_text())
    assert set(results) >= REQUIRED
    assert "kl_to_truth" not in results
    assert results == json.loads((folder / "run" / "results.json").read_text())
    assert (results["dataset"], results["rows"], results["features"]) == ("table", ROWS, 4)
    assert list_runs(folder)[0].status == "finished"
    assert read_metrics(folder / "run" / "metrics.jsonl")[-1]["kind"] == "summary"


def test_fit_prints_only_the_object_on_stdout(tmp_path: Path) -> None:
    """As typed by a user: one JSON object on stdout, everything else on stderr, no Python warnings."""
    command = [sys.executable, "-m", "pushforward", "fit", "moons", "data.rows=500", "--json", "--wandb", "off"]
    done = subprocess.run([*command, *TINY[:-1]], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert set(results) >= REQUIRED | {"kl_to_truth", "kl_to_truth_se"}
    assert math.isfinite(results["kl_to_truth"])
    assert Path(results["run"]).parent == Path("runs")
    assert (tmp_path / results["run"] / "model" / "model.safetensors").is_file()
    assert "Warning" not in done.stderr
    assert "500 rows x 2 columns" in done.stderr


def test_fit_prints_a_summary(folder: Path, tmp_path: Path) -> None:
    done = invoke("fit", folder / "table.csv", "--out", tmp_path / "run", *TINY)
    assert re.search(r"^test NLL -?\d+\.\d{4} ± \d+\.\d{4} nats$", done.stdout, re.MULTILINE)
    assert f"run       {tmp_path / 'run'}" in done.stdout
    assert "{" not in done.stdout


def parts(folder: Path) -> dict[str, Any]:
    table = parquet.read_table(folder / "table.parquet")
    indices = split(table.num_rows, 0)
    # As text, a float32 is written with fewer digits, which would be read as another float64.
    table = table.set_column(3, "single", table["single"].cast(pa.float64()))
    return {name: table.take(getattr(indices, name)) for name in ("train", "validation", "test")}


@pytest.mark.parametrize("part", ["validation", "test"])
def test_score_agrees_with_the_nll_of_the_fit(part: str, folder: Path, tmp_path: Path) -> None:
    csv.write_csv(parts(folder)[part], tmp_path / "part.csv")
    parquet.write_table(parts(folder)[part], tmp_path / "part.parquet")
    results = json.loads((folder / "fit.json").read_text())
    key = {"validation": "val_nll", "test": "test_nll"}[part]
    for name in ("part.csv", "part.parquet"):
        found = one_object(invoke("score", folder / "run", tmp_path / name, "--out", tmp_path / "s.csv", "--json"))
        assert found["nll"] == pytest.approx(results[key], rel=1e-12)
        scores = csv.read_csv(tmp_path / "s.csv")
        assert scores.column_names == ["log_prob"]
        assert scores.num_rows == parts(folder)[part].num_rows == found["rows"]
        assert -np.mean(scores["log_prob"].to_numpy()) == pytest.approx(results[key], rel=1e-12)


def test_the_score_of_a_row_does_not_depend_on_the_table(folder: Path, tmp_path: Path) -> None:
    """Shuffled rows and columns, an additional column, and a single row give the same scores."""
    table = parquet.read_table(folder / "table.parquet").slice(0, 50)
    order = np.random.default_rng(1).permutation(50)
    shuffled = table.take(order).select(["single", "plain", "count", "price, net"])
    shuffled = shuffled.append_column("note", pa.array(["x"] * 50))
    csv.write_csv(table, tmp_path / "a.csv")
    csv.write_csv(shuffled, tmp_path / "b.csv")
    csv.write_csv(table.slice(7, 1), tmp_path / "c.csv")

    def scores(name: str) -> list[float]:
        lines = invoke("score", folder / "run", tmp_path / name).stdout.splitlines()
        assert lines[0] == "log_prob"
        return [float(line) for line in lines[1:]]

    a, b, c = scores("a.csv"), scores("b.csv"), scores("c.csv")
    assert len(a) == len(b) == 50
    assert b == pytest.approx([a[k] for k in order], rel=1e-12)
    assert c == pytest.approx([a[7]], rel=1e-12)


def test_score_writes_to_stdout_csv_or_parquet(folder: Path, tmp_path: Path) -> None:
    arguments = ("score", folder / "run", folder / "table.csv")
    stdout = invoke(*arguments).stdout
    done = invoke(*arguments, "--out", tmp_path / "s.csv")
    assert done.stdout == ""
    assert (tmp_path / "s.csv").read_text() == stdout
    assert re.fullmatch(r"NLL \d+\.\d{3} ± \d+\.\d{3} nats; written to \S+\n", done.stderr)
    invoke(*arguments, "--out", tmp_path / "s.parquet")
    scores = parquet.read_table(tmp_path / "s.parquet")
    assert scores.schema == pa.schema([("log_prob", pa.float64())])
    assert scores["log_prob"].to_pylist() == [float(line) for line in stdout.splitlines()[1:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.parquet"]
    assert one_object(invoke(*arguments, "--json"))["out"] is None


def test_score_writes_through_links_and_into_pipes(folder: Path, tmp_path: Path) -> None:
    """A link stays a link; a pipe is written to and not replaced, like a device."""
    (tmp_path / "there.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("there.csv")
    invoke("score", folder / "run", folder / "table.csv", "--out", tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there.csv").read_text().startswith("log_prob\n")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        invoke("score", folder / "run", folder / "table.csv", "--out", tmp_path / "pipe")
        assert (tmp_path / "pipe").is_fifo()
        assert os.read(reader, 1 << 16).decode() == (tmp_path / "there.csv").read_text()
    finally:
        os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "pipe", "there.csv"]


def test_draws_average_over_dequantized_rows(folder: Path) -> None:
    once = invoke("score", folder / "run", folder / "table.csv").stdout.splitlines()[1:]
    often = invoke("score", folder / "run", folder / "table.csv", "--draws", "8").stdout.splitlines()[1:]
    assert once != often
    assert np.mean([float(v) for v in once]) == pytest.approx(np.mean([float(v) for v in often]), abs=0.1)


def sampled(folder: Path, out: Path, *more: str) -> pa.Table:
    invoke("sample", folder / "run", "-n", "200", "--out", out, *more)
    return parquet.read_table(out) if out.suffix == ".parquet" else csv.read_csv(out)


def test_samples_look_like_the_table(folder: Path, tmp_path: Path) -> None:
    original = parquet.read_table(folder / "table.parquet")
    drawn = sampled(folder, tmp_path / "s.parquet")
    assert drawn.schema == original.schema
    assert drawn.num_rows == 200
    text = sampled(folder, tmp_path / "s.csv")
    assert text.column_names == original.column_names
    assert [str(kind) for kind in text.schema.types] == ["int64", "double", "double", "double"]
    prices = [line.rsplit(",", 3)[1] for line in (tmp_path / "s.csv").read_text().splitlines()[1:]]
    assert all(re.fullmatch(r"-?\d+(\.\d{1,2})?", price) for price in prices)
    for name in original.column_names:
        a, b = original[name].to_numpy(), drawn[name].to_numpy()
        assert abs(a.mean() - b.mean()) < 5 * a.std() * math.sqrt(1 / len(a) + 1 / len(b))
        assert text[name].to_numpy() == pytest.approx(b, rel=1e-6)  # both formats have the same rows


def test_samples_can_be_scored_and_fitted(folder: Path, tmp_path: Path) -> None:
    sampled(folder, tmp_path / "s.csv")
    found = one_object(invoke("score", folder / "run", tmp_path / "s.csv", "--json"))
    results = json.loads((folder / "fit.json").read_text())
    assert found["nll"] == pytest.approx(results["train_nll"], abs=0.6)
    invoke("fit", tmp_path / "s.csv", "--dry-run")


def test_the_same_seed_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    first = sampled(folder, tmp_path / "a.csv", "--seed", "4")
    assert first.equals(sampled(folder, tmp_path / "b.csv", "--seed", "4"))
    assert not first.equals(sampled(folder, tmp_path / "c.csv", "--seed", "5"))


def test_samples_go_to_stdout_by_default(folder: Path, tmp_path: Path) -> None:
    """The same rows on stdout, in a file of any kind, and in JSON; and a second call overwrites nothing."""
    before = sorted((folder / "run").rglob("*"))
    arguments = ("sample", folder / "run", "-n", "7", "--seed", "3")
    done = invoke(*arguments)
    assert len(done.stdout.splitlines()) == 8
    assert invoke(*arguments, "--out", "-").stdout == done.stdout
    written = invoke(*arguments, "--out", tmp_path / "s.csv")
    assert written.stdout == ""
    assert written.stderr.endswith(f"7 rows written to {tmp_path / 's.csv'}\n")
    assert (tmp_path / "s.csv").read_text() == done.stdout
    for kind in ("a.csv.gz", "b.csv.gz"):
        invoke(*arguments, "--out", tmp_path / kind)
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).decode() == done.stdout
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    found = one_object(invoke(*arguments, "--json"))
    invoke(*arguments, "--out", tmp_path / "s.parquet")
    drawn = parquet.read_table(tmp_path / "s.parquet").to_pydict()
    assert found == {"run": str(folder / "run"), "rows": 7, "seed": 3, "out": None, "columns": drawn}
    short = one_object(invoke(*arguments, "--json", "--out", tmp_path / "s.csv"))
    assert short == {"run": str(folder / "run"), "rows": 7, "seed": 3, "out": str(tmp_path / "s.csv")}
    assert sorted((folder / "run").rglob("*")) == before


def test_many_samples_are_those_of_one_call(folder: Path, tmp_path: Path) -> None:
    """Rows are drawn and written in parts; the parts change neither the rows nor the order."""
    n = 2 * BATCH_SIZE + 100
    expected = FittedDensity.load(folder / "run" / "model").draw(n, seed=4)[:, 2]
    invoke("sample", folder / "run", "-n", str(n), "--seed", "4", "--out", tmp_path / "s.parquet")
    many = parquet.read_table(tmp_path / "s.parquet")
    assert many["plain"].to_pylist() == expected.tolist()
    invoke("sample", folder / "run", "-n", str(2 * BATCH_SIZE), "--seed", "4", "--out", tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").equals(many.slice(0, 2 * BATCH_SIZE))


def test_samples_can_be_piped_into_score(folder: Path) -> None:
    command = [sys.executable, "-m", "pushforward"]
    run = str(folder / "run")
    scoring = [*command, "score", run, "-"]
    with subprocess.Popen([*command, "sample", run, "-n", "50"], stdout=subprocess.PIPE) as drawing:
        done = subprocess.run(scoring, stdin=drawing.stdout, capture_output=True, text=True, check=False)
    assert drawing.returncode == 0
    assert len(done.stdout.splitlines()) == 51, done.stderr


def test_given_sets_the_context_columns(folder: Path, tmp_path: Path) -> None:
    arguments = ("fit", folder / "table.parquet", "--out", tmp_path / "run", *TINY)
    invoke(*arguments, "data.given=[count, 'price, net']", "data.drop=single")
    given = ("--given", "count=12", "--given", "price, net=49.5")
    invoke("sample", tmp_path / "run", "-n", "5", *given, "--out", tmp_path / "s.parquet")
    drawn = parquet.read_table(tmp_path / "s.parquet")
    assert drawn.column_names == ["count", "price, net", "plain"]
    assert drawn["count"].to_pylist() == [12] * 5
    assert drawn["count"].type == pa.int64()
    assert drawn["price, net"].to_pylist() == [49.5] * 5
    assert len(set(drawn["plain"].to_pylist())) == 5
    scored = invoke("score", tmp_path / "run", folder / "table.csv")
    assert len(scored.stdout.splitlines()) == ROWS + 1


def test_evaluate_agrees_with_the_fit(folder: Path, tmp_path: Path) -> None:
    results = json.loads((folder / "fit.json").read_text())
    found = one_object(invoke("evaluate", folder / "run", "--json"))
    assert found["test"]["nll"] == pytest.approx(results["test_nll"], rel=1e-12)
    assert found["validation"]["nll"] == pytest.approx(results["val_nll"], rel=1e-12)
    assert found["train"]["nll"] == pytest.approx(results["train_nll"], rel=1e-12)
    assert found["test_nll_standardized"] == pytest.approx(results["test_nll_standardized"], rel=1e-12)
    recorded = json.loads((folder / "run" / "evaluation.json").read_text())
    assert recorded["test"] == found["test"]

    csv.write_csv(parts(folder)["validation"], tmp_path / "other.csv")
    done = invoke("evaluate", folder / "run", tmp_path / "other.csv")
    assert done.stdout.startswith("on the 40 rows of other.csv\n")
    assert f"\nother.csv   {results['val_nll']:.3f}" in done.stdout
    assert "test" not in done.stdout.replace("classifier test", "")
    assert "Gaussian mixture" in done.stdout
    assert done.stderr.splitlines() == ["evaluating: baselines", "evaluating: samples and latents"]
    # The evaluation on another table does not replace that on the test rows.
    assert json.loads((folder / "run" / "evaluation.json").read_text()) == recorded


def test_datasets_are_listed() -> None:
    lines = invoke("datasets").stdout.splitlines()
    entries = json.loads(invoke("datasets", "--json").stdout)["datasets"]
    assert lines[0].split() == ["name", "kind", "rows", "columns", "where", "description"]
    assert [line.split()[0] for line in lines[1:]] == [entry["name"] for entry in entries]
    assert {"name", "kind", "rows", "columns", "where", "description"} == set(entries[0])
    listed = {entry["name"]: entry for entry in entries}
    assert "moons" in listed
    assert (listed["target:u1"]["kind"], listed["target:u1"]["rows"], listed["target:u1"]["columns"]) == (
        "target",
        None,
        2,
    )
    assert ["target:funnel", "target", "-", "10"] in [line.split()[:4] for line in lines]


def test_runs_are_listed(folder: Path, tmp_path: Path) -> None:
    found = json.loads(invoke("runs", folder, "--json").stdout)["runs"]
    results = json.loads((folder / "fit.json").read_text())
    assert found[0]["name"] == "run"
    assert (found[0]["status"], found[0]["test_nll"]) == ("finished", results["test_nll"])
    assert f"{results['test_nll']:.4f}" in invoke("runs", folder).stdout
    empty = invoke("runs", tmp_path)
    assert (empty.stdout, empty.stderr) == ("", f"no runs below {tmp_path}\n")
    assert json.loads(invoke("runs", tmp_path, "--json").stdout) == {"runs": []}


def test_dry_run_prints_the_resolved_configuration(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = one_object(invoke("fit", folder / "table.csv", "flow=maf", "--dry-run", "--json"))
    assert (found["features"], found["train"], found["validation"], found["test"]) == (4, 320, 40, 40)
    assert found["parameters"] > 0
    unused = {"bins", "bound", "components"}  # the flow has neither splines nor mixtures
    flow = found["config"]["flow"]
    assert {key for key, value in flow.items() if value == "auto"} == {*unused, "univariate"}
    done = invoke("fit", folder / "table.csv", "--dry-run")
    assert "features    4\n" in done.stderr
    assert f"train       {ROWS * 8 // 10}\n" in done.stderr
    assert done.stderr.endswith("nothing was fitted; leave out --dry-run to fit\n")
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    again = invoke("fit", "-c", tmp_path / "resolved.yaml", "--dry-run").stdout
    assert again == done.stdout  # the printed configuration resolves to itself
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resolved.yaml"]


def test_print_config_reproduces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("moons", "flow=nsf-c", "train.learning_rate=1e-4", "data.drop=x2", "--seed", "7", "--wandb", "off")
    printed = invoke("fit", *arguments, "--print-config").stdout
    Path("config.yaml").write_text(printed)
    assert invoke("fit", "-c", "config.yaml", "--print-config").stdout == printed
    assert invoke("fit", "-c", "config.yaml", "seed=8", "--print-config").stdout == printed.replace(
        "seed: 7", "seed: 8"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_order_of_precedence(tmp_path: Path) -> None:
    """Options precede key=value, key=value precedes files, later files precede earlier ones."""
    (tmp_path / "a.yaml").write_text("seed: 1\ntrain: {steps: 1, batch_size: 1}\ndata: circles\n")
    (tmp_path / "b.yaml").write_text("train.steps: 2\n")
    files = ("-c", tmp_path / "a.yaml", "-c", tmp_path / "b.yaml")
    printed = invoke("fit", *files, "seed=2", "--seed", "3", "--print-config").stdout
    assert "seed: 3" in printed
    assert "steps: 2" in printed
    assert "batch_size: 1\n" in printed
    assert "source: circles" in printed
    assert "source: moons" in invoke("fit", "moons", *files, "--print-config").stdout


LIGHT = (
    ["--help"],
    ["--version"],
    ["fit", "--help"],
    ["score", "--help"],
    ["sample", "--help"],
    ["evaluate", "--help"],
    ["runs", "--help"],
    ["fit", "moons", "--print-config"],
)


def test_light_commands_do_not_import_torch() -> None:
    program = """
import sys
from pushforward.cli import main
for arguments in {commands}:
    try:
        main(arguments, prog_name="pushforward")
    except SystemExit as end:
        assert not end.code, end.code
heavy = {{"torch", "numpy", "pyarrow", "sklearn", "wandb", "matplotlib", "nflows"}} & set(sys.modules)
sys.exit(f"imported {{sorted(heavy)}}" if heavy else 0)
"""
    code = program.format(commands=list(LIGHT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"pushforward, version {__version__}" in done.stdout


def test_runs_does_not_import_torch(folder: Path) -> None:
    program = (
        "import sys; from pushforward.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, "runs", str(folder)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", ["fit", "score", "sample", "evaluate", "datasets", "runs"])
def test_help_of_every_command(command: str) -> None:
    assert command in invoke("--help").stdout
    text = invoke(command, "--help").stdout
    assert "--json" in text
    assert invoke(command, "-h").stdout == text


@pytest.mark.parametrize(
    ("typed", "meant"), [("fti", "fit"), ("smaple", "sample"), ("dataset", "datasets"), ("eval", "evaluate")]
)
def test_a_mistyped_command_gets_a_suggestion(typed: str, meant: str) -> None:
    assert f"no command '{typed}'; did you mean '{meant}'?" in invoke(typed, code=2).stderr


def test_an_unknown_command_gets_no_suggestion() -> None:
    assert "Error: no command 'xyzzy'\n" in invoke("xyzzy", code=2).stderr


def test_a_full_disk_behind_a_redirection_is_one_line(folder: Path, tmp_path: Path) -> None:
    """An error message of the command, not of the interpreter."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full")
    few = tmp_path / "few.parquet"  # few enough rows to stay in Python's buffer until the end
    parquet.write_table(parquet.read_table(folder / "table.parquet").slice(0, 5), few)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pushforward", "score", str(folder / "run"), str(few)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "score: stdout: No space left on device" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    """As in ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pushforward", "score", str(folder / "run"), str(folder / "table.csv")]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0
