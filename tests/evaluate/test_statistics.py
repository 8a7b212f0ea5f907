"""Rolling means of curves."""

import numpy as np
import pytest

from pushforward.evaluate.statistics import rolling_mean


def test_rolling_mean_is_centred_and_keeps_constants_and_lines() -> None:
    np.testing.assert_allclose(rolling_mean(np.full(400, 3.0)), 3.0)
    line = np.arange(400.0)
    smooth = rolling_mean(line)
    assert len(smooth) == 400
    np.testing.assert_allclose(smooth[20:-20], line[20:-20])


def test_rolling_mean_is_shorter_at_both_ends() -> None:
    smooth = rolling_mean(np.arange(400.0))  # windows of 11 values
    assert smooth[[0, 1, -1]] == pytest.approx([2.5, 3.0, 396.5])


def test_few_values_are_not_smoothed() -> None:
    assert rolling_mean(np.arange(10.0)).tolist() == list(range(10))
    assert rolling_mean(np.array([3.0])).tolist() == [3.0]
