"""The skeleton of a page: one HTML file that needs nothing but itself, where text cannot become markup by accident.

Everything is made with :func:`tag`. Plain text given to it is escaped, whatever is in it; only what is :class:`Html`
already, because another call made it, stays as it is.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pushforward.common.markup import Child, Html, join, tag
from pushforward.reports.style import SCRIPT, STYLE

_WIDE_PIXELS = 700
"""Width from which a picture scrolls on a telephone: smaller its letters could not be read."""


@dataclass(frozen=True)
class Card:
    """One number of the first glance.

    Attributes:
        label: What it is.
        value: The number, as it is read.
        unit: Its unit, empty where it has none.
        detail: A sentence about it.
        verdict: ``good``, ``fair``, ``bad`` or empty, the colour beside it.
        word: The verdict in a word or two: colour alone tells some readers nothing.
    """

    label: str
    value: str
    unit: str = ""
    detail: Child = None
    verdict: str = ""
    word: str = ""


def in_sections(header: Child, parts: Sequence[tuple[str, str, Child, Child]], footer: str) -> Html:
    """The inside of a page: a header, links to its sections, the sections, a footer.

    Args:
        header: What comes first.
        parts: Anchor, heading, content and lead of each section; those without content are left out.
        footer: One line at the end.
    """
    shown = [part for part in parts if part[2]]
    return join(
        [
            header,
            contents([(anchor, heading) for anchor, heading, _, _ in shown]),
            *(section(heading, content, anchor=anchor, lead=lead) for anchor, heading, content, lead in shown),
            tag("footer", tag("p", footer)),
        ]
    )


def document(title: str, body: Child, *, generator: str) -> str:
    """A whole page: nothing is loaded, and the policy in its head lets nothing be loaded.

    Args:
        title: Title of the window.
        body: What is inside ``main``.
        generator: What made the page; :func:`made_by` finds it again.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="generator", content=generator),
            tag("title", title),
            # The style sheet and the script are our own text, and hold nothing of the run.
            tag("style", Html(STYLE)),
        ]
    )
    main = tag("main", body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>'
        f"{head}</head>\n<body>\n{main}\n{tag('script', Html(SCRIPT))}\n</body>\n</html>\n"
    )


def made_by(path: Path, generator: str) -> bool:
    """Tell whether a file is a page of that generator."""
    try:
        with open(path, "rb") as file:
            start = file.read(2_000)
    except OSError:
        return False
    return tag("meta", name="generator", content=generator).encode() in start


def section(heading: str, *children: Child, anchor: str, lead: Child = None) -> Html:
    """A section of the page under a heading of the second level; ``lead`` is the sentence below it."""
    first = tag("p", lead, class_="lead") if lead else None
    return tag(
        "section",
        tag("h2", heading, id=f"{anchor}-title"),
        first,
        *children,
        id=anchor,
        aria_labelledby=f"{anchor}-title",
    )


def contents(entries: Sequence[tuple[str, str]]) -> Html:
    """Links to the sections: anchors and headings."""
    links = (tag("li", tag("a", heading, href=f"#{anchor}")) for anchor, heading in entries)
    return tag("nav", tag("ul", *links), aria_label="Sections")


def cards(items: Sequence[Card]) -> Html:
    """The first glance: numbers in a row, each with its verdict."""
    # A last row with a single card looks like an accident.
    look = "cards by-three" if len(items) in (3, 5, 6, 9) else "cards"
    return tag("div", *(_card(item) for item in items), class_=look)


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    text_columns: Sequence[int] = (0,),
    strong_row: int | None = None,
    group_rows: Sequence[int] = (),
    hide_caption: bool = False,
) -> Html:
    """A table that scrolls by itself where it is too wide; the first cell of each row is its heading.

    Args:
        caption: What it shows.
        head: Headings of the columns.
        rows: Cells, as many in each row as there are headings.
        text_columns: Places of the columns that hold text; the others hold numbers, and stand right.
        strong_row: Place of a row to bring out.
        group_rows: Places of rows that only say what those below them are.
        hide_caption: Keep the caption for those who hear the page, where a heading says the same.
    """

    def kind(place: int) -> str | None:
        return None if place in text_columns else "number"

    top = tag("tr", *(tag("th", text, scope="col", class_=kind(i)) for i, text in enumerate(head)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=kind(0)),
            *(tag("td", cell, class_=kind(i)) for i, cell in enumerate(row[1:], start=1)),
            class_="strong" if number == strong_row else "group" if number in group_rows else None,
        )
        for number, row in enumerate(rows)
    ]
    inside = tag(
        "table",
        tag("caption", tag("span", caption), class_="hidden" if hide_caption else None),
        tag("thead", top),
        tag("tbody", *body),
    )
    return scrolling(inside, caption)


def scrolling(content: Html, name: str) -> Html:
    """Something that may be wider than the page, in a box of its own that can be scrolled with the keyboard too."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=name)


def figure(content: Child, caption: Child = None, *, title: str | None = None, class_: str = "card") -> Html:
    """A figure with a heading of the third level above and a caption below."""
    top = tag("h3", title) if title else None
    return tag("figure", top, content, tag("figcaption", caption) if caption else None, class_=class_)


def picture(path: Path, alt: str) -> Html:
    """A PNG as part of the page, on a light ground in the dark too: that is what it was drawn for.

    Raises:
        OSError: If it cannot be read.
    """
    content = path.read_bytes()
    # Known before it is decoded, the size keeps the page from jumping.
    width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
    data = base64.b64encode(content).decode()
    is_wide = width >= _WIDE_PIXELS
    image = tag(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=alt,
        width=width,
        height=height,
        class_="wide" if is_wide else None,
    )
    box = tag("div", image, class_="raster", tabindex=0, role="group", aria_label="Picture that scrolls sideways")
    # Telephones show no bar, and the picture lies over any shadow.
    return (
        join([box, tag("p", "There is more to the right: scroll the picture.", class_="sideways")]) if is_wide else box
    )


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Names and what they are, as a definition list."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def details(summary: str, *children: Child, opened: bool = False) -> Html:
    """Something to open."""
    return tag("details", tag("summary", summary), *children, open=opened)


def command(text: str) -> Html:
    """A line for the shell, or a few."""
    return tag("pre", tag("code", text), tabindex=0)


def note(text: Child, kind: str = "") -> Html:
    """A sentence that is set apart; ``kind`` is ``good``, ``fair``, ``bad`` or empty."""
    return tag("p", text, class_=f"note {kind}".strip())


def notes(texts: Sequence[Child], kind: str = "") -> Html | None:
    """Sentences that are set apart together, each on a line of its own; None without any."""
    if len(texts) < 2:
        return note(texts[0], kind) if texts else None
    return tag("ul", *(tag("li", text) for text in texts), class_=f"note {kind}".strip())


def listed(texts: Sequence[Child]) -> Html:
    """Sentences as a list."""
    return tag("ul", *(tag("li", text) for text in texts), class_="plain")


def pill(text: str, kind: str = "") -> Html:
    """A word in a rounded box, such as the status of a run."""
    return tag("span", text, class_=f"pill {kind}".strip())


def _card(item: Card) -> Html:
    unit = tag("span", f" {item.unit}", class_="unit") if item.unit else None
    value, plus_minus, error = item.value.partition(" ± ")
    if plus_minus:  # which stay together where the line is too short for all of it
        unit = tag("span", f"± {error}", unit, class_="error-of")
    return tag(
        "div",
        tag("p", item.label, class_="label"),
        tag("p", f"{value} ", unit, class_="value"),
        tag("p", pill(item.word, item.verdict), class_="verdict") if item.word else None,
        tag("p", item.detail, class_="detail") if item.detail else None,
        class_=f"stat {item.verdict}".strip(),
    )
