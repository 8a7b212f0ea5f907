"""Options of training: what they accept, and one line about what they do not."""

from typing import Any

import numpy as np
import pytest

from pushforward.common.errors import ConfigError
from pushforward.train import Trainer, TrainOptions

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("steps", (0, -1, 2.5, True, "5"), "a whole number above 0"),
        ("seconds", (0, -1.0, NAN, INFINITY, True, "60"), "a number above 0"),
        ("batch_size", (0, None, 64.0), "a whole number above 0"),
        ("learning_rate", (0, -1e-3, NAN, INFINITY, None), "a number above 0"),
        ("warmup", (-1, 1.5), "a whole number, 0 or above"),
        ("weight_decay", (-1e-9, NAN, INFINITY), "a number, 0 or above"),
        ("gradient_clip", (0, NAN, INFINITY), "a number above 0"),
        ("ema_decay", (-0.1, 1.0, 1.5, NAN), "a number from 0 to below 1"),
        ("patience", (-0.1, 1.1, NAN), "a number from 0 to 1"),
        ("validate_every", (0, 0.5), "a whole number above 0"),
        ("compile", ("auto", "ON", True), "on, off or None"),
        ("precision", ("auto", "half"), "float32, tf32, bf16 or None"),
        ("checkpoint_seconds", (0, -1), "a number above 0"),
        ("log_every", (0, "25"), "a whole number above 0"),
    ],
)
def test_values_out_of_range_are_refused(key: str, values: tuple[Any, ...], expected: str) -> None:
    for value in values:
        with pytest.raises(ConfigError) as refused:
            Trainer(**{"steps": 5, "seconds": 5.0} | {key: value})
        assert str(refused.value) == f"train.{key}: expected {expected}; got {value!r}"


def test_values_at_the_limits_are_accepted() -> None:
    limits: dict[str, Any] = {
        "warmup": 0,
        "weight_decay": 0,
        "ema_decay": 0,
        "patience": 0,
        "batch_size": 1,
        "log_every": 1,
    }
    assert Trainer(steps=1, **limits).options == TrainOptions(steps=1, **limits)
    assert Trainer(seconds=1e-9, patience=1, compile=None, precision="bf16").options.steps is None
    assert Trainer(steps=np.int64(3), learning_rate=np.float32(0.1)).options.steps == 3


def test_a_budget_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^train\.steps: expected steps or seconds; got neither$"):
        Trainer(batch_size=10)


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown option of training 'learn_rate'; did you mean 'learning_rate'\?"):
        Trainer(steps=5, learn_rate=0.1)


def test_options_and_keys_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^Trainer: expected options or keys; got both, steps beside options$"):
        Trainer(TrainOptions(steps=5), steps=6)
