"""POWER, GAS, HEPMASS, MINIBOONE and BSDS300: preparation of small files in the published formats.

Expected numbers are computed independently: with pandas where the published code used it, row by row elsewhere.
"""

import contextlib
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pushforward.common.errors import DataError
from pushforward.common.files import atomic_write
from pushforward.datasets import load
from pushforward.datasets.sources.literature_sets import LITERATURE
from pushforward.datasets.sources.preprocessing import clean_miniboone, gas, hepmass, miniboone, power
from tests.fixtures.paths import DATA
from tests.fixtures.power import (
    Array,
    N,
    counts,
    data_folder as data_folder,
    parts,
    raw_power,
    set_counts,
    small_power as small_power,
)

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}")


def test_published_numbers() -> None:
    """The sizes of the papers follow from the rules and the numbers of rows."""
    sizes = {"power": 2_049_280, "gas": 1_052_065, "miniboone": 36_488}
    for name, n in sizes.items():
        assert LITERATURE[name].counts == counts(n)
    assert LITERATURE["hepmass"].counts == (350_136 - 35_013, 35_013, 174_987)
    assert int(0.1 * 350_136) == 35_013
    assert LITERATURE["bsds300"].counts == (1_000_000, 50_000, 250_000)
    assert [LITERATURE[name].columns for name in LITERATURE] == [6, 8, 21, 43, 63]
    # UCI's rows minus those with missing readings.
    assert LITERATURE["power"].rows == 2_075_259 - 25_979


# POWER


def test_power_matches_the_published_code(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_power()
    (data_folder / "power").mkdir()
    np.save(data_folder / "power" / "data.npy", raw)
    set_counts(monkeypatch, "power", counts(N))
    found = load("power")

    rng = np.random.RandomState(42)
    order = np.arange(N)
    rng.shuffle(order)  # consumes the same random numbers as shuffling the rows
    shuffled = raw[order]
    voltage_noise, active_noise, metering_noise = 0.01 * rng.rand(N), 0.001 * rng.rand(N), rng.rand(N, 3)
    columns = {
        "global_active_power": shuffled[:, 0] + active_noise,
        "voltage": shuffled[:, 2] + voltage_noise,
        **{f"sub_metering_{k + 1}": shuffled[:, 4 + k] + metering_noise[:, k] for k in range(3)},
        "time": shuffled[:, 7],
    }
    assert found.schema.names == tuple(columns)
    expected = np.stack(list(columns.values()), axis=1)
    seen = expected[: N - N // 10]
    expected = (expected - seen.mean(axis=0)) / np.sqrt(((seen - seen.mean(axis=0)) ** 2).mean(axis=0))
    train, validation, test = counts(N)
    for part, rows in zip(parts(found), np.split(expected, (train, train + validation)), strict=True):
        np.testing.assert_allclose(part, rows, atol=1e-6)
    assert (len(parts(found)[2]), test) == (100, 100)


def test_power_from_the_uci_file(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UCI's text gives the same as an array of the same readings, and a note names the uncertainty."""
    rng = np.random.default_rng(0)
    readings = rng.uniform(0, 9, size=(N, 7)).round(3)
    lines = ["Date;Time;" + ";".join(f"c{k}" for k in range(7))]
    minutes = np.arange(N, dtype=float) % 1440
    for k, row in enumerate(readings):
        lines.append(
            f"{1 + k // 1440}/1/2007;{int(minutes[k]) // 60:02}:{int(minutes[k]) % 60:02}:00;" + ";".join(map(str, row))
        )
        if k % 100 == 0:
            lines.append("1/1/2007;00:00:00;" + ";".join("?" * 7))
    (data_folder / "household_power_consumption.txt").write_text("\n".join(lines) + "\n")
    found = load("power")
    direct = power(np.concatenate((readings, minutes[:, None]), axis=1))
    np.testing.assert_allclose(np.concatenate(parts(found)), np.concatenate(direct[1:]), atol=1e-6)
    assert "the time is undocumented" in found.notes[0]
    assert found.notes[1] == "power: 1,000 rows of 2,049,280: not the published set"
    about = json.loads((data_folder / "power" / "about.json").read_text())
    assert about["notes"][1] == "1,000 rows of 2,049,280: not the published set"
    assert (sum(about["rows"].values()), sum(about["published_rows"].values())) == (1000, 2_049_280)


def test_published_files_replace_a_set_made_from_the_uci_file(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = ";".join(["1.0"] * 7)
    lines = [f"1/1/2007;00:{k:02}:00;{readings}" for k in range(60)]
    (data_folder / "household_power_consumption.txt").write_text(
        "\n".join(["Date;Time;" + "c;" * 6 + "c", *lines]) + "\n"
    )
    assert len(load("power").rows) == 60
    np.save(data_folder / "power" / "data.npy", raw_power())
    set_counts(monkeypatch, "power", counts(N))
    assert len(load("power").rows) == N


@needs_data
def test_the_head_of_the_real_power_file(data_folder: Path) -> None:
    shutil.copy(DATA / "raw" / "household_power_consumption_head.txt", data_folder / "household_power_consumption.txt")
    found = load("power")
    lines = (data_folder / "household_power_consumption.txt").read_text().splitlines()[1:]
    assert found.rows.shape == (sum("?" not in line for line in lines), 6)
    assert found.rows.std(axis=0) == pytest.approx(np.ones(6), abs=0.1)


# GAS


def raw_gas() -> tuple[tuple[str, ...], Array]:
    """Return 16 sensors in 8 correlated pairs; the first of each pair is dropped."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(N, 8)) * np.arange(1, 9) + 5
    other = one + 0.02 * rng.normal(size=(N, 8))
    names = ("Time", "Meth", "Eth", *(f"R{k}" for k in range(1, 17)))
    return names, np.concatenate((rng.normal(size=(N, 3)), one, other), axis=1)


def test_gas_matches_the_published_code(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas writes the published file of GAS")
    names, rows = raw_gas()
    frame = pandas.DataFrame(rows, columns=list(names))
    (data_folder / "data" / "gas").mkdir(parents=True)
    frame.to_pickle(data_folder / "data" / "gas" / "ethylene_CO.pickle")
    set_counts(monkeypatch, "gas", counts(N))
    found = load("gas")
    assert found.schema.names == tuple(f"R{k}" for k in range(9, 17))
    left = frame[list(found.schema.names)]
    expected = ((left - left.mean()) / left.std()).to_numpy()
    np.testing.assert_allclose(np.concatenate(parts(found)), expected, atol=1e-6)
    # Standardised with all rows and ddof=1, unlike the other sets.
    assert np.concatenate(parts(found)).std(axis=0, ddof=1) == pytest.approx(np.ones(8), abs=1e-6)


def test_gas_uses_signed_correlations() -> None:
    names, rows = raw_gas()
    rows[:, 3:11] *= -1
    with pytest.raises(DataError, match="gas: expected 8 columns after pruning correlated ones; got 16"):
        gas(names, rows)


def test_gas_from_the_uci_file(data_folder: Path) -> None:
    """A quarter of the rows, always the same."""
    _, rows = raw_gas()
    text = "Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings (16 channels)\n"
    text += "\n".join("   ".join(f"{value:.5f}" for value in row) for row in rows) + "\n"
    (data_folder / "gas").mkdir()
    with gzip.open(data_folder / "gas" / "ethylene_CO.txt.gz", "wt") as file:
        file.write(text)
    found = load("gas")
    assert found.rows.shape == (250, 8)
    assert "not the same quarter" in found.notes[0]
    assert found.schema.names[0] == "sensor_9"
    # A subset of the rows of the file, without repeats, in another order.
    kept = rows[:, 11:]
    scaled = found.rows * kept.std(axis=0)
    nearest = [int(np.abs(scaled[k] - scaled[0] - (kept - kept[:1])).sum(axis=1).argmin()) for k in range(3)]
    assert len(set(nearest)) == 3
    (data_folder / "gas" / "about.json").unlink()
    assert np.array_equal(load("gas").rows, found.rows)


# HEPMASS


def raw_hepmass(n: int, seed: int) -> Array:
    """Return label and 27 features: f3, f8, f12, f16, f20, f24 repeat their smallest value, f5 another value."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 28)) * np.linspace(1, 3, 28) + 2
    rows[:, 0] = rng.integers(0, 2, size=n)
    for feature in (3, 8, 12, 16, 20, 24):
        rows[:, 1 + feature] = np.maximum(rows[:, 1 + feature], 1.0)
    rows[: n // 2, 1 + 5] = 2.5
    return rows


def write_hepmass(path: Path, rows: Array, extra: str = "") -> None:
    """Write a file; with ``extra``, header and rows have one more column, as in the published test file."""
    header = "# label," + ",".join(f"f{k}" for k in range(27)) + (",mass" if extra else "")
    lines = [",".join(f"{value:.18e}" for value in row) + ("," + extra if extra else "") for row in rows]
    path.write_text("\n".join((header, *lines)) + "\n")


@pytest.mark.parametrize("zipped", [False, True])
def test_hepmass_matches_the_published_code(zipped: bool, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas", reason="the published code of HEPMASS uses pandas")
    train, test = raw_hepmass(800, 0), raw_hepmass(400, 1)
    (data_folder / "hepmass").mkdir()
    write_hepmass(data_folder / "hepmass" / "1000_train.csv", train)
    write_hepmass(data_folder / "hepmass" / "1000_test.csv", test, extra="1000.0")

    frames = []
    for name in ("train", "test"):
        frame = pandas.read_csv(data_folder / "hepmass" / f"1000_{name}.csv", index_col=False)
        frame = frame[frame[frame.columns[0]] == 1].drop(columns=frame.columns[0])
        frames.append(frame if name == "train" else frame.drop(columns=frame.columns[-1]))
    mean, deviation = frames[0].mean(), frames[0].std()
    fit, scored = (((frame - mean) / deviation).to_numpy() for frame in frames)
    kept = []
    for k, feature in enumerate(fit.T):
        if np.array([count for _, count in sorted(Counter(feature).items())])[0] <= 5:
            kept.append(k)
    assert sorted(set(range(27)) - set(kept)) == [3, 8, 12, 16, 20, 24]
    validation = int(0.1 * len(fit))

    if zipped:
        for name in ("train", "test"):
            plain = data_folder / "hepmass" / f"1000_{name}.csv"
            plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()
    set_counts(monkeypatch, "hepmass", (len(fit) - validation, validation, len(scored)))
    found = load("hepmass")
    assert found.schema.names == tuple(f"f{k}" for k in kept)
    expected = (fit[:-validation, kept], fit[-validation:, kept], scored[:, kept])
    for part, rows in zip(parts(found), expected, strict=True):
        np.testing.assert_allclose(part, rows, atol=1e-6)


def test_hepmass_with_other_columns() -> None:
    train = raw_hepmass(800, 0)
    train[:, 1 + 7] = np.maximum(train[:, 1 + 7], 1.0)
    with pytest.raises(
        DataError, match="hepmass: expected 21 columns after dropping those with a repeated smallest value"
    ):
        hepmass(train, train)
    with pytest.raises(DataError, match="hepmass: expected 28 columns; got 27"):
        hepmass(train[:, 1:], train)


# MINIBOONE


def test_miniboone_matches_the_published_code(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(0).normal(size=(N, 43)) * np.arange(1, 44)
    (data_folder / "miniboone").mkdir()
    np.save(data_folder / "miniboone" / "data.npy", raw)
    set_counts(monkeypatch, "miniboone", counts(N))
    found = load("miniboone")
    seen = raw[:900]
    expected = (raw - seen.mean(axis=0)) / seen.std(axis=0)
    train, validation, test = counts(N)
    assert [len(part) for part in parts(found)] == [train, validation, test] == [810, 90, 100]
    np.testing.assert_allclose(np.concatenate(parts(found)), expected, atol=1e-5)


def test_miniboone_from_the_uci_file(data_folder: Path) -> None:
    """Signal rows without -999; columns selected by their smallest value."""
    rng = np.random.default_rng(0)
    signal, background = rng.normal(size=(300, 50)), rng.normal(size=(100, 50)) + 100
    for column in range(0, 49, 7):
        signal[:, column] = np.maximum(signal[:, column], 0.0)
    signal[[5, 17]] = -999
    lines = [f"  {len(signal)}  {len(background)}"]
    lines += [" ".join(f"{value: .6e}" for value in row) for row in (*signal, *background)]
    (data_folder / "MiniBooNE_PID.txt").write_text("\n".join(lines) + "\n")
    found = load("miniboone")
    assert found.rows.shape == (298, 43)
    kept = np.delete(np.delete(signal, [5, 17], axis=0), range(0, 49, 7), axis=1)
    seen = kept[: 298 - 29]
    np.testing.assert_allclose(np.concatenate(parts(found)), (kept - seen.mean(0)) / seen.std(0), atol=1e-5)
    assert "not from the published array" in found.notes[0]
    (data_folder / "miniboone" / "about.json").unlink()
    (data_folder / "MiniBooNE_PID.txt").write_text("\n".join(lines[:200]) + "\n")
    with pytest.raises(DataError, match="announces 300 signal events and holds 199 rows"):
        load("miniboone")


@needs_data
def test_the_head_of_the_real_miniboone_array() -> None:
    """The rule that reduced 50 columns to 43 drops no further column of the published array."""
    head = np.load(DATA / "raw" / "miniboone_head.npy")
    assert miniboone(head).counts == counts(len(head))
    wide = np.concatenate((head, np.zeros((len(head), 7))), axis=1)
    np.testing.assert_array_equal(clean_miniboone(wide), head)


# BSDS300


def test_bsds300(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py writes and reads the published file of BSDS300")
    rng = np.random.default_rng(0)
    written = {name: rng.normal(size=(n, 63)) for name, n in (("train", 50), ("validation", 20), ("test", 30))}
    (data_folder / "BSDS300").mkdir()
    with h5py.File(data_folder / "BSDS300" / "BSDS300.hdf5", "w") as file:
        for name, rows in written.items():
            file.create_dataset(name, data=rows)
    set_counts(monkeypatch, "bsds300", (50, 20, 30))
    found = load("bsds300")
    for part, rows in zip(parts(found), written.values(), strict=True):
        np.testing.assert_array_equal(part, rows.astype("f4").astype(float))  # unchanged


def test_bsds300_without_h5py(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (data_folder / "BSDS300").mkdir()
    (data_folder / "BSDS300" / "BSDS300.hdf5").write_bytes(b"\x89HDF")
    with pytest.raises(DataError, match=r"is an HDF5 file; install h5py: pip install 'pushforward\[hdf5\]'"):
        load("bsds300")


# All sets


def test_a_set_is_prepared_once(small_power: Path) -> None:
    first = load("power")
    (small_power / "power" / "data.npy").unlink()
    again = load("power")
    assert np.array_equal(first.rows, again.rows)
    assert first.sha256 == again.sha256
    assert sorted(path.name for path in (small_power / "power").iterdir()) == [
        "about.json",
        "test.npy",
        "train.npy",
        "validation.npy",
    ]
    kept = np.load(small_power / "power" / "test.npy")
    assert kept.dtype == np.float32
    assert np.array_equal(parts(first)[2], kept.astype(float))
    # A set stored by an older version is not used.
    about = json.loads((small_power / "power" / "about.json").read_text())
    (small_power / "power" / "about.json").write_text(json.dumps(about | {"recipe": 0}))
    with pytest.raises(DataError, match="power: is not in the data folder"):
        load("power")


def test_a_set_whose_replacement_is_interrupted_is_not_used(small_power: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its description would be that of the old parts."""
    load("power")
    stored = small_power / "power"

    def interrupted(path: Path) -> contextlib.AbstractContextManager[Path]:
        if path.name == "validation.npy":
            raise KeyboardInterrupt  # as if killed
        return atomic_write(path)

    monkeypatch.setattr("pushforward.datasets.sources.literature.atomic_write", interrupted)
    about = json.loads((stored / "about.json").read_text())
    (stored / "about.json").write_text(json.dumps(about | {"recipe": 0}))
    with pytest.raises(KeyboardInterrupt):
        load("power")
    assert (stored / "train.npy").exists()
    assert not (stored / "about.json").exists()


def test_without_write_access_the_set_is_prepared_in_memory(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(data_folder / "data.npy", raw_power())
    (data_folder / "data" / "power").mkdir(parents=True)
    (data_folder / "data.npy").rename(data_folder / "data" / "power" / "data.npy")
    (data_folder / "power").write_text("a file where the set's folder would be")
    set_counts(monkeypatch, "power", counts(N))
    assert load("power").rows.shape == (N, 6)


def test_an_array_that_is_not_the_published_one_is_refused(data_folder: Path) -> None:
    (data_folder / "power").mkdir()
    np.save(data_folder / "power" / "data.npy", raw_power())
    with pytest.raises(
        DataError, match=r"is not the published power: expected 1,659,917 .*; got 810 \+ 90 \+ 100 rows"
    ):
        load("power")
    np.save(data_folder / "power" / "data.npy", raw_power()[:, :7])
    with pytest.raises(DataError, match="power: expected 8 columns; got 7"):
        load("power")
    (data_folder / "power" / "data.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"not a readable \.npy array"):
        load("power")


def test_advice_about_an_incomplete_uci_file(data_folder: Path) -> None:
    """The advice does not suggest that a download replaces UCI's file."""
    (data_folder / "gas").mkdir()
    (data_folder / "gas" / "ethylene_CO.txt").write_text("")
    message = "ethylene_CO.txt: holds no rows; put the complete file there, or fetch the published archive with: "
    with pytest.raises(DataError, match=f"{message}pushforward datasets download gas --force$"):
        load("gas")


def text_of_power(rows: int) -> str:
    values = np.random.default_rng(0).uniform(size=(rows, 7)).round(3)
    lines = [f"1/1/2007;{k // 60:02}:{k % 60:02}:00;" + ";".join(map(str, row)) for k, row in enumerate(values)]
    return "\n".join(["Date;Time;" + "c;" * 6 + "c", *lines]) + "\n"


@pytest.mark.parametrize("rows", [0, 1, 2, 10])
def test_a_uci_file_of_a_few_rows_is_refused(data_folder: Path, rows: int) -> None:
    (data_folder / "household_power_consumption.txt").write_text(text_of_power(rows))
    with pytest.raises(DataError, match=r"household_power_consumption\.txt: .*; put the complete file there") as caught:
        load("power")
    assert rows == 0 or f"power: {rows} rows are too few to train on, to validate on and to test on" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_the_smallest_uci_file_that_can_be_split(data_folder: Path) -> None:
    (data_folder / "household_power_consumption.txt").write_text(text_of_power(11))
    found = load("power")
    assert [len(part) for part in parts(found)] == [9, 1, 1]
    assert "power: 11 rows of 2,049,280: not the published set" in found.notes


def test_too_few_rows_or_constant_columns_are_refused() -> None:
    """The message is one line, and NumPy does not warn."""
    few, same = np.ones((5, 28)), np.ones((40, 43))
    cases: dict[str, Callable[[], object]] = {
        "gas: 5 rows are too few": lambda: gas([f"x{k}" for k in range(8)], few[:, :8]),
        "gas: x1 holds one value in all 40 rows": lambda: gas([f"x{k + 1}" for k in range(8)], same[:, :8]),
        "hepmass: 5 rows are too few": lambda: hepmass(few, few),
        "hepmass: 0 rows are too few": lambda: hepmass(np.zeros((40, 28)), few),
        "miniboone: 5 rows are too few": lambda: miniboone(np.ones((5, 43))),
        "miniboone: x1 holds one value in all 40 rows": lambda: miniboone(same),
        "miniboone: 0 rows are too few": lambda: clean_miniboone(np.full((40, 50), -999.0)),
    }
    for message, make in cases.items():
        with pytest.raises(DataError, match=message):
            make()


@pytest.mark.parametrize("key", ["statistics", "columns", "notes", "source", "sha256", "kind"])
def test_an_incomplete_about_file_is_written_again(small_power: Path, key: str) -> None:
    """The set is prepared again if its files are there."""
    place = small_power / "power" / "about.json"
    about = json.loads(place.read_text())
    place.write_text(json.dumps({name: value for name, value in about.items() if name != key}))
    assert load("power").rows.shape == (N, 6)
    assert json.loads(place.read_text()) == about
    place.write_text(json.dumps(about | {"statistics": about["statistics"][1:]}))
    (small_power / "power" / "data.npy").unlink()
    with pytest.raises(DataError, match="is not in the data folder"):
        load("power")


def test_an_array_that_would_have_to_be_unpickled_is_refused(data_folder: Path) -> None:
    (data_folder / "miniboone").mkdir()
    np.save(data_folder / "miniboone" / "data.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a readable \.npy array of numbers"):
        load("miniboone")


def test_columns_rows_and_context(small_power: Path) -> None:
    everything = load("power")
    some = load("power", drop=["time"], context=["voltage"])
    assert (some.schema.names, some.schema.context_names) == (
        ("global_active_power", "sub_metering_1", "sub_metering_2", "sub_metering_3"),
        ("voltage",),
    )
    assert np.array_equal(some.context[:, 0], everything.rows[:, 1])
    assert np.array_equal(some.rows, everything.rows[:, [0, 2, 3, 4]])
    rest = load("power", response="voltage", drop=["time"])
    assert (rest.schema.names, rest.schema.context_names) == (("voltage",), some.schema.names)
    assert np.array_equal(rest.context, some.rows)
    with pytest.raises(DataError, match=r"power: comes without weights of its rows; leave data\.weight out"):
        load("power", weight="time")
    few = load("power", rows=100, seed=1)
    assert few.rows.shape == (100, 6)
    assert any("a random subset, 100 of 1,000 rows" in note for note in few.notes)
    for part, source in zip(parts(few), parts(everything), strict=True):
        assert {tuple(row) for row in part} <= {tuple(row) for row in source}
        assert len(part)
    with pytest.raises(DataError, match=r"data\.rows: 2 rows of power leave a part of the split empty; ask for more"):
        load("power", rows=2)
    with pytest.raises(DataError, match="'voltge'; did you mean 'voltage'"):
        load("power", context=["voltge"])
    with pytest.raises(DataError, match="'voltge'; did you mean 'voltage'"):
        load("power", drop=["voltge"])
    with pytest.raises(DataError, match="every column is context"):
        load("power", context=list(everything.schema.names))
