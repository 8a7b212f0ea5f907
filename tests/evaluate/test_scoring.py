"""Parts of scoring in chunks: text of scores, running NLL, reading ahead."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.evaluate import nll_from
from pushforward.evaluate.likelihood import RunningNll
from pushforward.evaluate.read_ahead import read_ahead


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
