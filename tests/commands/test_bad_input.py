"""Mistakes of users: one line on stderr, the right exit code, and no incomplete files.

The table holds name -> (arguments, exit code, exact message), so that a change of a message is a reviewed change. Only
the report on the columns of a table has several lines.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from pushforward.cli import main

TINY = (
    "data.rows=300",
    "flow=maf",
    "flow.layers=1",
    "flow.hidden=8",
    "train.steps=5",
    "train.evaluate=false",
    "wandb=off",
)

FILES = {
    "empty.csv": "",
    "header.csv": "a,b\n",
    "text.csv": "a,b\n1,x\n2,y\n3,z\n4,x\n",
    "missing.csv": "a,b\n1,2\n2,NaN\n3,1\n4,5\n",
    "infinite.csv": "a,b\n1,2\n2,inf\n3,1\n4,5\n",
    "one.csv": "a,b\n1,2\n",
    "wide.csv": "a,b,c,d,e\n1,2,3,4,5\n2,3,4,5,1\n3,4,5,1,2\n",
    "twice.csv": "a,a\n1,2\n2,3\n3,5\n4,4\n",
    "constant.csv": "a,b\n1,7\n2,7\n3,7\n4,7\n",
    "ragged.csv": "a,b\n1,2\n2\n3,4\n",
    "table.xlsx": "PK\x03\x04",
    "broken.parquet": "PAR1 not at all",
    "others.csv": "a,b\n1,2\n2,3\n3,5\n",
    "points.csv": "x1,x2\n0.5,0.25\n-1,0.5\n",
    "scored-text.csv": "x1,x2\n0.5,north\n",
    "list.yaml": "- 1\n",
    "torn.yaml": "train: {steps: 1\n",
    "unknown.yaml": "train:\n  stepz: 5\n",
    "file": "a regular file",
}

FLOWS = "realnvp, maf, iaf, nsf-c, nsf-ar, made-mog, gaussian, bayesian-network"

# Arguments may name {RUN} (a fitted run), {CONDITIONAL} (one fitted with data.given=x2) and the files above.
MISTAKES: dict[str, tuple[str, int, str]] = {
    # the configuration
    "no data": ("fit", 2, "fit: data.source: expected the name of a data set, or a file; got nothing"),
    "unknown key": ("fit moons trian.steps=5", 2, "fit: unknown key 'trian.steps'; did you mean 'train.steps'?"),
    "another tool's key": ("fit moons lr=0.1", 2, "fit: unknown key 'lr'; did you mean 'train.learning_rate'?"),
    "no equals sign": ("fit moons train.steps", 2, "fit: expected key=value; got 'train.steps'"),
    "no key": ("fit moons =5", 2, "fit: expected key=value; got '=5'"),
    "two data sets": ("fit moons circles", 2, "fit: expected key=value; got 'circles'"),
    "wrong value": (
        "fit moons train.steps=many",
        2,
        "fit: train.steps: expected a whole number above 0; got 'many'",
    ),
    "no steps": ("fit moons train.steps=0", 2, "fit: train.steps: expected a whole number above 0; got '0'"),
    "unknown flow": (
        "fit moons flow=mfa",
        2,
        f"fit: flow.name: unknown flow 'mfa'; did you mean 'maf'? known: {FLOWS}",
    ),
    "fractions": (
        "fit moons data.test_fraction=0.6 data.validation_fraction=0.5",
        2,
        "fit: data.validation_fraction + data.test_fraction: expected a sum below 1; got 1.1",
    ),
    "device": ("fit moons --device gpu", 2, "fit: device: expected auto, cpu, cuda, cuda:N or mps; got 'gpu'"),
    "device of score": (
        "score {RUN} points.csv --device gpu",
        2,
        "score: device: expected auto, cpu, cuda, cuda:N or mps; got 'gpu'",
    ),
    "no such yaml": ("fit -c none.yaml", 2, "fit: none.yaml: cannot read the configuration: no such file or directory"),
    "yaml is a list": (
        "fit moons -c list.yaml",
        2,
        "fit: list.yaml line 1: expected keys with values, as in 'seed: 1'",
    ),
    "yaml is torn": (
        "fit moons -c torn.yaml",
        2,
        "fit: torn.yaml line 2: not valid YAML: expected ',' or '}}', but got '<stream end>'",
    ),
    "yaml's key": (
        "fit moons -c unknown.yaml",
        2,
        "fit: unknown.yaml line 2: unknown key 'train.stepz'; did you mean 'train.steps'?",
    ),
    "resume and a seed": (
        "fit --resume {RUN} --seed 1",
        2,
        "fit: --resume: takes -c, --seed and --out from the run; leave them out",
    ),
    "resume and other data": (
        "fit circles --resume {RUN}",
        2,
        "fit: data.source: a resumed fit keeps moons; got circles; start a new fit to change it",
    ),
    "resume with another flow": (
        "fit --resume {RUN} flow.layers=3",
        2,
        "fit: flow.layers: a resumed fit keeps 1; got 3; start a new fit to change it",
    ),
    # runs
    "out is not empty": (
        "fit moons data.rows=300 --out {RUN}",
        2,
        "fit: {RUN}: expected a new or empty folder; it is not empty (runs are never overwritten)",
    ),
    "out is a file": ("fit moons data.rows=300 --out file", 2, "fit: file: expected a new or empty folder; got a file"),
    "out is below a file": (
        "fit moons data.rows=300 --out file/run",
        2,
        "fit: file/run: expected a new or empty folder; got a file",
    ),
    "score: not a run": (
        "score nowhere points.csv",
        2,
        "score: nowhere is not a run folder (no config.yaml); runs here: {RUN}, {CONDITIONAL}",
    ),
    "sample: not a run": (
        "sample nowhere -n 3",
        2,
        "sample: nowhere is not a run folder (no config.yaml); runs here: {RUN}, {CONDITIONAL}",
    ),
    "evaluate: not a run": (
        "evaluate nowhere",
        2,
        "evaluate: nowhere is not a run folder (no config.yaml); runs here: {RUN}, {CONDITIONAL}",
    ),
    "resume: not a run": (
        "fit --resume nowhere",
        2,
        "fit: nowhere is not a run folder (no config.yaml); runs here: {RUN}, {CONDITIONAL}",
    ),
    # data
    "unknown data set": (
        "fit mooons",
        3,
        "fit: unknown dataset 'mooons'; did you mean 'moons'? see `pushforward datasets`, or name a file that exists",
    ),
    "no such file": ("fit none.csv", 3, "fit: none.csv: no such file"),
    "a folder": ("fit .", 3, "fit: .: is a folder; give one file"),
    "empty": ("fit empty.csv", 3, "fit: empty.csv: the file is empty"),
    "header only": ("fit header.csv", 3, "fit: header.csv: has a header and no rows; nothing to learn from"),
    "text": (
        "fit text.csv",
        3,
        "fit: text.csv: column 'b' holds text ('x' in row 1)\n"
        "this works (only numbers are modelled: to keep the column, encode it as numbers):\n"
        "  pushforward fit text.csv data.drop=b",
    ),
    "missing value": (
        "fit missing.csv",
        3,
        "fit: missing.csv: column 'b' has 1 missing value (in row 2)\n"
        "this works, with 3 of 4 rows:\n"
        "  pushforward fit missing.csv data.missing=drop",
    ),
    "infinite value": (
        "fit infinite.csv",
        3,
        "fit: infinite.csv: column 'b' has 1 infinite value (in row 2)\n"
        "this works, with 3 of 4 rows:\n"
        "  pushforward fit infinite.csv data.missing=drop",
    ),
    "one row": ("fit one.csv", 3, "fit: one.csv: 1 row for 2 columns; at least 3 rows are needed"),
    "fewer rows than columns": ("fit wide.csv", 3, "fit: wide.csv: 3 rows for 5 columns; at least 5 rows are needed"),
    "name twice": (
        "fit twice.csv",
        3,
        "fit: twice.csv: column 'a' appears 2 times\n"
        "no column is left to model; to keep one, give every column its own name",
    ),
    "constant": (
        "fit constant.csv",
        3,
        "fit: constant.csv: column 'b' is constant (7), so it has no density\n"
        "this works:\n"
        "  pushforward fit constant.csv data.drop=b",
    ),
    "ragged": ("fit ragged.csv", 3, "fit: ragged.csv: row 2 has 1 cell, not 2 (line 3); correct it"),
    "a spreadsheet": (
        "fit table.xlsx",
        3,
        "fit: table.xlsx: not a complete zip file (File is not a zip file); fetch it again",
    ),
    "drop an unknown column": (
        "fit moons data.drop=x3",
        3,
        "fit: moons: data.drop names 'x3'; the columns are: x1, x2",
    ),
    "context only": (
        "fit moons data.given=x1,x2",
        3,
        "fit: moons: every column is context; leave at least one to model",
    ),
    "score: other columns": (
        "score {RUN} others.csv --out scores.csv",
        3,
        "score: others.csv: lacks the columns x1, x2; it has a, b",
    ),
    "score: text": (
        "score {RUN} scored-text.csv --out scores.csv",
        3,
        "score: scored-text.csv: column 'x2' holds text ('north' in row 1)\n"
        "the model needs numbers in this column: write them as in the table that it was fitted to",
    ),
    "score: no such file": ("score {RUN} none.csv --out scores.csv", 3, "score: none.csv: no such file"),
    "evaluate: other columns": (
        "evaluate {RUN} others.csv",
        3,
        "evaluate: others.csv: lacks the columns x1, x2; it has a, b",
    ),
    # writing
    "score: below a file": (
        "score {RUN} points.csv --out file/scores.csv",
        1,
        "score: file/scores.csv: cannot write: not a directory",
    ),
    "score: no such folder": (
        "score {RUN} points.csv --out none/scores.csv",
        1,
        "score: none/scores.csv: cannot write: there is no folder none",
    ),
    "score: Parquet, no such folder": (
        "score {RUN} points.csv --out none/scores.parquet",
        1,
        "score: none/scores.parquet: cannot write: there is no folder none",
    ),
    "sample: no such folder": (
        "sample {RUN} -n 3 --out none/s.csv",
        1,
        "sample: none/s.csv: cannot write: there is no folder none",
    ),
    "sample: below a file": (
        "sample {RUN} -n 3 --out file/s.parquet",
        1,
        "sample: file/s.parquet: cannot write: not a directory",
    ),
    "fit: cannot be made": (
        "fit moons data.rows=300 --out /proc/run",
        1,
        "fit: /proc/run: cannot make the run folder: no such file or directory",
    ),
    # context
    "given without context": (
        "sample {RUN} -n 3 --given x1=1",
        2,
        "sample: --given: 'x1' is not a context column of this run; it has no context columns (data.given)",
    ),
    "given nothing": (
        "sample {CONDITIONAL} -n 3",
        2,
        "sample: --given: this run needs --given x2=..., or --given FILE with these columns",
    ),
    "given another": (
        "sample {CONDITIONAL} -n 3 --given x1=1",
        2,
        "sample: --given: 'x1' is not a context column of this run; its context columns are x2",
    ),
    "given no number": (
        "sample {CONDITIONAL} -n 3 --given x2=much",
        2,
        "sample: --given: expected a number for 'x2'; got 'much'",
    ),
    "given nan": (
        "sample {CONDITIONAL} -n 3 --given x2=nan",
        2,
        "sample: --given: expected a number for 'x2'; got 'nan'",
    ),
    "given no value": (
        "sample {CONDITIONAL} -n 3 --given x2",
        2,
        "sample: --given: expected COL=VALUE, or a file; got 'x2', and there is no such file",
    ),
    "given a file without context": (
        "sample {RUN} -n 3 --given points.csv",
        2,
        "sample: --given: it has no context columns (data.given); leave points.csv out",
    ),
    "given a file and a value": (
        "sample {CONDITIONAL} -n 3 --given points.csv --given x2=1",
        2,
        "sample: --given: expected one file, or COL=VALUE for each column; got points.csv and x2=1",
    ),
    "given twice": ("sample {CONDITIONAL} -n 3 --given x2=1 --given x2=2", 2, "sample: --given: 'x2' is given twice"),
}


def invoke(arguments: str | list[str]) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="pushforward")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a conditional run."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("plain", []), ("conditional", ["data.given=x2"])):
        done = invoke(["fit", "moons", "--out", str(folder / name), *TINY, *more])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Path) -> Path:
    """A working directory with the files above and two runs below ``runs/``."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    shutil.copytree(runs / "plain", "runs/plain")
    shutil.copytree(runs / "conditional", "runs/conditional")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def assert_one_line(done: Result, code: int, line: str) -> None:
    assert done.stdout == ""
    assert done.stderr == f"pushforward {line}\n"
    assert done.exit_code == code


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_changes_no_file(name: str, here: Path) -> None:
    arguments, code, line = MISTAKES[name]
    names = {"RUN": "runs/plain", "CONDITIONAL": "runs/conditional"}
    before = snapshot(here)
    done = invoke([part.format(**names) for part in arguments.split()])
    if "runs here" in line:  # another test checks their order
        assert "runs/plain" in done.stderr
        assert "runs/conditional" in done.stderr
        assert_one_line(done, code, done.stderr.removeprefix("pushforward ").strip())
        assert done.stderr.startswith("pushforward " + line.partition("{")[0])
    else:
        assert_one_line(done, code, line.format(**names))
    assert snapshot(here) == before  # no run folder, no incomplete file


_N = "Error: Invalid value for '-n': expected a whole number of at least 1, such as 1000000"
_FOLDER = "Error: Invalid value for '--out': expected a file"
_ENDING = f"{_FOLDER} that ends in .csv, .csv.gz, .parquet"
USAGE = {
    "unknown command": ("fti moons", "Error: no command 'fti'; did you mean 'fit'?"),
    "a seed of text": (
        "fit moons --seed x",
        "Error: Invalid value for '--seed': expected a whole number of at least 0; got 'x'",
    ),
    "unknown option": ("fit moons --sed 1", "Error: No such option '--sed'. Did you mean '--seed'?"),
    "no rows": ("sample x -n 0", f"{_N}; got '0'"),
    "rows in another notation": ("sample x -n 1e6", f"{_N}; got '1e6'"),
    "rows as a formula": ("sample x -n 10**11", f"{_N}; got '10**11'"),
    "too many rows for JSON": (
        "sample runs/plain -n 100000000000 --json",
        "Error: --json holds all values in memory, 10,000,000 at most; give --out FILE",
    ),
    "no number of rows": ("sample x", "Error: Missing option '-n'."),
    "no data to score": ("score x", "Error: Missing argument 'DATA'."),
    "sample to another kind": ("sample x -n 3 --out s.xlsx", f"{_ENDING}; got s.xlsx"),
    "score to another kind": ("score x points.csv --out s.txt", f"{_ENDING}; got s.txt"),
    "sample to a folder": (
        "sample x -n 3 --out runs",
        "Error: Invalid value for '--out': expected a file; runs is a folder",
    ),
    "score to a folder": (
        "score x points.csv --out runs",
        "Error: Invalid value for '--out': expected a file; runs is a folder",
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_explained(name: str, here: Path) -> None:
    arguments, line = USAGE[name]
    before = snapshot(here)
    done = invoke(arguments)
    assert done.stderr.splitlines()[-1].replace("(did you mean '--seed'?)", "Did you mean '--seed'?") == line
    assert done.stdout == ""
    assert done.exit_code == 2
    assert snapshot(here) == before


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.parquet"])
def test_more_samples_than_the_disk_holds_are_one_line(name: str, here: Path) -> None:
    before = snapshot(here)
    done = invoke(f"sample runs/plain -n 1000000000000000 --out {name}")
    assert re.fullmatch(
        rf"pushforward sample: {name}: 1,000,000,000,000,000 rows need about [\d.,]+ TB, and the disk has .* left\n",
        done.stderr,
    )
    assert done.exit_code == 1
    assert snapshot(here) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["fit moons", "fit moons --dry-run", "score runs/plain points.csv"])
def test_a_missing_cuda_device_is_one_line(command: str, here: Path) -> None:
    before = snapshot(here)
    done = invoke(f"{command} --device cuda")
    name = command.split()[0]
    assert_one_line(done, 2, f"{name}: device: expected one that is here; got 'cuda', and torch finds no CUDA device")
    assert snapshot(here) == before


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("command", ["score runs/plain points.csv --out s.csv", "sample runs/plain -n 3 --out s.csv"])
def test_a_damaged_model_is_one_line(file: str, command: str, here: Path) -> None:
    path = Path("runs/plain/model") / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = invoke(command)
    reason = {
        "model.safetensors": "damaged: its checksum is not the one in config.json",
        "config.json": "damaged or edited: its checksum does not match its contents",
    }[file]
    alternative = "damaged: not a model description"  # if the changed byte breaks the JSON
    assert done.stderr in (
        f"pushforward {command.split()[0]}: {path}: {reason}\n",
        f"pushforward {command.split()[0]}: {path}: {alternative}\n",
    )
    assert done.stdout == ""
    assert done.exit_code == 1
    assert not Path("s.csv").exists()


def test_a_missing_model_is_one_line(here: Path) -> None:
    shutil.rmtree("runs/plain/model")
    done = invoke("score runs/plain points.csv")
    assert_one_line(done, 1, "score: runs/plain/model/config.json: cannot be read: No such file or directory")


def test_debug_raises_the_error(here: Path) -> None:
    done = invoke("--debug fit none.csv")
    assert type(done.exception).__name__ == "DataError"


def test_a_column_that_is_constant_in_training_is_an_error(here: Path) -> None:
    """A column that varies in the file but not in the training rows: no run folder is made."""
    Path("rare.csv").write_text("a,b\n" + "".join(f"{k},{int(k == 3)}\n" for k in range(20)))
    codes = set()
    for seed in range(12):
        done = invoke(["fit", "rare.csv", f"seed={seed}", "--out", f"r{seed}", *TINY, "data.dequantize=off"])
        codes.add(done.exit_code)
        assert done.exit_code in (0, 3)
        if done.exit_code == 3:
            assert "takes one value in all" in done.stderr
            assert "out with data.drop=b, or try another seed of the split" in done.stderr
            assert not Path(f"r{seed}").exists()
    assert codes == {0, 3}
