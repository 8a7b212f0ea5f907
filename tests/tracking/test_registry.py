"""Trackers by name, and what becomes of one that fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.tracking import Tracker
from pushforward.tracking.jsonl import MetricsFile, read_metrics
from pushforward.tracking.registry import TRACKERS, check_trackers
from pushforward.tracking.trackers import Tracking
from pushforward.tracking.wandb.tracker import WandbTracker


class Calls(Tracker):
    """Counts steps and remembers the exit code; has no other methods."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        self.seen.append(step)

    def finish(self, exit_code: int = 0) -> None:
        self.seen.append(f"exit {exit_code}")


class Broken(Calls):
    """Fails at the second step, and at its end."""

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        super().log(metrics, step, seconds=seconds, kind=kind)
        if step == 2:
            raise ValueError("no\nserver")

    def finish(self, exit_code: int = 0) -> None:
        super().finish(exit_code)
        raise OSError("gone")


def test_a_tracker_that_fails_is_finished_and_left_out(tmp_path: Path) -> None:
    warnings: list[str] = []
    broken, sound = Broken(), Calls()
    file = MetricsFile(tmp_path / "m.jsonl")
    tracking = Tracking(file, {"broken": broken, "sound": sound}, warnings.append)
    for step in (1, 2, 3):
        tracking.log({"a": 1.0}, step, seconds=1.0)
    tracking.table("t", ["c"], [[1]])
    tracking.model(tmp_path, {})
    tracking.alert("t", "u")
    tracking.finish(130)
    assert broken.seen == [1, 2, "exit 1"]
    assert sound.seen == [1, 2, 3, "exit 130"]
    assert warnings == [
        "tracker broken: ValueError: no server; it is off for the rest of this fit, metrics.jsonl goes on"
    ]
    assert [row["step"] for row in read_metrics(file.path) if row["kind"] == "train"] == [1, 2, 3]


def test_a_tracker_that_fails_at_its_end_is_a_warning_too(tmp_path: Path) -> None:
    warnings: list[str] = []
    sound = Calls()
    trackers = {"broken": Broken(), "sound": sound}
    Tracking(MetricsFile(tmp_path / "m.jsonl"), trackers, warnings.append).finish(0)
    assert [line.partition(";")[0] for line in warnings] == ["tracker broken: OSError: gone"]
    assert sound.seen == ["exit 0"]


def test_ctrl_c_within_a_tracker_is_not_kept_from_the_fit(tmp_path: Path) -> None:
    class Interrupted(Calls):
        def summary(self, values: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

    tracking = Tracking(MetricsFile(tmp_path / "m.jsonl"), {"interrupted": Interrupted()})
    with pytest.raises(KeyboardInterrupt):
        tracking.summary({"a": 1})
    tracking.finish(130)


def test_weights_and_biases_is_one_of_the_trackers() -> None:
    assert TRACKERS["wandb"] is WandbTracker
    check_trackers(["wandb"])
    with pytest.raises(ConfigError, match=r"^track: unknown tracker 'wandbb'; did you mean 'wandb'\? known: wandb; "):
        check_trackers(["wandb", "wandbb"])


def test_the_key_takes_a_list_of_names() -> None:
    config = load_config("iris", overrides=["track=My_Tracker, other"])
    assert config.track == ("my-tracker", "other")
    assert config.flat()["track"] == "my-tracker,other"
    assert load_config("iris").track == ()
    assert load_config("iris", overrides=["track=[a, b]"]).track == ("a", "b")
    with pytest.raises(ConfigError, match=r"^track: expected a list of trackers, as in a,b or \[a, b\]; got "):
        load_config("iris", overrides=["track=[a"])
