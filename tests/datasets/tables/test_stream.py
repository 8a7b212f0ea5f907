"""Files are scored chunk by chunk with the same results and errors as whole files, in constant memory."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

from pushforward.cli import main
from pushforward.common.errors import DataError
from pushforward.datasets import RowStream, Schema, load, read_rows, read_table
from pushforward.datasets.tables import parts, stream
from pushforward.datasets.tables.read import to_numbers
from pushforward.evaluate import likelihood, nll_from
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.scoring import ScoreFile, score_parts
from pushforward.flows import build

NAMES = ("a", "b", "c")


def table(rows: int, seed: int = 0) -> "pa.Table":
    generator = np.random.default_rng(seed)
    matrix = np.round(generator.standard_normal((rows, 3)) @ generator.standard_normal((3, 3)), 6)
    return pa.table([pa.array(column) for column in matrix.T], names=list(NAMES))


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    path = tmp_path_factory.mktemp("schema") / "t.csv"
    csv.write_csv(table(500), path)
    return load(path, context=["c"]).schema


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, schema: Schema) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("seed: 0\n")
    flow = build("nsf-ar", 2, 1, layers=1, hidden=8, blocks=1)
    FittedDensity(flow, schema, [0.0, 0.5]).save(folder / "model")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks so small that a short file has many."""
    monkeypatch.setattr(parts, "BLOCK_BYTES", 300)
    monkeypatch.setattr(parts, "BATCH_ROWS", 7)
    monkeypatch.setattr(stream, "CHUNK_ROWS", 16)


def score(run: Path, data: Path, *more: object) -> Result:
    return CliRunner().invoke(main, ["score", str(run), str(data), *map(str, more)], prog_name="pushforward")


def write(path: Path, content: "pa.Table") -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(content, path)
    elif path.suffix == ".npy":
        np.save(path, np.asfortranarray(np.stack([column.to_numpy() for column in content.columns], axis=1)))
    else:
        csv.write_csv(content, path)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npy", "t.csv.gz"])
@pytest.mark.usefixtures("small")
def test_concatenated_chunks_are_the_table(name: str, schema: Schema, tmp_path: Path) -> None:
    content = table(500, seed=1)
    path = write(tmp_path / name, content)
    features, contexts = zip(*RowStream(path, schema), strict=True)
    assert [len(chunk) for chunk in features] == [16] * 31 + [4]
    whole = to_numbers(content, "t", NAMES).matrix
    np.testing.assert_array_equal(np.concatenate(features), whole[:, :2])
    np.testing.assert_array_equal(np.concatenate(contexts), whole[:, 2:])
    rows, context, notes = read_rows(path, schema)
    assert (rows.shape, context.shape, notes) == ((500, 2), (500, 1), ())


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_streamed_scores_are_those_of_the_whole_file(
    name: str, draws: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(stream, "CHUNK_ROWS", likelihood.BATCH_SIZE)
    content = table(20_000, seed=2)
    path = write(tmp_path / name, content)
    matrix = to_numbers(content, name, NAMES).matrix
    density = FittedDensity.load(run / "model")
    whole = density.log_prob(matrix[:, :2], matrix[:, 2:], draws=draws)
    done = score(run, path, "--out", tmp_path / "s.csv", "--draws", draws)
    assert done.exit_code == 0
    assert (tmp_path / "s.csv").read_text().splitlines() == ["log_prob", *(repr(value) for value in whole.tolist())]
    assert done.stderr == f"NLL {nll_from(whole)}; written to {tmp_path / 's.csv'}\n"
    score(run, path, "--out", tmp_path / "s.parquet", "--draws", draws)
    assert parquet.read_table(tmp_path / "s.parquet")["log_prob"].to_pylist() == whole.tolist()
    assert score(run, path, "--draws", draws).stdout == (tmp_path / "s.csv").read_text()


# Cells, as (row, column, content), that a reader of whole files refuses with a message.
BAD_CELLS: dict[str, tuple[tuple[int, str, str], ...]] = {
    "missing": ((430, "b", ""),),
    "missing in words": ((430, "b", "NA"), (450, "b", "?"), (20, "c", "none")),
    "infinite": ((430, "c", "-inf"),),
    "text": ((430, "b", "north"),),
    "text in two": ((430, "b", "north"), (431, "a", "east")),
    "text everywhere": ((430, "b", "north"), (431, "a", "east"), (2, "c", "-inf!")),
    "too large": ((430, "a", "1e200"), (440, "a", "3e250")),
    "missing and text": ((5, "a", ""), (430, "b", "north")),
    "too short": ((430, "c", "1\n2,3"),),
    "missing, then too long": ((5, "a", ""), (430, "c", "1,2")),
}


def write_with(path: Path, cells: tuple[tuple[int, str, str], ...], content: "pa.Table | None" = None) -> Path:
    rows = [[str(cell) for cell in row.values()] for row in (table(500) if content is None else content).to_pylist()]
    for row, column, cell in cells:
        rows[row - 1][NAMES.index(column)] = cell
    path.write_text("\n".join([",".join(NAMES), *(",".join(row) for row in rows)]) + "\n")
    return path


def message_for_whole_file(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        to_numbers(read_table(path), path.name, NAMES)
    return str(caught.value)


@pytest.mark.parametrize("name", BAD_CELLS)
@pytest.mark.usefixtures("small")
def test_a_late_bad_row_is_refused_as_in_the_whole_file(name: str, run: Path, tmp_path: Path) -> None:
    path = write_with(tmp_path / "t.csv", BAD_CELLS[name])
    before = sorted(tmp_path.iterdir())
    done = score(run, path, "--out", tmp_path / "s.csv")
    assert done.stderr == f"pushforward score: {message_for_whole_file(path)}\n"
    assert done.exit_code == 3
    assert sorted(tmp_path.iterdir()) == before
    # An existing file is not changed.
    (tmp_path / "s.csv").write_text("old")
    assert score(run, path, "--out", tmp_path / "s.csv").exit_code == 3
    assert (tmp_path / "s.csv").read_text() == "old"


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (["true", "false"] * 250, "holds true and false"),
        ([f"2020-01-{day % 28 + 1:02}" for day in range(500)], "holds dates or times (2020-01-01 in row 1)"),
        ([str(2**60 + k) for k in range(500)], "holds integers beyond 2**53"),
        (["7"] * 400 + [str(2**60)] * 100, "holds integers beyond 2**53"),
        ([""] * 500, "has no values at all"),
        (["5", "7"] * 100 + ["2020-01-01"] * 300, "holds text ('2020-01-01' in row 201)"),
    ],
)
@pytest.mark.usefixtures("small")
def test_bad_columns_are_refused_as_in_the_whole_file(
    column: list[str], what: str, schema: Schema, tmp_path: Path
) -> None:
    path = write_with(tmp_path / "t.csv", tuple((row + 1, "b", cell) for row, cell in enumerate(column)))
    with pytest.raises(DataError) as caught:
        read_rows(path, schema)
    assert str(caught.value) == message_for_whole_file(path)
    assert what in str(caught.value)


@pytest.mark.parametrize("cells", [{"b": "+5"}, {"b": " 5 "}, {"b": "1_0"}, {"a": str(2**60), "b": "0.5"}])
@pytest.mark.usefixtures("small")
def test_unusual_spellings_of_numbers_are_read_as_in_the_whole_file(
    cells: dict[str, str], schema: Schema, tmp_path: Path
) -> None:
    changes = tuple((430 + k, name, cell) for k, (name, cell) in enumerate(cells.items()))
    path = write_with(tmp_path / "t.csv", changes)
    whole = to_numbers(read_table(path), "t", NAMES).matrix
    np.testing.assert_array_equal(np.concatenate(read_rows(path, schema)[:2], axis=1), whole)


@pytest.mark.usefixtures("small")
def test_quoted_line_ends_and_carriage_returns(schema: Schema, tmp_path: Path) -> None:
    lines = [f'{k},{k * k},{-k},"two\nlines, and ""quotes"""' for k in range(400)]
    for end in ("\n", "\r\n"):
        (tmp_path / "t.csv").write_text("\ufeffa,b,c,note\n" + end.join(lines), newline="")
        rows, _, notes = read_rows(tmp_path / "t.csv", schema)
        assert rows.tolist() == [[k, k * k] for k in range(400)]
        assert notes == ("t.csv: ignored note, which the model does not use",)


@pytest.mark.usefixtures("small")
def test_a_gzip_file_that_ends_early(run: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv.gz", table(3_000))
    path.write_bytes(path.read_bytes()[:-2_000])
    done = score(run, path, "--out", tmp_path / "s.csv")
    assert done.exit_code == 3
    assert "t.csv.gz: not a complete gzip file" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv.gz"]


def test_an_error_while_scoring_leaves_no_file(run: Path, tmp_path: Path) -> None:
    density = FittedDensity.load(run / "model")
    ones = np.ones((3, 2)), np.ones((3, 1))
    for name in ("s.csv", "s.parquet"):
        with pytest.raises(KeyboardInterrupt), ScoreFile(tmp_path / name) as file:  # noqa: PT012
            score_parts(density, [ones], file.write)
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_no_file(number: signal.Signals, code: int, run: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", table(2_000_000))
    command = [sys.executable, "-m", "pushforward", "score", str(run), str(path), "--out", str(tmp_path / "s.csv")]
    # In a background job SIGINT is ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not (begun := list(tmp_path.glob(".s.csv.*"))) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert begun
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]


PEAK = """
import resource, sys
from pushforward.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
# The peak of this process; ru_maxrss would start at that of its parent.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the peak memory")
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_memory_does_not_grow_with_the_rows(suffix: str, run: Path, tmp_path: Path) -> None:
    peaks = []
    for rows in (200_000, 2_000_000):
        path = write(tmp_path / f"t{suffix}", table(rows))
        command = [sys.executable, "-c", PEAK, "score", str(run), str(path), "--out", str(tmp_path / "s.csv")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    # The table alone is 48 MB, its text as much again, its scores 16 MB and their text 40 MB.
    assert peaks[1] - peaks[0] < 40, peaks
