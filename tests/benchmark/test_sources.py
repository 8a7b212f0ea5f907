"""The data of a benchmark before its first job."""

from pathlib import Path

import pytest

from pushforward.benchmark.jobs import BenchmarkPlan, Budget, Task
from pushforward.benchmark.sources import in_benchmark_options, read_sources
from pushforward.benchmark.suites import SUITES, suite_of
from pushforward.common.errors import TableError


def test_messages_of_a_fit_name_the_options_of_the_benchmark() -> None:
    suite = suite_of(["iris"], drop=["id"])
    message = "column 'a' is constant (1.0): it has no density; leave it out with 'data.drop=a b'"
    assert in_benchmark_options(message, suite).endswith("leave it out with --drop 'id,a b'")
    message = "it has no density there; leave it out with data.drop=a,b, or try another seed of the split"
    assert in_benchmark_options(message, suite).endswith("leave it out with --drop id,a,b, or try other --folds")
    assert in_benchmark_options(message, SUITES["rnade"]) == message


@pytest.mark.parametrize(
    ("cells", "advice"),
    [
        ("5,6,7,9", 'leave columns out with --drop \'["a, b", "text"]\''),
        (
            "5,,7,9",
            "a benchmark needs complete rows: remove those with missing values; leave columns out with --drop "
            '\'["a, b", "text"]\'',
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_the_options_of_the_benchmark(
    cells: str, advice: str, tmp_path: Path
) -> None:
    lines = [f"{k},{k * k % 7},{cell},x" for k, cell in enumerate(cells.split(","))]
    (tmp_path / "t.csv").write_text('"a, b",c,d,text\n' + "\n".join(lines) + "\n")
    source = str(tmp_path / "t.csv")
    suite = suite_of([source], drop=["a, b"])
    plan = BenchmarkPlan(suite, (Task(source, "auto"),), (0,), (0,), (), Budget(None, 5))
    with pytest.raises(TableError, match=r"column(.*\n)* *'?text' +holds text") as caught:
        read_sources(plan)
    assert str(caught.value).splitlines()[-1] == advice
