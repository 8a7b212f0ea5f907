"""Jobs: their rows and their folders."""

from pathlib import Path

from pushforward.benchmark.jobs import Job
from pushforward.benchmark.run import benchmark_plan
from pushforward.benchmark.suites import SUITES, suite_of
from pushforward.config.read import load_config


def test_the_protocol_determines_the_rows(data: Path) -> None:
    """Halves use data.fold, splits without a protocol data.seed, and fixed parts neither."""
    protocol = benchmark_plan([str(data)], protocol="half", folds="0-2", methods=["gaussian"])
    assert protocol.plan.jobs[2].data_overrides(protocol.plan.suite) == [
        *("data.dequantize=off", "data.protocol=half", "data.fold=2"),
    ]
    plain = benchmark_plan(["iris"], folds="3", methods=["gaussian"])
    assert plain.plan.jobs[0].data_overrides(plain.plan.suite) == ["data.dequantize=auto", "data.seed=3"]
    fixed = Job("power", "off", 0, 1, "auto")
    assert fixed.data_overrides(SUITES["literature"]) == ["data.dequantize=off"]
    # A dequantized data set is another task, with other run folders.
    both = benchmark_plan(["iris"], dequantize="both", folds="0", methods=["gaussian"]).plan
    assert [job.dequantize for job in both.jobs] == ["off", "auto"]
    assert len({job.folder for job in both.jobs}) == 2


def test_a_column_named_all_is_not_taken_for_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("all,other\n" + "1,2\n" * 20)
    for columns in (("all",), ("all", "other"), ("a, b",)):
        suite = suite_of([str(path)], columns=columns)
        overrides = Job(str(path), "off", 0, 0, "gaussian").data_overrides(suite)
        config = load_config(str(path), overrides=overrides)
        assert config.data.columns == columns
        assert load_config(str(path), overrides=[f"data.columns={config.flat()['data.columns']}"]) == load_config(
            str(path), overrides=[text for text in overrides if text.startswith("data.columns=")]
        )
