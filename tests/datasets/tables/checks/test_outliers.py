"""Notes on values far outside the rest: codes, outliers and heavy tails are named, usual columns are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pushforward.datasets import load
from pushforward.datasets.tables.checks.outliers import outlier_notes

Generator = np.random.Generator
Column = np.ndarray[tuple[int], np.dtype[np.float64]]

USUAL: dict[str, Callable[[Generator, int], Column]] = {
    "normal": lambda random, n: random.standard_normal(n),
    "exponential": lambda random, n: random.exponential(size=n),
    "log-normal": lambda random, n: random.lognormal(size=n),
    "uniform": lambda random, n: random.random(n),
    "student": lambda random, n: random.standard_t(3, n),
    "counts": lambda random, n: random.poisson(0.05, n).astype(float),
    "grades": lambda random, n: random.integers(0, 5, n).astype(float),
    "two values": lambda random, n: (random.random(n) < 0.01).astype(float),
    "mostly zero": lambda random, n: np.where(random.random(n) < 0.9, 0.0, random.lognormal(sigma=0.5, size=n)),
    "two groups": lambda random, n: random.standard_normal(n) + 100 * (random.random(n) < 0.3),
}


def notes(values: Column) -> list[str]:
    return outlier_notes(["c"], np.asarray(values)[:, None])


@pytest.mark.parametrize("name", USUAL)
def test_usual_columns_get_no_note(name: str) -> None:
    for n, seeds in ((30, 20), (1_000, 20), (100_000, 2)):
        for seed in range(seeds):
            assert notes(USUAL[name](np.random.default_rng(seed), n)) == []


@pytest.mark.parametrize("n", [1_000, 20_000])
def test_heavy_tails_are_no_list_of_outliers(n: int) -> None:
    for seed in range(10):
        random = np.random.default_rng(seed)
        for values in (random.standard_cauchy(n), random.lognormal(sigma=2, size=n)):
            (note,) = notes(7 + 1e-3 * values)
            assert note.startswith("column 'c' is heavy-tailed: its values reach ")
            assert note.endswith("interquartile ranges from the median")


def test_a_single_outlier_is_named() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(1999), 1e6)
    assert notes(values) == [
        "column 'c': one value, 1000000, is 730,000 interquartile ranges from the median; if it is wrong, set "
        "data.missing_values=1000000 data.missing=drop"
    ]
    values[:2] = [-3e5, 1e6]
    assert "3 values, -300000 and 1000000, are up to 730,000 interquartile ranges" in notes(values)[0]
    # A column that is nearly constant has a range, too.
    values = np.zeros(2000)
    values[:150] = np.random.default_rng(1).random(150)
    values[7] = -5e7
    assert "is 1.6e+08 ranges of the middle 90 % from the median" in notes(values)[0]


@pytest.mark.parametrize("n", [25, 60, 140])
def test_a_single_outlier_of_a_small_table_is_named(n: int) -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).standard_normal(n)
        values[3] = 1000
        (note,) = notes(values)
        assert note.startswith("column 'c': one value, 1000, is ")


@pytest.mark.parametrize("code", [-9999.0, 999.0, 1e20, float(np.finfo(np.float32).max), -12345.0])
def test_a_code_for_missing_values_is_named(code: float) -> None:
    values = np.random.default_rng(0).normal(20, 5, 1500).round(1)
    values[::70] = code
    (note,) = notes(values)
    assert note.startswith(f"column 'c': {repr(code).removesuffix('.0')} in 22 rows, far outside the rest; ")
    given = note.partition("data.missing_values=")[2].split()[0]
    assert float(given) == code


def test_columns_with_the_same_finding_share_a_note() -> None:
    rows = np.random.default_rng(0).normal(20, 5, (1500, 9))
    rows[::100] = -9999
    (note,) = outlier_notes("abcdefghi", rows)
    assert note.startswith("columns 'a' (15 rows), 'b' (15 rows), 'c'")
    assert "'f' (15 rows) and 3 more: -9999, far outside the rest; " in note
    (note,) = outlier_notes("ab", np.random.default_rng(0).standard_cauchy((1000, 2)))
    assert note.startswith("columns 'a', 'b' are heavy-tailed: their values reach up to ")


def test_a_code_that_other_columns_hold_as_a_value_is_not_declared_for_all() -> None:
    random = np.random.default_rng(0)
    rows = np.stack([random.normal(40, 5, 1500).round(), random.normal(100, 9, 1500).round()], axis=1)
    rows[::70, 0] = 999
    assert "set data.missing_values=999 data.missing=drop" in outlier_notes(["age", "price"], rows)[0]
    rows[3, 1] = 999
    rows[::2, 1] += 899
    (note,) = [note for note in outlier_notes(["age", "price"], rows) if "'age'" in note]
    assert note.endswith("set data.missing=drop (other columns hold this number as a value)")


def test_a_far_value_of_a_design_is_no_code() -> None:
    """A column of few values, each in many rows, may have one far from the others."""
    assert notes(np.repeat([-2.6, -2.3, 0.1, 60.0], 60)) == []
    assert notes(np.repeat([1.0, 2.0, 3.0, 4.0, 5.0, 99.0], 60)) != []


def test_codes_at_both_ends_and_a_single_known_one() -> None:
    values = np.random.default_rng(0).normal(20, 5, 1500)
    values[:40], values[40:50], values[50] = -9999, -999, 99999
    assert [note.split()[2] for note in notes(values)] == ["-9999", "-999", "99999"]
    # The end of a far group is not a code.
    values = np.append(np.random.default_rng(0).normal(20, 5, 1500), [996, 997, 998, 999])
    assert notes(values)[0].startswith(
        "column 'c': 4 values are 140 to 150 interquartile ranges from the median; if they"
    )
    # In heavy tails, large values are not codes.
    values = np.random.default_rng(0).standard_cauchy(2000)
    values[:30] = -9999999
    assert [note.split()[2] for note in notes(values)][1:] == ["is"]


def test_the_notes_come_with_the_data_and_their_advice_works(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = np.stack([random.normal(size=800), random.normal(size=800)], axis=1)
    rows[::100, 1] = -999
    np.save(tmp_path / "t.npy", rows)
    dataset = load(tmp_path / "t.npy", context=["x2"])
    assert any(note.startswith("column 'x2': -999 in 8 rows, far outside") for note in dataset.notes)
    cleaned = load(tmp_path / "t.npy", missing_values=[-999], missing="drop")
    assert len(cleaned.rows) == 792
    assert cleaned.notes == ("t.npy: 8 of 800 rows have missing values and are left out (data.missing=drop)",)
