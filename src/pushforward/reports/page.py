"""Elements of the reports, and the page around them: one self-contained HTML file.

Everything is built with :func:`tag`, which escapes plain text; only :class:`Html`, the result of other calls, is
inserted as markup.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pushforward.common.markup import Child, Html, join, tag
from pushforward.reports.style import SCRIPT, STYLE

_WIDE_PIXELS = 700
"""Pictures of at least this width scroll on phones: scaled down, their text would be too small."""


@dataclass(frozen=True)
class Card:
    """A number in the summary at the top of a page.

    Attributes:
        label: Name of the number.
        value: The formatted number.
        unit: Unit, or empty.
        detail: Explanation in a sentence.
        verdict: ``good``, ``fair``, ``bad`` or empty; decides the colour.
        word: The verdict in a word or two, as colour alone is not accessible.
    """

    label: str
    value: str
    unit: str = ""
    detail: Child = None
    verdict: str = ""
    word: str = ""


def in_sections(header: Child, parts: Sequence[tuple[str, str, Child, Child]], footer: str) -> Html:
    """Build the body of a page: header, links to the sections, sections, footer.

    Args:
        header: The header.
        parts: Anchor, heading, content and introduction of each section; sections without content are left out.
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
    """Build a whole page, whose content security policy forbids loading anything.

    Args:
        title: Title of the window.
        body: Content of ``main``.
        generator: Name of the generator, which :func:`made_by` checks.
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
            # Style sheet and script are constants without data of the run.
            tag("style", Html(STYLE)),
        ]
    )
    main = tag("main", body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>'
        f"{head}</head>\n<body>\n{main}\n{tag('script', Html(SCRIPT))}\n</body>\n</html>\n"
    )


def made_by(path: Path, generator: str) -> bool:
    """Return whether a file is a page of that generator."""
    try:
        with open(path, "rb") as file:
            start = file.read(2_000)
    except OSError:
        return False
    return tag("meta", name="generator", content=generator).encode() in start


def section(heading: str, *children: Child, anchor: str, lead: Child = None) -> Html:
    """Build a section with a second-level heading; ``lead`` is its introduction."""
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
    """Build links to the sections from their anchors and headings."""
    links = (tag("li", tag("a", heading, href=f"#{anchor}")) for anchor, heading in entries)
    return tag("nav", tag("ul", *links), aria_label="Sections")


def cards(items: Sequence[Card]) -> Html:
    """Build a row of cards."""
    # Three columns avoid a last row with a single card.
    class_ = "cards by-three" if len(items) in (3, 5, 6, 9) else "cards"
    return tag("div", *(_card(item) for item in items), class_=class_)


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
    """Build a table that scrolls sideways if it is too wide; the first cell of each row is its header.

    Args:
        caption: Caption.
        head: Headers of the columns.
        rows: Cells, as many in each row as there are headers.
        text_columns: Indices of the columns with text; the others hold numbers, aligned right.
        strong_row: Index of a row to emphasise.
        group_rows: Indices of rows that are headings of the rows below.
        hide_caption: Keep the caption for screen readers only, where a heading says the same.
    """

    def kind(column: int) -> str | None:
        return None if column in text_columns else "number"

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
    """Wrap content that may be wider than the page in a box that scrolls, also with the keyboard."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=name)


def figure(content: Child, caption: Child = None, *, title: str | None = None, class_: str = "card") -> Html:
    """Build a figure with a third-level heading and a caption."""
    top = tag("h3", title) if title else None
    return tag("figure", top, content, tag("figcaption", caption) if caption else None, class_=class_)


def picture(path: Path, alt: str) -> Html:
    """Embed a PNG file in the page, always on a light background.

    Raises:
        OSError: If the file cannot be read.
    """
    content = path.read_bytes()
    # The size in the markup keeps the layout stable while the image loads.
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
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
    box = tag("div", image, class_="raster", tabindex=0, role="group", aria_label="Scrollable picture")
    # Phones show no scroll bar, and the picture would cover a shadow.
    return join([box, tag("p", "Scroll the picture to see the rest.", class_="sideways")]) if is_wide else box


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Build a definition list of names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def details(summary: str, *children: Child, opened: bool = False) -> Html:
    """Build content that can be unfolded."""
    return tag("details", tag("summary", summary), *children, open=opened)


def command(text: str) -> Html:
    """Build a block of shell commands."""
    return tag("pre", tag("code", text), tabindex=0)


def note(text: Child, kind: str = "") -> Html:
    """Build a note; ``kind`` is ``good``, ``fair``, ``bad`` or empty."""
    return tag("p", text, class_=f"note {kind}".strip())


def notes(texts: Sequence[Child], kind: str = "") -> Html | None:
    """Build a note of several lines; None without any."""
    if len(texts) < 2:
        return note(texts[0], kind) if texts else None
    return tag("ul", *(tag("li", text) for text in texts), class_=f"note {kind}".strip())


def listed(texts: Sequence[Child]) -> Html:
    """Build a bullet list."""
    return tag("ul", *(tag("li", text) for text in texts), class_="plain")


def pill(text: str, kind: str = "") -> Html:
    """Build a word in a rounded box, such as the status of a run."""
    return tag("span", text, class_=f"pill {kind}".strip())


def _card(item: Card) -> Html:
    unit = tag("span", f" {item.unit}", class_="unit") if item.unit else None
    value, plus_minus, error = item.value.partition(" ± ")
    if plus_minus:  # the error and its unit stay together at a line break
        unit = tag("span", f"± {error}", unit, class_="error-of")
    return tag(
        "div",
        tag("p", item.label, class_="label"),
        tag("p", f"{value} ", unit, class_="value"),
        tag("p", pill(item.word, item.verdict), class_="verdict") if item.word else None,
        tag("p", item.detail, class_="detail") if item.detail else None,
        class_=f"stat {item.verdict}".strip(),
    )
