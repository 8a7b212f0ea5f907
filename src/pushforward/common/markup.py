"""HTML and SVG elements as strings; all text in them is escaped."""

import html
from collections.abc import Iterable

_VOID = {"meta", "img"}  # HTML elements without an end tag
_SHAPES = {"rect", "line", "circle", "polyline", "polygon"}  # SVG elements


class Html(str):
    """Text that is markup, and so is not escaped."""

    __slots__ = ()


Child = str | Html | None


def join(parts: Iterable[Child]) -> Html:
    """Concatenate parts; plain text is escaped, None is skipped."""
    return Html("".join(_escaped(part) for part in parts))


def tag(element: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """Return an element.

    Args:
        element: Name of the element.
        *children: Text and elements inside it.
        **attributes: Attributes by name; ``class_`` becomes ``class``, other underscores become hyphens. None and
            False leave an attribute out, True writes it without a value.

    Example:
        >>> print(tag("a", "R & D", href="#<x>", aria_label="about"))
        <a href="#&lt;x&gt;" aria-label="about">R &amp; D</a>
    """
    out = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = key.rstrip("_").replace("_", "-")
        out.append(written if value is True else f'{written}="{html.escape(str(value), quote=True)}"')
    inside = join(children)
    if element in _VOID:
        return Html(f"<{' '.join(out)}>")
    self_closing = element in _SHAPES and not inside
    return Html(f"<{' '.join(out)}/>" if self_closing else f"<{' '.join(out)}>{inside}</{element}>")


def _escaped(part: Child) -> str:
    if part is None:
        return ""
    return part if isinstance(part, Html) else html.escape(part, quote=True)
