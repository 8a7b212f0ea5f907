"""The section about the data: source, numbers of rows, columns, dequantization."""

from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import NOTHING, count, plain
from pushforward.common.text import listed
from pushforward.datasets.tables.files.local_file import STDIN
from pushforward.reports.page import details, facts, figure, notes, table
from pushforward.runs.record import RunRecord, group, items, number

_MAX_UNFOLDED = 16
"""The table of the columns is unfolded up to this number of columns."""

_MAX_NAMES = 6


def data(record: RunRecord) -> Child:
    """Build the section about the data."""
    columns = items(record.schema, "columns")
    if not columns:
        return tag("p", "The fit has not recorded its data yet.", class_="missing")
    parts = group(record.schema, "rows")
    source = record.schema.get("source")
    digest = record.schema.get("sha256")
    entries: list[tuple[str, Child]] = [
        ("Source", "standard input" if source == STDIN else str(record.config.get("data.source", source))),
        ("Training rows", count(number(parts, "train"))),
        ("Validation rows", count(number(parts, "validation"))),
        ("Test rows", count(number(parts, "test"))),
    ]
    if digest:
        entries.append(("SHA-256 of the file", tag("code", f"{str(digest)[:16]}…", title=str(digest))))
    body = [
        (
            str(column.get("name")),
            "given" if column in items(record.schema, "context") else "modelled",
            str(column.get("type", NOTHING)),
            plain(number(column, "minimum")),
            plain(number(column, "maximum")),
            plain(number(column, "step")) if number(column, "step") else NOTHING,
            count(number(column, "distinct")),
        )
        for column in (*columns, *items(record.schema, "context"))
    ]
    head = ("column", "role", "type", "minimum", "maximum", "bin width", "distinct values")
    shown = table("Columns as recorded", head, body, text_columns=(0, 1, 2), hide_caption=True)
    texts = [str(text) for text in record.schema.get("notes") or ()]
    dequantization = _dequantization(record)
    texts += [dequantization] if dequantization else []
    summary = f"{len(body)} columns" if len(body) > 1 else "1 column"
    unfolded = details(summary, shown, opened=len(body) <= _MAX_UNFOLDED)
    return join([figure(facts(entries)), notes([_sentence(text) for text in texts]), unfolded])


def _dequantization(record: RunRecord) -> str:
    """Describe which columns were dequantized; empty if none was."""
    columns, bin_widths = items(record.schema, "columns"), record.schema.get("bin_widths")
    if not isinstance(bin_widths, list) or len(bin_widths) != len(columns):
        return ""
    names = [str(column.get("name")) for column, width in zip(columns, bin_widths, strict=True) if width]
    if not names:
        return ""
    where = "in every column" if len(names) == len(columns) else f"in {listed(names, _MAX_NAMES)}"
    return (
        f"values repeat {where}. Uniform noise of one bin width was added, so that a density exists (dequantization); "
        "samples are rounded back to recorded values"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else text
