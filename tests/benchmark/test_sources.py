"""The data of a benchmark before its first job."""

from pushforward.benchmark.sources import in_benchmark_options
from pushforward.benchmark.suites import SUITES, suite_of


def test_messages_of_a_fit_name_the_options_of_the_benchmark() -> None:
    suite = suite_of(["iris"], drop=["id"])
    message = "column 'a' is constant (1.0): it has no density; leave it out with 'data.drop=a b'"
    assert in_benchmark_options(message, suite).endswith("leave it out with --drop 'id,a b'")
    message = "it has no density there; leave it out with data.drop=a,b, or try another seed of the split"
    assert in_benchmark_options(message, suite).endswith("leave it out with --drop id,a,b, or try other --folds")
    assert in_benchmark_options(message, SUITES["rnade"]) == message
