"""Trackers: metrics.jsonl through crashes and full disks, and the real W&B client, offline and broken."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pushforward.common.errors import RunError
from pushforward.tracking import Tracker
from pushforward.tracking.jsonl import MetricsFile, read_metrics
from pushforward.tracking.trackers import Tracking
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.tracking.wandb.record import read_record
from pushforward.tracking.wandb.tracker import WandbTracker

PICTURE = (  # a PNG of one pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_rows_are_on_disk_when_log_returns(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.log({"train/nll": 1.5, "train/grad_norm": math.inf}, 10, seconds=0.5)
    file.log({"val/nll": math.nan}, 10, seconds=0.75, kind="evaluation")
    file.image("samples", tmp_path / "pictures" / "a.png", "points", 10)
    file.summary({"best/val_nll": 1.25, "stop_reason": "steps", "kl": None})
    file.alert("diverged", "at step 10")
    file.flush(sync=True)
    position = {"step": 10, "seconds": 0.75}
    assert read_metrics(file.path) == [
        {"step": 10, "seconds": 0.5, "kind": "train", "train/nll": 1.5, "train/grad_norm": None},
        position | {"kind": "evaluation", "val/nll": None},
        position | {"kind": "image", "key": "samples", "path": "pictures/a.png", "caption": "points"},
        position | {"kind": "summary", "best/val_nll": 1.25, "stop_reason": "steps", "kl": None},
        position | {"kind": "alert", "title": "diverged", "text": "at step 10"},
    ]
    file.finish()
    file.finish()
    file.log({"late": 1.0}, 11, seconds=1.0)
    assert len(read_metrics(file.path)) == 5


def test_numpy_and_torch_scalars_are_written_as_numbers(tmp_path: Path) -> None:
    import numpy as np
    import torch

    file = MetricsFile(tmp_path / "m.jsonl")
    numbers: dict[str, Any] = {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": torch.tensor(math.nan)}
    file.log(numbers, int(np.int64(3)), seconds=1)
    file.finish()
    assert read_metrics(file.path) == [{"step": 3, "seconds": 1.0, "kind": "train", "a": 0.5, "b": 2.0, "c": None}]


@pytest.mark.parametrize("tail", [b'{"step": 4, "sec', b'{"step": 4}', b"\x00\x00\x00", b'{"step": 4\n'])
def test_an_incomplete_last_line_is_skipped_and_removed_on_resume(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path)
    for step in (1, 2, 3):
        file.log({}, step, seconds=step)
    file.finish()
    with open(path, "ab") as raw:
        raw.write(tail)
    assert steps(path) == [1, 2, 3]
    resumed = MetricsFile(path, resume_step=2)
    assert steps(path) == [1, 2]
    resumed.log({}, 3, seconds=3.5)
    resumed.finish()
    assert steps(path) == [1, 2, 3]
    assert read_metrics(path)[-1]["seconds"] == 3.5
    assert b"\x00" not in path.read_bytes()


def test_damage_before_the_last_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"m\.jsonl line 2: expected a JSON object; got b'nonsense"):
        read_metrics(path)
    with pytest.raises(RunError, match="cannot read: no such file or directory"):
        read_metrics(tmp_path / "none.jsonl")


def test_sigkill_loses_no_row(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom pushforward.tracking.jsonl import MetricsFile\n"
        "file = MetricsFile(Path(sys.argv[1]))\n"
        "for step in range(500): file.log({'train/nll': step / 3}, step, seconds=step)\n"
        "print('go', flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = tmp_path / "m.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert steps(path) == list(range(500))


def test_a_full_disk_is_an_error_at_once_and_leaves_complete_rows(tmp_path: Path) -> None:
    code = (  # a file limited to 500 bytes takes part of a row, as a full disk does
        "import resource, sys\nfrom pathlib import Path\nfrom pushforward.tracking.jsonl import MetricsFile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "file = MetricsFile(Path(sys.argv[1]))\n"
        "for step in range(100):\n"
        "    try: file.log({'train/nll': 1.0}, step, seconds=step)\n"
        "    except Exception as error: sys.exit(f'{step} {type(error).__name__} {error}')\n"
    )
    path = tmp_path / "m.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    count = len(read_metrics(path))
    assert done.stderr == f"{count} RunError {path}: cannot write: file too large\n"
    assert 400 < path.stat().st_size < 500
    assert path.read_bytes().endswith(b"}\n")


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"m\.jsonl: cannot write: no such file or directory"):
        MetricsFile(tmp_path / "gone" / "m.jsonl")


class Recorder(Tracker):
    """A tracker that records its calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[Any] = []

    def log(self, metrics: Any, step: int, *, seconds: float, kind: str = "train") -> None:
        assert steps(self.path)[-1] == step, "the metrics file is written first"
        self.calls.append((dict(metrics), step, kind))

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        self.calls.append(key)

    def table(self, key: str, columns: Any, rows: Any, step: int = 0) -> None:
        self.calls.append((key, list(columns), rows))

    def reference_lines(self, values: Any, last_step: int, seconds: float = 0.0) -> None:
        self.calls.append((dict(values), last_step, seconds))

    def model(self, folder: Path, facts: Any) -> None:
        self.calls.append((folder, dict(facts)))

    def summary(self, values: Any) -> None:
        self.calls.append(values)

    def alert(self, title: str, text: str) -> None:
        self.calls.append(title)

    def finish(self, exit_code: int = 0) -> None:
        self.calls.append(exit_code)


def test_every_call_reaches_the_file_first_and_then_all_trackers(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    recorder = Recorder(path)
    tracking = Tracking(MetricsFile(path), {"recorder": recorder})

    def fit() -> None:
        with tracking:
            tracking.log({"a": 1.0}, 1, seconds=0.1, kind="evaluation")
            tracking.image("k", tmp_path / "x.png")
            tracking.table("t", ["c"], [[1]])
            tracking.reference_lines({"baseline/kde": 2.0}, 9)
            tracking.model(tmp_path, {"rows": 3})
            tracking.summary({"s": 1})
            tracking.alert("t", "u")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit()
    passed = [("t", ["c"], [[1]]), ({"baseline/kde": 2.0}, 9, 0.1), (tmp_path, {"rows": 3})]
    assert recorder.calls == [({"a": 1.0}, 1, "evaluation"), "k", *passed, {"s": 1}, "t", 1]
    rows = read_metrics(path)
    assert [row["kind"] for row in rows] == ["evaluation", "image", "reference", "summary", "alert"]
    assert (rows[2]["step"], rows[2]["baseline/kde"]) == (9, 2.0)


# Weights & Biases: the real client, in its own process.

FIT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from pushforward.config.read import load_config
from pushforward.runs.folder import RunFolder
from pushforward.tracking.trackers import Tracking
from pushforward.tracking.wandb.process import WandbProcess

out, mode, trouble = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = load_config("moons", overrides=["flow=maf", f"wandb={mode}", "wandb.group=g", "train.learning_rate=1e-3"])
run = RunFolder.create(out) if not (out / "wandb").exists() else RunFolder(out)
before = dict(os.environ)

def warn(text):
    print("WARN", text, file=sys.stderr)

def core():
    client = process.pid
    for line in subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True).stdout.splitlines():
        if f"--pid {client}" in line and "wandb-core" in line:
            return int(line.split()[0])

start = time.monotonic()
process = WandbProcess()
tracking = Tracking.open(
    run, config, dataset="moons", flow="maf", facts={"features": 2}, warn=warn, process=process
)
opened = time.monotonic() - start
(run.pictures / "a.png").write_bytes(bytes.fromhex(os.environ["PICTURE"]))
for step in range(0, 50, 10):
    tracking.log({"train/nll": 2.0 - step / 100, "train/lr": 1e-3}, step, seconds=step / 10)
if trouble == "dead client":
    while tracking.location is None:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(core(), signal.SIGKILL)
    time.sleep(0.2)
    for step in range(50, 100, 10):
        tracking.log({"train/nll": 1.0}, step, seconds=step / 10)
        time.sleep(0.05)
tracking.log({"val/nll": 1.25}, 40, seconds=4.0, kind="evaluation")
tracking.image("samples", run.pictures / "a.png", "some points", 40)
tracking.summary({"best/val_nll": 1.25, "stop_reason": "steps"})
tracking.alert("title", "text")
if trouble == "exit 3":
    tracking.finish(3)
else:
    tracking.finish()
print("OPENED", opened < 0.2, file=sys.stderr)
print("ENVIRONMENT", {k for k in os.environ if os.environ[k] != before.get(k)} - {"WANDB_SERVICE"}, file=sys.stderr)
"""


class Fit:
    """The program above in its own process, and what it printed."""

    def __init__(self, out: Path, mode: str, trouble: str = "none", **environment: str) -> None:
        home = out.parent / "home"
        home.mkdir(exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
        clean |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home / "data")}
        clean |= {"PICTURE": PICTURE, "OMP_NUM_THREADS": "1"} | environment
        self.out, self.home = out, home
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", FIT, str(out), mode, trouble],
            env=clean,
            cwd=out.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.seconds = time.monotonic() - start
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        self.warnings = [line[5:] for line in lines if line.startswith("WARN ")]
        self.rest = [line for line in lines if not line.startswith("WARN ")]

    def runs(self) -> list[Path]:
        return sorted(path for path in (self.out / "wandb").glob("*run-*/run-*.wandb"))


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    return Fit(tmp_path_factory.mktemp("offline") / "run", "auto", "exit 3")


def test_offline_prints_nothing_and_starts_without_waiting(offline: Fit) -> None:
    assert offline.warnings == []
    assert offline.rest == ["OPENED True", "ENVIRONMENT set()"]
    assert len(offline.runs()) == 1
    assert "offline-run" in str(offline.runs()[0])
    assert not [path for path in offline.home.rglob("*") if "artifacts" in path.parts]


def test_offline_record_is_complete(offline: Fit) -> None:
    record = read_record(offline.runs()[0])
    assert (record.project, record.group, record.job_type) == ("pushforward", "g", "fit")
    assert set(record.tags) == {"maf", "moons"}
    assert record.name == "run"
    assert record.id == (offline.out / "wandb" / "id").read_text().strip()
    assert record.config["flow.name"] == "maf"
    assert record.config["train.learning_rate"] == 1e-3
    assert record.config["data.columns"] == "all"
    assert "flow" not in record.config
    history = record.history
    assert [row["global_step"] for row in history] == [0, 10, 20, 30, 40, 40, 40]
    assert [row["train/nll"] for row in history if "train/nll" in row] == [2.0, 1.9, 1.8, 1.7, 1.6]
    assert history[5]["val/nll"] == 1.25
    assert history[1]["seconds"] == 1.0
    assert history[6]["samples"]["caption"] == "some points"
    picture = offline.runs()[0].parent / "files" / history[6]["samples"]["path"]
    assert picture.read_bytes() == bytes.fromhex(PICTURE)
    assert record.summary["best/val_nll"] == 1.25
    assert record.summary["stop_reason"] == "steps"
    assert record.metrics["*"].step_metric == "global_step"
    assert [alert[:2] for alert in record.alerts] == [("title", "text")]
    assert (record.exit_code, record.torn) == (3, False)


def test_a_resumed_run_keeps_its_id(offline: Fit) -> None:
    again = Fit(offline.out, "offline")
    assert again.warnings == []
    runs = again.runs()
    assert len(runs) == 2
    assert len({path.name for path in runs}) == 1


def test_a_crashed_client_is_one_warning(tmp_path: Path) -> None:
    fit = Fit(tmp_path / "run", "offline", "dead client")
    assert len(fit.warnings) == 1
    assert fit.warnings[0].startswith("W&B failed (Connection")
    assert fit.warnings[0].endswith("; it is off for the rest of this fit, metrics.jsonl goes on")
    assert fit.rest == ["OPENED True", "ENVIRONMENT set()"], "no traceback, not even at exit"
    assert len(read_metrics(fit.out / "metrics.jsonl")) == 14


def test_online_without_network_records_offline(tmp_path: Path) -> None:
    fit = Fit(
        tmp_path / "run",
        "auto",
        WANDB_API_KEY="a" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_INIT_TIMEOUT="1",
        WANDB_FINISH_TIMEOUT="1",
    )
    assert len(fit.warnings) == 1
    assert fit.warnings[0].startswith("W&B is not reachable (")
    assert fit.warnings[0].endswith("); recording offline")
    offline = [path for path in fit.runs() if "offline-run" in str(path)]
    assert len(offline) == 1
    assert len(read_record(offline[0]).history) == 7, "rows logged while the client tried to connect are kept"
    assert fit.rest == ["OPENED True", "ENVIRONMENT set()"]


@pytest.mark.parametrize(
    ("asked", "variable", "mode"),
    [
        ("auto", "", "auto"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "off"),
        ("offline", "disabled", "offline"),
        ("off", "online", "off"),
    ],
)
def test_the_option_takes_precedence_over_the_variable(
    asked: str, variable: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert WandbTracker(tmp_path, {}, mode=asked, process=WandbProcess(start=False)).mode == mode


@pytest.mark.parametrize(
    ("asked", "mode", "disabled", "off"),
    [
        ("auto", "", "true", "WANDB_DISABLED=true"),
        ("online", "online", "1", "WANDB_DISABLED=1"),
        ("offline", "", "YES", "WANDB_DISABLED=YES"),
        ("auto", "disabled", "", "WANDB_MODE=disabled"),
        ("auto", "disabled", "true", "WANDB_DISABLED=true"),
        ("off", "disabled", "true", ""),
        ("offline", "", "false", None),
        ("offline", "", "", None),
    ],
)
def test_a_variable_that_turns_wandb_off_is_named_once(
    asked: str, mode: str, disabled: str, off: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``WANDB_DISABLED`` wins over an option, too: nothing is recorded, whatever a script asks for."""
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_DISABLED", disabled)
    said: list[str] = []
    tracker = WandbTracker(tmp_path, {}, mode=asked, warn=said.append, process=WandbProcess(start=False))
    assert tracker.mode == (asked if off is None else "off")
    assert [line for line in said if line.startswith("W&B is off")] == ([f"W&B is off: {off}"] if off else [])


def test_a_client_that_hangs_does_not_delay_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "hangs"
    hangs.mkdir()
    (hangs / "wandb.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(hangs))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "0.2")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.2")
    monkeypatch.setattr("pushforward.tracking.wandb.tracker.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("pushforward.tracking.wandb.process.MAX_WAITING_LINES", 5_000)
    warnings: list[str] = []
    process = WandbProcess()
    pid = process.pid
    assert pid is not None
    tracker = WandbTracker(tmp_path / "run", {}, mode="offline", warn=warnings.append, process=process)
    for step in range(4_000):  # more than a pipe holds
        tracker.log({"a": 1.0, "b": 2.0}, step, seconds=step)
    assert warnings == []
    tracker.finish()
    assert warnings == [f"W&B did not finish within 0 s; the run is in {tmp_path / 'run' / 'wandb'}"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    tracker = WandbTracker(tmp_path / "run", {}, mode="offline", warn=warnings.append)
    for step in range(20_000):
        tracker.log({"a": 1.0, "b": 2.0}, step, seconds=step)
    assert len(warnings) == 2
    assert warnings[1].startswith("W&B takes no more rows (5,000 wait); it is off")
    tracker.finish()
    assert len(warnings) == 2


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path: Path) -> None:
    code = (  # a file limited to 500 bytes, until the limit is removed
        "import resource, sys\nfrom pathlib import Path\nfrom pushforward.tracking.jsonl import MetricsFile\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))\n"
        "file = MetricsFile(Path(sys.argv[1]))\n"
        "refused = 0\n"
        "for step in range(30):\n"
        "    if step == 20: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "    try: file.log({'train/nll': 1.0}, step, seconds=step)\n"
        "    except Exception: refused += 1\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1]).stat().st_size, hard))\n"
        "try: file.log({'train/nll': 1.0}, 30, seconds=30)\n"
        "except Exception: refused += 1\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "file.finish()\n"
        "print(refused)\n"
    )
    path = tmp_path / "m.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10
    assert steps(path) == list(range(31))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
def test_other_trackers_record_on_a_full_disk(tmp_path: Path) -> None:
    class FileIsFull(Recorder):
        def log(self, metrics: Any, step: int, *, seconds: float, kind: str = "train") -> None:
            self.calls.append((dict(metrics), step, kind))

    file = MetricsFile(tmp_path / "m.jsonl")
    recorder = FileIsFull(tmp_path / "m.jsonl")
    tracking = Tracking(file, {"recorder": recorder})
    opened = (fd for fd in Path("/proc/self/fd").iterdir() if os.path.realpath(fd) == os.path.realpath(file.path))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, int(next(opened).name))
    os.close(full)
    calls: list[Callable[[], None]] = [
        lambda: tracking.log({"a": 1.0}, 1, seconds=0.1),
        lambda: tracking.image("k", tmp_path / "x.png"),
        lambda: tracking.reference_lines({"baseline/kde": 2.0}, 9),
        lambda: tracking.summary({"s": 1}),
        lambda: tracking.alert("t", "u"),
    ]
    for call in calls:
        with pytest.raises(RunError, match="no space left on device"):
            call()
    assert recorder.calls == [({"a": 1.0}, 1, "train"), "k", ({"baseline/kde": 2.0}, 9, 0.1), {"s": 1}, "t"]
    file.finish()
