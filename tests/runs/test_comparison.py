"""Comparing runs by paired differences on the same rows; runs on different rows are refused."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from pushforward.cli import main
from pushforward.common.errors import RunError, RunUsageError
from pushforward.common.numbers import measured
from pushforward.config.read import load_config
from pushforward.datasets.tables.memory.fingerprint import rows_fingerprint
from pushforward.evaluate.likelihood import paired_difference
from pushforward.experiment.run import fit
from pushforward.reports.comparison import MATRIX, comparison_page, write_comparison
from pushforward.runs.comparison import compare_runs, labels
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import write_row_scores

Array = npt.NDArray[np.float64]

ROWS: Array = np.random.default_rng(0).standard_normal((500, 2))
NUMBERS = np.arange(1_000, 1_500)


def make(
    path: Path,
    log_probs: Array,
    *,
    rows: Array = ROWS,
    columns: tuple[str, ...] = ("a", "b"),
    dataset: str = "wine",
    bin_widths: list[float] | None = None,
    **config: Any,
) -> RunFolder:
    """Make a run with these scores."""
    run = RunFolder.create(path)
    run.write_config(load_config(dataset, overrides=[f"{key.replace('__', '.')}={v}" for key, v in config.items()]))
    named = [{"name": name} for name in columns]
    schema = {"dataset": dataset, "columns": named, "rows": {"test": len(rows)}}
    run.write_json("schema.json", schema | {"bin_widths": bin_widths or [0.0] * len(named)})
    results = {"dataset": dataset, "flow": "maf", "parameters": 1234, "steps": 20, "seconds": 2.0, "val_nll": 1.25}
    results["test_nll"] = -log_probs.sum() / max(len(rows), 1)
    results["test_rows_sha256"] = rows_fingerprint(columns, rows)
    run.write_json("results.json", results)
    curve = [
        {"step": i, "seconds": i / 2, "kind": "validation", "val/nll": 3 - i / 10, "val/nll_se": 0.1} for i in range(9)
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in curve))
    write_row_scores(run, np.arange(1_000, 1_000 + len(rows)), log_probs)
    run.set_status("finished")
    run.release()
    return run


def scores(seed: int, shift: float = 0.0) -> Array:
    """Return log-densities that are strongly correlated between seeds."""
    hard: Array = -np.square(ROWS).sum(axis=1)
    return hard + 0.1 * np.random.default_rng(seed).standard_normal(len(ROWS)) - shift


def test_differences_are_paired(tmp_path: Path) -> None:
    given = [scores(1, 0.05), scores(2), scores(3, 1.0)]
    comparison = compare_runs([make(tmp_path / name, values) for name, values in zip("abc", given, strict=True)])
    assert comparison.best == 1
    for i in range(3):
        for j in range(3):
            gap = comparison.difference(i, j)
            assert (gap.nats, gap.se) == pytest.approx(paired_difference(given[j], given[i]), rel=1e-12)
    near, far = comparison.difference(0, 1), comparison.difference(2, 1)
    assert near.se < comparison.runs[0].test_nll_se / 5  # the gain of pairing
    assert near.is_clear
    assert far.standard_errors is not None
    assert far.standard_errors > 50
    assert comparison.verdict().startswith(f"b is best, ahead of a by {measured(near.nats, near.se)} nats")
    assert [run["run"] for run in comparison.to_dict()["runs"]] == ["a", "b", "c"]
    assert comparison.to_dict()["best"] == "b"


def test_a_small_difference_is_not_clear(tmp_path: Path) -> None:
    comparison = compare_runs([make(tmp_path / "a", scores(1)), make(tmp_path / "b", scores(2))])
    assert comparison.verdict().startswith("No clear difference: ")
    assert not comparison.difference(0, 1).is_clear
    page = comparison_page(comparison)
    assert ">lowest, not clearly<" in page
    assert ">best</span>" not in page
    clear = comparison_page(compare_runs([make(tmp_path / "c", scores(1)), make(tmp_path / "d", scores(2, 1.0))]))
    assert ">best</span>" in clear


def test_no_run_is_clearly_best_among_equal_ones(tmp_path: Path) -> None:
    a, b, c = (make(tmp_path / name, scores(1, shift)) for name, shift in [("a", 0.0), ("b", 0.0), ("c", 1.0)])
    alike = compare_runs([a, b])
    assert alike.verdict() == "There is no difference between a and b"
    assert [row[-1] for row in alike.table()[1:]] == ["no difference"] * 2
    assert alike.to_dict()["best"] is None
    text = comparison_page(alike)
    for absent in (">best<", "standard error)", 'class="strong"', 'class="better"', "has the lowest"):
        assert absent not in text
    assert text.count(">no difference<") >= 4
    assert "a and b give every row the same density" in text
    three = compare_runs([a, c, b])
    assert three.verdict().startswith("There is no difference between a and b; c is behind by 1.0")
    assert [row[-1] for row in three.table()[1:]][::2] == ["no difference"] * 2
    assert three.to_dict()["best"] is None
    comparison_page(three)


def test_differences_without_a_standard_error(tmp_path: Path) -> None:
    one = [make(tmp_path / name, np.array([value]), rows=ROWS[:1]) for name, value in [("a", -1.0), ("b", -2.0)]]
    assert compare_runs(one).verdict() == "a has the lowest test NLL; the difference has no standard error"
    two = [make(tmp_path / name, np.array([v, v]), rows=ROWS[:2]) for name, v in [("c", -1.0), ("d", -2.0)]]
    assert compare_runs(two).verdict() == "c is best, ahead of d by 1.000 nats, the same on every row"
    assert compare_runs(two).difference(1, 0).is_clear
    impossible = scores(1)
    impossible[3] = -math.inf
    lost, other, found = (
        make(tmp_path / name, v) for name, v in [("e", impossible), ("f", impossible), ("g", -ROWS[:, 0])]
    )
    assert compare_runs([lost, found]).verdict().endswith("the difference has no standard error")
    assert compare_runs([lost, other]).verdict() == "No run has a finite test NLL"
    assert "best" not in [row[-1] for row in compare_runs([lost, other]).table()]


def test_rows_without_density(tmp_path: Path) -> None:
    impossible, undefined = scores(1), scores(2)
    impossible[3], undefined[4] = -math.inf, math.nan
    both = scores(3)
    both[3] = -math.inf
    given = [undefined, scores(0), impossible, both]
    runs = [make(tmp_path / name, values) for name, values in zip("abcd", given, strict=True)]
    comparison = compare_runs(runs)
    assert comparison.best == 1
    for i in range(4):
        for j in range(4):
            gap = comparison.difference(i, j)
            assert (gap.nats, gap.se) == pytest.approx(paired_difference(given[j], given[i]), nan_ok=True)
    json.dumps(comparison.to_dict(), allow_nan=False)
    text = comparison_page(comparison)
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', text)
    comparison_page(compare_runs([runs[2], runs[3]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "iris", "rows": ROWS + 1}, "data set wine against iris"),
        ({"columns": ("a", "c")}, r"columns \(b, c in one of them only\)"),
        ({"columns": ("b", "a")}, "order of the columns"),
        ({"rows": ROWS[:400]}, "number of test rows 500 against 400"),
        ({"rows": ROWS + 1, "seed": 3}, r"seed of the split 0 against 3 \(data.seed=N fits both on one split\)"),
        ({"rows": ROWS + 1, "data__dequantize": "off"}, "data.dequantize=auto against data.dequantize=off"),
        ({"rows": ROWS + 1, "bin_widths": [1.0, 0.0]}, "the bin widths of some columns"),
        ({"rows": ROWS + 1}, "their values"),
    ],
)
def test_runs_on_different_test_rows_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    first = make(tmp_path / "a", scores(1))
    other = make(tmp_path / "b", scores(2)[: len(change.get("rows", ROWS))], **change)
    with pytest.raises(RunUsageError, match=rf"a and .*b were scored on different test rows: {message}$"):
        compare_runs([first, other])


def test_the_same_split_is_not_listed_as_a_difference(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / "a", scores(1), seed=1, data__seed=7),
        make(tmp_path / "b", scores(2), seed=2, data__seed=7),
    ]
    assert compare_runs(runs).differing == {"seed": [1, 2]}


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", scores(1)), make(tmp_path / "b", scores(2))
    with pytest.raises(RunUsageError, match="expected two runs or more; got 1"):
        compare_runs([first])
    with pytest.raises(RunUsageError, match="is given twice"):
        compare_runs([first, second, RunFolder(first.path / ".." / "a")])
    second.test_scores.write_bytes(b"no parquet")
    with pytest.raises(RunError, match=r"test_scores\.parquet: cannot be read"):
        compare_runs([first, second])
    second.test_scores.unlink()
    with pytest.raises(RunUsageError, match=f"write them with: pushforward evaluate {re.escape(str(second.path))}$"):
        compare_runs([first, second])
    second.results.unlink()
    with pytest.raises(RunUsageError, match="has no results to compare; it is finished"):
        compare_runs([first, second])
    moved = make(tmp_path / "c", scores(3))
    write_row_scores(moved, np.arange(500), scores(3))
    with pytest.raises(RunUsageError, match="lists other rows"):
        compare_runs([first, moved])
    nothing = make(tmp_path / "d", np.empty(0), rows=np.empty((0, 2)))
    with pytest.raises(RunUsageError, match="has no test rows"):
        compare_runs([first, nothing])


def test_labels_are_short_and_unique(tmp_path: Path) -> None:
    paths = ["x/one/fit", "x/two/fit", "x/other", "y/one/fit"]
    assert labels([RunFolder(tmp_path / path) for path in paths]) == ["x/one/fit", "two/fit", "other", "y/one/fit"]


def test_the_page_shows_differences_and_is_escaped(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, scores(i, i / 10), flow__layers=i + 1) for i, name in enumerate(["<b>&", "c", "d"])]
    comparison = compare_runs(runs)
    text = comparison_page(comparison)
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text
    gap = comparison.difference(0, 1)
    assert measured(gap.nats, gap.se, signed=True) in text
    assert text.count('class="better"') > text.count("<caption")
    assert '<th scope="row">flow.layers</th><td>1</td><td>2</td><td>3</td>' in text
    assert "flow.hidden" not in text
    assert text.count("<polyline") == 6  # three runs, against seconds and against steps
    assert "<polygon" not in text  # no bands with more than two runs
    two = comparison_page(compare_runs(runs[:2]))
    assert two.count("<polygon") == 4
    assert two.count("Bands show ± one standard error.") == 2
    assert ">data set<" not in text  # the same for all runs: in the heading of the page
    largest = int(np.abs(comparison.runs[0].log_probs - comparison.runs[1].log_probs).argmax())
    assert f'<th scope="row" class="number">{NUMBERS[largest]:,}</th>' in text


def test_many_runs_are_only_compared_with_the_best(tmp_path: Path) -> None:
    comparison = compare_runs([make(tmp_path / f"r{i}", scores(i, (i - 4) ** 2 / 10)) for i in range(MATRIX + 2)])
    text = comparison_page(comparison)
    assert comparison.best == 4
    assert "Each of the 10 runs is compared with the best." in text
    assert '<th scope="col" class="number">r4</th>' in text
    assert text.count('class="worse"') >= MATRIX


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pushforward")


def test_the_command_writes_table_page_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs" / "a", scores(1, 0.5))
    make(tmp_path / "runs" / "b", scores(2))
    done = invoke("compare", "a", "runs/b")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["run", "data"]
    assert lines[1].startswith("a ")
    assert lines[2].endswith("best")
    assert (tmp_path / "comparison.html").exists()
    answer = invoke("compare", "a", "b", "--json", "--out", "other.html")
    assert json.loads(answer.stdout)["best"] == "b"
    assert json.loads(answer.stdout)["out"] == "other.html"
    assert invoke("compare", "a").exit_code == 2
    assert invoke("compare", "a", "a").exit_code == 2
    assert invoke("compare", "a", "nothing").exit_code == 2


def test_the_table_is_printed_without_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2)):
        make(tmp_path / "runs" / name, scores(seed))
    assert "test NLL" in invoke("compare", "a", "b", "--no-page").stdout
    answer = invoke("compare", "a", "b", "--no-page", "--json")
    assert json.loads(answer.stdout)["out"] is None
    assert not (tmp_path / "comparison.html").exists()
    assert invoke("compare", "a", "b", "--no-page", "--out", "x.html").exit_code == 2
    (tmp_path / "comparison.html").write_text("mine")
    foreign = invoke("compare", "a", "b")
    assert foreign.exit_code == 2
    assert "500 test rows; " in foreign.stdout
    assert "not a page of pushforward compare" in foreign.stderr
    lost = invoke("compare", "a", "b", "--json", "--out", "nowhere/x.html")
    assert lost.exit_code == 1
    assert json.loads(lost.stdout)["out"] is None


def test_only_an_earlier_comparison_is_replaced(tmp_path: Path) -> None:
    comparison = compare_runs([make(tmp_path / "a", scores(1)), make(tmp_path / "b", scores(2))])
    ours, mine = tmp_path / "ours.html", tmp_path / "mine.html"
    first = write_comparison(comparison, ours).read_bytes()
    assert write_comparison(comparison, ours).read_bytes() == first
    mine.write_text("mine")
    with pytest.raises(RunUsageError, match="not a page of pushforward compare"):
        write_comparison(comparison, mine)
    assert mine.read_text() == "mine"


def test_fits_can_be_compared(tmp_path: Path) -> None:
    small = ["train.steps=5", "flow=maf", "flow.hidden=8", "flow.layers=1", "train.evaluate=false"]
    runs = [
        fit(load_config("wine", overrides=[*small, *more], wandb="off"), out=tmp_path / name, quiet=True).run
        for name, more in [("a", ["seed=1", "data.seed=0"]), ("b", ["seed=2", "data.seed=0"])]
    ]
    comparison = compare_runs(runs)
    for one in comparison.runs:
        assert one.test_nll == pytest.approx(json.loads(one.record.run.results.read_text())["test_nll"])


def test_bounds_are_called_bounds(tmp_path: Path) -> None:
    scores = -2.0 + 0.1 * np.random.default_rng(1).standard_normal(500)
    plain, bound = make(tmp_path / "plain", scores), make(tmp_path / "vae", scores - 1.0 - 0.1 * ROWS[:, 0])
    results = json.loads(bound.results.read_text())
    bound.write_json("results.json", results | {"is_bound": True})
    compared = compare_runs([plain, bound])
    assert [row[7].startswith("at most ") for row in compared.table()[1:]] == [False, True]
    assert compared.verdict().endswith("; the NLL of vae is an upper bound, the true one is lower")
    assert "bound" not in compare_runs([plain, make(tmp_path / "other", scores - 0.5 * ROWS[:, 0])]).verdict()


def test_weights_of_test_rows_count_and_must_be_the_same(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, scores(seed)) for seed, name in enumerate("ab")]
    with_weights = [make(tmp_path / name, scores(seed), data__weight="w") for seed, name in enumerate("cd")]
    weights = np.where(ROWS[:, 0] > 0, 3.0, 0.0)
    for seed, run in enumerate(with_weights):
        write_row_scores(run, NUMBERS, scores(seed), weights)
    comparison = compare_runs(with_weights)
    assert comparison.runs[0].test_nll == pytest.approx(-np.average(scores(0), weights=weights))
    gap = comparison.difference(0, 1)
    kept = ROWS[:, 0] > 0
    expected = paired_difference(scores(1)[kept], scores(0)[kept])
    assert (gap.nats, gap.se) == pytest.approx(expected)
    message = "weigh their test rows differently: data.weight=none against data.weight=w"
    with pytest.raises(RunUsageError, match=message):
        compare_runs([runs[0], with_weights[0]])


def test_weighted_fits_have_the_numbers_of_their_results(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=(300, 2)), rng.integers(1, 4, 300)])
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,w", comments="")
    keys = ["data.weight=w", "train.steps=5", "flow=maf", "flow.hidden=8", "train.evaluate=false", "data.seed=0"]
    runs = [
        fit(
            load_config(str(tmp_path / "rows.csv"), overrides=[*keys, f"seed={seed}"], wandb="off"),
            out=tmp_path / str(seed),
            quiet=True,
        ).run
        for seed in (0, 1)
    ]
    for one in compare_runs(runs).runs:
        assert one.test_nll == pytest.approx(json.loads(one.record.run.results.read_text())["test_nll"])
