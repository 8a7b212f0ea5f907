"""Published numbers: complete, and those of the papers."""

import pytest

from pushforward.benchmark.published import COLUMNS, ERROR_BARS, PUBLISHED
from pushforward.benchmark.suites import SUITES


def test_published_numbers_have_source_evidence_and_error_bar() -> None:
    """And each belongs to a data set of its suite."""
    assert set(PUBLISHED) == set(COLUMNS) == {"literature", "rnade", "half"}
    for name, rows in PUBLISHED.items():
        assert set(COLUMNS[name]) == set(SUITES[name].sets)
        assert len({row.label for row in rows}) == len(rows)
        for row in rows:
            assert row.source
            assert row.evidence in ("source", "memory")
            assert row.error_bar in ERROR_BARS
            assert row.figures
            assert set(row.figures) <= set(SUITES[name].sets)
            errors = [figure.error for figure in row.figures.values()]
            assert all((error is None) == (row.error_bar == "none") for error in errors), row.label
            assert not any(figure.is_doubted for figure in row.figures.values()) or row.note
    counts = {name: sum(len(row.figures) for row in rows) for name, rows in PUBLISHED.items()}
    assert counts == {"literature": 257, "rnade": 25, "half": 50}


@pytest.mark.parametrize(
    ("suite", "method", "name", "value", "error", "bar", "evidence"),
    [
        ("literature", "RQ-NSF (AR)", "power", 0.66, 0.01, "rows-2se", "source"),
        ("literature", "RQ-NSF (AR), in SSTM", "hepmass", -14.268, 0.262, "seeds", "source"),
        ("literature", "NAF-DDSF(5)", "miniboone", -8.86, 0.15, "runs", "source"),
        ("literature", "TAN", "bsds300", 159.80, 0.07, "unknown", "source"),
        ("literature", "TraDE", "gas", 13.27, 0.01, "unknown", "source"),
        ("literature", "Gaussian", "bsds300", 96.67, 0.25, "rows-2se", "memory"),
        ("literature", "DiffFlow (ODE)", "power", 1.04, None, "none", "source"),
        ("rnade", "RNADE-MoG", "red-wine", -9.36, None, "none", "memory"),
        ("rnade", "FVBN", "parkinsons-telemonitoring", -0.71, None, "none", "memory"),
        ("half", "QB-Vine", "ionosphere", -16.08, 2.1, "runs-2se", "memory"),
        ("half", "ARd-BP", "wine", 13.22, 0.04, "runs-2se", "memory"),
    ],
)
def test_published_numbers_are_those_of_the_papers(
    suite: str, method: str, name: str, value: float, error: float | None, bar: str, evidence: str
) -> None:
    row = next(row for row in PUBLISHED[suite] if row.method == method)
    assert (row.figures[name].value, row.figures[name].error) == (value, error)
    assert (row.error_bar, row.evidence) == (bar, evidence)
    assert row.se(name) == (error / 2 if error is not None and bar.endswith("2se") else None)
