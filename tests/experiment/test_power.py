"""A fit of POWER: its rows are taken as they are, in fixed parts, and scored from files and by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.common.errors import ConfigError, DataError
from pushforward.config.read import load_config
from pushforward.datasets import load
from pushforward.train.data import load_data, prepare
from pushforward.train.defaults import data_options
from pushforward.train.options import DataOptions
from tests.fixtures.power import N, counts, data_folder as data_folder, parts, small_power as small_power


def test_no_noise_is_added(small_power: Path) -> None:
    """Published values repeat, also standardised; the fit does not dequantize them."""
    dataset = load("power")
    assert all(column.step is None for column in dataset.schema.columns)
    # The time of day is in minutes here; values shared by two rows by chance are not ties.
    assert [column.name for column in dataset.schema.columns if column.tied] == ["time"]
    prepared = prepare(dataset, DataOptions(source="power"))
    assert not prepared.bin_widths.any()
    assert np.array_equal(prepared.test.rows, parts(dataset)[2])
    assert [len(part) for part in prepared.splits] == list(counts(N))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            ["data.protocol=half"],
            DataError,
            "power: comes with its published columns and parts; leave data.protocol out",
        ),
        (["data.test_fraction=0.2"], ConfigError, "data.test_fraction: has no effect, as power comes in fixed parts"),
        (
            ["data.validation_fraction=0.2"],
            ConfigError,
            "data.validation_fraction: has no effect, as power comes in fixed",
        ),
    ],
)
def test_options_without_effect_are_refused(
    change: list[str], error: type[Exception], message: str, small_power: Path
) -> None:
    with pytest.raises(error, match=message):
        load_data(data_options(load_config("power", (), change).model_dump()))


def test_a_fit_and_its_scores(small_power: Path, tmp_path: Path) -> None:
    """The stored parts are ordinary files: the test part can be scored."""
    tiny = ("train.steps=3", "flow=maf", "flow.layers=1", "flow.hidden=8", "train.evaluate=false", "wandb=off")
    run, out = tmp_path / "run", tmp_path / "scores.csv"
    invocations: list[list[str]] = [
        ["fit", "power", *tiny, "--out", str(run), "--json"],
        ["score", str(run), str(small_power / "power" / "test.npy"), "--out", str(out)],
        ["score", str(run), "power", "--out", str(out.with_suffix(".all.csv"))],
    ]
    for arguments in invocations:
        done = CliRunner().invoke(main, arguments, prog_name="pushforward")
        assert done.exit_code == 0, done.output
    results = json.loads((run / "results.json").read_text())
    assert (results["rows"], results["features"]) == (N, 6)
    assert -np.loadtxt(out, skiprows=1).mean() == pytest.approx(results["test_nll"], abs=1e-5)
    scores = np.loadtxt(out.with_suffix(".all.csv"), skiprows=1)
    assert len(scores) == N
    np.testing.assert_allclose(scores[-100:], np.loadtxt(out, skiprows=1), atol=1e-5)
    # The run stores the name of the data set, which other commands find in the data folder.
    config = load_config(None, (run / "config.yaml",), ())
    assert config.data.source == "power"
    schema = json.loads((run / "schema.json").read_text())
    assert load_data(data_options(config.model_dump())).sha256 == schema["sha256"]
    assert schema["rows"] == dict(zip(("train", "validation", "test"), counts(N), strict=True))
