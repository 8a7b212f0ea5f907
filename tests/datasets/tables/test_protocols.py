"""Protocols of the literature: dropped columns, splits, and fits that use them."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from pushforward.common.errors import DataError
from pushforward.datasets import Splits, load
from pushforward.datasets.tables.protocols import PROTOCOLS, apply_protocol
from pushforward.datasets.tables.read import Numbers
from tests.fixtures.protocols import N, correlated_table, write_numbers


def correlations(numbers: Numbers) -> dict[str, float]:
    c = np.atleast_2d(np.corrcoef(numbers.matrix, rowvar=False))
    names = numbers.names
    return {names[i] + names[j]: abs(float(c[i, j])) for i in range(len(names)) for j in range(i)}


def test_correlations_of_the_test_table() -> None:
    found = correlations(correlated_table())
    assert min(found[pair] for pair in ("ba", "ca", "cb", "ed", "fe")) > 0.98
    assert found["fd"] < 0.98


# rnade repeatedly drops the first column with a correlated partner; tenths drops columns that are correlated with an
# earlier one that is kept, and half those that are correlated with any earlier one.
@pytest.mark.parametrize(
    ("protocol", "kept"),
    [
        ("rnade", ("c", "f", "h")),  # drops a, b, d, e, and the discrete g
        ("tenths", ("a", "d", "f", "g", "h")),  # drops b, c, e; keeps f, since its partner e is dropped
        ("half", ("a", "d", "g", "h")),  # drops f, too
    ],
)
def test_columns_that_are_kept(protocol: str, kept: tuple[str, ...]) -> None:
    numbers, _, notes = apply_protocol(protocol, 0, "t", correlated_table())
    assert numbers.names == kept
    assert numbers.matrix.shape == (N, len(kept))
    for name in {"a", "b", "c", "d", "e", "f", "g", "h"} - set(kept):
        assert f"{name} (" in notes[1]


def test_discrete_columns() -> None:
    """rnade: at most 50 different values, and at most a fifth of the rows; tenths: at most 5 % of the rows."""
    rng = np.random.default_rng(0)

    def kept(protocol: str, n: int, levels: int) -> bool:
        discrete = (np.arange(n) % levels).astype(float)
        matrix = np.stack((rng.normal(size=n), rng.permutation(discrete)), axis=1)
        return "b" in apply_protocol(protocol, 0, "t", Numbers(("a", "b"), ("double",) * 2, matrix))[0].names

    assert [kept("rnade", 1000, levels) for levels in (50, 51)] == [False, True]
    assert [kept("rnade", 100, levels) for levels in (20, 21)] == [False, True]
    assert [kept("tenths", 1000, levels) for levels in (50, 51)] == [False, True]
    assert [kept("tenths", 100, levels) for levels in (5, 6)] == [False, True]
    assert [kept("half", 1000, levels) for levels in (1, 2)] == [False, True]


def test_the_sign_of_a_correlation_does_not_matter() -> None:
    numbers = correlated_table()
    turned = Numbers(numbers.names, numbers.types, numbers.matrix * np.array([1, -1, 1, -1, 1, 1, 1, 1]))
    for protocol in PROTOCOLS:
        plain, other = (apply_protocol(protocol, 0, "t", it)[0].names for it in (numbers, turned))
        assert plain == other


def check_split(splits: Splits, n: int) -> None:
    joined = np.concatenate(splits)
    assert sorted(joined) == list(range(n))
    assert all((np.diff(part) > 0).all() for part in splits)


@pytest.mark.parametrize("n", [100, 351, 1599])
def test_rnade_rows(n: int) -> None:
    folds = [PROTOCOLS["rnade"].rows(n, fold) for fold in range(10)]
    for splits in folds:
        check_split(splits, n)
        assert abs(len(splits.test) - n / 10) < 1
        assert abs(len(splits.validation) - n / 10) < 1
    # Every row is in one test set and in one validation set.
    assert sorted(np.concatenate([splits.test for splits in folds])) == list(range(n))
    assert sorted(np.concatenate([splits.validation for splits in folds])) == list(range(n))
    assert len({tuple(splits.test) for splits in folds}) == 10
    # Shuffled: the first fold is not the first tenth.
    assert folds[0].test.max() > n / 2


@pytest.mark.parametrize("n", [97, 178, 351])
def test_half_rows_equal_those_of_the_published_code(n: int) -> None:
    for fold in range(5):
        splits = PROTOCOLS["half"].rows(n, fold)
        check_split(splits, n)
        train, test = train_test_split(np.arange(n), test_size=n - n // 2, train_size=n // 2, random_state=100 + fold)
        assert sorted(splits.test) == sorted(test)
        assert sorted((*splits.train, *splits.validation)) == sorted(train)
        assert len(splits.validation) == max(10, round(len(train) / 5))


def test_tenths_rows_equal_those_of_the_benchmarks() -> None:
    n = 1234
    shuffled = np.random.RandomState(42).permutation(n)
    splits = PROTOCOLS["tenths"].rows(n, 0)
    check_split(splits, n)
    assert set(splits.test) == set(shuffled[-123:])
    assert set(splits.validation) == set(shuffled[-246:-123])
    assert set(PROTOCOLS["tenths"].rows(n, 1).test) != set(splits.test)


def test_constant_columns_are_dropped() -> None:
    """They are dropped before correlations, which they do not have, are computed."""
    rng = np.random.default_rng(0)
    for name in PROTOCOLS:
        for n in range(PROTOCOLS[name].min_rows, 25):
            matrix = np.stack((rng.normal(size=n), np.full(n, 3.0), rng.normal(size=n)), axis=1)
            kept, _, _ = apply_protocol(name, 0, "t", Numbers(("a", "b", "c"), ("double",) * 3, matrix))
            assert kept.names == ("a", "c")


def test_smallest_tables() -> None:
    for name, protocol in PROTOCOLS.items():
        for n in (protocol.min_rows, protocol.min_rows + 1):
            check_split(protocol.rows(n, 0), n)
            assert all(len(part) for part in protocol.rows(n, 0)), name
        with pytest.raises(DataError, match=f"{protocol.min_rows - 1} rows are too few for data.protocol={name}"):
            apply_protocol(name, 0, "t", correlated_table(protocol.min_rows - 1))


def test_protocols_apply_to_files_and_toys(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "t.csv", correlated_table())
    dataset = load(path, protocol="tenths", context=["b"], drop=["h"])
    # Context is neither dropped nor a reason to drop: b stays, and c is dropped because of a.
    assert (dataset.schema.names, dataset.schema.context_names) == (("a", "d", "f", "g"), ("b",))
    assert dataset.schema.file_columns == 8
    assert dataset.splits is not None
    check_split(dataset.splits, N)
    assert any("t.csv: tenths, fold 0" in note for note in dataset.notes)
    assert dataset.is_file
    assert load(path).splits is None
    few = load(path, protocol="half", rows=100, seed=3)
    assert few.splits is not None
    check_split(few.splits, 100)
    toy = load("moons", rows=50, protocol="half")
    assert toy.toy is not None
    assert toy.splits is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "rnad"}, r"data.protocol: unknown protocol 'rnad'; did you mean 'rnade'\? known: rnade, half"),
        ({"protocol": "rnade", "fold": 10}, "data.fold: expected 0 to 9 for data.protocol=rnade; got 10"),
        ({"protocol": "half", "fold": -1}, "data.fold: expected 0 to 1000000 for data.protocol=half; got -1"),
        ({"protocol": "tenths", "fold": 5_000_000_000}, "data.fold: expected 0 to 1000000 for .*; got 5000000000"),
        ({"protocol": "rnade", "columns": ["g"]}, "leaves no column; fit it without a protocol"),
    ],
)
def test_bad_protocols_and_folds(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "t.csv", correlated_table())
    with pytest.raises(DataError, match=message):
        load(path, **arguments)  # type: ignore[arg-type]
