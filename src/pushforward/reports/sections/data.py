"""What a run's page says of its data: source, parts, columns, and what was done to values that repeat."""

from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import NOTHING, count, plain
from pushforward.reports.page import details, facts, figure, notes, table
from pushforward.runs.record import RunRecord, group, items, number

_OPENED = 16
"""Columns up to which their table is open from the start."""

_NAMED = 6


def data(record: RunRecord) -> Child:
    """The section about the data: where they are from, how they were divided, what their columns are."""
    columns = items(record.schema, "columns")
    if not columns:
        return tag("p", "The fit has not recorded its data yet.", class_="missing")
    parts = group(record.schema, "rows")
    source = record.schema.get("source")
    digest = record.schema.get("sha256")
    told: list[tuple[str, Child]] = [
        ("Source", str(record.config.get("data.source", source))),
        ("Training rows", count(number(parts, "train"))),
        ("Validation rows", count(number(parts, "validation"))),
        ("Test rows", count(number(parts, "test"))),
    ]
    if digest:
        told.append(("SHA-256 of the file", tag("code", f"{str(digest)[:16]}…", title=str(digest))))
    listed = [
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
    head = ("column", "role", "type", "minimum", "maximum", "grid step", "distinct values")
    shown = table("Columns as recorded", head, listed, text_columns=(0, 1, 2), hide_caption=True)
    said = [str(text) for text in record.schema.get("notes") or ()]
    spread = _spread(record)
    said += [spread] if spread else []
    what = f"{len(listed)} columns" if len(listed) > 1 else "1 column"
    opened = details(what, shown, opened=len(listed) <= _OPENED)
    return join([figure(facts(told)), notes([_sentence(text) for text in said]), opened])


def _spread(record: RunRecord) -> str:
    """What was done to values that repeat, which decides what a likelihood means."""
    columns, cells = items(record.schema, "columns"), record.schema.get("cells")
    if not isinstance(cells, list) or len(cells) != len(columns):
        return ""
    names = [str(column.get("name")) for column, cell in zip(columns, cells, strict=True) if cell]
    if not names:
        return ""
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    which = "in every column" if len(names) == len(columns) else f"in {shown}"
    return (
        f"values repeat {which}. Each is spread evenly over its grid step, so that there is a density; "
        "samples are put back on the grid"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else text
