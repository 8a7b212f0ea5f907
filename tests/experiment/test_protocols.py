"""Fits under the protocols of the literature: their rows, their configuration, their scores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pushforward.cli import main
from pushforward.common.errors import ConfigError
from pushforward.config.read import load_config
from pushforward.datasets.tables.protocols import PROTOCOLS
from pushforward.train.data import load_data, prepare
from pushforward.train.options import DataOptions
from tests.fixtures.protocols import N, correlated_table, write_numbers


def test_fits_use_the_split_of_the_protocol(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "t.csv", correlated_table())
    options = DataOptions(source=str(path), protocol="rnade", fold=3)
    dataset = load_data(options)
    expected = PROTOCOLS["rnade"].rows(N, 3)
    for seed in (0, 1):
        found = prepare(dataset, replace(options, seed=seed)).splits
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    plain = DataOptions(source=str(path))
    assert not np.array_equal(prepare(load_data(plain), plain).splits.test, expected.test)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["data.protocol=rnade", "data.fold=10"], "data.fold: expected 0 to 9 for data.protocol=rnade; got 10"),
        (["data.fold=1"], "data.fold: expected 0 without data.protocol; got 1"),
        (
            ["data.protocol=half", "data.test_fraction=0.3"],
            "data.test_fraction: has no effect, as data.protocol=half splits the rows",
        ),
        (["data.protocol=halves"], "data.protocol: expected none, rnade, half or tenths; got 'halves'"),
    ],
)
def test_bad_configurations(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("moons", (), typed)
    assert message in str(caught.value)


def test_the_printed_configuration_can_be_read_again(tmp_path: Path) -> None:
    """It holds every key, including the fractions of rows, which have no effect with a protocol."""
    config = load_config("moons", (), ["data.protocol=half", "data.fold=2"])
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(None, (tmp_path / "c.yaml",), []) == config


def test_the_original_file_can_be_scored(tmp_path: Path) -> None:
    """A fit under a protocol drops columns; the original file can be scored nevertheless."""
    path = write_numbers(tmp_path / "t.csv", correlated_table())
    # Without names, columns are found by index.
    bare = tmp_path / "bare.csv"
    np.savetxt(bare, correlated_table().matrix, delimiter=",")
    tiny = ("train.steps=3", "flow=maf", "flow.layers=1", "flow.hidden=8", "train.evaluate=false", "wandb=off")
    for source in (path, bare):
        run, out = tmp_path / f"run-{source.stem}", tmp_path / f"scores-{source.stem}.csv"
        for arguments in (
            ["fit", str(source), "data.protocol=half", *tiny, "--out", str(run), "--json"],
            ["score", str(run), str(source), "--out", str(out)],
        ):
            done = CliRunner().invoke(main, arguments, prog_name="pushforward")
            assert done.exit_code == 0, done.output
        scores = np.loadtxt(out, skiprows=1)
        assert scores.shape == (N,)
        results = json.loads((run / "results.json").read_text())
        test = PROTOCOLS["half"].rows(N, 0).test
        assert results["features"] == 4
        assert -scores[test].mean() == pytest.approx(results["test_nll"], abs=1e-5)
