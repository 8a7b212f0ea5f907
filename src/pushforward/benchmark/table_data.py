"""The table of a benchmark as plain data: the content of ``table.json``, and a long table for dashboards.

The text is written by :mod:`pushforward.benchmark.text`, the page by :mod:`pushforward.benchmark.page`.
"""

from typing import Any

from pushforward.benchmark.entries import TableEntry
from pushforward.benchmark.jobs import Task
from pushforward.benchmark.methods import Method
from pushforward.benchmark.published import ERROR_BARS, EVIDENCE
from pushforward.benchmark.table import BenchmarkTable
from pushforward.common.files import json_safe


def table_dict(table: BenchmarkTable) -> dict[str, Any]:
    """Return the content of ``table.json``: data sets, methods, entries, differences, published numbers, jobs."""
    suite = table.suite
    return dict(
        json_safe(
            {
                "suite": suite.name,
                "description": suite.description,
                "score": suite.score,
                "units": suite.units_in_words(),
                "better": "higher" if suite.score == "log-likelihood" else "lower",
                "standard_errors": {"se_rows": "over the test rows", "se_runs": f"over {table.runs_in_words}"},
                "conditions": table.facts.get("conditions"),
                "machine": {key: table.facts.get(key) for key in ("processor", "peers", "started")},
                "sets": [_set(table, task) for task in table.tasks],
                "missing": [{"set": name, "why": why} for name, why in table.missing.items()],
                "methods": [_method(table, method) for method in table.methods],
                "entries": [_entry(table, entry) for entry in table.entries.values()],
                "differences": _differences(table),
                "published": _published(table),
                "jobs_left": table.jobs_left,
                "notes": [*table.mismatches, *table.notes],
                # The notes of the jobs are merged in the sets.
                "jobs": [{k: v for k, v in vars(r).items() if k != "notes"} for r in table.results],
            }
        )
    )


def long_table(table: BenchmarkTable) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of a table with one row for each method and data set, measured and published."""
    columns = ["set", "method", "score", "se_rows", "se_runs", "runs", "rank", "mark", "behind_best", "seconds"]
    columns += ["steps", "parameters", "error_bar", "published_error", "source"]
    rows: list[dict[str, Any]] = []
    for entry in table.entries.values():
        source = {"source": "measured here", "error_bar": f"se over test rows; se over {table.runs_in_words}"}
        rows.append(json_safe(_entry(table, entry)) | source)
    for number in _published(table):
        source = {"source": f"{number['source']} ({number['evidence']})", "published_error": number["error"]}
        rows.append(number | source)
    return columns, [[row.get(key) for key in columns] for row in rows]


def _set(table: BenchmarkTable, task: Task) -> dict[str, Any]:
    known, best = table.finished_result(task), table.best(task)
    return {
        "set": table.labels[task],
        "source": task.source,
        "dequantize": task.dequantize,
        "rows": None if known is None else known.rows,
        "features": None if known is None else known.features,
        "runs": table.planned[task],
        "best": None if best is None else best.method.spec,
        "notes": table.data_notes(task),
        "is_published": table.is_published(task),
    }


def _method(table: BenchmarkTable, method: Method) -> dict[str, Any]:
    rank = table.mean_rank(method)
    facts = {"method": method.spec, "label": method.label, "kind": method.kind}
    return facts | {"mean_rank": rank and rank[0], "ranked_on": rank[1] if rank else 0}


def _entry(table: BenchmarkTable, entry: TableEntry) -> dict[str, Any]:
    out: dict[str, Any] = {"set": table.labels[entry.task], "method": entry.method.spec}
    score, behind = entry.score, entry.behind
    out |= {"score": None if score is None else table.suite.sign * score.mean}
    out |= {key: None if score is None else getattr(score, key) for key in ("se_rows", "se_runs", "runs")}
    out |= {"finished": entry.finished, "planned": entry.planned, "failures": entry.failures}
    out |= {"rank": entry.rank, "mark": entry.mark, "behind_best": None if behind is None else behind.mean}
    out |= {f"behind_{key}": None if behind is None else getattr(behind, key) for key in ("se_rows", "se_runs")}
    return out | {key: getattr(entry, key) for key in ("steps", "seconds", "wall_seconds", "parameters")}


def _differences(table: BenchmarkTable) -> list[dict[str, Any]]:
    """The paired difference of every pair of methods on every data set, on the runs that both have."""
    differences = []
    for task in table.tasks:
        for place, first in enumerate(table.methods):
            for second in table.methods[place + 1 :]:
                gap = table.paired(task, first, second)
                if gap is not None:
                    names = {"set": table.labels[task], "first": first.spec, "second": second.spec}
                    differences.append(names | {"better_by": gap.mean, "se_rows": gap.se_rows, "se_runs": gap.se_runs})
    return differences


def _published(table: BenchmarkTable) -> list[dict[str, Any]]:
    return [
        {
            "method": row.method,
            "year": row.year,
            "set": name,
            "score": figure.value,
            "error": figure.error,
            "error_bar": ERROR_BARS[row.error_bar],
            "is_about": figure.is_about,
            "is_doubted": figure.is_doubted,
            "source": row.source,
            "evidence": EVIDENCE[row.evidence],
            "note": row.note,
        }
        for row in table.published
        for name, figure in row.figures.items()
        if Task(name, "off") in table.tasks
    ]
