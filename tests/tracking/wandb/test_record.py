"""Reading records of the real client, and the file format: complete, incomplete and damaged files."""

import base64
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pushforward.tracking.wandb.log_file import LogReader, WandbRecordError, write_log
from pushforward.tracking.wandb.record import WandbRecord, read_record

SIZES = (0, 1, 100, 32_747, 32_748, 0, 32_754, 32_755, 32_761, 5, 100_000, 0, 65_522, 7)

RECORD = """
import math, os, sys
import wandb
settings = wandb.Settings(silent=True, console="off")
run = wandb.init(mode="offline", entity="team", project="density", name="a fit", id="abc", group="g", job_type="fit",
                 tags=["moons", "maf"], notes="some notes", dir=sys.argv[1], config={"flow.layers": 5, "drop": [1]},
                 settings=settings)
run.define_metric("global_step", hidden=True)
run.define_metric("train/*", step_metric="global_step")
run.define_metric("val/nll", step_metric="global_step", summary="min")
for step in range(3):
    run.log({"train/nll": [1.5, math.nan, -math.inf][step], "global_step": step, "nested": {"a": {"b": step}}})
run.log({"val/nll": 1.25})
run.log({"val/nll": 1.75, "text": "\\u00fc"})
run.config.update({"flow.layers": 6}, allow_val_change=True)
run.summary["best/val_nll"] = 1.25
with open("model.bin", "wb") as file:
    file.write(b"weights")
artifact = wandb.Artifact("model-abc", type="model", metadata={"nll": 1.25})
artifact.add_file(os.path.abspath("model.bin"), policy="immutable", skip_cache=True)
artifact.add_reference("https://example.org/data.csv", checksum=False)
run.log_artifact(artifact, aliases=["best"])
with open("note.txt", "w") as file:
    file.write("note")
run.save("note.txt", policy="now")
run.alert("diverged", "at step 2", level="ERROR")
run.finish(exit_code=3)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a client that recorded every kind of message."""
    root = tmp_path_factory.mktemp("record")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    clean |= {"HOME": str(root / "home"), "XDG_DATA_HOME": str(root / "home" / "data")}
    subprocess.run([sys.executable, "-c", RECORD, str(root)], env=clean, cwd=root, check=True, timeout=60)
    (found,) = root.glob("wandb/offline-run-*")
    return found


@pytest.fixture(scope="module")
def record(folder: Path) -> WandbRecord:
    return read_record(folder)


def test_fields_of_the_run(record: WandbRecord) -> None:
    assert (record.id, record.entity, record.project, record.name) == ("abc", "team", "density", "a fit")
    assert (record.group, record.job_type, record.notes, record.sweep) == ("g", "fit", "some notes", None)
    assert set(record.tags) == {"moons", "maf"}
    assert record.started > 1.7e9
    assert {key: value for key, value in record.config.items() if key != "_wandb"} == {"flow.layers": 6, "drop": [1]}
    assert (record.exit_code, record.torn) == (3, False)


def test_history_and_summary(record: WandbRecord) -> None:
    first, second, third, fourth, fifth = record.history
    assert (first["train/nll"], third["train/nll"]) == (1.5, -math.inf)
    assert math.isnan(second["train/nll"])
    assert [row["_step"] for row in record.history] == [0, 1, 2, 3, 4]
    assert third["nested"] == {"a": {"b": 2}}
    assert (fourth["val/nll"], fifth["text"]) == (1.25, "ü")
    assert record.summary["best/val_nll"] == 1.25
    assert record.summary["val/nll"] == {"min": 1.25}
    assert record.summary["nested"] == {"a": {"b": 2}}


def test_definitions_of_metrics(record: WandbRecord) -> None:
    assert record.metrics["global_step"].hidden
    assert record.metrics["train/*"].step_metric == "global_step"
    assert record.metrics["val/nll"].summary == ("min",)


def test_artifacts_files_and_alerts(record: WandbRecord, folder: Path) -> None:
    (model,) = record.artifacts
    assert (model.name, model.type, model.aliases, model.metadata) == (
        "model-abc",
        "model",
        ("best", "latest"),
        {"nll": 1.25},
    )
    (file,) = model.files
    assert (file.path, file.size) == ("model.bin", 7)
    assert file.local == folder.parents[1] / "model.bin"
    assert file.digest == base64.b64encode(hashlib.md5(b"weights", usedforsecurity=False).digest()).decode()
    assert list(model.references.values()) == ["https://example.org/data.csv"]
    assert len(model.digest) == 32
    assert "note.txt" in record.saved
    assert record.alerts == [("diverged", "at step 2", "ERROR")]


def test_the_clients_own_inspector_agrees(record: WandbRecord, folder: Path) -> None:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(folder)]
    environment = os.environ | {"HOME": str(folder.parents[1] / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip("this client has no inspector")
    shown: dict[str, Any] = json.loads(done.stdout)
    assert (shown["run_id"], shown["project"], shown["notes"]) == (record.id, record.project, record.notes)
    assert shown["exit_code"] == record.exit_code
    assert "6" in json.dumps(shown["config"])


def test_a_record_cut_anywhere_keeps_its_first_rows(folder: Path, record: WandbRecord, tmp_path: Path) -> None:
    data = record.path.read_bytes()
    torn = tmp_path / "run-abc.wandb"
    counts = []
    for length in range(7, len(data), 41):
        torn.write_bytes(data[:length])
        found = read_record(torn)
        assert found.history == record.history[: len(found.history)] or found.history[1]["_step"] == 1
        assert found.exit_code in (None, 3)
        counts.append(len(found.history))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4, 5}


def test_records_of_every_size_are_read_back(tmp_path: Path) -> None:
    records = [random.Random(size).randbytes(size) for size in SIZES]
    write_log(tmp_path / "log", records)
    log = LogReader(tmp_path / "log")
    assert list(log) == records
    assert not log.torn
    assert list(log) == records, "a log can be read twice"


def test_rewriting_a_log_of_the_client_changes_no_byte(record: WandbRecord, tmp_path: Path) -> None:
    write_log(tmp_path / "log", LogReader(record.path))
    assert (tmp_path / "log").read_bytes() == record.path.read_bytes()


def test_a_file_cut_anywhere_keeps_its_complete_records(tmp_path: Path) -> None:
    records = [bytes([size % 251]) * size for size in (10, 40_000, 20, 25_500, 30)]
    write_log(tmp_path / "whole", records)
    data = (tmp_path / "whole").read_bytes()
    ends = set()
    for count in range(len(records) + 1):
        write_log(tmp_path / "part", records[:count])
        ends.add((tmp_path / "part").stat().st_size)
    path = tmp_path / "torn"
    cuts = {*range(0, 30), *range(32_740, 32_790), *range(len(data) - 60, len(data)), *range(0, len(data), 997), *ends}
    for length in sorted(cuts):
        for tail in (b"", bytes(50)) if length in ends else (b"",):
            path.write_bytes(data[:length] + tail)
            log = LogReader(path)
            found = list(log)
            assert log.torn == (bool(tail) or length not in ends), length
            assert found == records[: max(0, sum(end <= length for end in ends) - 1)]


@pytest.mark.parametrize("position", [7, 10, 11, 13, 14, 20, 32_768, 32_775, 40_000])
def test_a_changed_byte_is_an_error(position: int, tmp_path: Path) -> None:
    records = [b"a" * 10, b"b" * 50_000, b"c" * 30, b"d"]
    write_log(tmp_path / "log", records)
    data = bytearray((tmp_path / "log").read_bytes())
    data[position] ^= 0xFF
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(WandbRecordError, match=r"log: damaged at byte [\d,]+: (the checksum is wrong|no chunk|a part)"):
        list(LogReader(tmp_path / "log"))


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_block_of_zeros_is_an_error(block: int, tmp_path: Path) -> None:
    write_log(tmp_path / "log", [b"b" * 32_700, b"a" * 40, b"c" * 32_754, b"d" * 90_000])
    data = bytearray((tmp_path / "log").read_bytes())
    start = max(7, block * 32_768)
    data[start : (block + 1) * 32_768] = bytes((block + 1) * 32_768 - start)
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(WandbRecordError, match=r"damaged at byte [\d,]+: there are zeros before it"):
        list(LogReader(tmp_path / "log"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 something else", "expected a W&B transaction log; got another file"),
        (b"PK", "expected a W&B transaction log; got another file"),
        (b":W&B\xe1\xbe\x01", "expected version 0 of the log format; got version 1"),
    ],
)
def test_another_kind_of_file_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run-a.wandb"
    path.write_bytes(content)
    with pytest.raises(WandbRecordError) as caught:
        read_record(tmp_path)
    assert str(caught.value) == f"{path}: {message}"


def test_missing_files_and_wrong_records_are_errors(tmp_path: Path) -> None:
    with pytest.raises(WandbRecordError, match=r"expected one file run-\*.wandb; got none"):
        read_record(tmp_path)
    with pytest.raises(WandbRecordError, match="cannot read: no such file or directory"):
        read_record(tmp_path / "run-a.wandb")
    write_log(tmp_path / "run-a.wandb", [b"\xff\xff\xff"])
    with pytest.raises(WandbRecordError, match="record 1 is not a W&B record"):
        read_record(tmp_path)
