"""Parts of scoring in chunks: text of scores, running NLL, reading ahead."""

import io
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.evaluate import nll_from
from pushforward.evaluate.likelihood import RunningNll
from pushforward.evaluate.read_ahead import read_ahead
from pushforward.evaluate.scoring import ScoreFile, score_lines


def test_score_lines_equal_repr() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate(
        [generator.standard_normal(20_000) * 10.0 ** generator.integers(-12, 12, 20_000), np.arange(-30.0, 30.0)]
    )
    values[:4] = -np.inf, np.inf, np.nan, -0.0
    assert score_lines(values).decode() == "".join(f"{value!r}\n" for value in values.tolist())
    assert score_lines(values[:0]) == b""


def test_a_stream_gets_its_header_with_the_first_rows_and_stays_open() -> None:
    stream = io.StringIO()
    with ScoreFile(stream) as file:
        assert stream.getvalue() == ""
        file.write(np.array([-1.5]))
        file.write(np.array([2.25]))
    assert stream.getvalue() == "log_prob\n-1.5\n2.25\n"
    stream.write("more")


def test_running_nll_equals_the_nll_of_all_rows() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(10_001) * 1e-3 - 1e6  # squares of 1e6 would drown these deviations
    total = RunningNll()
    for part in np.array_split(values, 17):
        total.add(part)
    expected = nll_from(values)
    assert total.nll().nll == pytest.approx(expected.nll, rel=1e-14)
    assert total.nll().se == pytest.approx(expected.se, rel=1e-6)
    for odd in ([-np.inf], [np.nan], [np.inf], [np.inf, -np.inf]):
        total = RunningNll()
        for few in ([-1.0, -2.0], odd, [-3.0]):
            total.add(np.array(few))
        assert repr(total.nll()) == repr(nll_from(np.array([-1.0, -2.0, *odd, -3.0])))
    with pytest.raises(ValueError, match="expected at least one row"):
        RunningNll().nll()


def test_read_ahead_keeps_the_order_limits_the_queue_and_passes_errors() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item
        raise DataError("late")

    seen = []
    with pytest.raises(DataError, match="late"), read_ahead(source(), depth=2) as items:  # noqa: PT012
        for item in items:
            time.sleep(0.01)
            seen.append(item)
            assert len(taken) <= len(seen) + 3
    assert seen == list(range(10))


def test_read_ahead_ends_its_thread_when_interrupted() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    with pytest.raises(KeyboardInterrupt), read_ahead(endless()):
        raise KeyboardInterrupt
    assert not any(thread.name == "read_ahead" for thread in threading.enumerate())
