"""The table as text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pushforward.benchmark.published import COLUMNS, PUBLISHED
from pushforward.benchmark.suites import SUITES
from pushforward.benchmark.table_data import long_table
from pushforward.benchmark.text import table_lines
from tests.fixtures.benchmark import assert_well_formed, make_table


def test_text_and_page_have_every_number(tmp_path: Path) -> None:
    """With sixty rows and five data sets no line is too long."""
    rng = np.random.default_rng(0)
    suite = SUITES["literature"]
    scores: dict[tuple[str, str, int], Any] = {
        (source, method, 0): rng.normal(size=200) * 10 + 3 * place - 20
        for place, method in enumerate(suite.methods)
        for source in suite.sets
    }
    scores["gas", "kde", 0] = None
    right = {source: COLUMNS["literature"][source] for source in ("power", "gas", "hepmass", "miniboone")}
    table = make_table(tmp_path / "a", suite, scores, features=right)
    for width in (80, 120):
        lines = table_lines(table, width)
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        for part in ("measured here:", "published:", "TraDE 2020 [d]", "0.650  ±.003", "1.04†", "≈-26.7", "157.80‡"):
            assert part in text
        for part in ("[m] written down", "† doubtful", "≈ known roughly", "‡ of other columns than here"):
            assert part in text
    assert "2 standard errors over the test rows of a single run" in text
    assert "bsds300: 11 columns here, 63 in the published table: the numbers are not of the same problem" in text
    page = (tmp_path / "a" / "table.html").read_text(encoding="utf-8")
    assert_well_formed(page)
    for row in PUBLISHED["literature"]:
        assert row.label in page
    assert "written down from memory" in page
    for part in ("†: doubtful", "≈: known roughly", "‡: of other columns than here"):
        assert part in page
    columns, rows = long_table(table)
    assert len(rows) == 25 + sum(len(row.figures) for row in PUBLISHED["literature"])
    assert all(len(row) == len(columns) for row in rows)
    assert all(row[columns.index("source")] and row[columns.index("error_bar")] for row in rows)


def test_many_data_sets_are_split_into_blocks(tmp_path: Path) -> None:
    """Ten data sets with two standard errors each do not fit side by side; every number is still there."""
    rng = np.random.default_rng(0)
    sources = [f"/data/a-table-with-quite-a-long-name-{place}.csv" for place in range(10)]
    suite = replace(SUITES["embedded"], sets=tuple(sources), dequantize="off")
    scores: dict[tuple[str, str, int], Any] = {
        (source, method, fold): rng.normal(size=20) * 10 - 100 * (place + 1)
        for place, source in enumerate(sources)
        for method in ("kde", "auto", "flow=nsf-ar flow.layers=12 flow.hidden=256 flow.bins=16")
        for fold in range(2)
    }
    table = make_table(tmp_path / "a", suite, scores)
    lines = table_lines(table)
    assert max(map(len, lines)) <= 120
    body = "\n".join(lines).partition("behind the best")[0]
    for (task, _), entry in table.entries.items():
        assert entry.score is not None
        assert f"{entry.score.mean:.2f}" in body
        assert task.source.partition("name-")[2].removesuffix(".csv") in body
    assert body.count("rows x columns") == body.count("flow=nsf-ar") > 1
