"""The command ``score`` in pieces: scores and errors of whole files, no partial output, constant memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from pushforward.cli import main
from pushforward.datasets import Schema
from pushforward.datasets.tables import reader, stream
from pushforward.datasets.tables.read import read_columns
from pushforward.datasets.tables.table_file import TableFile
from pushforward.evaluate import likelihood, nll_from
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.scoring import score_parts, score_table
from pushforward.flows import build
from tests.fixtures.streams import (
    NAMES,
    message_for_whole_file,
    noise_table,
    small_chunks as small_chunks,
    stream_schema as stream_schema,
    write_stream,
    write_with,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, stream_schema: Schema) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("seed: 0\n")
    flow = build("nsf-ar", 2, 1, layers=1, hidden=8, blocks=1)
    FittedDensity(flow, stream_schema, [0.0, 0.5]).save(folder / "model")
    return folder


def score(run: Path, data: Path, *more: object) -> Result:
    return CliRunner().invoke(main, ["score", str(run), str(data), *map(str, more)], prog_name="pushforward")


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_streamed_scores_are_those_of_the_whole_file(
    name: str, draws: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(stream, "CHUNK_ROWS", likelihood.BATCH_SIZE)
    content = noise_table(20_000, seed=2)
    path = write_stream(tmp_path / name, content)
    matrix = read_columns(content, NAMES).numbers.matrix
    density = FittedDensity.load(run / "model")
    whole = density.log_prob(matrix[:, :2], matrix[:, 2:], draws=draws)
    done = score(run, path, "--out", tmp_path / "s.csv", "--draws", draws)
    assert done.exit_code == 0
    assert (tmp_path / "s.csv").read_text().splitlines() == ["log_prob", *(repr(value) for value in whole.tolist())]
    assert done.stderr.endswith(f"NLL {nll_from(whole)}; written to {tmp_path / 's.csv'}\n")
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


@pytest.mark.parametrize("name", BAD_CELLS)
@pytest.mark.usefixtures("small_chunks")
def test_a_late_bad_row_is_refused_as_in_the_whole_file(name: str, run: Path, tmp_path: Path) -> None:
    path = write_with(tmp_path / "t.csv", BAD_CELLS[name])
    before = sorted(tmp_path.iterdir())
    done = score(run, path, "--out", tmp_path / "s.csv")
    assert done.stderr.startswith(f"pushforward score: {message_for_whole_file(path)}\n")
    assert "data.drop" not in done.stderr, "the model needs all its columns"
    assert done.exit_code == 3
    assert sorted(tmp_path.iterdir()) == before
    # An existing file is not changed.
    (tmp_path / "s.csv").write_text("old")
    assert score(run, path, "--out", tmp_path / "s.csv").exit_code == 3
    assert (tmp_path / "s.csv").read_text() == "old"


@pytest.mark.usefixtures("small_chunks")
def test_a_gzip_file_that_ends_early(run: Path, tmp_path: Path) -> None:
    path = write_stream(tmp_path / "t.csv.gz", noise_table(3_000))
    path.write_bytes(path.read_bytes()[:-2_000])
    done = score(run, path, "--out", tmp_path / "s.csv")
    assert done.exit_code == 3
    assert "t.csv.gz: not a complete gzip file" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv.gz"]


def test_an_error_while_scoring_leaves_no_file(run: Path, tmp_path: Path) -> None:
    density = FittedDensity.load(run / "model")
    ones = np.ones((3, 2)), np.ones((3, 1))
    for name in ("s.csv", "s.parquet"):
        target = tmp_path / name
        with pytest.raises(KeyboardInterrupt), TableFile(target, score_table().schema) as file:  # noqa: PT012
            score_parts(density, [ones], lambda scores: file.write(score_table(scores)))
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["score", "sample"])
def test_a_signal_leaves_no_file(name: str, number: signal.Signals, code: int, run: Path, tmp_path: Path) -> None:
    path = write_stream(tmp_path / "t.parquet", noise_table(2_000_000))
    what = [str(path)] if name == "score" else ["-n", "10000000", "--given", "c=0"]
    command = [sys.executable, "-m", "pushforward", name, str(run), *what, "--out", str(tmp_path / "s.csv")]
    # In a background job SIGINT is ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    # Rows are being written: in the microseconds in which the file is created, a signal leaves it empty behind.
    while (
        not (begun := [path for path in tmp_path.glob(".s.csv.*") if path.stat().st_size])
        and process.poll() is None
        and time.monotonic() < deadline
    ):
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
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".feather", ".jsonl"])
def test_memory_does_not_grow_with_the_rows(suffix: str, run: Path, tmp_path: Path) -> None:
    peaks = []
    for rows in (200_000, 2_000_000):
        path = write_stream(tmp_path / f"t{suffix}", noise_table(rows))
        command = [sys.executable, "-c", PEAK, "score", str(run), str(path), "--out", str(tmp_path / "s.csv")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    # The table alone is 48 MB, its text as much again, its scores 16 MB and their text 40 MB.
    assert peaks[1] - peaks[0] < 40, peaks


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the peak memory")
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_samples(suffix: str, run: Path, tmp_path: Path) -> None:
    peaks = []
    for rows in ("1000000", "4000000"):  # several row groups of the Parquet file
        arguments = ["sample", str(run), "-n", rows, "--given", "c=0", "--out", str(tmp_path / f"s{suffix}")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True, env=environment
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    # The samples and their context are 96 MB, their text more.
    assert peaks[1] - peaks[0] < 40, peaks
