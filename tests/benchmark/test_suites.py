"""Suites: their protocols, methods and names."""

from pathlib import Path

from pushforward.benchmark.jobs import Job
from pushforward.benchmark.methods import parse_methods
from pushforward.benchmark.run import default_folder
from pushforward.benchmark.suites import SUITES, chosen_folds, labels
from pushforward.config.read import load_config


def test_suites_agree_with_the_protocols() -> None:
    from pushforward.datasets.tables.protocols import PROTOCOLS

    for suite in SUITES.values():
        if suite.protocol != "none":
            folds = PROTOCOLS[suite.protocol].folds
            assert suite.most_folds == folds
            assert folds is None or max(suite.folds) < folds
        load_config("iris", overrides=Job("iris", "off", suite.folds[-1], 0, "auto").data_overrides(suite))
        assert [method.spec for method in parse_methods(suite.methods)] == list(suite.methods)
    assert chosen_folds(SUITES["rnade"], "0-2, 5,1") == (0, 1, 2, 5)


def test_data_sets_have_unique_names() -> None:
    assert labels(["iris", "/a/b/c.csv.gz", "/a/d/c.parquet"]) == {
        "iris": "iris", "/a/b/c.csv.gz": "b/c", "/a/d/c.parquet": "d/c",
    }  # fmt: skip
    jobs = [Job(source, "off", 0, 0, "auto") for source in ("/a/b/c.csv", "/a/d/c.csv", "c.csv")]
    assert len({job.folder for job in jobs}) == 3
    assert default_folder(SUITES["rnade"]) == Path("runs/benchmark-rnade")
