"""The page of a benchmark."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pushforward.benchmark.folder import BenchmarkFolder
from pushforward.benchmark.jobs import Budget, Job, JobResult
from pushforward.benchmark.run import write_table_files
from pushforward.benchmark.suites import SUITES
from pushforward.benchmark.table import build_table
from pushforward.benchmark.table_data import table_dict
from pushforward.benchmark.text import table_lines
from pushforward.runs.folder import RunFolder
from pushforward.runs.row_scores import write_row_scores
from tests.fixtures.benchmark import make_table, page_text
from tests.fixtures.browser import GLUED, LOOKS, PROBE, visit


def test_the_page_explains_only_what_it_contains(tmp_path: Path) -> None:
    """And a description that ends with a question mark gets no full stop."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=50)
    make_table(tmp_path / "one", SUITES["embedded"], {("iris", "auto", 0): base, ("iris", "kde", 0): base - 1})
    one = page_text((tmp_path / "one" / "table.html").read_text(encoding="utf-8"))
    for part in ("few rows? Mean", "\u00b1 is one standard error over the test rows.", "on 1 data set",
                 "60 s on 2 threads a fit; 1 run of each method on a data set.", "clear lead"):  # fmt: skip
        assert part in one
    for part in (
        "?.",
        "ublished",
        "The first",
        "the larger of the two",
        "version of nflows",
        "steps of a fit",
        "cells",
    ):
        assert part not in one
    two = {(source, method, fold): base + rng.normal(size=50) for source in ("red-wine", "housing")
           for method in ("auto", "nflows:nsf-ar") for fold in range(3)}  # fmt: skip
    missing = {"housing": "not downloaded", "ionosphere": "not downloaded"}
    make_table(tmp_path / "two", SUITES["rnade"], two, missing=missing)
    page = page_text((tmp_path / "two" / "table.html").read_text(encoding="utf-8"))
    for part in ("The first \u00b1 is one standard error over the test rows, the second over folds",
                 "lead within two standard errors", "m: written down from memory", "version of nflows",
                 "ionosphere: not downloaded."):  # fmt: skip
        assert part in page
    assert "housing: not downloaded" not in page  # what was measured is not missed


def test_published_numbers_of_another_problem_are_marked_and_not_drawn(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=50)
    scores = {(s, m, 0): base - (m == "kde") for s in ("wine", "parkinsons") for m in ("auto", "kde")}
    table = make_table(tmp_path / "a", SUITES["half"], scores, features={"wine": 13, "parkinsons": 16})
    page = (tmp_path / "a" / "table.html").read_text(encoding="utf-8")
    wine, parkinsons = (page.partition(f'aria-label="Scores on {name}"')[2].partition("</svg>")[0]
                        for name in ("wine", "parkinsons"))  # fmt: skip
    assert wine.count("<circle") == 2
    assert parkinsons.count("<circle") == 2 + 8
    assert "QB-Vine [m]" not in wine
    assert "QB-Vine [m]" in parkinsons
    assert "are of 14 columns, another problem, and are not drawn" in page
    assert page_text(page).count("\u2021") == 10 + 1  # every number of wine, and the legend
    text = "\n".join(table_lines(table))
    assert "13.76\u2021" in text
    assert re.search(r"4\.93 ", text)
    assert {row["set"] for row in table_dict(table)["published"]} == {"wine", "parkinsons"}


def test_numbers_of_a_data_set_have_the_same_decimals(tmp_path: Path) -> None:
    """Two decimals for small and large errors alike."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    scores = {("red-wine", m, f): noise * scale + f * shift for m, scale, shift in
              (("auto", 1.0, 0.1), ("kde", 30.0, 3.0), ("gaussian-mixture", 9.0, 0.01)) for f in range(3)}  # fmt: skip
    make_table(tmp_path / "a", SUITES["rnade"], scores)
    page = page_text((tmp_path / "a" / "table.html").read_text(encoding="utf-8"))
    behind = page.partition("red-wine: paired differences")[2].partition("What it took")[0]
    numbers = re.findall(r"\d+\.(\d+)", behind)
    assert len(numbers) >= 20
    assert {len(number) for number in numbers} == {2}


def test_every_run_has_its_outcome_on_the_page(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(size=50)
    with BenchmarkFolder.open(tmp_path / "a", SUITES["embedded"], Budget(60.0, None, 2)) as made:
        results: list[tuple[str, dict[str, Any]]] = [
            ("auto", {"flow": "nsf-ar + made-mog x 3, stacked", "stop_reason": "patience"}),
            ("gaussian", {"detail": "full covariance", "flow": "gaussian"}),
        ]
        for fold, (method, facts) in enumerate(results):
            job = Job("iris", "off", fold, 0, method)
            run = made.new_run_folder(job)
            run.mkdir()
            write_row_scores(RunFolder(run), np.arange(50), base)
            name = f"runs/{run.name}/test_scores.parquet"
            made.add(JobResult(*job, "finished", log_prob=0.0, scores=name, command="same", **facts))
        write_table_files(made, build_table(made, SUITES["embedded"]))
    page = (tmp_path / "a" / "table.html").read_text(encoding="utf-8")
    text = page_text(page)
    assert "nsf-ar + made-mog \u00d7 3, stacked; validation no longer improved" in text
    assert "full covariance" in text
    assert "pushforward fit" in text.partition("outcome")[2]  # the label of the method
    assert page.count("<code>same</code>") == 1


# Where the numbers of each data set end, in the table of scores.
ENDS = """() => {
  const rows = [...document.querySelectorAll("#scores tbody tr")].slice(1), range = document.createRange();
  const end = node => { range.selectNodeContents(node); return range.getBoundingClientRect().right; };
  const columns = [1, 2, 3, 4, 5].map(k => rows.map(row => row.cells[k].querySelector("span")).filter(Boolean));
  return columns.map(cells => cells.map(cell => end(cell.firstChild)));
}"""


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """It fits a phone, loads nothing else, and its numbers are aligned, in light and dark mode."""
    rng = np.random.default_rng(0)
    long = "flow=nsf-ar flow.layers=12 flow.hidden=256 flow.bins=16 train.learning_rate=0.0005"
    scores: dict[tuple[str, str, int], Any] = {
        (source, method, fold): rng.normal(size=50) * 10 - 5
        for source in SUITES["rnade"].sets
        for method in ("gaussian", "kde", "auto", long)
        for fold in range(3)
    }
    scores["housing", "kde", 2] = None
    make_table(tmp_path / "a", SUITES["rnade"], scores)
    path = tmp_path / "a" / "table.html"
    for width, scheme in LOOKS:
        page, messages, requests = visit(browser, path, width, scheme)
        for _ in range(2):
            found = page.evaluate(PROBE)
            assert found["width"] <= width, (width, scheme)
            assert found["beyond"] == [], (width, scheme)
            assert found["small"] >= 11, (width, scheme)
            assert page.evaluate(GLUED) == [], (width, scheme)
            columns = page.evaluate(ENDS)
            assert len(columns) == 5
            for ends in columns:  # with errors of any length behind them, and with none
                assert len(ends) >= 4 + 5 - 1
                assert max(ends) - min(ends) < 1.0, (width, scheme)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert messages == []
        assert requests == [path.as_uri()]
        page.context.close()
